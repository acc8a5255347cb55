"""Tables of pairs of images of one prompt, and batches of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import error_of, refused
from PIL import Image
from red_pairs import write_pairs

from ipiqa.config.loading import load_config
from ipiqa.datasets.loaders import Loading, train_loader
from ipiqa.datasets.preferences import Preferences
from ipiqa.datasets.splits import make_split
from ipiqa.processors.image import SquashProcessor

TABLE = """\
image_a,image_b,prompt,preferred
1.png,0.png,a fox,a
./0.png,2.png,a fox, B
2.png,1.png,a fox,0
3.png,4.png,a hen,1
4.png,3.png,a hen,Tie
"""


def dataset(folder: Path, text: str = TABLE, name: str = "pairs.csv", **settings) -> Preferences:
    (folder / name).write_text(text)
    return Preferences(annotations=str(folder / name), images=str(folder), cache_dir=str(folder / "cache"), **settings)


def test_rows_are_the_distinct_images_and_pairs_point_at_them(tmp_path: Path) -> None:
    table = dataset(tmp_path).load()
    assert table.names == ("1.png", "0.png", "2.png", "3.png", "4.png")
    assert table.prompts == table.groups == ("a fox",) * 3 + ("a hen",) * 2
    assert table.target_names == ("preference",) and np.isnan(table.scores).all() and table.scores.shape == (5, 1)
    assert table.comparisons is not None
    assert table.comparisons.rows.tolist() == [[0, 1], [1, 2], [2, 0], [3, 4], [4, 3]]
    assert table.comparisons.words == ("a", "b", "a", "b", "tie")
    assert table.comparisons.within(np.array([0, 2, 3, 4])).tolist() == [2, 3, 4]
    other = dataset(tmp_path, TABLE.replace("Tie", "a"), "other.csv").load()
    assert other.sha256 != table.sha256, "a choice is content"


def test_words_of_ones_own_and_tables_of_winners(tmp_path: Path) -> None:
    lines = [{"left": "x.png", "right": "y.png", "text": "a", "label_0": share} for share in (1, 0, 0.5)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    columns = {"image_a": "left", "image_b": "right", "prompt": "text", "preferred": "label_0"}
    own = dataset(tmp_path, text, "p.jsonl", **columns, choices={"1": "a", "0": "b", "0.5": "tie"}).load()
    assert own.comparisons is not None and own.comparisons.chosen.tolist() == [1, 0, 0.5]
    winners = dataset(
        tmp_path, "image_a,image_b,prompt\nx.png,y.png,a\nz.png,x.png,a\n", "w.csv", preferred=None
    ).load()
    assert winners.comparisons is not None and winners.comparisons.chosen.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        (TABLE.replace("Tie", "left"), "1 of 5 rows have a choice in column 'preferred' that is none of a, b, tie, 0"),
        (TABLE.replace("Tie", "left"), "'left' (line 6). Correct them, or say in dataset.choices what they mean."),
        (TABLE.replace("Tie", ""), "is none of a, b, tie, 0, 1, first '' (line 6)"),
        (TABLE.replace("4.png,3.png", "4.png,./4.png"), "rows compare an image with itself, first '4.png' (line 6)"),
        (TABLE.replace("4.png,3.png", "4.png,../3.png"), "name an image outside the image folder, first '../3.png'"),
        (TABLE.replace("4.png,3.png,a hen", "4.png,3.png,a cow"), "name an image again with another prompt or group"),
        (TABLE.replace("4.png,3.png,a hen", "4.png,3.png,"), "have no prompt of 1 to 20,000 UTF-8 characters"),
        (TABLE.replace("4.png,3.png", "4.png,"), "have no image name of 1 to 1,000 UTF-8 characters"),
        (TABLE.replace("preferred", "choice"), "'preferred'"),
    ],
)  # fmt: skip
def test_a_bad_table_is_one_line(text: str, fragment: str, tmp_path: Path) -> None:
    message = error_of(dataset(tmp_path, text).load)
    assert message.startswith(f"dataset.annotations: '{tmp_path / 'pairs.csv'}'") and fragment in message


def test_bad_choices(tmp_path: Path) -> None:
    message = refused(lambda: dataset(tmp_path, choices={"left": "A"}))
    assert message == "dataset.choices: 'A' is not a, b or tie. Write {left: a, same: tie}."


def test_data_check_counts_choices(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    findings = dataset(tmp_path).check(SquashProcessor(8))
    assert findings.summary[0] == "5 rows, 5 images, 2 prompts, 2 groups: all usable"
    assert findings.summary[-1] == "  5 pairs, 4 different: a chosen in 2, b in 2, ties 1"
    assert not any("MOS" in line for line in findings.summary)


def test_no_split_parts_a_pair(tmp_path: Path) -> None:
    table = dataset(tmp_path).load()
    assert table.comparisons is not None
    split = make_split(table, kind="kfold", seed=0, fold=0, num_folds=2)
    kept = [table.comparisons.within(rows).tolist() for rows in (split.train, split.val)]
    assert sorted(kept) == [[0, 1, 2], [3, 4]]
    message = refused(lambda: make_split(table, kind="image_random", seed=0, fold=0, num_folds=2))
    assert message == "split.kind: 'image_random' would part the images of pairs. Use holdout or kfold."


def test_a_batch_has_each_image_once_and_processes_share_its_pairs(tmp_path: Path) -> None:
    config = load_config(write_pairs(tmp_path))
    source = Preferences(annotations=config.dataset["annotations"], images=config.dataset["images"], image_cache=False)
    processor, table = SquashProcessor(8), source.load()
    images, tokens = source.open_images(table, source.image_hashes(table), processor), torch.arange(len(table))[:, None]
    assert table.comparisons is not None

    def first_batch(size: int, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
        given = {"batch_size": size, "rank": rank, "world_size": world_size}
        loading = Loading(eval_batch_size=8, seed=0, num_workers=0, **given)
        rows = np.arange(len(table))
        loader = train_loader(table, images, tokens, rows, loading, fold=0, compares=True)
        assert len(loader) == 72 // (size * world_size)
        loader.set_epoch(0)
        return next(iter(loader))

    def content(batch: dict[str, torch.Tensor]) -> list[tuple[int, int, float]]:
        pairs = batch["rows"][batch["pairs"]]
        return [(*pair, chosen) for pair, chosen in zip(pairs.tolist(), batch["chosen"].tolist(), strict=True)]

    whole = first_batch(12)
    assert len(set(whole["rows"].tolist())) == len(whole["rows"]) == len(whole["images"]) < 24
    assert torch.equal(whole["rows"], whole["tokens"][:, 0])
    given = zip(table.comparisons.rows.tolist(), table.comparisons.chosen.tolist(), strict=True)
    known = {(*pair, chosen) for pair, chosen in given}
    assert set(content(whole)) <= known and len(content(whole)) == 12
    assert [pair for rank in (0, 1) for pair in content(first_batch(6, rank, 2))] == content(whole)
