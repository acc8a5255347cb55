"""Locks: of several jobs at once one gets it, a living one keeps it, one that is gone loses it."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import pytest
from conftest import refused
from toy import write_config

from ipiqa import files
from ipiqa.config.loading import Config, load_config
from ipiqa.errors import ConfigError, IpiqaError
from ipiqa.files import locked
from ipiqa.training.cross_validation import run
from ipiqa.training.run_folder import claimed

FORK = multiprocessing.get_context("fork")


def together(target: Any, *arguments: tuple) -> list[str]:
    """Runs a function in processes that start at once; returns what each has put into the queue."""
    barrier, queue = FORK.Barrier(len(arguments)), FORK.SimpleQueue()
    children = [FORK.Process(target=target, args=(barrier, queue, *each)) for each in arguments]
    for child in children:
        child.start()
    said = [queue.get() for _ in children]
    for child in children:
        child.join(30)
    return said


def claim(barrier: Barrier, queue: Any, config: Config) -> None:
    barrier.wait()
    try:
        with claimed(config, {}, [0], resume=False):
            barrier.wait()  # not before the other one has tried as well
            queue.put("claimed")
    except IpiqaError as error:
        queue.put(str(error))
        barrier.wait()


def test_of_two_jobs_with_different_settings_started_at_once_one_is_refused(tmp_path: Path) -> None:
    plain = load_config(write_config(tmp_path))
    for number in range(25):
        settings = [replace(plain.run, output_dir=f"{tmp_path}/run{number}", seed=seed) for seed in (1, 2)]
        said = sorted(together(claim, *((replace(plain, run=each),) for each in settings)))
        assert said.count("claimed") == 1 and len(said) == 2, said
        assert "already holds a run" in said[0] or "cannot be continued" in said[0], said


def test_a_fold_that_trains_cannot_be_resumed_by_another_job(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path), "run.max_epochs=1")
    run(config, folds=[1])
    (tmp_path / "output/toy/fold_01/scores.json").unlink()
    with locked(tmp_path / "output/toy/.fold_01.lock", advice=""):
        message = refused(lambda: run(config, resume=True))
        assert f"fold_01.lock: held by another job, process {os.getpid()} on" in message and "--folds" in message
        run(config, folds=[0])
    run(config, resume=True)
    assert not list(tmp_path.glob("output/**/.*"))


def hold(barrier: Barrier, queue: Any, path: Path) -> None:
    barrier.wait()
    try:
        with locked(path, advice=""):
            queue.put("held")
            time.sleep(0.5)
    except ConfigError:
        queue.put("refused")


def hold_and_die(path: Path) -> None:
    with locked(path, advice=""):
        os._exit(0)


def test_a_lock_whose_job_is_gone_is_free_for_one(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    for _ in range(5):
        child = FORK.Process(target=hold_and_die, args=(path,))
        child.start()
        child.join()
        assert path.read_text().startswith(f"process {child.pid} on ")
        assert sorted(together(hold, (path,), (path,), (path,))) == ["held", "refused", "refused"]
    with locked(path, advice=""):
        pass
    assert list(tmp_path.iterdir()) == []


def wait_a_while(ended: Event) -> None:
    ended.wait(30)


def test_a_process_that_was_forked_keeps_no_lock(tmp_path: Path) -> None:
    """As a worker that loads images is, which outlives a job that was killed by a moment."""
    path, ended = tmp_path / "a.lock", FORK.Event()
    with locked(path, advice=""):
        child = FORK.Process(target=wait_a_while, args=(ended,))
        child.start()
        assert "held by another job" in refused(locked(path, advice="Ask them.").__enter__)
    with locked(path, advice=""):
        ended.set()
        child.join()


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    barrier, queue = FORK.Barrier(2), FORK.SimpleQueue()
    child = FORK.Process(target=hold, args=(barrier, queue, tmp_path / "a.lock"))
    child.start()
    barrier.wait()
    assert queue.get() == "held"
    with locked(tmp_path / "a.lock", advice="", wait=30):
        child.join()


def test_without_locks_of_the_file_system_a_job_is_warned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    with locked(tmp_path / "a.lock", advice=""):
        assert "no locks; see that no other job works here" in caplog.text
