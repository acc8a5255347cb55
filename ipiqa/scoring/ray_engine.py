"""Parts scored by many processes, of one machine or of several, on Ray."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ipiqa.errors import ConfigError, DataError, IpiqaError
from ipiqa.files import require_package
from ipiqa.scoring.job import PartsFolder, Settings, score_parts, versions
from ipiqa.scoring.loading import load, model_sha256
from ipiqa.scoring.rows import Part
from ipiqa.scoring.scorer import Scorer

logger = logging.getLogger("ipiqa")

MOST_PARTS = 8  # that a process is given at once: it decodes the next while it scores one
SHARES = 4  # that each process is given at least, so that all end at about the same time
MOST_TRIES = 5  # to score some parts, each ended by the death of the process
CONNECTING, ASKING = 10.0, 0.5  # seconds until an address is given up, and between two looks for a signal


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
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what is wrong is raised, too
    own = {"include_dashboard": False} if address is None else {}
    try:
        with _silenced():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **own)
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
    """One of the processes, an actor of Ray: it loads the model once.

    Its paths are absolute, on a disk that all machines see.
    """

    model: str
    folds: Sequence[int] | None
    settings: Settings
    job: dict[str, Any]  # as `PartsFolder.claimed`
    folder: PartsFolder
    scorer: Scorer | None = None

    def score(self, parts: Sequence[Part]) -> int:
        """Writes the scores of parts, but for those that a process has written before it died; returns their rows.

        DataError, with the name of the machine: a mistake of the user's.
        """
        try:
            self.scorer = self.scorer or self.load()
            for scored in score_parts(self.scorer, [p for p in parts if not self.folder.has(p)], self.settings):
                self.folder.write(scored)
        except (IpiqaError, OSError) as error:
            raise DataError(f"machine {socket.gethostname()}: {error}") from None
        return sum(map(len, parts))

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


def score_on_ray(
    parts: Iterator[Part], task: PartScorer, pool: Pool, num_rows: int | None, progress: Callable[[int], None]
) -> None:
    """Scores parts on the connected cluster as `task` says, and has them written there; machines may die on the way.

    `progress` is called with numbers of rows, at least twice a second; what it raises ends the job.
    """
    ray = require_package("ray", "--engine ray")
    shares = MOST_PARTS if num_rows is None else num_rows // task.settings.part_size // (SHARES * pool.size)
    batches = iter(lambda: list(itertools.islice(parts, max(1, min(MOST_PARTS, shares)))), [])
    scoring = ray.remote(PartScorer).options(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)
    at_work: dict[Any, tuple[Any, list[Part], int]] = {}  # result to come -> its process, parts, and which try it is

    def give(process: Any, batch: list[Part], number: int = 1) -> None:
        at_work[process.score.remote(batch)] = process, batch, number

    for batch in itertools.islice(batches, pool.size):
        give(scoring.remote(**vars(task)), batch)
    while at_work:
        progress(0)
        for result in ray.wait([*at_work], timeout=ASKING)[0]:
            process, batch, number = at_work.pop(result)
            try:
                progress(ray.get(result))
            except ray.exceptions.RayError as error:
                if missing := re.search(r"No module named ('[\w.]+')", str(error)):
                    raise ConfigError(
                        f"--engine ray: a machine has no {missing[1]}. Install the same on all."
                    ) from None
                if isinstance(error, ray.exceptions.RayTaskError):
                    raise error.cause from None
                if number == MOST_TRIES:
                    problem = f"{MOST_TRIES} processes that scored part {batch[0].number} have died"
                    raise DataError(f"--engine ray: {problem}. Is memory short?") from None
                give(scoring.remote(**vars(task)), batch, number + 1)
                continue
            if batch := next(batches, []):
                give(process, batch)
            else:
                ray.kill(process)  # one that is to take the place of a dead one may wait for its room
