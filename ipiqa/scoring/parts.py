"""The folder of a scoring job that is not finished: its parts, written by whatever processes, and what job it is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ipiqa.errors import ConfigError
from ipiqa.files import locked, replacing, write_json
from ipiqa.scoring.job import ScoredPart
from ipiqa.scoring.rows import Part, digest

JOB, LOCK = "job.json", "job.lock"


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

        Those of another job are removed with `overwrite`; else that is a ConfigError, which says what differs.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path / LOCK, advice="Wait for its end, or give another --out."):
            before = self.job()
            if before and before != job:
                if not overwrite:
                    raise ConfigError(f"--out: '{self.path}' is of another job: {_difference(before, job)}.{_HOW}")
                before = {}
            if not before:
                self._remove_parts()
                write_json(self.path / JOB, job)
            yield
        with contextlib.suppress(OSError):  # where parts are left
            self.path.rmdir()

    def job(self) -> dict[str, Any]:
        """Returns what the folder is claimed for, {} where there is none."""
        try:
            found = json.loads((self.path / JOB).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def has(self, part: Part) -> bool:
        """Returns whether a part is written and still of the same rows."""
        try:
            with self._file(part.number).open(encoding="utf-8") as file:
                found = json.loads(file.readline())["digest"]
        except (OSError, ValueError, LookupError, TypeError):
            return False
        return bool(found == digest(list(part.rows())))

    def write(self, scored: ScoredPart) -> None:
        """Writes a part atomically: a line with its digest and counts, then one of JSON a row."""
        head = asdict(scored)
        rows = head.pop("rows")
        with replacing(self._file(scored.number)) as file:
            file.writelines(json.dumps(line) + "\n" for line in (head, *rows))

    def read(self, number: int) -> ScoredPart:
        """Returns a part that is written."""
        with self._file(number).open(encoding="utf-8") as file:
            head = json.loads(file.readline())
            return ScoredPart(**head, rows=[json.loads(line) for line in file])

    def remove(self) -> None:
        """Removes what a finished job does not need any more; the folder goes when the claim ends."""
        (self.path / JOB).unlink(missing_ok=True)  # first: parts without it count for nothing
        self._remove_parts()

    def _remove_parts(self) -> None:
        for file in self.path.glob("part-*.jsonl"):
            file.unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self.path / f"part-{number:07d}.jsonl"


_HOW = " Go on with that job by its own command, take another --out, or --overwrite."


def _difference(before: dict[str, Any], job: dict[str, Any]) -> str:
    """Returns the first setting in which two jobs differ."""
    name = next(name for name in {**job, **before} if before.get(name) != job.get(name))
    return f"{name} was {before.get(name)!r:.80} and is {job.get(name)!r:.80}"
