"""Batches of a table's rows. Which row stands in which batch is a pure function of (seed, fold, epoch, rank)."""

import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ipiqa.datasets.checks import num_threads
from ipiqa.datasets.comparisons import Comparisons
from ipiqa.datasets.image_cache import DecodedImages, ImageSource
from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import DataError

_ORDER = 3  # last number of the RandomState seed: a stream that splits and flips do not share

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a process loads batches."""

    batch_size: int  # of training, in one process
    eval_batch_size: int
    seed: int  # of the order
    rank: int = 0
    world_size: int = 1
    num_workers: int | None = None  # None chooses
    pin_memory: bool = False  # for batches that go to a GPU

    def workers(self, *, cached: bool) -> int:
        """Returns the number of workers: none for cached images, which are copied faster than handed over."""
        if self.num_workers is not None:
            return self.num_workers
        return 0 if cached else min(num_threads(), 8)


class TableBatches(Dataset[Batch | DataError]):
    """Batches by row numbers, or by numbers of the given pairs; tokens (N, context) int64 are of the N prompts."""

    def __init__(
        self, table: AnnotationTable, images: ImageSource, tokens: torch.Tensor, pairs: Comparisons | None = None
    ) -> None:
        self.images, self.tokens, self.pairs = images, tokens, pairs
        self.targets = torch.from_numpy(table.scores.astype(np.float32))
        self.spread = None if table.rater_std is None else torch.from_numpy(table.rater_std.astype(np.float32))
        self.lacks_scores = bool(self.targets.isnan().any())

    def __getitem__(self, numbers: np.ndarray) -> Batch | DataError:
        """Returns images uint8 (B, 3, S, S), tokens int64 (B, context), targets float32 (B, T), rows int64 (B,).

        Where the table lacks scores, `known` bool (B, T) says which targets are there; where it has the spread of the
        raters, that is `spread` float32 (B, T), nan where it is not known. Of P pairs, the batch has every image once,
        and `pairs` int64 (P, 2) and `chosen` float32 (P,), as `Comparisons` but for places in the batch. An error is
        returned: raised in a worker, it would reach the main process as a long traceback.
        """
        rows, compared = numbers, {}
        if self.pairs is not None:
            rows, places = np.unique(self.pairs.rows[numbers], return_inverse=True)
            compared["pairs"] = torch.from_numpy(places.reshape(-1, 2))
            compared["chosen"] = torch.from_numpy(self.pairs.chosen[numbers].astype(np.float32))
        try:
            images = self.images.batch(rows)
        except DataError as error:
            return error
        index = torch.from_numpy(rows)
        batch = {"images": images, "tokens": self.tokens[index], "targets": self.targets[index], "rows": index}
        if self.spread is not None:
            batch["spread"] = self.spread[index]
        return batch | compared | ({"known": ~batch["targets"].isnan()} if self.lacks_scores else {})


class TrainSampler(Sampler[np.ndarray]):
    """Row numbers of one process's batches.

    One permutation of all training rows is cut into global batches of world_size x batch_size, the rest dropped, and
    each process takes its contiguous slice: W processes with batch B / W see the batches of one process with batch B.
    """

    def __init__(self, rows: np.ndarray, loading: Loading, fold: int) -> None:
        self.rows, self.loading, self.fold, self.epoch, self.first_step = rows, loading, fold, 0, 0

    def __len__(self) -> int:
        return len(self.rows) // (self.loading.batch_size * self.loading.world_size)

    def __iter__(self) -> Iterator[np.ndarray]:
        size, loading = self.loading.batch_size, self.loading
        order = np.random.RandomState([loading.seed, self.fold, self.epoch, _ORDER]).permutation(self.rows)
        for step in range(self.first_step, len(self)):
            start = (step * loading.world_size + loading.rank) * size
            yield order[start : start + size]


class BatchLoader(DataLoader[Any]):
    """A DataLoader of ready-made batches; an unusable image ends the iteration with a DataError that names it."""

    def __init__(
        self, batches: TableBatches, rows: Sampler[np.ndarray] | Sequence[np.ndarray], loading: Loading
    ) -> None:
        workers = loading.workers(cached=not isinstance(batches.images, DecodedImages))
        super().__init__(
            batches, sampler=rows, batch_size=None,  # the sampler's items are whole batches
            num_workers=workers, persistent_workers=workers > 0, pin_memory=loading.pin_memory,
        )  # fmt: skip

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Chooses the epoch to come, and how many of its first steps to leave out (a resumed run has taken them)."""
        assert isinstance(self.sampler, TrainSampler)  # it runs in this process, so persistent workers follow
        self.sampler.epoch, self.sampler.first_step = epoch, first_step

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # any iterator will do
        return deliver(super().__iter__, self.num_workers)


def deliver(start: Callable[[], Iterator[Any]], num_workers: int) -> Iterator[Any]:
    """Yields what the workers of a DataLoader make.

    PyTorch would have the signal of a killed worker end whatever this process is doing just then, in the middle of an
    optimizer step, too. Here it is found when the next batch is asked for, and what is trained so far can be saved.
    Raises DataError where one was killed, or gave this error in the place of a batch. `start` begins a round.
    """
    handler = signal.getsignal(signal.SIGCHLD) if num_workers and hasattr(signal, "SIGCHLD") else None
    try:
        batches = start()
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:  # its pipe and its sockets break, too
        caught = str(error)
        is_killed = "DataLoader worker" in caught or not isinstance(error, RuntimeError)
        if num_workers == 0 or caught.startswith("Caught ") or not is_killed:
            raise  # a mistake of the program
        problem = f"one of the {num_workers} processes that load images has ended unexpectedly"
        wanted = "Take fewer, or run.num_workers=0, and go on with --resume"
        raise DataError(f"run.num_workers: {problem}, as it does where memory is short. {wanted}.") from None


def train_loader(
    table: AnnotationTable, images: ImageSource, tokens: torch.Tensor, rows: np.ndarray, loading: Loading, *,
    fold: int, compares: bool = False,
) -> BatchLoader:  # fmt: skip
    """Returns shuffled training batches of this process; its length is that of a whole epoch. Call `set_epoch` first.

    They are of images, or, where the task `compares` them, of the pairs of the table among them. Raises DataError
    where `rows`, the row numbers to train on, do not fill one batch of every process.
    """
    pairs = table.comparisons if compares else None
    numbers, what = (rows, "images") if pairs is None else (pairs.within(rows), "pairs")
    check_batch_size(len(numbers), loading.batch_size, loading.world_size, f"the {{}} training {what}")
    return BatchLoader(TableBatches(table, images, tokens, pairs), TrainSampler(numbers, loading, fold), loading)


def check_batch_size(num_rows: int, batch_size: int, world_size: int, what: str = "the {} training images") -> None:
    """Raises DataError where the images to train on, called `what`, do not fill one batch of every process."""
    if num_rows < batch_size * world_size:
        size = f"{batch_size} x {world_size} processes" if world_size > 1 else f"{batch_size}"
        wanted = f"Use at most {num_rows // world_size}."
        raise DataError(f"run.batch_size: {size} is more than {what.format(num_rows)}. {wanted}")


def eval_loader(
    table: AnnotationTable, images: ImageSource, tokens: torch.Tensor, rows: np.ndarray, loading: Loading
) -> BatchLoader:
    """Returns the batches of this process's share of the rows: over all processes, every row exactly once."""
    own, size = rows[loading.rank :: loading.world_size], loading.eval_batch_size
    batches = [own[start : start + size] for start in range(0, len(own), size)]
    return BatchLoader(TableBatches(table, images, tokens), batches, loading)
