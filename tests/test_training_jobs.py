"""Commands as processes: stopped by a signal, and started several at once by torchrun."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from processes import run_together
from toy import write_config

from ipiqa.cli.train import script
from ipiqa.config.loading import load_config
from ipiqa.engine.trainer import Evaluation
from ipiqa.training.cross_validation import FoldRun, run

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


def torchrun(program: Path, *arguments: str, processes: int = 2, restarts: int = 0) -> tuple[int, str, str]:
    """Runs a program in some processes and returns (exit status, standard output, standard error)."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [*launcher, "--max-restarts", str(restarts), str(program), *arguments]
    pipe = subprocess.PIPE
    job = subprocess.Popen(command, cwd=REPOSITORY, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)
    try:
        out, err = job.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        job.terminate()  # which the launcher passes on to its processes
        pytest.fail(f"the job hangs: {job.communicate(timeout=60)}")
    return job.returncode, out, err


def train(words: list[str], folder: str) -> None:
    """Trains in one of several processes; what it says goes into a file."""
    with (
        Path(folder, f"rank_{os.environ['RANK']}.txt").open("w") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        status = script("agiqa_3k", words)
    sys.exit(status)


def train_and_tell(words: list[str], folder: str) -> None:
    """Trains and says the metrics this process has."""
    evaluate = FoldRun._evaluate

    def evaluate_and_tell(self: FoldRun, model: torch.nn.Module) -> Evaluation:
        found = evaluate(self, model)
        sys.stdout.write(f"metrics: {found.metrics}\n")
        return found

    FoldRun._evaluate = evaluate_and_tell  # type: ignore[method-assign]
    train(words, folder)


def train_with_other_rates(words: list[str], folder: str) -> None:
    """Trains with a learning rate that each process has for itself."""
    train([*words, f"run.learning_rate={['1e-3', '1e-2'][int(os.environ['RANK'])]}"], folder)


def together(
    folder: Path, processes: int, function: Callable[[list[str], str], None], words: list[str]
) -> tuple[list[int | None], str]:
    """Calls one of the functions above in several processes; returns their exit statuses and all they said."""
    statuses = run_together(processes, function, words, str(folder))
    return statuses, "".join(path.read_text() for path in sorted(folder.glob("rank_*.txt")))


def table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "fold_00/predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scores(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "fold_00/scores.json").read_text())


SMALL_BATCHES = ["--folds", "0", "run.batch_size=4", "run.eval_batch_size=3"]


@pytest.fixture(scope="module")
def two(cfg: Path) -> Path:
    """The folder of a run in two processes."""
    folder = cfg.parent / "two"
    command = ["--cfg-path", str(cfg), *SMALL_BATCHES, f"run.output_dir={folder}"]
    statuses, said = together(folder.parent, 2, train, command)
    assert statuses == [0, 0], said
    assert said.count("Report: ") == 1  # one process speaks
    assert json.loads((folder / "environment.json").read_text())["num_processes"] == 2
    assert scores(folder)["last"]["epoch"] == 2
    return folder


@pytest.mark.parametrize("processes", [1, 4])
def test_any_number_of_processes_scores_a_checkpoint_alike(
    processes: int, cfg: Path, two: Path, tmp_path: Path
) -> None:
    evaluation = [f"run.checkpoint={two}", "run.evaluate=true", f"run.output_dir={tmp_path}/again"]
    if processes == 1:
        run(load_config(cfg, *evaluation), folds=[0])
    else:
        command = ["--cfg-path", str(cfg), *SMALL_BATCHES, *evaluation]
        statuses, said = together(tmp_path, processes, train_and_tell, command)
        assert statuses == [0] * processes, said
        told = [line for line in said.splitlines() if line.startswith("metrics: ")]
        assert len(told) == processes and len(set(told)) == 1  # each rank has the same metrics
    rows, same_rows = table(tmp_path / "again"), table(two)
    assert [row["image"] for row in rows] == [row["image"] for row in same_rows]
    assert len({row["image"] for row in rows}) == len(rows) == 8
    found, wanted = (scores(folder)["best"]["metrics"] for folder in (tmp_path / "again", two))
    for target in ("quality", "alignment"):
        again, before = ([float(row[f"best_{target}"]) for row in t] for t in (rows, same_rows))
        assert again == pytest.approx(before, abs=1e-5) and len(set(again)) == 8
        for metric in ("srcc", "plcc", "krcc", "rmse"):
            assert found[target][metric] == pytest.approx(wanted[target][metric], abs=1e-5)


def test_a_job_that_torchrun_restarts_goes_on_from_its_checkpoint(cfg: Path, two: Path, tmp_path: Path) -> None:
    program = tmp_path / "fails_once.py"
    program.write_text(
        "import os, pathlib, sys\n"
        "import ipiqa.build\n"
        "from ipiqa.cli.train import script\n"
        "trainer = ipiqa.build.make_trainer\n"
        "def make(*parts, **settings):\n"
        "    made = trainer(*parts, **settings)\n"
        "    compute_loss = made.compute_loss\n"
        "    def fail(module, batch, epoch):\n"
        "        first_life = os.environ['TORCHELASTIC_RESTART_COUNT'] == '0'\n"
        "        if epoch == 1 and first_life and os.environ['RANK'] == '1':\n"
        "            os.kill(os.getpid(), 9)\n"
        f"        pathlib.Path({str(tmp_path)!r}, f'epoch_{{epoch}}').open('a').write('x')\n"
        "        return compute_loss(module, batch, epoch)\n"
        "    made.compute_loss = fail\n"
        "    return made\n"
        "ipiqa.build.make_trainer = make\n"
        "sys.exit(script('agiqa_3k'))\n"
    )
    command = ["--cfg-path", str(cfg), *SMALL_BATCHES, f"run.output_dir={tmp_path}/restarted"]
    status, _, err = torchrun(program, *command, restarts=1)
    assert status == 0, err
    assert len((tmp_path / "epoch_0").read_text()) == 8  # four steps of two processes: once, not again
    for name in ("scores.json", "predictions.csv", "metrics.jsonl"):
        assert (tmp_path / "restarted/fold_00" / name).read_text() == (two / "fold_00" / name).read_text(), name


def test_processes_with_other_settings_are_refused_before_anything_is_made(cfg: Path, tmp_path: Path) -> None:
    command = ["--cfg-path", str(cfg), f"run.output_dir={tmp_path}/differ"]
    statuses, said = together(tmp_path, 2, train_with_other_rates, command)
    assert statuses == [2, 2]
    assert "ipiqa: processes 0 and 1 differ: run.learning_rate is 0.001 and 0.01. Start all" in said, said
    assert not (tmp_path / "differ").exists()


def test_sigterm_ends_an_evaluation_between_two_batches(cfg: Path, whole: Path, tmp_path: Path) -> None:
    program = tmp_path / "evaluates.py"
    program.write_text(
        "import os, signal, sys\n"
        "import ipiqa.training.cross_validation as fold\n"
        "from ipiqa.cli.train import script\n"
        "class Terminated(fold.Inputs):\n"
        "    def __call__(self, batch, epoch=None):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return super().__call__(batch, epoch)\n"
        "fold.Inputs = Terminated\n"
        "sys.exit(script('agiqa_3k'))\n"
    )
    changes = ["run.evaluate=true", f"run.checkpoint={whole}", "run.eval_batch_size=4"]
    command = ["--cfg-path", str(cfg), "--folds", "0", *changes, f"run.output_dir={tmp_path}/evaluated"]
    job = subprocess.run(
        [sys.executable, str(program), *command], cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert job.returncode == 143, job.stderr
    assert "ipiqa: stopped in fold 0 evaluation" in job.stderr and "Traceback" not in job.stderr
    assert [path.name for path in (tmp_path / "evaluated/fold_00").iterdir()] == ["split.json"]
    run(load_config(cfg, *changes, f"run.output_dir={tmp_path}/evaluated"), folds=[0], resume=True)
    assert scores(tmp_path / "evaluated")["best"]["metrics"] == scores(whole)["best"]["metrics"]


def test_the_mistake_of_one_process_ends_the_job_with_its_message(cfg: Path, tmp_path: Path) -> None:
    program = tmp_path / "fails.py"
    program.write_text(
        "import os, sys\n"
        "from ipiqa.cli import main\n"
        "from ipiqa.errors import DataError\n"
        "import ipiqa.build\n"
        "def fail(*_, **__):\n"
        "    raise DataError('image gen0.png cannot be decoded by process 1')\n"
        "if os.environ['RANK'] == '1':\n"
        "    ipiqa.build.make_trainer = fail\n"
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
