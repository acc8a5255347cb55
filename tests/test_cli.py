"""The command line: exit statuses, one line for a user's mistake, and runs stopped by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from toy import write_config

from ipiqa.cli import main
from ipiqa.cli.train import parse_folds, script
from ipiqa.errors import ConfigError


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0 and "Traceback" not in error
    return error


def test_train_and_report_and_compare(cfg: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = f"run.output_dir={tmp_path}/again"
    assert main(["train", "--cfg-path", str(cfg), "run.max_epochs=1"]) == 0
    printed = capsys.readouterr().out
    assert "alignment" in printed and "± std" in printed and "report.html" in printed
    arguments = ["train", "--cfg-path", str(cfg), "--seed", "3", "--options", "run.max_epochs=1", again]
    assert main(arguments) == 0
    assert main(["report", f"{tmp_path}/output/toy", f"{tmp_path}/again"]) == 0
    assert "p NB" in capsys.readouterr().out
    assert (tmp_path / "again" / "report.html").is_file()
    assert "seed: 3" in (tmp_path / "again" / "config.yaml").read_text()


def test_num_cv_and_folds(cfg: Path, tmp_path: Path) -> None:
    assert main(["train", "--cfg-path", str(cfg), "--num_cv", "3", "--folds", "2", "run.max_epochs=1"]) == 0
    assert [p.name for p in (tmp_path / "output/toy").glob("fold_*")] == ["fold_02"]
    assert "1 of 3" in (tmp_path / "output/toy/summary.md").read_text()


@pytest.mark.parametrize("text", ["a", "0;1", ""])
def test_folds_that_are_no_list(text: str) -> None:
    with pytest.raises(ConfigError, match="is no list of folds"):
        parse_folds(text)
    assert parse_folds("0,3") == [0, 3] and parse_folds(None) is None


def test_missing_data_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = str(REPOSITORY / "ipiqa/projects/agiqa3k/ipiqa.yaml")
    assert script("agiqa_3k", ["--cfg-path", cfg, "--num_cv", "10"]) == 2
    line = one_line(capsys)
    assert "'cache/data/aigc_qa_3k/data.csv' does not exist" in line and "https://github.com/" in line
    assert not (tmp_path / "output").exists()


def test_a_script_refuses_the_other_database(cfg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("agiqa_1k", ["--cfg-path", str(cfg)]) == 2
    assert "Start it with train_agiqa3k.py" in one_line(capsys)


def test_data_check_lists_what_is_wrong(cfg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "--cfg-path", str(cfg)]) == 0
    assert "40 rows, 40 images, 10 prompts, 10 groups: all usable" in capsys.readouterr().out
    image = sorted((cfg.parent / "images").iterdir())[5]
    image.write_bytes(image.read_bytes()[:-200])
    assert main(["data", "check", "--cfg-path", str(cfg)]) == 2
    found = capsys.readouterr()
    assert image.name in found.out and "Traceback" not in found.err
    image.unlink()
    assert main(["data", "check", "--cfg-path", str(cfg)]) == 2
    assert f"missing: {image.name}" in capsys.readouterr().out


@pytest.mark.parametrize("fold", [0, 2])
def test_data_split_writes_the_reference_split(fold: int, shared: Path, tmp_path: Path) -> None:
    cfg = str(REPOSITORY / "ipiqa/projects/agiqa3k/ipiqa.yaml")
    table = f"dataset.annotations={shared}/data/agiqa3k/data.csv"
    out = tmp_path / "split.json"
    assert main(["data", "split", "--cfg-path", cfg, "--fold", str(fold), "--out", str(out), table]) == 0
    split = json.loads(out.read_text())
    reference = json.loads((shared / "reference/splits_agiqa3k.json").read_text())
    assert split["val"] == reference["val"][fold]
    assert split["kind"] == "reference" and split["seed"] == 42 and len(split["sha256"]) == 64
    assert len(split["train"]) + len(split["val"]) == 2982


def test_config_show_env_and_convert(
    cfg: Path, tiny_rn50: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show", "--cfg-path", str(cfg), "run.seed=9"]) == 0
    assert "seed: 9" in capsys.readouterr().out
    assert main(["config", "show", "--cfg-path", str(cfg), "run.sed=9"]) == 2
    assert "Did you mean 'seed'?" in one_line(capsys)
    assert main(["env"]) == 0
    assert "torch: " in capsys.readouterr().out
    assert main(["convert-clip", str(tiny_rn50), str(tmp_path / "clip.safetensors")]) == 0
    assert main(["convert-clip", str(tmp_path / "none.pt"), str(tmp_path / "clip.safetensors")]) == 2


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_resume_gives_the_same_scores(
    number: signal.Signals, status: int, cfg: Path, tmp_path: Path
) -> None:
    options = ["--cfg-path", str(cfg), "--folds", "0", "run.max_epochs=40", "run.eval_every=40", "run.save_every=40"]
    stopped = ["train", *options, f"run.output_dir={tmp_path}/stopped"]
    # Shells start background jobs with SIGINT ignored; Python then leaves it so.
    start = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"from ipiqa.cli import main; sys.exit(main({stopped!r}))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", start], cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True
    )
    log, deadline = tmp_path / "stopped" / "train.log", time.monotonic() + 120
    while time.monotonic() < deadline and not (log.exists() and "images to train on" in log.read_text()):
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(number)
    error = child.communicate(timeout=60)[1]
    assert child.returncode == status, error
    assert "The state is saved" in error and "Traceback" not in error
    assert not (tmp_path / "stopped/fold_00/scores.json").exists()
    assert main([*stopped, "--resume"]) == 0
    assert main(["train", *options, f"run.output_dir={tmp_path}/whole"]) == 0
    for name in ("scores.json", "predictions.csv", "metrics.jsonl"):
        assert (tmp_path / "stopped/fold_00" / name).read_text() == (tmp_path / "whole/fold_00" / name).read_text()
