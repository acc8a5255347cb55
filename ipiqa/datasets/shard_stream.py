"""Batches of streamed samples.

Memory holds one shuffle buffer of undecoded samples per worker, however many shards there are. What a stream (one
worker of one process) reads is a pure function of (seed, epoch, rank, worker, world size, number of workers):

* All shards, permuted anew for every pass, follow each other in one endless row. An epoch starts where the shards end
  that were assigned to the epoch before, so that no shard comes again before all have come. As many shards are assigned
  as hold the samples of an epoch, if all hold as many as the first one.
* The streams take turns in that row. Where shards are fewer, each stream reads all of them and takes every n-th sample.
* A stream shuffles through a buffer, which it empties at the end of a pass and of the shards assigned to the epoch: no
  sample comes twice in a pass.

A run is saved between epochs, so `samples_per_epoch` decides how much an interruption can cost. A stream can be taken
up within an epoch too; it then reads and decodes again what came before: which images can be used shows only then.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ipiqa.datasets.loaders import Batch, Failure
from ipiqa.datasets.shard_reader import Sample, ShardReader, Skipped, shuffled
from ipiqa.errors import DataError

logger = logging.getLogger(__name__)

_ORDER, _BUFFER = 5, 6  # last numbers of the RandomState seeds: streams that nothing else draws from

Tokenize = Callable[[list[str]], torch.Tensor]
Delivery = tuple[Batch | Failure | None, dict[str, int], str]  # a worker's batch, and what it skipped on the way


class MemoryReader(Protocol):
    """What streaming needs of an image processor."""

    def decode(self, source: Path | bytes, name: str | None = None) -> torch.Tensor:
        """Returns the uint8 image (3, S, S); raises DataError when it cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where samples come from, and what makes a batch of them."""

    reader: ShardReader
    shards: tuple[Path, ...]
    processor: MemoryReader
    tokenize: Tokenize
    batch_size: int
    rank: int
    world_size: int

    def decode(self, sample: Sample, skipped: Skipped) -> torch.Tensor | None:
        try:
            return self.processor.decode(sample.image, sample.name)
        except DataError:
            skipped.add("not decodable", sample.name)
            return None

    def batch(self, decoded: Sequence[tuple[int, torch.Tensor, str]]) -> Batch:
        """Returns images uint8 (B, 3, S, S) channels_last, tokens int64 (B, context), rows int64 (B,)."""
        rows, pixels, prompts = zip(*decoded, strict=True)
        images = torch.stack([image.permute(1, 2, 0) for image in pixels]).permute(0, 3, 1, 2)
        return {"images": images, "tokens": self.tokenize(list(prompts)), "rows": torch.tensor(rows)}


def _worker() -> tuple[int, int]:
    """Returns the number of this worker and of all workers of its process."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info is not None else (0, 1)


class TrainStream(IterableDataset[Delivery]):
    """The training batches of one process; each of its workers gives every n-th."""

    def __init__(self, source: Source, *, steps: int, seed: int, shuffle_buffer: int, per_shard: int) -> None:
        self.source, self.steps, self.seed, self.shuffle_buffer = source, steps, seed, shuffle_buffer
        self.per_shard, self.epoch, self.first_step = per_shard, 0, 0

    def __iter__(self) -> Iterator[Delivery]:
        worker, workers = _worker()
        turn = (self.first_step + worker) % workers  # the loader asks worker 0 first, whichever step comes first
        source, skipped = self.source, Skipped()
        decoded = self._decoded(source.rank * workers + turn, source.world_size * workers, skipped)
        own = range(turn, self.steps, workers)
        for step in own if own and own[-1] >= self.first_step else ():
            row = (step * source.world_size + source.rank) * source.batch_size
            try:
                taken = [(row + i, *pair) for i, pair in enumerate(itertools.islice(decoded, source.batch_size))]
            except DataError as error:
                yield Failure(str(error)), *skipped.take()
                return
            if step >= self.first_step:
                yield source.batch(taken), *skipped.take()

    def _decoded(self, stream: int, num_streams: int, skipped: Skipped) -> Iterator[tuple[torch.Tensor, str]]:
        """Yields image and prompt without end.

        Raises:
            DataError: every shard has been tried and none had a usable image.
        """
        source = self.source
        random = np.random.RandomState([self.seed, self.epoch, stream, _BUFFER])
        part = (stream, num_streams) if len(source.shards) < num_streams else (0, 1)
        tried: set[Path] = set()
        for shards in self._stretches(stream, num_streams):
            samples = (sample for _, sample in source.reader.samples(shards, skipped, *part))
            usable = 0
            for sample in shuffled(samples, self.shuffle_buffer, random):
                image = source.decode(sample, skipped)
                if image is not None:
                    usable += 1
                    yield image, sample.prompt
            tried = set() if usable else tried.union(shards)
            if len(tried) == len(source.shards):
                why = f"{skipped}." if skipped.counts else f"They hold too few samples for {num_streams} workers."
                raise DataError(f"dataset.shards: no usable image in {len(tried)} shards. {why}")

    def _stretches(self, stream: int, num_streams: int) -> Iterator[list[Path]]:
        """Yields the shards that a stream reads in turn, without end, a list for each time that it fills its buffer.

        A list ends with a pass, and with what is assigned to the epoch: the buffer draws nothing of the next one.
        """
        shards = self.source.shards
        together = len(shards) < num_streams
        width = 1 if together else num_streams
        samples = self.steps * self.source.batch_size * self.source.world_size
        assigned = math.ceil(samples / width / self.per_shard) * width
        position = self.epoch * assigned + (0 if together else stream)  # in the endless row of passes
        while True:
            number, place = divmod(position, len(shards))
            order = np.random.RandomState([self.seed, number, _ORDER]).permutation(len(shards))
            left = (self.epoch + 1) * assigned - position
            own = order[place : place + left if left > 0 else None : width]
            yield [shards[chosen] for chosen in own]
            position += len(own) * width


