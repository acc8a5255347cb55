"""ipiqa export FOLDER: the same scores to the bit, and a card that says what is recorded and nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fake_runs import HOSTILE, write_run
from PIL import Image
from test_layout import blocks
from toy import write_config

import ipiqa
from ipiqa import build, cli, registry
from ipiqa.config.loading import load_config
from ipiqa.datasets.table import Target
from ipiqa.demo.database import write_demo_dataset
from ipiqa.errors import ConfigError, DataError
from ipiqa.evaluation.results import load_run
from ipiqa.evaluation.summary import Summary, summarise
from ipiqa.export.folder import export_folder, model_card
from ipiqa.files import write_json
from ipiqa.models.bundle import ModelSpec, Training
from ipiqa.models.weights import OPENAI_RN50_SHA256
from ipiqa.report.tables import number
from ipiqa.training.cross_validation import run

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGES = torch.rand(3, 3, 40, 50, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a red tree", "a blue house", "a cat"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(load_config(write_config(tmp_path_factory.mktemp("toy"))))


def front_matter(card: str) -> dict[str, Any]:
    _, front, _ = card.split("---\n", 2)
    content: dict[str, Any] = yaml.safe_load(front)
    assert card.startswith("---\n")
    return content


def results(card: str) -> dict[tuple[str, str], list[str]]:
    """Returns (target, metric) -> mean, std, interval of the table of results."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in card.splitlines() if line[:2] == "| "]
    return {(row[0], row[1]): row[2:] for row in rows if len(row) == 5 and row[0] in ("quality", "alignment")}


