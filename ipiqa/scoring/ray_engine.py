"""Parts scored by many processes, of one machine or of several, on Ray."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pickle
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ipiqa.errors import ConfigError, DataError, IpiqaError
from ipiqa.files import require_package
from ipiqa.scoring.job import Settings, score_parts
from ipiqa.scoring.loading import load, model_sha256
from ipiqa.scoring.parts import PartsFolder, versions
from ipiqa.scoring.rows import Part
from ipiqa.scoring.scorer import Scorer

logger = logging.getLogger("ipiqa")

MOST_PARTS = 8  # that a process is given at once: it decodes the next while it scores one
SHARES = 4  # that each process is given at least, so that all end at about the same time
MOST_TRIES = 5  # to score some parts, each ended by the death of the process
CONNECTING = 10.0  # seconds


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connects this process to a Ray cluster, or to one of its own on this machine where the address is None.

    `address` is host:port, or "auto" for the cluster that this machine is in. ConfigError: there is none.
    """
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}  # the first: no reports to Ray's makers
    if address is None or (address != "auto" and _reached(address) in ("localhost", "127.0.0.1", "::1")):
        quiet["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's switch, where firewalls ask, to stay on loopback
    os.environ |= quiet | os.environ
    ray = require_package("ray", "--engine ray")
    require_package("ray.data", "--engine ray")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what is wrong is raised, too
    own = {"include_dashboard": False} if address is None else {}
    try:
        with _silenced():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
            context = ray.data.DataContext.get_current()
            context.enable_progress_bars = context.print_on_execution_start = False
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"--address: Ray cannot be used at {address or 'this machine'}: {reason:.200}") from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keeps warnings off, and what is not written by Python but by Ray's own library, which takes no other way."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _reached(address: str) -> str:
    """Returns the host of an address that something listens at; Ray itself would wait for it for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECTING).close()
    except (OSError, ValueError, OverflowError) as error:
        right = "Give host:port of the head node, such as node0:6379, or auto on one of the cluster's machines"
        raise ConfigError(f"--address: {address!r} cannot be reached ({error}). {right}.") from None
    return host.strip("[]")


@dataclass(frozen=True)
class Pool:
    """The processes that score, and the cores and GPUs of one machine that each has."""

    size: int
    num_cpus: int
    num_gpus: int

    @classmethod
    def of(cls, size: int | None, num_cpus: int | None, num_gpus: int | None) -> Pool:
        """Returns a pool on the connected cluster; what is None is chosen so that it fills the cluster."""
        ray = require_package("ray", "--engine ray")
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus_and_gpus = [(int(machine.get("CPU", 0)), int(machine.get("GPU", 0))) for machine in machines]
        if num_gpus is None:
            num_gpus = int(any(gpus for _, gpus in cpus_and_gpus))
        if num_cpus is None:
            shares = [cpus * num_gpus // gpus for cpus, gpus in cpus_and_gpus if num_gpus and gpus]
            num_cpus = max(1, min(shares, default=1))
        room = sum(min(cpus // num_cpus, gpus // num_gpus if num_gpus else cpus) for cpus, gpus in cpus_and_gpus)
        if not room:
            there = ", ".join(f"{cpus} and {gpus}" for cpus, gpus in cpus_and_gpus)
            problem = f"no machine has {num_cpus} and {num_gpus} for a process; there are {there:.100}"
            raise ConfigError(f"--num-cpus, --num-gpus: {problem}. Ask for less.")
        if size is not None and size > room:
            logger.warning("--concurrency: %d processes of %d have room; the others wait for it", room, size)
        return cls(size or room, num_cpus, num_gpus)

    @property
    def device(self) -> str:
        """What its processes compute on."""
        return "cuda" if self.num_gpus else "cpu"


@dataclass
class PartScorer:
    """One of the processes, an actor of Ray Data: it loads the model once, and returns a user's mistakes as text.

    Its paths are absolute, on a disk that all machines see.
    """

    model: str
    folds: Sequence[int] | None
    settings: Settings
    job: dict[str, Any]  # as `PartsFolder.claimed`
    folder: PartsFolder
    scorer: Scorer | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Returns how many rows were scored, and a problem that ends the job, or ""."""
        try:
            self.scorer = self.scorer or self.load()
            return {"rows": [self.score(self.scorer, pickle.loads(batch["parts"][0]))], "problem": [""]}
        except (IpiqaError, OSError) as error:
            return {"rows": [0], "problem": [f"machine {socket.gethostname()}: {error}"]}

    def load(self) -> Scorer:
        """Returns the scorer; DataError where this machine does not have what the job was begun with."""
        if self.folder.job() != self.job:
            raise DataError(f"'{self.folder.path}' is not there. Give an --out on a disk that all machines see.")
        if (here := versions()) != self.job["versions"]:
            raise DataError(f"it has {here}, not {self.job['versions']}. Install the same on all machines.")
        scorer = load(self.model, self.job["device"], self.job["amp"], folds=self.folds)
        if model_sha256(self.model, self.folds) != self.job["model"]:
            raise DataError(f"'{self.model}' is another model there. Give one on a disk that all machines see.")
        return scorer

    def score(self, scorer: Scorer, parts: Sequence[Part]) -> int:
        """Writes the scores of parts, but for those that a process has written before it died; returns their rows."""
        number = parts[0].number
        tries = self.folder.path / f"tries-{number:07d}"
        with tries.open("ab") as file:
            file.write(b".")
            if file.tell() > MOST_TRIES:
                raise DataError(f"{MOST_TRIES} processes that scored part {number} have died. Is memory short?")
        for scored in score_parts(scorer, [part for part in parts if not self.folder.has(part)], self.settings):
            self.folder.write(scored)
        tries.unlink()
        return sum(map(len, parts))


def score_on_ray(
    parts: Iterator[Part], task: PartScorer, pool: Pool, num_rows: int | None, progress: Callable[[int], None]
) -> None:
    """Scores parts on the connected cluster as `task` says, and has them written there; machines may die on the way.

    `progress` is called with numbers of rows; what it raises ends the job.
    """
    ray = require_package("ray", "--engine ray")
    for path in task.folder.path.glob("tries-*"):
        path.unlink()
    shares = MOST_PARTS if num_rows is None else num_rows // task.settings.part_size // (SHARES * pool.size)
    batches = iter(lambda: list(itertools.islice(parts, max(1, min(MOST_PARTS, shares)))), [])
    # All parts are kept in Ray's store, on disk where that is full, but not in the memory of this process.
    table = require_package("pyarrow", "--engine ray").table
    stored = [ray.put(table({"parts": [pickle.dumps(batch)]})) for batch in batches]
    if not stored:
        return
    dataset = ray.data.from_arrow_refs(stored).map_batches(
        PartScorer, fn_constructor_kwargs=vars(task), batch_size=1, num_cpus=pool.num_cpus, num_gpus=pool.num_gpus,
        compute=ray.data.ActorPoolStrategy(size=min(pool.size, len(stored))),
    )  # fmt: skip
    results = dataset.iter_internal_ref_bundles()  # unlike `iter_rows`, without a thread that would go on
    try:
        for result in itertools.chain.from_iterable(bundle.block_refs for bundle in results):
            (answer,) = ray.get(result).to_pylist()
            progress(answer["rows"])
            if answer["problem"]:
                raise DataError(answer["problem"])
    except ray.exceptions.RayError as error:
        if missing := re.search(r"No module named ('[\w.]+')", str(error)):
            raise ConfigError(f"--engine ray: a machine has no {missing[1]}. Install the same on all.") from None
        raise
    finally:
        del results  # which ends what runs there; Ray must not be shut down before
