"""Commands as processes: stopped by a signal, and started several at once by torchrun."""

from __future__ import annotations

import csv
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

from ipiqa.config import load_config
from ipiqa.cross_validation import run

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
OPTIONS = ["run.max_epochs=40", "run.eval_every=20", "run.save_every=40"]


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def whole(cfg: Path) -> Path:
    """The folder of a run that nobody stopped."""
    return run(load_config(cfg, *OPTIONS, f"run.output_dir={cfg.parent}/whole"), folds=[0])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_is_resumed_to_the_same_scores(
    number: signal.Signals, status: int, cfg: Path, whole: Path, tmp_path: Path
) -> None:
    changes = [*OPTIONS, f"run.output_dir={tmp_path}/stopped"]
    # Shells start background jobs with SIGINT ignored; Python then leaves it so.
    start = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from ipiqa.cli.train import script; sys.exit(script('agiqa_3k'))"
    )
    command = [sys.executable, "-c", start, "--cfg-path", str(cfg), "--folds", "0", *changes]
    child = subprocess.Popen(command, cwd=REPOSITORY, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "stopped/train.log", time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and "images to train on" in log.read_text()):
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(number)
    error = child.communicate(timeout=60)[1]
    assert child.returncode == status, error
    assert error.splitlines()[-1].startswith("ipiqa: stopped ") and "The state is saved; go on with" in error
    assert "Traceback" not in error
    assert (tmp_path / "stopped/fold_00/last.pt").exists()
    assert not (tmp_path / "stopped/fold_00/scores.json").exists()
    run(load_config(cfg, *changes), folds=[0], resume=True)
    for name in ("scores.json", "predictions.csv", "metrics.jsonl", "split.json"):
        assert (tmp_path / "stopped/fold_00" / name).read_text() == (whole / "fold_00" / name).read_text(), name


def torchrun(program: Path, *arguments: str) -> tuple[int, str, str]:
    """Runs a program in two processes and returns (exit status, standard output, standard error)."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(program), *arguments]
    pipe = subprocess.PIPE
    job = subprocess.Popen(command, cwd=REPOSITORY, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)
    try:
        out, err = job.communicate(timeout=90)
    except subprocess.TimeoutExpired:
        job.terminate()  # which the launcher passes on to its processes
        pytest.fail(f"the job hangs: {job.communicate(timeout=60)}")
    return job.returncode, out, err


def table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "fold_00/predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_processes_train_and_score_as_one_scores_their_checkpoint(cfg: Path, tmp_path: Path) -> None:
    command = ["--cfg-path", str(cfg), "--folds", "0", "run.batch_size=4", "run.eval_batch_size=3"]
    status, out, err = torchrun(REPOSITORY / "train_agiqa3k.py", *command, f"run.output_dir={tmp_path}/two")
    assert status == 0, err
    assert out.count("report.html") == 1  # one process speaks
    assert json.loads((tmp_path / "two/environment.json").read_text())["num_processes"] == 2
    scores = json.loads((tmp_path / "two/fold_00/scores.json").read_text())
    assert scores["last"]["epoch"] == 2
    evaluation = [f"run.checkpoint={tmp_path}/two", "run.evaluate=true", f"run.output_dir={tmp_path}/one"]
    one = run(load_config(cfg, *evaluation), folds=[0])
    rows, same_rows = table(one), table(tmp_path / "two")
    assert [row["image"] for row in rows] == [row["image"] for row in same_rows]
    assert len({row["image"] for row in rows}) == len(rows) == 8
    found = json.loads((one / "fold_00/scores.json").read_text())["best"]["metrics"]
    for target in ("quality", "alignment"):
        one_best, two_best = ([float(row[f"best_{target}"]) for row in t] for t in (rows, same_rows))
        assert one_best == pytest.approx(two_best, abs=1e-5) and len(set(one_best)) == 8
        for metric in ("srcc", "plcc", "krcc", "rmse"):
            assert found[target][metric] == pytest.approx(scores["best"]["metrics"][target][metric], abs=1e-5)


def test_the_mistake_of_one_process_ends_the_job_with_its_message(cfg: Path, tmp_path: Path) -> None:
    program = tmp_path / "fails.py"
    program.write_text(
        "import os, sys\n"
        "from ipiqa.cli import main\n"
        "from ipiqa.errors import DataError\n"
        "import ipiqa.fold\n"
        "def fail(*_):\n"
        "    raise DataError('image gen0.png cannot be decoded by process 1')\n"
        "if os.environ['RANK'] == '1':\n"
        "    ipiqa.fold.FoldRun._trainer = fail\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    status, _, err = torchrun(program, "train", "--cfg-path", str(cfg), f"run.output_dir={tmp_path}/failed")
    assert status != 0
    assert err.count("ipiqa: image gen0.png cannot be decoded by process 1\n") == 1, err
    assert not (tmp_path / "failed/fold_00/scores.json").exists()


def test_a_mistake_that_all_processes_make_is_told_once(cfg: Path, tmp_path: Path) -> None:
    status, _, err = torchrun(
        REPOSITORY / "train_agiqa3k.py", "--cfg-path", str(cfg), "dataset.annotations=no.csv", "--num_cv", "1"
    )
    assert status != 0
    assert err.count("ipiqa: dataset.annotations: 'no.csv' does not exist.") == 1, err
