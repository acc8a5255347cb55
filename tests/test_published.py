"""The published commands on tables of the published names, with stand-in images, scores and weights."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
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
            "--cfg-path", str(REPOSITORY / cfg), "--num_cv", "2", annotations, f"dataset.images={folder}/images",
            f"dataset.cache_dir={folder}/cache", f"model.image_encoder.weights={tiny_rn50}", "image_size=32",
            "run.max_epochs=1", "run.num_workers=0", f"run.output_dir={folder}/output",
        ]  # fmt: skip
    return out


def output_dir(arguments: list[str]) -> Path:
    return Path(arguments[-1].partition("=")[2])


@pytest.mark.parametrize("number", DATABASES)
def test_two_folds_of_one_epoch_on_a_table_of_the_published_size(
    number: int, arguments: dict[int, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(f"agiqa_{number}k", arguments[number]) == 0
    printed = capsys.readouterr()
    assert "SRCC" in printed.out and "report.html" in printed.out
    run_dir = output_dir(arguments[number])
    for fold, expected in enumerate(reference_splits(DATABASES[number])[:2]):
        split = json.loads((run_dir / f"fold_{fold:02d}" / "split.json").read_text())
        assert names_sha256(split["val"]) == expected
        assert (run_dir / f"fold_{fold:02d}" / "scores.json").is_file()


def test_two_processes_train_and_score_a_checkpoint_as_one_does(
    arguments: dict[int, list[str]], tmp_path: Path
) -> None:
    base = [a for a in arguments[3] if not a.startswith("run.output_dir")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def launch(processes: int, *more: str) -> str:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [*(launcher if processes > 1 else [sys.executable]), "train_agiqa3k.py", *base, *more]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    trained = f"run.output_dir={tmp_path}/trained"
    printed = launch(2, trained, "run.batch_size=16", "--folds", "0")
    assert len(re.findall(r"report\.html", printed)) == 1  # one process speaks
    predictions, scores = [], []
    for processes in (1, 2):
        folder = tmp_path / f"evaluated_{processes}"
        launch(
            processes,
            "run.evaluate=true",
            f"run.checkpoint={tmp_path}/trained",
            f"run.output_dir={folder}",
            "--folds",
            "0",
        )
        rows = (folder / "fold_00" / "predictions.csv").read_text().splitlines()
        predictions.append(rows)
        scores.append(json.loads((folder / "fold_00" / "scores.json").read_text())["best"]["metrics"])
    assert len(predictions[0]) == len(predictions[1]) == 1 + len(set(predictions[0])) - 1
    for one, two in zip(predictions[0][1:], predictions[1][1:], strict=True):
        assert one.split(",")[0] == two.split(",")[0]
        assert [float(v) for v in one.split(",")[-2:]] == pytest.approx(
            [float(v) for v in two.split(",")[-2:]], abs=1e-5
        )
    for target in ("quality", "alignment"):
        for metric in ("srcc", "plcc", "krcc", "rmse"):
            assert scores[0][target][metric] == pytest.approx(scores[1][target][metric], abs=1e-5)
