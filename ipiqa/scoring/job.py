"""What any process does to score rows, part by part: the same numbers whoever scores a part, and after what."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from ipiqa.errors import DataError, IpiqaError
from ipiqa.prompts import num_too_long
from ipiqa.scoring.rows import Part, Row, digest
from ipiqa.scoring.scorer import Scorer

Cell = str | float | None

AHEAD = 3  # batches that are read and decoded before the model asks for them
BATCHES_PER_PART, ROWS_PER_PART = 4, 128  # at least: whoever is stopped loses a part


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
    digest: str = ""  # of its rows
    num_too_long: int = 0  # rows whose prompt is longer than the model reads
    rows: list[list[Cell]] = field(default_factory=list)  # image, prompt, carried cells, scores or Nones, error or None


@dataclass
class _Batch:
    """Rows of one part whose images are being decoded; one without rows ends its part."""

    number: int  # of the part
    rows: list[Row]
    prepared: list[Future[Any]]  # as the scorer prepares images, or a DataError


def score_columns(scorer: Scorer) -> tuple[str, ...]:
    """Returns the names of the columns that scores have, which are known when something is scored: a grey image."""
    return tuple(scorer.columns(scorer.score_folds(Image.new("RGB", (64, 64), "grey"), "a")))


def device_type(scorer: Scorer) -> str:
    """Returns on what kind of device a scorer computes."""
    return getattr(scorer, "device", torch.device("cpu")).type


def usual_batch_size(device: str) -> int:
    """Returns how many images a kind of device is given at once."""
    return 32 if device == "cpu" else 128


def auto_batch_size(scorer: Scorer) -> int:
    """Returns the batch size that suits a scorer's device: of a GPU, the largest that fits its memory, at most 128."""
    size = usual_batch_size(device_type(scorer))
    grey = scorer.prepare(Image.new("RGB", (64, 64), "grey"))
    while device_type(scorer) != "cpu" and size > 1:
        try:
            scorer.outputs([grey] * size, ["a"] * size)
            break
        except torch.OutOfMemoryError:
            size //= 2
    return size


def score_part(scorer: Scorer, part: Part, settings: Settings) -> ScoredPart:
    """Returns the scores of one part."""
    return next(score_parts(scorer, [part], settings))


def score_parts(
    scorer: Scorer, parts: Iterable[Part], settings: Settings, after_batch: Callable[[int], None] = lambda count: None
) -> Iterator[ScoredPart]:
    """Yields the scores of one part after the other, while the images of what follows are decoded.

    A row that cannot be scored has an error instead of scores, and changes those of others by rounding alone.
    `after_batch` is called with the number of rows of each batch.
    """
    with (
        ThreadPoolExecutor(settings.num_workers) as pool,
        closing(_ahead(_batches(scorer, parts, settings.batch_size, pool))) as batches,
    ):
        scored: ScoredPart | None = None
        for batch in batches:
            if scored is None:
                scorer.forget_prompts()
                scored, prompts = ScoredPart(batch.number), Counter[str]()
                rows: list[Row] = []
            if batch.rows:
                scored.rows += _score(scorer, batch, settings.columns)
                rows += [replace(row, source=b"") for row in batch.rows]  # without the content of files
                prompts.update(row.prompt for row in batch.rows if row.prompt and not row.problem)
                after_batch(len(batch.rows))
            else:
                scored.digest = digest(rows)
                if scorer.needs_prompt:
                    scored.num_too_long = sum(count * num_too_long([text]) for text, count in prompts.items())
                yield scored
                scored = None


def _batches(scorer: Scorer, parts: Iterable[Part], size: int, pool: ThreadPoolExecutor) -> Iterator[_Batch]:
    """Yields batches, which never hold rows of two parts, and begins to decode them."""
    for part in parts:
        rows = iter(part.rows())
        while batch := list(islice(rows, size)):
            yield _Batch(part.number, batch, [pool.submit(_prepare, scorer, row) for row in batch])
        yield _Batch(part.number, [], [])


def _ahead(batches: Iterator[_Batch]) -> Generator[_Batch, None, None]:
    """Yields batches that a thread of its own makes before they are asked for."""
    with ThreadPoolExecutor(1) as reader:
        waiting = deque(reader.submit(next, batches, None) for _ in range(AHEAD))
        try:
            while (batch := waiting.popleft().result()) is not None:
                waiting.append(reader.submit(next, batches, None))
                yield batch
        finally:
            reader.shutdown(cancel_futures=True)


def _prepare(scorer: Scorer, row: Row) -> Any:
    """Returns an image as the scorer takes it, or why the row cannot be scored."""
    if row.problem:
        return DataError(row.problem)
    if scorer.needs_prompt and not (row.prompt or "").strip():
        return DataError("no prompt, on which the scores depend")
    try:
        return scorer.prepare(row.source)
    except IpiqaError as error:
        return DataError(str(error))


def _score(scorer: Scorer, batch: _Batch, columns: Sequence[str]) -> list[list[Cell]]:
    """Returns the output of a batch."""
    results: dict[int, Any] = {i: future.result() for i, future in enumerate(batch.prepared)}
    places = [i for i, image in results.items() if not isinstance(image, DataError)]
    images, prompts = [results[i] for i in places], [batch.rows[i].prompt or "" for i in places]
    results |= zip(places, _outputs(scorer, images, prompts), strict=True)
    if places := [i for i in places if not isinstance(results[i], DataError)]:
        columns_of = scorer.columns(np.stack([results[i] for i in places], axis=1)).values()
        # float(str()): the shortest digits that mean this float32, in every format
        cells = zip(*([float(str(value)) for value in values] for values in columns_of), strict=True)
        results |= zip(places, cells, strict=True)
    out: list[list[Cell]] = []
    for row, result in zip(batch.rows, results.values(), strict=True):
        failed = isinstance(result, DataError)
        error = str(result).encode("utf-8", "backslashreplace").decode() if failed else None  # it may name odd paths
        out.append([row.image, row.prompt, *row.carried, *([None] * len(columns) if failed else result), error])
    return out


def _outputs(scorer: Scorer, images: list[Any], prompts: list[str]) -> list[np.ndarray | DataError]:
    """Returns the scores (F, T) of each image, or why it has none."""
    if not images:
        return []
    try:
        scores = scorer.outputs(images, prompts)
        wrong = DataError("the model gives no finite score")
        return [one if np.isfinite(one).all() else wrong for one in scores.transpose(1, 0, 2)]
    except (DataError, torch.OutOfMemoryError) as error:
        if len(images) == 1 and isinstance(error, DataError):
            return [error]
        if len(images) == 1:
            raise
    half = len(images) // 2
    return _outputs(scorer, images[:half], prompts[:half]) + _outputs(scorer, images[half:], prompts[half:])
