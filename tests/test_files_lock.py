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


@pytest.mark.parametrize("others", [False, True])
def test_a_lock_whose_job_is_gone_is_taken_over_by_one(
    others: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(files, "STALE_AFTER", 0.3)
    monkeypatch.setattr(files, "HEARTBEAT", 0.05)
    path = tmp_path / "a.lock"
    child = FORK.Process(target=hold_and_die, args=(path,))
    child.start()
    child.join()
    if others:  # written on another machine
        path.write_text("\n".join(["process 5 on node7", "elsewhere", *path.read_text().split("\n")[2:]]))
    left = path.read_text()
    for _ in range(5):
        path.write_text(left)
        assert sorted(together(hold, (path,), (path,), (path,))) == ["held", "refused", "refused"]
    path.write_text(left)
    with locked(path, advice=""):
        assert "taken over from a job that has ended, process" in caplog.text
    path.write_text("")  # of a job killed while it wrote
    with locked(path, advice=""):
        pass
    assert list(tmp_path.iterdir()) == []


def touch(path: Path, ended: Event) -> None:
    while not ended.wait(0.05):
        os.utime(path)


def test_a_lock_that_is_touched_from_elsewhere_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "STALE_AFTER", 1.0)
    path, ended = tmp_path / "a.lock", FORK.Event()
    path.write_text("process 5 on node7 since noon\nelsewhere\n5\n1\nid")
    child = FORK.Process(target=touch, args=(path, ended))
    child.start()
    assert "process 5 on node7 since noon. Ask them." in refused(locked(path, advice="Ask them.").__enter__)
    ended.set()
    child.join()


def test_without_hard_links_there_are_locks_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError))
    with locked(tmp_path / "a.lock", advice=""):
        assert "held by another job" in refused(locked(tmp_path / "a.lock", advice="").__enter__)
    assert list(tmp_path.iterdir()) == []


def test_the_owner_touches_its_lock_and_removes_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "HEARTBEAT", 0.02)
    path = tmp_path / "a.lock"
    with locked(path, advice=""):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
        assert "held by another job" in refused(locked(path, advice="").__enter__)
        files._take_over(path, "the old one", "nobody")  # it comes when another job has replaced the old lock
        assert "held by another job" in refused(locked(path, advice="").__enter__)
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"
    assert files._start_of_process("no number") == ""
