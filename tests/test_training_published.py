"""The published commands on tables of the published names, with stand-in images, scores and weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image
from reference.tables import names_sha256, reference_splits, write_table

from ipiqa.build import make_dataset
from ipiqa.cli.train import script
from ipiqa.config.loading import load_config

DATABASES = {1: "agiqa1k", 3: "agiqa3k"}


@pytest.fixture(scope="module")
def arguments(tiny_rn50: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """Command-line arguments of both published configs, pointing at generated images and tiny weights."""
    out = {}
    for number, name in DATABASES.items():
        folder = tmp_path_factory.mktemp(name)
        cfg = f"ipiqa/projects/{name}/ipiqa_224.yaml"
        annotations = f"dataset.annotations={write_table(folder, name)}"
        names = set(make_dataset(load_config(REPOSITORY / cfg, annotations)).load().names)
        generator = np.random.default_rng(0)
        (folder / "images").mkdir()
        for image in sorted(names):
            pixels = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(folder / "images" / image)
        out[number] = [
            "--cfg-path", str(REPOSITORY / cfg), "--num_cv", "2", "--folds", "1", annotations,
            f"dataset.images={folder}/images",
            f"dataset.cache_dir={folder}/cache", f"model.image_encoder.weights={tiny_rn50}", "image_size=32",
            "run.max_epochs=1", "run.num_workers=0", f"run.output_dir={folder}/output",
        ]  # fmt: skip
    return out


def output_dir(arguments: list[str]) -> Path:
    return Path(arguments[-1].partition("=")[2])


@pytest.mark.parametrize("number", DATABASES)
def test_one_epoch_on_a_table_of_the_published_size(
    number: int, arguments: dict[int, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(f"agiqa_{number}k", arguments[number]) == 0
    printed = capsys.readouterr()
    assert "SRCC" in printed.out and "report.html" in printed.out
    run_dir = output_dir(arguments[number])
    split = json.loads((run_dir / "fold_01/split.json").read_text())
    assert names_sha256(split["val"]) == reference_splits(DATABASES[number])[1]
    assert (run_dir / "fold_01/scores.json").is_file()
