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

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ipiqa.datasets.checks import num_threads
from ipiqa.datasets.loaders import Batch, Failure, Loading, deliver
from ipiqa.datasets.shard_reader import Sample, ShardReader, Skipped, shuffled
from ipiqa.errors import DataError
from ipiqa.processors.image import SquashProcessor

logger = logging.getLogger(__name__)

_ORDER, _BUFFER = 5, 6  # last numbers of the RandomState seeds: streams that nothing else draws from

Tokenize = Callable[[Sequence[str]], torch.Tensor]
Delivery = tuple[Batch | Failure | None, Skipped]  # a worker's batch, and what it skipped on the way


def decode(processor: SquashProcessor, sample: Sample, skipped: Skipped) -> torch.Tensor | None:
    """Returns the uint8 image (3, S, S) of a sample; None, and counts it, where it cannot be decoded."""
    try:
        return processor.decode(sample.image, sample.name)
    except DataError:
        skipped.add("not decodable", sample.name)
        return None


@dataclass(frozen=True, kw_only=True)
class Streaming:
    """Where samples come from, and what makes batches of them."""

    reader: ShardReader
    shards: Sequence[Path]
    processor: SquashProcessor
    tokenize: Tokenize
    loading: Loading

    def batch(self, decoded: Sequence[tuple[int, torch.Tensor, str]]) -> Batch:
        """Returns images uint8 (B, 3, S, S) channels_last, tokens int64 (B, context), rows int64 (B,)."""
        rows, pixels, prompts = zip(*decoded, strict=True)
        images = torch.stack([image.permute(1, 2, 0) for image in pixels]).permute(0, 3, 1, 2)
        return {"images": images, "tokens": self.tokenize(list(prompts)), "rows": torch.tensor(rows)}

    def worker(self) -> tuple[int, int, int, int]:
        """Returns (this worker, workers of its process, this stream, streams of all processes)."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        return worker, workers, self.loading.rank * workers + worker, self.loading.world_size * workers


class TrainStream(IterableDataset[Delivery]):
    """The training batches of one process; each of its workers gives every n-th."""

    def __init__(self, streaming: Streaming, *, steps: int, shuffle_buffer: int, shards_per_epoch: int) -> None:
        self.streaming, self.steps, self.shuffle_buffer = streaming, steps, shuffle_buffer
        self.shards_per_epoch, self.epoch = shards_per_epoch, 0

    def __iter__(self) -> Iterator[Delivery]:
        loading, skipped = self.streaming.loading, Skipped()
        worker, workers, stream, num_streams = self.streaming.worker()
        decoded = self._decoded(stream, num_streams, skipped)
        for step in range(worker, self.steps, workers):
            row = (step * loading.world_size + loading.rank) * loading.batch_size
            try:
                taken = [(row + i, *pair) for i, pair in enumerate(itertools.islice(decoded, loading.batch_size))]
            except DataError as error:
                yield Failure(str(error)), skipped.take()
                return
            yield self.streaming.batch(taken), skipped.take()

    def _decoded(self, stream: int, num_streams: int, skipped: Skipped) -> Iterator[tuple[torch.Tensor, str]]:
        """Yields image and prompt without end.

        Raises:
            DataError: every shard has been tried and none had a usable image.
        """
        streaming, shards = self.streaming, self.streaming.shards
        seed = streaming.loading.seed
        random = np.random.RandomState([seed, self.epoch, stream, _BUFFER])
        by_sample = len(shards) < num_streams
        first_pass, place = divmod(self.epoch * self.shards_per_epoch, len(shards))
        tried: set[Path] = set()  # without a usable image
        for number in itertools.count(first_pass):
            order = np.random.RandomState([seed, number, _ORDER]).permutation(len(shards))[place:]
            own = [shards[chosen] for chosen in (order if by_sample else order[stream::num_streams])]
            samples = streaming.reader.samples(own, skipped, *((stream, num_streams) if by_sample else (0, 1)))
            place, usable = 0, 0
            for sample in shuffled((sample for _, sample in samples), self.shuffle_buffer, random):
                image = decode(streaming.processor, sample, skipped)
                if image is not None:
                    usable += 1
                    yield image, sample.prompt
            tried = set() if usable else tried.union(own)
            if len(tried) == len(shards):
                why = f"{skipped}." if skipped.counts else f"They hold too few samples for {num_streams} workers."
                raise DataError(f"dataset.shards: no usable image in {len(shards)} shards. {why}")


class HeldOutStream(IterableDataset[Delivery]):
    """One process's share of the first samples of the held-out shards, in their order."""

    def __init__(self, streaming: Streaming, *, num_samples: int) -> None:
        self.streaming, self.num_samples, self.epoch = streaming, num_samples, 0
        loading = streaming.loading
        self.steps = math.ceil(num_samples / loading.world_size / loading.eval_batch_size)  # at most

    def __iter__(self) -> Iterator[Delivery]:
        streaming, skipped = self.streaming, Skipped()
        _, _, stream, num_streams = streaming.worker()
        samples = streaming.reader.samples(streaming.shards, skipped, stream, num_streams, self.num_samples)
        images = ((number, decode(streaming.processor, sample, skipped), sample.prompt) for number, sample in samples)
        usable = ((number, image, prompt) for number, image, prompt in images if image is not None)
        while batch := list(itertools.islice(usable, streaming.loading.eval_batch_size)):
            yield streaming.batch(batch), skipped.take()
        yield None, skipped.take()


class ShardBatches:
    """The batches of one process: of training equally many on every one, of the held-out part each sample once.

    Attributes:
        num_workers: worker processes; the order of training depends on their number.
        skipped: what could not be used in this epoch so far.
    """

    def __init__(self, stream: TrainStream | HeldOutStream, setting: str) -> None:
        self.stream, self.setting, self.first_step, self.skipped = stream, setting, 0, Skipped()
        chosen = stream.streaming.loading.num_workers
        self.num_workers = min(num_threads(), 8) if chosen is None else chosen

    def __len__(self) -> int:
        """Returns the steps of a whole epoch."""
        return self.stream.steps

    def set_epoch(self, epoch: int, first_step: int = 0) -> None:
        """Chooses the epoch to come, and how many of its first steps to leave out (a resumed run has taken them)."""
        self.stream.epoch, self.first_step = epoch, first_step

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches, and says at the end what was skipped.

        The workers live for one round: they then know its epoch without being told.

        Raises:
            DataError: no image can be used, or a worker was killed.
        """
        skipped = self.skipped = Skipped()
        if self.first_step == self.stream.steps:  # nothing is left of the epoch
            return
        loading = self.stream.streaming.loading
        loader = DataLoader(
            self.stream, batch_size=None, num_workers=self.num_workers, pin_memory=loading.pin_memory
        )  # fmt: skip
        steps = 0
        for batch, passed_over in deliver(loader.__iter__, self.num_workers):
            for reason, count in passed_over.counts.items():
                skipped.add(reason, passed_over.first, count)
            if isinstance(batch, Failure):
                raise DataError(batch.message)
            if batch is not None:
                steps += 1
                if steps > self.first_step:
                    yield batch
        if skipped.counts:
            logger.warning("%s: %s", self.setting, skipped)
        if not steps and (skipped.counts or loading.rank == 0):  # the others' share may be empty
            why = f"{skipped}." if skipped.counts else "They hold no samples."
            raise DataError(f"{self.setting}: no usable image in {len(self.stream.streaming.shards)} shards. {why}")