class HeldOutStream(IterableDataset[Delivery]):
    """One process's share of the first samples of the held-out shards, in their order."""

    def __init__(self, source: Source, *, num_samples: int) -> None:
        self.source, self.num_samples = source, num_samples

    def __iter__(self) -> Iterator[Delivery]:
        worker, workers = _worker()
        source, skipped = self.source, Skipped()
        stream, num_streams = source.rank * workers + worker, source.world_size * workers
        decoded: list[tuple[int, torch.Tensor, str]] = []
        for number, sample in source.reader.samples(source.shards, skipped, stream, num_streams, self.num_samples):
            image = source.decode(sample, skipped)
            if image is not None:
                decoded.append((number, image, sample.prompt))
            if len(decoded) == source.batch_size:
                yield source.batch(decoded), *skipped.take()
                decoded = []
        yield source.batch(decoded) if decoded else None, *skipped.take()


def _deliver(
    stream: TrainStream | HeldOutStream, num_workers: int, pin_memory: bool, skipped: Skipped, setting: str
) -> Iterator[Batch]:
    """Yields the batches of a stream, adds up what its workers skip, and says so at the end.

    The workers live for one round: they then know its epoch without being told.
    """
    loader = DataLoader(stream, batch_size=None, num_workers=num_workers, pin_memory=pin_memory)
    for batch, counts, first in loader:
        for reason, count in counts.items():
            skipped.add(reason, first, count)
        if isinstance(batch, Failure):
            raise DataError(batch.message)
        if batch is not None:
            yield batch
    if skipped.counts:
        logger.warning("%s: %s", setting, skipped)


class ShardBatches:
    """The training batches of one process, equally many on every process.

    Attributes:
        skipped: what could not be used in this epoch so far.
    """

    def __init__(self, stream: TrainStream, num_workers: int, pin_memory: bool) -> None:
        self.stream, self.num_workers, self.pin_memory = stream, num_workers, pin_memory
        self.skipped = Skipped()

    def __len__(self) -> int:
        """Returns the steps of a whole epoch."""
        return self.stream.steps

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Chooses the epoch to come, and how many of its first steps to leave out (a resumed run has taken them)."""
        self.stream.epoch, self.stream.first_step = epoch, first_step

    def __iter__(self) -> Iterator[Batch]:
        self.skipped = Skipped()
        return _deliver(self.stream, self.num_workers, self.pin_memory, self.skipped, "dataset.shards")


class HeldOutBatches:
    """The held-out batches of one process: over all processes, every sample once.

    Attributes:
        skipped: what could not be used in this round so far.
    """

    def __init__(self, stream: HeldOutStream, num_workers: int, pin_memory: bool) -> None:
        self.stream, self.num_workers, self.pin_memory = stream, num_workers, pin_memory
        self.skipped = Skipped()

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches.

        Raises:
            DataError: none of the samples can be used.
        """
        self.skipped = Skipped()
        empty = True
        for batch in _deliver(self.stream, self.num_workers, self.pin_memory, self.skipped, "dataset.val_shards"):
            empty = False
            yield batch
        if empty and (self.skipped.counts or self.stream.source.rank == 0):  # the others' share may be empty
            why = f"{self.skipped}." if self.skipped.counts else "They hold no samples."
            raise DataError(f"dataset.val_shards: no usable image in {len(self.stream.source.shards)} shards. {why}")
