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


@dataclass
class PartsFolder:
    """The folder `OUT.parts`, which keeps what is scored until all is; on a cluster it lies on a disk that all see."""

    path: Path
    num_parts: int = 0  # of the job, known once `pending` has ended

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
            return dict(json.loads((self.path / JOB).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def pending(self, parts: Iterable[Part], skipped: Callable[[int], None]) -> Iterator[Part]:
        """Yields the parts that are not written; `skipped` is called with the number of rows of each that is."""
        for self.num_parts, part in enumerate(parts, start=1):
            if self.has(part):
                skipped(len(part))
            else:
                yield part

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

    def write_output(self, out: Path, columns: Columns) -> Summary:
        """Writes the scores of all parts to a file, whole or not at all, and removes them here."""
        summary, merged = Summary(), self.path / f"output{out.suffix}"  # here a killed process may leave it
        write_output(merged, columns, (summary.add(self.read(number)) for number in range(self.num_parts)))
        os.replace(merged, out)
        self.remove()
        return summary

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
