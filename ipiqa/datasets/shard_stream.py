"""Batches of streamed samples.

Memory holds one shuffle buffer of undecoded samples per worker, however many shards there are. What a stream (one
worker of one process) reads is a pure function of (seed, epoch, rank, worker, world size, number of workers):

* All shards, permuted anew for every pass, follow each other in one endless row. An epoch starts in it where about the
  samples of the epochs before end, so that every shard has its turn.
* A stream reads every n-th shard to the end of the pass through a shuffle buffer, which it then empties: no sample
  comes twice in a pass. Where shards are fewer than streams, each stream reads all of them and takes every n-th sample.

A run that is resumed within an epoch reads and decodes that epoch from its start and leaves out the steps it has taken,
so `samples_per_epoch` decides what an interruption can cost.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ipiqa.datasets.loaders import Batch, Loading, deliver
from ipiqa.datasets.shard_reader import Sample, ShardReader, Skipped, shuffled
from ipiqa.errors import DataError
from ipiqa.processors.image import SquashProcessor

logger = logging.getLogger(__name__)

_ORDER, _BUFFER = 5, 6  # last numbers of the RandomState seeds: streams that nothing else draws from

Tokenize = Callable[[Sequence[str]], torch.Tensor]
Decoded = tuple[int, torch.Tensor, str]  # number of a sample, uint8 image (3, S, S), prompt
Delivery = tuple[Batch | None, Skipped] | DataError  # a worker's batch, and what it skipped on the way


def decoded(processor: SquashProcessor, samples: Iterable[tuple[int, Sample]], skipped: Skipped) -> Iterator[Decoded]:
    """Yields the samples whose image can be decoded, and counts the others."""
    for number, sample in samples:
        try:
            image = processor.decode(sample.image, sample.name)
        except DataError:
            skipped.add("not decodable", sample.name)
        else:
            yield number, image, sample.prompt


@dataclass
class ShardStream(IterableDataset[Delivery]):
    """The batches of one process: of an epoch of training, shuffled, or of the held-out samples, in their order."""

    setting: str  # names the shards in messages
    reader: ShardReader
    shards: Sequence[Path]
    processor: SquashProcessor
    tokenize: Tokenize  # B prompts -> int64 (B, context)
    loading: Loading
    num_samples: int  # of an epoch or, at most, of the held-out part; over all processes
    shuffle_buffer: int | None = None  # undecoded samples to draw from; None reads the held-out part
    shards_per_epoch: int = 0  # which about hold the samples of an epoch
    epoch: int = 0

    @property
    def steps(self) -> int:
        """Batches of an epoch; of the held-out part, at most."""
        if self.shuffle_buffer is None:
            return math.ceil(self.num_samples / self.loading.world_size / self.loading.eval_batch_size)
        return self.num_samples // (self.loading.batch_size * self.loading.world_size)

    def __iter__(self) -> Iterator[Delivery]:
        info, loading, skipped = get_worker_info(), self.loading, Skipped()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        part = loading.rank * workers + worker, loading.world_size * workers
        if self.shuffle_buffer is None:
            size, samples = loading.eval_batch_size, self.reader.samples(self.shards, skipped, *part, self.num_samples)
            images = decoded(self.processor, samples, skipped)
        else:
            size = loading.batch_size
            firsts = ((step * loading.world_size + loading.rank) * size for step in range(worker, self.steps, workers))
            rows = itertools.chain.from_iterable(range(first, first + size) for first in firsts)
            endless = self._shuffled(*part, self.shuffle_buffer, skipped)
            images = ((row, image, prompt) for row, (_, image, prompt) in zip(rows, endless, strict=False))
        try:
            while batch := list(itertools.islice(images, size)):
                yield self._batch(batch), skipped.take()
        except DataError as error:
            yield error
        else:
            yield None, skipped.take()

    def _batch(self, samples: Sequence[Decoded]) -> Batch:
        """Returns images uint8 (B, 3, S, S) channels_last, tokens int64 (B, context), rows int64 (B,)."""
        rows, pixels, prompts = zip(*samples, strict=True)
        images = torch.stack([image.permute(1, 2, 0) for image in pixels]).permute(0, 3, 1, 2)
        return {"images": images, "tokens": self.tokenize(list(prompts)), "rows": torch.tensor(rows)}

    def _shuffled(self, stream: int, num_streams: int, shuffle_buffer: int, skipped: Skipped) -> Iterator[Decoded]:
        """Yields samples without end; raises DataError once every shard is tried and none has a usable image."""
        shards, seed = self.shards, self.loading.seed
        random = np.random.RandomState([seed, self.epoch, stream, _BUFFER])
        by_sample = len(shards) < num_streams
        first_pass, place = divmod(self.epoch * self.shards_per_epoch, len(shards))
        tried: set[Path] = set()  # without a usable image
        for number in itertools.count(first_pass):
            order = np.random.RandomState([seed, number, _ORDER]).permutation(len(shards))[place:]
            own = [shards[chosen] for chosen in (order if by_sample else order[stream::num_streams])]
            samples = self.reader.samples(own, skipped, *((stream, num_streams) if by_sample else (0, 1)))
            place, tried = 0, tried.union(own)
            for sample in decoded(self.processor, shuffled(samples, shuffle_buffer, random), skipped):
                tried = set()
                yield sample
            if len(tried) == len(shards):
                raise self.no_image(skipped)

    def no_image(self, skipped: Skipped) -> DataError:
        """Returns the error of shards without a usable image."""
        num_streams = self.loading.world_size * max(1, self.loading.workers(cached=False))
        why = f"{skipped}" if skipped else f"They hold too few samples for {num_streams} workers"
        return DataError(f"{self.setting}: no usable image in {len(self.shards)} shards. {why}.")


class ShardBatches(DataLoader[Any]):
    """The batches of one process: of training equally many on every one, of the held-out part each sample once.

    The workers live for one round, and so begin with its epoch; the order of training depends on their number.

    Attributes:
        skipped: what could not be used in this epoch so far.
    """

    def __init__(self, stream: ShardStream) -> None:
        workers, pin_memory = stream.loading.workers(cached=False), stream.loading.pin_memory
        super().__init__(stream, batch_size=None, num_workers=workers, pin_memory=pin_memory)
        self.stream, self.first_step, self.skipped = stream, 0, Skipped()

    def __len__(self) -> int:
        return self.stream.steps

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Chooses the epoch to come, and how many of its first steps to leave out (a resumed run has taken them)."""
        self.stream.epoch, self.first_step = epoch, first_step

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # any iterator will do
        """Yields the batches and logs at the end what was skipped; raises DataError: no usable image, killed worker."""
        skipped, steps = Skipped(), 0
        self.skipped = skipped
        if self.first_step == len(self):  # nothing is left of the epoch
            return
        for batch, passed_over in deliver(super().__iter__, self.num_workers):
            skipped.merge(passed_over)
            if batch is not None:
                steps += 1
                if steps > self.first_step:
                    yield batch
        if skipped:
            logger.warning("%s: %s", self.stream.setting, skipped)
        if not steps and (skipped or self.stream.loading.rank == 0):  # the others' share may be empty
            raise self.stream.no_image(skipped)
