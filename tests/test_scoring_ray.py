"""The engine on Ray: the scores of the other one, on one machine and on a cluster that loses a machine."""

from __future__ import annotations

import csv
import dataclasses
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY, error_of
from PIL import Image
from toy import WORDS, write_folds

from ipiqa import cli
from ipiqa.errors import DataError
from ipiqa.scoring.job import PartsFolder, Settings, score_columns, score_parts, versions
from ipiqa.scoring.loading import load, model_sha256
from ipiqa.scoring.ray_engine import MOST_TRIES, PartScorer, Pool, connected, score_on_ray
from ipiqa.scoring.rows import Inputs, Part
from ipiqa.scoring.sources import open_rows

ray = pytest.importorskip("ray", reason="the extra [ray] is not installed")

COUNT = 300  # rows: two parts of 128 and one of 44
ROWS = 2400  # of a long table
WAIT = 100.0  # seconds, for a cluster to do something


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folds(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of pictures, some of which cannot be scored."""
    folder = tmp_path_factory.mktemp("table")
    random = np.random.default_rng(0)
    for i in range(20):
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((48, 40)).save(folder / f"{i}.png")
    (folder / "19.png").write_bytes(b"no picture")
    write_table(folder / "rows.csv", COUNT)
    return folder / "rows.csv"


def write_table(path: Path, count: int) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "prompt", "note"])
        writer.writerows(
            (f"{i * 7 % 20}.png", f"a {WORDS[i % 10]} {WORDS[i // 10 % 10]}", f"{i}\n,") for i in range(count)
        )
    return path


def make_task(model: Path, folder: Path) -> PartScorer:
    scorer = load(model, "cpu")
    settings = Settings(score_columns(scorer), batch_size=32, num_workers=2)
    job = {"model": model_sha256(model), "versions": versions(), "device": "cpu", "amp": "none"}
    return PartScorer(str(model), None, settings, job, PartsFolder(folder))


def parts_of(table: Path) -> list[Part]:
    return [*open_rows(str(table), Inputs(), needs_prompt=True).parts(128)]


def test_a_process_writes_the_parts_that_any_other_writes(model: Path, table: Path, tmp_path: Path) -> None:
    task, parts = make_task(model, tmp_path / "one"), parts_of(table)
    for scored in score_parts(load(model, "cpu"), parts, task.settings):
        PartsFolder(tmp_path / "other").write(scored)
    with task.folder.claimed(task.job, overwrite=False):
        process = pickle.loads(pickle.dumps(task))
        assert process.score([parts[2]]) == 44
        kept = (tmp_path / "one" / "part-0000002.jsonl").stat().st_mtime_ns
        assert process.score(parts) == COUNT
        assert (tmp_path / "one" / "part-0000002.jsonl").stat().st_mtime_ns == kept
        for file in sorted((tmp_path / "other").iterdir()):
            assert (tmp_path / "one" / file.name).read_bytes() == file.read_bytes()
        task.folder.remove()
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folder": PartsFolder(Path("/nowhere"))}, "'/nowhere' is not there. Give an --out on a disk"),
        ({"job": {"model": "other"}}, "' is another model there"),
        ({"job": {"versions": {"torch": "9"}}}, "not {'torch': '9'}. Install the same"),
        ({"model": "/nowhere.pt"}, "'/nowhere.pt' does not exist"),
        ({"job": {"device": "cuda:77"}}, "device: 'cuda:77' cannot be used"),
    ],
)
def test_what_a_machine_has_not_is_one_line(
    model: Path, table: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    task = make_task(model, tmp_path / "out")
    task = dataclasses.replace(task, **changes | {"job": task.job | changes.get("job", {})})
    with PartsFolder(tmp_path / "out").claimed(task.job, overwrite=False):
        line = error_of(lambda: task.score(parts_of(table)))
    assert message in line and "\n" not in line and line.startswith(f"machine {socket.gethostname()}: ")


@pytest.mark.parametrize(
    ("machines", "given", "expected"),
    [
        ([(8, 0), (4, 0)], (None, None, None), (12, 1, 0)),
        ([(8, 0), (4, 0), (1, 0)], (None, 3, None), (3, 3, 0)),
        ([(8, 0)], (3, None, None), (3, 1, 0)),
        ([(32, 4), (64, 0)], (None, None, None), (4, 8, 1)),
        ([(32, 4), (8, 2)], (None, None, None), (6, 4, 1)),
        ([(32, 4)], (None, 4, 2), (2, 4, 2)),
        ([(32, 4)], (None, None, 2), (2, 16, 2)),
        ([(32, 4)], (None, None, 0), (32, 1, 0)),
        ([(2, 4)], (None, None, None), (2, 1, 1)),
    ],
)
def test_a_pool_fills_the_cluster(
    machines: list[tuple[int, int]], given: tuple[Any, Any, Any], expected: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    nodes = [{"Alive": True, "Resources": {"CPU": float(c), "GPU": float(g)}} for c, g in machines]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False, "Resources": {"CPU": 99.0}}])
    pool = Pool.of(*given)
    assert dataclasses.astuple(pool) == expected and pool.device == ("cuda" if expected[2] else "cpu")


def test_a_pool_without_room_is_refused(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}, {"Alive": True, "Resources": {"memory": 1.0}}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    message = "--num-cpus, --num-gpus: no machine has 8 and 0 for a process; there are 4 and 0, 0 and 0"
    assert message in error_of(lambda: Pool.of(2, 8, None))
    assert "no machine has 1 and 1" in error_of(lambda: Pool.of(None, None, 1))
    assert not caplog.records and Pool.of(5, 2, None).size == 5
    assert "2 processes of 5 have room" in caplog.text


def test_an_address_that_nothing_listens_at_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    for address in (f"127.0.0.1:{port}", "nonsense", "127.0.0.1:99999999999", "127.0.0.1:"):
        assert f"--address: {address!r} cannot be reached" in error_of(connected(address).__enter__)


class Failing:
    """Stands for Ray where every process fails: a result to come is the parts that it is of."""

    def __init__(self, error: Exception) -> None:
        self.error, self.given = error, list[int]()
        self.score = self

    def options(self, **_: Any) -> Failing:
        return self

    def remote(self, batch: Any = None, **_: Any) -> Any:
        self.given += [len(batch)] if batch else []
        return self if batch is None else len(self.given)

    def get(self, result: Any) -> None:
        raise self.error


def test_what_ends_a_job_is_one_line(model: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died = ray.exceptions.RayActorError()
    broken = ray.exceptions.RaySystemError("lines\nModuleNotFoundError: No module named 'ipiqa.parts'\nmore")
    wrong = ray.exceptions.RayTaskError("score", "a traceback", DataError("machine m: no such file"))
    for error, message, tries in [
        (died, "--engine ray: 5 processes that scored part 0 have died. Is memory short?", MOST_TRIES),
        (broken, "--engine ray: a machine has no 'ipiqa.parts'. Install the same on all.", 1),
        (wrong, "machine m: no such file", 1),
    ]:
        failing = Failing(error)
        monkeypatch.setattr(ray, "remote", lambda _, failing=failing: failing)
        monkeypatch.setattr(ray, "get", failing.get)
        monkeypatch.setattr(ray, "wait", lambda results, timeout: (results, []))
        task = make_task(model, tmp_path / "out")
        score = lambda task=task: score_on_ray(iter(parts_of(table)), task, Pool(1, 1, 0), COUNT, lambda count: None)  # noqa: E731
        assert error_of(score) == message and failing.given == [1] * tries


def test_arguments_that_do_not_go_with_ray_are_refused(
    model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", str(model), str(table), "--engine", "ray"]
    assert cli.main([*command[:3], "--out", str(tmp_path / "x.csv"), "--num-cpus", "2"]) == 2
    assert "--num-cpus: nothing reads it. Add --engine ray" in capsys.readouterr().err
    for more, message in [
        ([], "--engine ray: its scores go to a file"),
        (["--out", "-"], "--engine ray: its scores go to a file"),
        (["--out", str(tmp_path / "x.csv"), "--device", "cuda:1"], "--device: with --engine ray"),
        (["--out", str(tmp_path / "x.csv"), "--num-gpus", "-1"], "--num-gpus: '-1' is out of range"),
    ]:
        assert cli.main([*command, *more]) == 2
        assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ with processes of Ray


def start(*arguments: object, **more: str) -> subprocess.Popen[str]:
    """Starts `ipiqa score` in a folder of its own, so that paths must be right everywhere."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "ipiqa", "score", *map(str, arguments)]
    return subprocess.Popen(command, env=environment | more, cwd="/", text=True, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Returns the exit status of a command and what it has said."""
    try:
        said = process.communicate(timeout=WAIT)[1]
    finally:
        process.kill()
    return process.returncode, said.splitlines()


def wait_for(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Waits until something is true, while a process runs."""
    until = time.monotonic() + WAIT
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def expected(model: Path, table: Path) -> Path:
    """The scores of the other engine, of a table long enough to be stopped in."""
    long, out = write_table(table.with_name("long.csv"), ROWS), table.with_name("expected.csv")
    assert cli.main(["score", str(model), str(long), "--out", str(out), "--batch-size", "1"]) == 3
    return out


@pytest.mark.slow
def test_stopped_on_one_machine_it_goes_on_to_the_same_bytes(model: Path, table: Path, expected: Path) -> None:
    out, long = table.with_name("stopped.csv"), table.with_name("long.csv")
    command = [os.path.relpath(model, "/"), os.path.relpath(long, "/"), "--out", os.path.relpath(out, "/")]
    command += ["--engine", "ray", "--batch-size", "1"]
    process = start(*command)
    wait_for(lambda: len([*table.parent.glob("stopped.csv.parts/part-*")]) > 3, process)
    process.send_signal(signal.SIGTERM)
    status, said = ended(process)
    assert status == 143 and said[0].startswith("Stopping") and said[1].startswith("ipiqa: stopped after ")
    assert len(said) == 2 and not out.exists()
    kept = {path: path.stat().st_mtime_ns for path in table.parent.glob("stopped.csv.parts/part-*")}
    process = start(*command)
    wait_for(lambda: len([*table.parent.glob("stopped.csv.parts/part-*")]) > len(kept), process)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    status, said = ended(process)
    assert status == 3 and out.read_bytes() == expected.read_bytes()
    assert not out.with_name("stopped.csv.parts").exists()
    assert f"{ROWS} rows, {ROWS // 20} could not be scored" in said[-1]
    assert all(line.startswith(("19.png: ", "... and ", "scored ", f"{ROWS} rows")) for line in said), (
        said
    )  # no word of Ray's


@pytest.mark.slow
def test_a_cluster_that_loses_a_machine_gives_the_same_bytes(
    model: Path, table: Path, expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    here: dict[str, Any] = {"node_ip_address": "127.0.0.1", "num_cpus": 1, "object_store_memory": 80 << 20}
    out = table.with_name("lost.csv")
    cluster = Cluster(initialize_head=True, head_node_args=here | {"include_dashboard": False})
    try:
        other = cluster.add_node(**here)
        process = start(
            model, table.with_name("long.csv"), "--out", out, "--batch-size", 1,
            "--engine", "ray", "--address", cluster.address,
        )  # fmt: skip
        folder = out.with_name("lost.csv.parts")
        # of each process the first part
        wait_for(lambda: all((folder / f"part-000000{i}.jsonl").exists() for i in (0, 2)), process)
        cluster.remove_node(other, allow_graceful=False)
        written = len([*folder.glob("part-*")])
        assert written < ROWS // 128 / 2
        status, said = ended(process)
    finally:
        cluster.shutdown()
    assert status == 3 and out.read_bytes() == expected.read_bytes(), said
