"""A table of somebody's scores: which row is an image's, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ipiqa
from ipiqa import cli
from ipiqa.errors import DataError
from ipiqa.scorers.table import ScoreTable, read_scores

TEXT = """\
image,prompt,brisque,note,empty,maniqa
dalle/p1.png,A  Red car,25.5,good,,0.5
/data/sd/p1.png,a dog,-8,,,0.25
sd\\p2.png,a cat,1e3,,,inf
lone.png,,7,,,0.125
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "some scores.csv"
    file.write_text(TEXT)
    return file


@pytest.fixture
def table(path: Path) -> ScoreTable:
    return read_scores(scores=str(path))


def test_columns_of_numbers_are_scores(table: ScoreTable) -> None:
    assert table.columns == ("brisque", "maniqa")
    assert np.array_equal(table.scores[:, 0], [25.5, -8, 1000, 7]) and np.isnan(table.scores[2, 1])


@pytest.mark.parametrize(
    ("image", "row"),
    [
        ("dalle/p1.png", 0), ("./dalle/p1.png", 0), ("/elsewhere/images/dalle/p1.png", 0), ("sd/p1.png", 1),
        ("/data/sd/p1.png", 1), ("/other/sd/p1.png", -1), ("sd/p2.png", 2), ("x/y/lone.png", 3),
        ("p1.png", -1), ("midjourney/p1.png", -1), ("p3.png", -1), ("xlone.png", -1), ("", -1),
    ],
)  # fmt: skip
def test_an_image_is_found_by_the_end_of_its_path(table: ScoreTable, image: str, row: int) -> None:
    assert table.find([image]) == [row]


def test_the_row_that_shares_most_counts_and_two_alike_do_not(tmp_path: Path) -> None:
    file = tmp_path / "s.csv"
    file.write_text("image,s\np.png,1\na/p.png,2\nx/a/p.png,3\nb/q.png,3\nb/q.png,3\n")
    table = read_scores(scores=str(file))
    assert table.find(["a/p.png", "c/p.png", "b/q.png"]) == [1, 0, -1]


def test_as_a_scorer_by_name(path: Path) -> None:
    scorer = ipiqa.load(f"table scores={path} column=brisque")
    assert [target.name for target in scorer.targets] == ["brisque"] and not scorer.needs_prompt
    assert scorer.score(["sd/p1.png", path.parent / "lone.png"]).tolist() == [[-8], [7]]
    assert scorer.score("dalle/p1.png", "a red CAR").tolist() == [[25.5]]
    with pytest.raises(DataError, match=r"Tensor is not in '.*some scores.csv'. Give paths."):
        scorer.score(torch.zeros(1, 3, 4, 4))
    assert len(ipiqa.load(f"table scores={path}").targets) == 2


@pytest.mark.parametrize(
    ("images", "prompts", "problem"),
    [
        (["lone.png", "p3.png", "p4.png"], "", "2 of 3 images, the first of them 'p3.png', has no row of its own"),
        (["a/lone.png", "b/lone.png"], "", "2 of 2 images, the first of them 'a/lone.png', has a row that stands for"),
        (
            ["lone.png", "sd/p1.png"],
            "a horse",
            "1 of 2 images, the first of them 'sd/p1.png', has another prompt there",
        ),
        (["dalle/p1.png", "sd/p2.png"], "", "1 of 2 images, the first of them 'sd/p2.png', lacks a finite score"),
    ],
)
def test_what_is_not_clear_is_refused(table: ScoreTable, images: list[str], prompts: str, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        table.of(images, [prompts] * len(images))
    assert problem in str(caught.value)


def test_the_same_image_twice_is_no_mistake(table: ScoreTable) -> None:
    narrow = ScoreTable(table.path, table.names, table.prompts, ("brisque",), table.scores[:, :1])
    assert narrow.of(["lone.png", "lone.png"], ["", ""]).tolist() == [[7], [7]]


def test_a_column_that_is_not_there(path: Path) -> None:
    with pytest.raises(DataError, match="no column of numbers brisk. Did you mean 'brisque'"):
        read_scores(scores=str(path), column="brisk")
    with pytest.raises(DataError, match="no column of numbers note"):
        read_scores(scores=str(path), column="note")


def test_a_table_scores_for_the_command(path: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.csv").write_text("image,note\ndalle/p1.png,a\nnobody.png,b\nlone.png,c\n")
    out = tmp_path / "out.csv"
    assert (
        cli.main(["score", f"table scores={path} column=brisque", str(tmp_path / "asked.csv"), "--out", str(out)]) == 3
    )
    lines = out.read_text().splitlines()
    assert lines[0] == "image,prompt,note,brisque,error" and lines[1] == "dalle/p1.png,,a,25.5,"
    assert lines[2].startswith('nobody.png,,b,,"scores: ') and lines[3] == "lone.png,,c,7.0,"
