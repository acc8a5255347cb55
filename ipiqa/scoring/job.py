"""Rows scored part by part: the same numbers whoever scores a part, and after what; and what is kept until all are."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

import ipiqa
from ipiqa.errors import ConfigError, DataError, IpiqaError
from ipiqa.files import locked, replacing, write_json
from ipiqa.prompts import num_too_long
from ipiqa.scoring.rows import Part, Row, legible
from ipiqa.scoring.scorer import Scorer
from ipiqa.scoring.writers import Cell, Columns, write_output

BATCHES_PER_PART, ROWS_PER_PART = 4, 128  # at least: whoever is stopped loses a part
JOB, LOCK = "job.json", "job.lock"
_OURS = ("part-*.jsonl", "output.*", ".*.tmp")  # what lies in a folder of parts; the last of killed processes
MOST_FAILURES = 20  # that are kept to be shown


@dataclass(frozen=True)
class Settings:
    """How parts are scored. By rounding, scores depend on `batch_size`; they do not on `num_workers`."""

    columns: tuple[str, ...]  # of the scores: see `score_columns`
    batch_size: int
    num_workers: int  # threads that decode images

    @property
    def part_size(self) -> int:
        """Rows of a part: whole batches."""
        return self.batch_size * max(BATCHES_PER_PART, -(-ROWS_PER_PART // self.batch_size))


@dataclass
class ScoredPart:
    """What is written of a part."""

    number: int
    num_too_long: int = 0  # rows whose prompt is longer than the model reads
    rows: list[list[Cell]] = field(default_factory=list)  # image, prompt, carried cells, scores or Nones, error or None


def score_columns(scorer: Scorer) -> tuple[str, ...]:
    """Returns the names of the columns that scores have."""
    return tuple(scorer.columns(np.zeros((scorer.num_folds, 1, len(scorer.targets)), np.float32)))


def auto_batch_size(device: str) -> int:
    """Returns how many images a kind of device is given at once; fewer are where its memory is short."""
    return 32 if device == "cpu" else 128


def score_parts(
    scorer: Scorer, parts: Iterable[Part], settings: Settings, after_batch: Callable[[int], None] = lambda count: None
) -> Iterator[ScoredPart]:
    """Yields the scores of one part after the other, while the images of the next part are decoded.

    A row that cannot be scored has an error instead of scores, and changes those of others by rounding alone.
    `after_batch` is called with the number of rows of each batch.
    """
    waiting = iter(parts)
    with ThreadPoolExecutor(settings.num_workers) as pool, ThreadPoolExecutor(1) as reader:

        def begin() -> tuple[int, list[Row], list[Future[Any]]] | None:
            if (part := next(waiting, None)) is None:
                return None
            rows = part.rows()
            return part.number, rows, [pool.submit(_prepare, scorer, row) for row in rows]

        following = reader.submit(begin)
        try:
            while (begun := following.result()) is not None:
                following = reader.submit(begin)
                number, rows, prepared = begun
                scored = ScoredPart(number)
                scorer.forget_prompts()
                for start in range(0, len(rows), settings.batch_size):
                    batch = slice(start, start + settings.batch_size)
                    results = [future.result() for future in prepared[batch]]
                    scored.rows += _score(scorer, rows[batch], results, len(settings.columns))
                    after_batch(len(rows[batch]))
                if scorer.needs_prompt:
                    prompts = Counter(row.prompt for row in rows if row.prompt and not row.problem)
                    scored.num_too_long = sum(count * num_too_long([text]) for text, count in prompts.items())
                yield scored
        finally:
            pool.shutdown(cancel_futures=True)


def _prepare(scorer: Scorer, row: Row) -> Any:
    """Returns an image as the scorer takes it, or why the row cannot be scored."""
    try:
        return DataError(row.problem) if row.problem else scorer.prepare(row.file())
    except IpiqaError as error:
        return DataError(str(error))


def _score(scorer: Scorer, rows: list[Row], results: list[Any], num_columns: int) -> list[list[Cell]]:
    """Returns the output of a batch of rows, whose images are prepared, or a DataError."""
    good = [i for i, image in enumerate(results) if not isinstance(image, DataError)]
    outputs = _outputs(scorer, [results[i] for i in good], [rows[i].prompt or "" for i in good])
    for i, scores in zip(good, outputs, strict=True):
        results[i] = scores
    if good := [i for i in good if not isinstance(results[i], DataError)]:
        columns = scorer.columns(np.stack([results[i] for i in good], axis=1)).values()
        for i, *values in zip(good, *columns, strict=True):
            results[i] = [float(str(value)) for value in values]  # the shortest digits that mean this float32
    out: list[list[Cell]] = []
    for row, result in zip(rows, results, strict=True):
        failed = isinstance(result, DataError)
        error = legible(str(result)) if failed else None  # it may name odd paths
        out.append([*row.cells, *([None] * num_columns if failed else result), error])
    return out


def _outputs(scorer: Scorer, images: list[Any], prompts: list[str]) -> list[np.ndarray | DataError]:
    """Returns the scores (F, T) of each image, or why it has none."""
    count = len(images)
    if count <= scorer.fits:
        try:
            scores = scorer.outputs(images, prompts) if images else np.zeros((1, 0, 1))
            wrong = DataError("the model gives no finite score")
            return [one if np.isfinite(one).all() else wrong for one in scores.transpose(1, 0, 2)]
        except DataError as error:
            if count == 1:
                return [error]
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            scorer.fits = count // 2 + count % 2  # or each further batch would fail first
    half = count // 2
    return _outputs(scorer, images[:half], prompts[:half]) + _outputs(scorer, images[half:], prompts[half:])


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
            both = zip(part.rows(), self.read(part.number).rows, strict=True)
            return all(cells[: len(row.cells)] == row.cells and row.problem in ("", cells[-1]) for row, cells in both)
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
