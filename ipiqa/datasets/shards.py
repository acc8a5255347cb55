"""Image-prompt pairs in tar shards, for more images than fit in a table or a folder: the settings and the files."""

import contextlib
import glob
import itertools
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, NoReturn

from ipiqa.datasets.checks import Findings, file_hashes, num_threads
from ipiqa.datasets.loaders import Loading, check_batch_size
from ipiqa.datasets.shard_reader import ShardReader, Skipped
from ipiqa.datasets.shard_stream import ShardBatches, ShardStream, Tokenize, decoded
from ipiqa.datasets.table import json_sha256
from ipiqa.errors import ConfigError, DataError
from ipiqa.files import require_package
from ipiqa.processors.image import SquashProcessor
from ipiqa.registry import FilePath, register

MAX_SHARDS = 1_000_000  # that a pattern may stand for
_MAX_SAMPLES = 10**9
_LOOKED_AT = 10  # shards searched for a first sample before the settings are thought wrong


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
    """Returns the names that a pattern with braces stands for."""
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
