"""Image-prompt pairs in tar shards, for more images than fit in a table or a folder: settings, files and batches.

Memory holds one shuffle buffer of undecoded samples per worker, however many shards there are. What a stream (one
worker of one process) reads is a pure function of (seed, epoch, rank, worker, world size, number of workers):

* All shards, permuted anew for every pass, follow each other in one endless row. An epoch starts in it where about the
  samples of the epochs before end, so that every shard has its turn.
* A stream reads every n-th shard to the end of the pass through a shuffle buffer, which it then empties: no sample
  comes twice in a pass. Where shards are fewer than streams, each stream reads all of them and takes every n-th sample.

A run that is resumed within an epoch reads and decodes that epoch from its start and leaves out the steps it has taken,
so `samples_per_epoch` decides what an interruption can cost.
"""

import contextlib
import glob
import itertools
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ipiqa.datasets.checks import Findings, file_hashes, num_threads
from ipiqa.datasets.loaders import Batch, Loading, check_batch_size, deliver
from ipiqa.datasets.shard_reader import Sample, ShardReader, Skipped, shuffled
from ipiqa.datasets.table import json_sha256
from ipiqa.errors import ConfigError, DataError
from ipiqa.files import require_package
from ipiqa.processors.image import SquashProcessor
from ipiqa.registry import FilePath, register

logger = logging.getLogger(__name__)

MAX_SHARDS = 1_000_000  # that a pattern may stand for
_MAX_SAMPLES = 10**9
_LOOKED_AT = 10  # shards searched for a first sample before the settings are thought wrong
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


@register("dataset", "shards")
@dataclass(kw_only=True)
class Shards:
    """Image-prompt pairs in tar files of the WebDataset form. The files are looked at by `check_files`.

    Attributes:
        shards: tar files to train on: paths, globs, brace ranges such as `data/{000000..000999}.tar`.
        val_shards: tar files of the held-out part, others than those.
        samples_per_epoch: images of an epoch, over all processes.
        val_samples: how many of the held-out samples to take, the first in order.
        image: endings of image members, separated by ";"; the first that a sample has is taken.
        prompt: ending of the prompt member, or "json:p" for the key p of a JSON member.
        shuffle_buffer: undecoded samples that a worker holds to draw from; 0 does not shuffle within a shard.
        cache_dir: folder that keeps the hashes of the shards.
    """

    num_targets: ClassVar[int] = 0
    has_scores: ClassVar[bool] = False
    streamed: ClassVar[Literal[True]] = True

    shards: list[FilePath] | FilePath
    val_shards: list[FilePath] | FilePath
    samples_per_epoch: int
    val_samples: int = 1000
    image: str = "png;jpg;jpeg;webp"
    prompt: str = "txt"
    shuffle_buffer: int = 1000
    cache_dir: FilePath = "cache/images"
    reader: ShardReader = field(init=False)

    def __post_init__(self) -> None:
        for setting, lowest in (("samples_per_epoch", 1), ("val_samples", 1), ("shuffle_buffer", 0)):
            if not lowest <= (value := getattr(self, setting)) <= _MAX_SAMPLES:
                wanted = f"Give a number of samples from {lowest} to {_MAX_SAMPLES}."
                raise ConfigError(f"dataset.{setting}: invalid value {value}. {wanted}")
        images = tuple(ending.strip().lower().removeprefix(".") for ending in self.image.split(";"))
        if not all(images):
            raise ConfigError(f"dataset.image: {self.image!r} has an empty ending. Give endings, as in 'png;jpg'.")
        self.reader = make_reader(images, self.prompt, "dataset.prompt")

    def load(self) -> NoReturn:
        """Refuses: there is no table of what is streamed."""
        raise ConfigError("dataset.name: 'shards' has no rows to split. dataset.val_shards is its held-out part.")

    def check_files(self) -> dict[str, list[Path]]:
        """Returns the files of both parts by setting; raises DataError where some are missing or in both."""
        parts = {s: find_shards(getattr(self, s), f"dataset.{s}") for s in ("shards", "val_shards")}
        known = {path.resolve() for path in parts["shards"]}
        if both := [path for path in parts["val_shards"] if path.resolve() in known]:
            share = f"{len(both)} of {len(parts['val_shards'])} are in dataset.shards too, first '{both[0]}'"
            raise DataError(f"dataset.val_shards: {share}. Hold out shards that are not trained on.")
        return parts

    def check(self, processor: SquashProcessor) -> Findings:
        """Decodes every image of every shard. What cannot be used is counted; training passes over it."""

        def look(shard: Path) -> tuple[int, Skipped]:
            skipped = Skipped()
            return sum(1 for _ in decoded(processor, self.reader.samples([shard], skipped), skipped)), skipped

        findings = Findings()
        for setting, shards in self.check_files().items():
            with ThreadPoolExecutor(num_threads()) as pool:
                numbers, skipped = zip(*pool.map(look, shards), strict=True)
            findings.problems += [f"{shard}: {each}" for shard, each in zip(shards, skipped, strict=True) if each]
            usable, unusable = sum(numbers), sum(each.counts.total() for each in skipped)
            counts = f"{len(shards)} shards, {usable} usable samples, {unusable} members skipped"
            findings.summary.append(f"{setting}: {counts}")
            if not usable:
                findings.refusal = f"dataset.{setting}: no usable sample in {len(shards)} shards."
        return findings

    def identity(self) -> dict[str, str]:
        """Returns a hash of the whole content of the shards of each part, in their order."""
        memory, parts = Path(self.cache_dir).expanduser() / "hashes", self.check_files()
        return {f"dataset.{s} (sha256)": json_sha256(file_hashes(s, files, memory)) for s, files in parts.items()}

    def train_batches(self, processor: SquashProcessor, tokenize: Tokenize, loading: Loading) -> ShardBatches:
        """Returns shuffled training batches of this process. Call `set_epoch` before each epoch.

        Raises DataError where an epoch does not fill one global batch, or no shard that is looked at has a sample.
        """
        number, shards = self.samples_per_epoch, find_shards(self.shards, "dataset.shards")
        check_batch_size(number, loading.batch_size, loading.world_size, "dataset.samples_per_epoch, {}")
        common = "dataset.shards", self.reader, shards, processor, tokenize, loading
        per_epoch = math.ceil(number / self._samples_per_shard(shards))
        return ShardBatches(ShardStream(*common, number, self.shuffle_buffer, per_epoch))

    def val_batches(self, processor: SquashProcessor, tokenize: Tokenize, loading: Loading) -> ShardBatches:
        """Returns the held-out batches of this process: the same samples for any number of processes and workers."""
        shards = find_shards(self.val_shards, "dataset.val_shards")
        common = "dataset.val_shards", self.reader, shards, processor, tokenize, loading
        return ShardBatches(ShardStream(*common, self.val_samples))

    def _samples_per_shard(self, shards: Sequence[Path]) -> int:
        """Returns the number of samples in the first shard that has any, out of some all over the list."""
        skipped = Skipped()
        tried = shards[:: math.ceil(len(shards) / _LOOKED_AT)]
        for shard in tried:
            if number := sum(1 for _ in self.reader.samples([shard], skipped)):
                return number
        why = f"{skipped}" if skipped else f"first '{tried[0]}'"
        sample = f"sample of {' or '.join(self.reader.images)} with a {self.reader.prompt}"
        problem = f"{len(tried)} of {len(shards)} shards were looked at, and none has a {sample}: {why}"
        wanted = "Set dataset.image and dataset.prompt to the endings in your shards"
        raise DataError(f"dataset.shards: {problem}. {wanted}.")


