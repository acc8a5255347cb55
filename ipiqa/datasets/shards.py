"""Image-prompt pairs in tar shards, for more images than fit in a table or a folder: the settings and the files."""

from __future__ import annotations

import glob
import math
from collections.abc import Sequence
from pathlib import Path

from ipiqa.datasets.checks import num_threads
from ipiqa.datasets.loaders import check_batch_size
from ipiqa.datasets.shard_reader import ShardReader, Skipped
from ipiqa.datasets.shard_stream import (
    HeldOutBatches,
    HeldOutStream,
    MemoryReader,
    ShardBatches,
    Source,
    Tokenize,
    TrainStream,
)
from ipiqa.errors import ConfigError, DataError
from ipiqa.files import require_package
from ipiqa.registry import FilePath, register

_LOOKED_AT = 10  # shards searched for a first sample before the settings are thought wrong


@register("dataset", "shards")
class Shards:
    """Image-prompt pairs in tar files of the WebDataset form."""

    num_targets, has_scores = 0, False

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
    ) -> None:
        """Takes the settings; `check` looks at the files.

        Args:
            shards: tar files to train on: paths, globs, brace ranges such as `data/{000000..000999}.tar`.
            val_shards: tar files of the held-out part, others than those.
            samples_per_epoch: images of an epoch, over all processes.
            val_samples: how many of the held-out samples to take, the first in order.
            image: endings of image members, separated by ";"; the first that a sample has is taken.
            prompt: ending of the prompt member, or "json:p" for the key p of a JSON member.
            shuffle_buffer: undecoded samples that a worker holds to draw from; 0 does not shuffle within a shard.
        """
        for setting, value, lowest in (
            ("samples_per_epoch", samples_per_epoch, 1),
            ("val_samples", val_samples, 1),
            ("shuffle_buffer", shuffle_buffer, 0),
        ):
            if value < lowest:
                raise ConfigError(f"dataset.{setting}: {value} is below {lowest}. Give a number of samples.")
        images = tuple(ending.strip().lower().removeprefix(".") for ending in image.split(";"))
        member, colon, key = prompt.strip().removeprefix(".").partition(":")
        if not all(images):
            raise ConfigError(f"dataset.image: {image!r} has an empty ending. Give endings, as in 'png;jpg'.")
        if not member or (colon and not key) or member.lower() in images:
            raise ConfigError(f"dataset.prompt: {prompt!r} names no prompt. Give an ending, as 'txt', or 'json:<key>'.")
        self.shards, self.val_shards = shards, val_shards
        self.samples_per_epoch, self.val_samples, self.shuffle_buffer = samples_per_epoch, val_samples, shuffle_buffer
        self.reader = ShardReader(images, member.lower(), key or None)

    def check(self) -> None:
        """Looks whether the shards are there.

        Raises:
            ConfigError: the package webdataset is not installed.
            DataError: shards are missing, or stand in both parts.
        """
        train, held_out = find_shards(self.shards, "dataset.shards"), find_shards(self.val_shards, "dataset.val_shards")
        known = {path.resolve() for path in train}
        both = [path for path in held_out if path.resolve() in known]
        if both:
            raise DataError(
                f"dataset.val_shards: {len(both)} of {len(held_out)} are in dataset.shards too, first '{both[0]}'. "
                "Hold out shards that are not trained on."
            )

    def train_batches(
        self,
        processor: MemoryReader,
        tokenize: Tokenize,
        *,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        num_workers: int | None,
        pin_memory: bool,
    ) -> ShardBatches:
        """Returns shuffled training batches of this process. Call `set_epoch` before each epoch.

        Args:
            processor: decodes images.
            tokenize: makes int64 (B, context) of B prompts.
            batch_size: images in a batch of one process.
            seed: seed of the order.
            rank: number of this process.
            world_size: number of processes.
            num_workers: worker processes; None chooses. The order depends on their number.
            pin_memory: whether batches are bound for a GPU.

        Raises:
            DataError: an epoch does not fill one global batch, or no shard looked at has a sample.
        """
        steps = self.samples_per_epoch // (batch_size * world_size)
        check_batch_size(self.samples_per_epoch, batch_size, world_size, "dataset.samples_per_epoch, {}")
        shards = find_shards(self.shards, "dataset.shards")
        source = Source(
            reader=self.reader,
            shards=tuple(shards),
            processor=processor,
            tokenize=tokenize,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
        )
        stream = TrainStream(
            source,
            steps=steps,
            seed=seed,
            shuffle_buffer=self.shuffle_buffer,
            per_shard=self._samples_per_shard(shards),
        )
        return ShardBatches(stream, _workers(num_workers), pin_memory)

    def val_batches(
        self,
        processor: MemoryReader,
        tokenize: Tokenize,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        num_workers: int | None,
        pin_memory: bool,
    ) -> HeldOutBatches:
        """Returns the held-out batches of this process: the same samples for any number of processes and workers.

        Args: as in `train_batches`.
        """
        source = Source(
            reader=self.reader,
            shards=tuple(find_shards(self.val_shards, "dataset.val_shards")),
            processor=processor,
            tokenize=tokenize,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
        )
        return HeldOutBatches(HeldOutStream(source, num_samples=self.val_samples), _workers(num_workers), pin_memory)

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


def _workers(num_workers: int | None) -> int:
    return min(num_threads(), 8) if num_workers is None else num_workers


def find_shards(patterns: list[str] | str, setting: str) -> list[Path]:
    """Returns the files that paths, globs and brace ranges name, each once, in the order they are named.

    Raises:
        ConfigError: the package webdataset is not installed, or a pattern is no path.
        DataError: a file is missing, or a pattern matches none.
    """
    require_package("webdataset", setting)
    braces = require_package("braceexpand", setting)
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not all(pattern.strip() for pattern in patterns) or not patterns:
        raise ConfigError(f"{setting}: empty. Give paths of tar files, as in 'data/{{000000..000999}}.tar'.")
    remote = [pattern for pattern in patterns if "://" in pattern or pattern.startswith("pipe:")]
    if remote:
        raise ConfigError(f"{setting}: {remote[0]!r} is not a path. Shards are read from disk: download them first.")
    found: dict[Path, None] = {}
    missing: list[str] = []
    for pattern in patterns:
        try:
            names = list(braces.braceexpand(pattern))
        except ValueError as error:
            raise ConfigError(
                f"{setting}: {pattern!r} has an unmatched brace. Write {{000..999}} or {{a,b}}."
            ) from error
        for name in names:
            path = Path(name)
            matches = [path] if path.is_file() else [Path(match) for match in sorted(glob.glob(str(path)))]  # noqa: PTH207
            files = [match for match in matches if match.is_file()]
            found |= dict.fromkeys(files)
            if not files:
                missing.append(name)
    if missing:
        raise DataError(f"{setting}: {len(missing)} of the files are missing, first '{missing[0]}'. Check the path.")
    return list(found)
