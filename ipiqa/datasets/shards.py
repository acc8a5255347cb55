"""Image-prompt pairs in tar shards, for more images than fit in a table or a folder: the settings and the files."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar, NoReturn

from ipiqa.datasets.checks import Findings, num_threads
from ipiqa.datasets.loaders import Loading, check_batch_size
from ipiqa.datasets.shard_reader import ShardReader, Skipped
from ipiqa.datasets.shard_stream import HeldOutStream, ShardBatches, Streaming, Tokenize, TrainStream, decode
from ipiqa.errors import ConfigError, DataError
from ipiqa.files import content_sha256, require_package
from ipiqa.processors.image import SquashProcessor
from ipiqa.registry import FilePath, register

MAX_SHARDS = 1_000_000  # that a pattern may stand for
_MAX_SAMPLES = 10**9
_LOOKED_AT = 10  # shards searched for a first sample before the settings are thought wrong


@register("dataset", "shards")
class Shards:
    """Image-prompt pairs in tar files of the WebDataset form."""

    num_targets: ClassVar[int] = 0
    has_scores: ClassVar[bool] = False
    streamed: ClassVar[bool] = True

    def __init__(
        self,
        *,
        shards: list[FilePath] | FilePath,
        val_shards: list[FilePath] | FilePath,
        samples_per_epoch: int,
        val_samples: int = 1000,
        image: str = "png;jpg;jpeg;webp",
        prompt: str = "txt",
        shuffle_buffer: int = 1000,
        cache_dir: FilePath = "cache/images",
    ) -> None:
        """Takes the settings; `check_files` looks at the files.

        Args:
            shards: tar files to train on: paths, globs, brace ranges such as `data/{000000..000999}.tar`.
            val_shards: tar files of the held-out part, others than those.
            samples_per_epoch: images of an epoch, over all processes.
            val_samples: how many of the held-out samples to take, the first in order.
            image: endings of image members, separated by ";"; the first that a sample has is taken.
            prompt: ending of the prompt member, or "json:p" for the key p of a JSON member.
            shuffle_buffer: undecoded samples that a worker holds to draw from; 0 does not shuffle within a shard.
            cache_dir: folder that keeps the hashes of the shards.
        """
        for setting, value, lowest in (
            ("samples_per_epoch", samples_per_epoch, 1),
            ("val_samples", val_samples, 1),
            ("shuffle_buffer", shuffle_buffer, 0),
        ):
            if not lowest <= value <= _MAX_SAMPLES:
                limit = f"below {lowest}" if value < lowest else f"above {_MAX_SAMPLES}"
                raise ConfigError(f"dataset.{setting}: {value} is {limit}. Give a number of samples.")
        images = tuple(ending.strip().lower().removeprefix(".") for ending in image.split(";"))
        member, colon, key = prompt.strip().removeprefix(".").partition(":")
        if not all(images):
            raise ConfigError(f"dataset.image: {image!r} has an empty ending. Give endings, as in 'png;jpg'.")
        if not member or (colon and not key) or member.lower() in images:
            raise ConfigError(f"dataset.prompt: {prompt!r} names no prompt. Give an ending, as 'txt', or 'json:<key>'.")
        self.shards, self.val_shards, self.cache_dir = shards, val_shards, cache_dir
        self.samples_per_epoch, self.val_samples, self.shuffle_buffer = samples_per_epoch, val_samples, shuffle_buffer
        self.reader = ShardReader(images, member.lower(), key or None)

    def load(self) -> NoReturn:
        """Refuses: there is no table of what is streamed."""
        raise ConfigError(
            "dataset.name: 'shards' is streamed and has no rows to split. dataset.val_shards is its held-out part."
        )

    def check_files(self) -> dict[str, list[Path]]:
        """Returns the files of both parts by setting, having looked whether they are there.

        Raises:
            DataError: shards are missing, or stand in both parts.
        """
        parts = {s: find_shards(getattr(self, s), f"dataset.{s}") for s in ("shards", "val_shards")}
        known = {path.resolve() for path in parts["shards"]}
        both = [path for path in parts["val_shards"] if path.resolve() in known]
        if both:
            raise DataError(
                f"dataset.val_shards: {len(both)} of {len(parts['val_shards'])} are in dataset.shards too, "
                f"first '{both[0]}'. Hold out shards that are not trained on."
            )
        return parts

    def check(self, processor: SquashProcessor) -> Findings:
        """Decodes every image of every shard. What cannot be used is counted; training passes over it."""

        def look(shard: Path) -> tuple[int, Skipped]:
            skipped = Skipped()
            samples = self.reader.samples([shard], skipped)
            return sum(decode(processor, sample, skipped) is not None for _, sample in samples), skipped

        findings = Findings()
        for setting, shards in self.check_files().items():
            with ThreadPoolExecutor(num_threads()) as pool:
                looks = list(zip(shards, pool.map(look, shards), strict=True))
            usable = sum(number for _, (number, _) in looks)
            skipped = sum(skipped.total for _, (_, skipped) in looks)
            findings.problems += [f"{shard}: {skipped}" for shard, (_, skipped) in looks if skipped.total]
            findings.summary.append(
                f"{setting}: {len(shards)} shards, {usable} usable samples, {skipped} members skipped"
            )
            if not usable:
                findings.refusal = f"dataset.{setting}: no usable sample in {len(shards)} shards."
        return findings

    def identity(self) -> dict[str, str]:
        """Returns a hash of the whole content of the shards of each part, in their order.

        Raises:
            DataError: a shard cannot be read.
        """
        out = {}
        for setting, shards in self.check_files().items():
            try:
                hashes = content_sha256(shards, Path(self.cache_dir).expanduser() / "hashes")
            except OSError as error:
                raise DataError(f"dataset.{setting}: '{error.filename}' cannot be read: {error.strerror}.") from error
            out[f"dataset.{setting} (sha256)"] = hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
        return out

    def train_batches(self, processor: SquashProcessor, tokenize: Tokenize, loading: Loading) -> ShardBatches:
        """Returns shuffled training batches of this process. Call `set_epoch` before each epoch.

        Args:
            processor: decodes images.
            tokenize: makes int64 (B, context) of B prompts.
            loading: whose batches, and how; their order depends on the number of workers.

        Raises:
            DataError: an epoch does not fill one global batch, or no shard looked at has a sample.
        """
        check_batch_size(
            self.samples_per_epoch, loading.batch_size, loading.world_size, "dataset.samples_per_epoch, {}"
        )
        streaming = self._streaming("shards", processor, tokenize, loading)
        per_shard = self._samples_per_shard(streaming.shards)
        stream = TrainStream(
            streaming,
            steps=self.samples_per_epoch // (loading.batch_size * loading.world_size),
            shuffle_buffer=self.shuffle_buffer,
            shards_per_epoch=math.ceil(self.samples_per_epoch / per_shard),
        )
        return ShardBatches(stream, "dataset.shards")

    def val_batches(self, processor: SquashProcessor, tokenize: Tokenize, loading: Loading) -> ShardBatches:
        """Returns the held-out batches of this process: the same samples for any number of processes and workers.

        Args: as in `train_batches`.
        """
        stream = HeldOutStream(
            self._streaming("val_shards", processor, tokenize, loading), num_samples=self.val_samples
        )
        return ShardBatches(stream, "dataset.val_shards")

    def _streaming(self, setting: str, processor: SquashProcessor, tokenize: Tokenize, loading: Loading) -> Streaming:
        shards = find_shards(getattr(self, setting), f"dataset.{setting}")
        return Streaming(reader=self.reader, shards=shards, processor=processor, tokenize=tokenize, loading=loading)

    def _samples_per_shard(self, shards: Sequence[Path]) -> int:
        """Returns the number of samples in the first shard that has any; some shards all over the list are tried.

        Raises:
            DataError: none of them has a sample, so the settings are probably wrong.
        """
        skipped = Skipped()
        tried = shards[:: math.ceil(len(shards) / _LOOKED_AT)]
        for shard in tried:
            number = sum(1 for _ in self.reader.samples([shard], skipped))
            if number:
                return number
        why = f"{skipped}" if skipped.counts else f"first '{tried[0]}'"
        wanted = f"{' or '.join(self.reader.images)} with a {self.reader.prompt}"
        raise DataError(
            f"dataset.shards: {len(tried)} of {len(shards)} shards were looked at, and none has a sample of {wanted}: "
            f"{why}. Set dataset.image and dataset.prompt to the endings in your shards."
        )


def find_shards(patterns: list[str] | str, setting: str) -> list[Path]:
    """Returns the files that paths, globs and brace ranges name, each once, in the order they are named.

    Raises:
        ConfigError: a pattern is no path, or stands for too many.
        DataError: a file is missing, or a pattern matches none.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not all(pattern.strip() for pattern in patterns) or not patterns:
        raise ConfigError(f"{setting}: empty. Give paths of tar files, as in 'data/{{000000..000999}}.tar'.")
    remote = [pattern for pattern in patterns if "://" in pattern or pattern.startswith("pipe:")]
    if remote:
        raise ConfigError(f"{setting}: {remote[0]!r} is not a path. Shards are read from disk: download them first.")
    found: dict[Path, None] = {}
    missing: list[str] = []
    for name in itertools.chain.from_iterable(_expanded(pattern, setting) for pattern in patterns):
        path = Path(name)
        matches = [path] if path.is_file() else [Path(match) for match in sorted(glob.glob(str(path)))]  # noqa: PTH207
        files = [match for match in matches if match.is_file()]
        found |= dict.fromkeys(files)
        if not files:
            missing.append(name)
    if missing:
        raise DataError(f"{setting}: {len(missing)} of the files are missing, first '{missing[0]}'. Check the path.")
    return list(found)


def _expanded(pattern: str, setting: str) -> list[str]:
    """Returns the names that a pattern with braces stands for."""
    if not {"{", "}"} & set(pattern):
        return [pattern]
    braces, names = require_package("braceexpand", setting), []
    try:
        if math.prod(map(_num_choices, re.findall(r"\{([^{}]*)\}", pattern))) <= MAX_SHARDS:
            names = list(itertools.islice(braces.braceexpand(pattern), MAX_SHARDS + 1))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{setting}: {pattern!r} has an unmatched brace. Write {{000..999}} or {{a,b}}.") from error
    if not 0 < len(names) <= MAX_SHARDS:
        raise ConfigError(f"{setting}: {pattern!r} stands for more than {MAX_SHARDS:,} files. Write a smaller range.")
    return names


def _num_choices(content: str) -> int:
    """Returns how many names the content of a pair of braces stands for."""
    numbers = re.match(r"([0-9]+)\.\.([0-9]+)", content)
    return abs(int(numbers[2]) - int(numbers[1])) + 1 if numbers else content.count(",") + 1