def make_reader(images: tuple[str, ...], prompt: str, setting: str) -> ShardReader:
    """Returns the reader of image members of these endings, and of prompts in an ending or "json:<key>"."""
    member, colon, key = prompt.strip().removeprefix(".").partition(":")
    if not member or (colon and not key) or member.lower() in images:
        raise ConfigError(f"{setting}: {prompt!r} names no prompt. Give an ending, as 'txt', or 'json:<key>'.")
    return ShardReader(images, member.lower(), key or None)


def find_shards(patterns: list[str] | str, setting: str) -> list[Path]:
    """Returns the files that paths, globs and brace ranges name, each once, in order; DataError: one is missing."""
    patterns = [patterns] if isinstance(patterns, str) else patterns or [""]
    for pattern in patterns:
        if not pattern.strip() or "://" in pattern or pattern.startswith("pipe:"):
            wanted = "Give paths of tar files on disk, as in 'data/{000000..000999}.tar'; download others first."
            raise ConfigError(f"{setting}: {pattern!r} is not a path. {wanted}")
    files: dict[str, list[Path]] = {}
    for name in itertools.chain.from_iterable(_expanded(pattern, setting) for pattern in patterns):
        matches = [name] if os.path.isfile(name) else sorted(glob.glob(name))  # noqa: PTH113, PTH207
        files[name] = [path for path in map(Path, matches) if path.is_file()]
    if missing := [name for name in files if not files[name]]:
        raise DataError(f"{setting}: {len(missing)} of the files are missing, first '{missing[0]}'. Check the path.")
    return list(dict.fromkeys(itertools.chain.from_iterable(files.values())))


def _expanded(pattern: str, setting: str) -> list[str]:
    if not {"{", "}"} & set(pattern):
        return [pattern]
    braces, names = require_package("braceexpand", setting), []
    with contextlib.suppress(ValueError, RecursionError):  # unmatched ones
        if math.prod(map(_num_choices, re.findall(r"\{([^{}]*)\}", pattern))) <= MAX_SHARDS:
            names = list(itertools.islice(braces.braceexpand(pattern), MAX_SHARDS + 1))
    if not 0 < len(names) <= MAX_SHARDS:
        wanted = f"Write up to {MAX_SHARDS:,} files, as {{000..999}} or {{a,b}}."
        raise ConfigError(f"{setting}: {pattern!r} has unmatched braces or stands for too many files. {wanted}")
    return names


def _num_choices(content: str) -> int:
    numbers = re.match(r"([0-9]+)\.\.([0-9]+)", content)
    return abs(int(numbers[2]) - int(numbers[1])) + 1 if numbers else content.count(",") + 1