def test_a_run_becomes_a_folder_with_the_same_scores_to_the_bit(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all").mkdir()
    assert cli.main(["export", str(run_dir), "all"]) == 0
    assert "all: 2 models, one per fold" in capsys.readouterr().out
    assert cli.main(["export", str(run_dir), "deep/one", "--fold", "1"]) == 0
    assert cli.main(["export", str(run_dir / "fold_00" / "best.pt"), "best"]) == 0
    assert cli.main(["export", "all", "again"]) == 0
    names = ["README.md", *(f"fold_0{fold}/{name}" for fold in (0, 1) for name in ("config.json", "model.safetensors"))]
    for folder in ("all", "again"):
        assert sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()) == names
    assert {path.name for path in Path("deep/one").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == {"all", "deep", "best", "again"}  # nothing temporary is left
    for folder, source in {
        "all": run_dir, "again": run_dir, "deep/one": run_dir / "fold_01", "best": run_dir / "fold_00",
    }.items():  # fmt: skip
        loaded = ipiqa.load(folder)
        assert np.array_equal(loaded.score_folds(IMAGES, PROMPTS), ipiqa.load(source).score_folds(IMAGES, PROMPTS))
    assert loaded.trained_on.images and loaded.trained_on.quantiles


def test_the_card_has_the_results_of_what_was_exported(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_folder(run_dir, tmp_path / "all")
    card, summary = (tmp_path / "all" / "README.md").read_text(), summarise(load_run(run_dir))
    assert front_matter(card)["metrics"] == list(summary.metrics) and front_matter(card)["library_name"] == "ipiqa"
    for target in ("quality", "alignment"):
        spread = summary.spreads[target, "best", "srcc"]
        shown = [float(number) for number in re.findall(r"-?[\d.]+", " ".join(results(card)[target, "SRCC"]))]
        assert shown == pytest.approx([spread.mean, spread.std, spread.low, spread.high], abs=1e-3)
    assert "2 models, one per fold" in card and "optimistic: the reported images also choose the epoch" in card
    assert "Which database it was is not recorded. It was read as `agiqa_3k`" in card
    assert "**Weights that training began with**: none, random values." in card
    splits = [json.loads((run_dir / f"fold_0{i}" / "scores.json").read_text())["split"]["sha256"] for i in (0, 1)]
    assert all(f"| 2 | 32 | `{split[:16]}` |" in card for split in splits) or all(
        split[:16] in card for split in splits
    )

    monkeypatch.chdir(run_dir / "fold_01")
    export_folder("best.pt", tmp_path / "one")
    one = (tmp_path / "one" / "README.md").read_text()
    value = summary.values["quality", "best", "srcc"][1]
    assert float(results(one)["quality", "SRCC"][0]) == pytest.approx(value, abs=1e-3)
    alone = dataclasses.replace(load_run(run_dir), folds=load_run(run_dir).folds[1:])
    low = number(summarise(alone).spreads["quality", "best", "srcc"].low)
    assert results(one)["quality", "SRCC"][1] == "-" and results(one)["quality", "SRCC"][2].startswith(f"{low} to ")
    assert "Intervals: t over prompts" in one and "missing" not in one and "of fold 1:" in one
    alone = dataclasses.replace(alone, folds=(dataclasses.replace(alone.folds[0], predictions=None),))
    assert "There is no interval" in model_card("x", [spec()], summarise(alone), reads_prompt=True)


def test_weights_that_the_results_do_not_belong_to_have_none(run_dir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_dir, tmp_path / "copy"))
    for what, folder in ((copy / "fold_00" / "last.pt", "last"), (export_of(run_dir, tmp_path), "again")):
        export_folder(what, tmp_path / folder)
        assert "None are recorded beside the weights" in (tmp_path / folder / "README.md").read_text()
    (copy / "fold_01" / "scores.json").unlink()
    export_folder(copy, tmp_path / "part")
    card = (tmp_path / "part" / "README.md").read_text()
    assert "2 models are in this folder; the other 1 have no results." in card and "of fold 0:" in card
    shutil.copy(run_dir / "fold_01" / "best.pt", copy / "fold_00" / "best.pt")
    with pytest.raises(DataError, match=r"best.pt and scores.json of a fold are of different splits"):
        export_folder(copy, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def export_of(run_dir: Path, tmp_path: Path) -> Path:
    export_folder(run_dir, tmp_path / "exported")
    return tmp_path / "exported"


def test_a_place_that_is_taken_stays_as_it_is(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for place in (tmp_path / "full", tmp_path / "full" / "notes.txt"):
        with pytest.raises(ConfigError, match=r"is there already. Remove it, or choose another name"):
            export_folder(run_dir, place)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def spec(dataset: str = "table", table: str = "", **facts: Any) -> ModelSpec:
    encoder = {"name": "clip_resnet", "layers": [1, 1, 1, 1], "width": 4, "embed_dim": 8}
    section = registry.resolve("model", {"name": "image_only", "image_encoder": encoder, "head": "mlp"}, "model")
    training = Training(dataset=dataset, table_sha256=table, **facts)
    processor, targets = registry.resolve("processor", "squash", "processor"), (Target("quality", 0.0, 5.0),)
    return ModelSpec(model=section, image_size=32, processor=processor, targets=targets, training=training)


def fake(tmp_path: Path, identity: dict[str, Any] | None = None, **changes: Any) -> Summary:
    run_dir = write_run(tmp_path / "run", targets=("quality",), **changes)
    if identity is not None:
        write_json(run_dir / "identity.json", {"format": 1, "content": identity})
    return summarise(load_run(run_dir))


def test_the_card_names_weights_by_their_hash_and_guesses_no_licence(tmp_path: Path) -> None:
    begun = {"model.image_encoder.weights": OPENAI_RN50_SHA256, "model.prompt_encoder.weights": "ab" * 32}
    summary = fake(tmp_path, begun | {"run.checkpoint": None}, selection="validation part")
    card = model_card("x", [spec()] * 3, summary, reads_prompt=False)
    assert "OpenAI's RN50.pt, recognised by its hash (`model.image_encoder.weights`). Their licence is not" in card
    assert f"a file of sha256 {'ab' * 32} (`model.prompt_encoder.weights`)" in card and "run.checkpoint" not in card
    assert "optimistic" not in card and "best epoch on a validation part of 10 % of the training groups" in card
    assert front_matter(card)["license"] == "unknown" and "--prompt" not in card
    unknown = model_card("x", [spec(dataset="")], None, reads_prompt=True)
    assert "No training on scores is recorded" in unknown and "--prompt" in unknown
    assert "**Data**: none that is recorded" in unknown and "began with**: not recorded" in unknown


def test_texts_of_others_do_not_become_markup(tmp_path: Path) -> None:
    hostile = f"{HOSTILE}\n# heading `code` | cell"
    one = spec(dataset=hostile, table=hostile, split_sha256=hostile, licence=hostile, versions={hostile: hostile})
    one = dataclasses.replace(one, targets=(Target("quality", None, 1e9, hostile),))
    card = model_card(hostile, [one], None, reads_prompt=True)
    text = re.sub(r"`[^`\n]*`", "", card)
    assert not re.search(r"(?<!\\)<(script|img)", text) and "\n# heading" not in card
    assert front_matter(card)["tags"] == ["image-quality-assessment", "ai-generated-images"]
    assert len([line for line in card.splitlines() if line.startswith("| quality")]) == 1


def known_tables() -> dict[str, str]:
    """Returns sha256 -> name of the databases that the card knows."""
    template = (REPOSITORY / "ipiqa" / "export" / "templates" / "card.md.j2").read_text()
    return dict(re.findall(r'"([0-9a-f]{64})": \("([^"]+)"', template))


@pytest.mark.parametrize(("project", "file", "name"), [
    ("agiqa3k", "agiqa3k/data.csv", "AGIQA-3k"), ("agiqa1k", "agiqa1k/AIGC_MOS_Zscore.xlsx", "AGIQA-1k"),
])  # fmt: skip
def test_the_published_databases_are_recognised(project: str, file: str, name: str, shared: Path) -> None:
    cfg = REPOSITORY / "ipiqa" / "projects" / project / "ipiqa.yaml"
    table = build.make_dataset(load_config(cfg, f"dataset.annotations={shared}/data/{file}")).load()
    assert known_tables()[table.sha256] == name
    card = model_card("x", [spec(table=table.sha256)], None, reads_prompt=True)
    assert f"{name}, recognised by the hash of its table.\n" in card and "synthetic" not in card


@pytest.mark.slow
def test_the_demo_is_called_synthetic(tmp_path: Path) -> None:
    write_demo_dataset(tmp_path, image_size=32)
    cfg = load_config(
        REPOSITORY / "ipiqa/projects/demo/ipiqa.yaml", f"dataset.annotations={tmp_path}/data.csv",
        f"dataset.images={tmp_path}/images",
    )  # fmt: skip
    card = model_card("x", [spec(table=build.make_dataset(cfg).load().sha256)], None, reads_prompt=True)
    assert "**Trained on synthetic images and scores" in card and "synthetic-data" in front_matter(card)["tags"]


@pytest.mark.slow
def test_the_page_does_what_it_says(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[export]'")
    shutil.copytree(run_dir, tmp_path / "output" / "agiqa3k" / "ipiqa")
    Image.fromarray((np.random.default_rng(0).random((90, 70, 3)) * 255).astype(np.uint8)).save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks("docs/share.md", "bash")).splitlines():
        assert cli.main(shlex.split(line)[1:]) == 0, line
    expected = ipiqa.load(run_dir)("cat.png", "a cat")
    for name in ("shared/my-model", "shared/model.onnx"):
        np.testing.assert_allclose(ipiqa.load(name)("cat.png", "a cat"), expected, atol=1e-5)
    capsys.readouterr()
    exec(next(block for block in blocks("docs/share.md", "python") if "InferenceSession" in block), {})
    shown = [float(number) for number in re.findall(r"-?[\d.]+(?:e-?\d+)?", capsys.readouterr().out)]
    np.testing.assert_allclose(shown, expected[0], atol=1e-4)
