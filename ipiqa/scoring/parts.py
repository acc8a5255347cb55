"""From scored parts to one file: the folder of a job that is not finished, and what is done when all is scored."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL
import torch

import ipiqa
from ipiqa.errors import ConfigError
from ipiqa.files import locked, replacing, write_json
from ipiqa.scoring.job import ScoredPart
from ipiqa.scoring.rows import Part, digest
from ipiqa.scoring.writers import Columns, write_output

JOB, LOCK = "job.json", "job.lock"
_OURS = ("part-*.jsonl", "tries-*", "output.*", ".*.tmp")  # what lies there; the last of killed processes
MOST_FAILURES = 20  # that are kept to be shown


@dataclass(frozen=True)
class PartsFolder:
    """The folder `OUT.parts`. It can be pickled; on a cluster it lies on a disk that all machines see."""

    path: Path

    @classmethod
    def of(cls, out: Path) -> PartsFolder:
        """Returns the folder that belongs to an output file."""
        return cls(out.with_name(f"{out.name}.parts"))

    @contextlib.contextmanager
    def claimed(self, job: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Holds the folder for one process; parts that are there stay where they are of the same job.

        Those of another job are removed with `overwrite`; else that is a ConfigError, which says what differs. A folder
        without parts is removed in the end.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.path / LOCK, advice="Wait for its end, or give another --out."):
                before = self.job()
                if before and before != job and not overwrite:
                    name = next(name for name in {**job, **before} if before.get(name) != job.get(name))
                    known = f"{name} was {before.get(name)!r:.80}, now {job.get(name)!r:.80}"
                    how = "Go on with the command of that job, or give another --out, or --overwrite."
                    raise ConfigError(f"--out: '{self.path}' is of another job: {known}. {how}")
                if before != job:
                    self.remove()
                    write_json(self.path / JOB, job)
                try:
                    yield
                finally:
                    if not any(self.path.glob("part-*.jsonl")):
                        self.remove()
        finally:
            with contextlib.suppress(OSError):  # it is not empty
                self.path.rmdir()

    def job(self) -> dict[str, Any]:
        """Returns what the folder is claimed for, {} where that is not known."""
        try:
            found = json.loads((self.path / JOB).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def has(self, part: Part) -> bool:
        """Returns whether a part is written and still of the same rows."""
        try:
            return self.read(part.number).digest == digest(part.rows())
        except (OSError, ValueError, TypeError):
            return False

    def write(self, scored: ScoredPart) -> None:
        """Writes a part atomically."""
        with replacing(self._file(scored.number)) as file:
            json.dump(vars(scored), file)

    def read(self, number: int) -> ScoredPart:
        """Returns a part that is written."""
        return ScoredPart(**json.loads(self._file(number).read_text(encoding="utf-8")))

    def remove(self) -> None:
        """Removes the parts; the folder goes when the claim ends."""
        (self.path / JOB).unlink(missing_ok=True)  # first: parts without it count for nothing
        for pattern in _OURS:
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self.path / f"part-{number:07d}.jsonl"


def versions() -> dict[str, str]:
    """Returns the versions of what decides scores."""
    return {"ipiqa": ipiqa.__version__, "torch": torch.__version__, "pillow": PIL.__version__}


@dataclass
class Summary:
    """What is said of a job in the end."""

    rows: int = 0
    failed: int = 0
    too_long: int = 0  # rows whose prompt is longer than the model reads
    failures: list[tuple[str, str]] = field(default_factory=list)  # the first (image, error)

    def add(self, part: ScoredPart) -> list[list[Any]]:
        """Counts a part and returns its rows."""
        failures = [(str(row[0]), str(row[-1])) for row in part.rows if row[-1] is not None]
        self.failures += failures[: MOST_FAILURES - len(self.failures)]
        self.rows, self.failed = self.rows + len(part.rows), self.failed + len(failures)
        self.too_long += part.num_too_long
        return part.rows


def score_to_file(
    out: Path, columns: Columns, parts: Iterable[Part], score: Callable[[Iterator[Part], PartsFolder], None],
    job: dict[str, Any], *, overwrite: bool, skipped: Callable[[int], None],
) -> Summary:  # fmt: skip
    """Writes the scores of all parts to a file, which is there when all are, and never in part.

    Stopped and called again, it goes on after the last whole part, to the same bytes.

    `score` scores parts, in whatever processes, and has the folder write each; `job` is what decides the scores besides
    the rows, as JSON keeps it; `skipped` is called with the number of rows of each part that is there already.
    """
    folder, count = PartsFolder.of(out), 0

    def pending() -> Iterator[Part]:
        nonlocal count
        for part in parts:
            count += 1
            if folder.has(part):
                skipped(len(part))
            else:
                yield part

    summary = Summary()
    with folder.claimed(job, overwrite=overwrite):
        score(pending(), folder)
        merged = folder.path / f"output{out.suffix}"  # there, so that a killed process leaves nothing elsewhere
        write_output(merged, columns, (summary.add(folder.read(number)) for number in range(count)))
        os.replace(merged, out)
        folder.remove()
    return summary
