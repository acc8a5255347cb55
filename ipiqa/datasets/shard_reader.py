"""Samples out of tar shards of the WebDataset form, one after the other. What is damaged is counted and passed over.

A shard is a tar file in which the members of a sample stand next to each other and share their name up to its first
dot: `000123.png`, `000123.txt`.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ipiqa.files import require_package


@dataclass
class Skipped:
    """What could not be used.

    Attributes:
        counts: reason -> number of members, or of shards where the whole rest of a shard is lost.
        first: where the first of them was, as 'shard.tar: name'.
    """

    counts: dict[str, int] = field(default_factory=dict)
    first: str = ""

    def add(self, reason: str, where: str, count: int = 1) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first = self.first or where

    def take(self) -> tuple[dict[str, int], str]:
        """Returns counts and first, and forgets them."""
        taken = self.counts, self.first
        self.counts, self.first = {}, ""
        return taken

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        return f"{sum(self.counts.values())} members skipped: {reasons}; first '{self.first}'"


@dataclass(frozen=True)
class Sample:
    """An undecoded image and its prompt; `name` is 'shard.tar: name'."""

    name: str
    image: bytes
    prompt: str


@dataclass(frozen=True)
class ShardReader:
    """Reads samples out of tar files, one after the other.

    Attributes:
        images: endings of image members; the first that a sample has is taken.
        prompt: ending of the prompt member.
        key: key of the prompt in that member, which is JSON; None where the member is the prompt.
    """

    images: tuple[str, ...]
    prompt: str
    key: str | None

    def samples(
        self, shards: Iterable[Path], skipped: Skipped, part: int = 0, num_parts: int = 1, limit: int | None = None
    ) -> Iterator[tuple[int, Sample]]:
        """Yields the samples with a prompt, and their numbers among all samples of the shards.

        Args:
            shards: files to read.
            skipped: where to count what cannot be used; each member is counted by the one part that it belongs to.
            part: of num_parts; it takes the samples number part, part + num_parts, ...
            num_parts: readers that share these shards.
            limit: number of samples to look at, over all parts; None for all.
        """
        broken = skipped if part == 0 else Skipped()
        members = ((shard, sample) for shard in shards for sample in self._members(shard, broken))
        for number, (shard, found) in enumerate(itertools.islice(members, limit)):
            if number % num_parts != part:
                continue
            name = f"{shard}: {found['__key__']}"
            image = next((found[ending] for ending in self.images if ending in found), None)
            prompt = self._prompt(found)
            if image is None:
                skipped.add("without image", name)
            elif not prompt:
                skipped.add("without prompt", name)
            else:
                yield number, Sample(name, image, prompt)

    def _members(self, shard: Path, skipped: Skipped) -> Iterator[dict[str, Any]]:
        """Yields the samples of a shard as {"__key__": name, ending: content}."""
        tars: Any = require_package("webdataset.tariterators", "dataset.name: 'shards'")
        wanted = {*self.images, self.prompt}
        lost = False

        def select(name: str) -> bool:
            ending = tars.base_plus_ext(name)[1]
            return ending is not None and ending.lower() in wanted

        def count(error: Exception) -> bool:
            nonlocal lost
            if isinstance(error, ValueError):
                skipped.add("twice in their shard", f"{shard}: {str(error.args[0]).partition(': ')[0]}")
            elif not lost:  # a broken archive is told of several times
                lost = True
                skipped.add("unreadable tar", str(shard))
            return True

        try:
            # Opened here: webdataset itself would run what stands behind "pipe:" in a name.
            with shard.open("rb") as file:
                opened = [{"url": str(shard), "stream": file}]
                files = tars.tar_file_expander(opened, handler=count, select_files=select)
                yield from tars.group_by_keys(files, handler=count)
                if shard.suffix == ".tar" and not _read_to_its_end(file):
                    count(EOFError())
        except OSError as error:
            count(error)

    def _prompt(self, found: dict[str, Any]) -> str:
        """Returns the prompt of a sample, "" where there is none."""
        try:
            text = found.get(self.prompt, b"").decode("utf-8-sig")
            if self.key is not None:
                content = json.loads(text)
                text = content.get(self.key) if isinstance(content, dict) else ""
        except ValueError:  # not UTF-8, or not JSON
            return ""
        return text.strip() if isinstance(text, str) else ""


def _read_to_its_end(file: BinaryIO) -> bool:
    """Returns whether a tar file ends as it should, and where it was thought to end.

    tarfile takes a damaged or cut header for the end of the archive; the true end is 1,024 zeros and more.
    """
    rest = file.read(65536)
    file.seek(-1024, io.SEEK_END)
    return not any(rest) and not any(file.read())


def shuffled(samples: Iterable[Sample], size: int, random: np.random.RandomState) -> Iterator[Sample]:
    """Yields every sample once, drawn from a buffer of the `size` that came first and are not drawn yet."""
    buffer: list[Sample] = []
    for sample in samples:
        buffer.append(sample)
        if len(buffer) > size:
            drawn = random.randint(len(buffer))
            buffer[drawn], buffer[-1] = buffer[-1], buffer[drawn]
            yield buffer.pop()
    for drawn in random.permutation(len(buffer)):
        yield buffer[drawn]
