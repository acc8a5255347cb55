"""Samples out of tar shards of the WebDataset form, one after the other. What is damaged is counted and passed over.

A shard is a tar file in which the members of a sample stand next to each other and share their name up to its first
dot: `000123.png`, `000123.txt`.
"""

from __future__ import annotations

import io
import itertools
import json
import operator
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from ipiqa.errors import DataError

T = TypeVar("T")
UNREADABLE, TWICE = "unreadable tar", "twice in their shard"
MAX_IMAGE_BYTES, MAX_PROMPT_BYTES = 64 << 20, 1 << 20  # larger members are not read: a header may claim any size
_CHECKSUM = slice(148, 156)  # of a head


@dataclass
class Skipped:
    """What could not be used."""

    counts: Counter[str] = field(default_factory=Counter)  # reason -> members, or shards whose whole rest is lost
    first: str = ""  # where the first of them was, as 'shard.tar/name'

    def add(self, reason: str, where: str) -> None:
        self.merge(Skipped(Counter([reason]), where))

    def merge(self, other: Skipped) -> None:
        self.counts, self.first = self.counts + other.counts, self.first or other.first

    def take(self) -> Skipped:
        """Returns what is counted so far, and forgets it."""
        taken, self.counts, self.first = Skipped(self.counts, self.first), Counter(), ""
        return taken

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.items())
        return f"{self.counts.total()} members skipped: {reasons}; first '{self.first}'"


@dataclass(frozen=True)
class TarMember:
    """The content of a file in a plain tar, to be read when it is wanted, in any process."""

    shard: Path  # absolute
    start: int
    size: int
    checksum: bytes  # in its head, the block before it

    def read(self) -> bytes:
        """Returns the content; DataError: it is not there any more."""
        try:
            with self.shard.open("rb") as file:
                file.seek(self.start - tarfile.BLOCKSIZE)
                head, content = file.read(tarfile.BLOCKSIZE), file.read(self.size)
        except OSError as error:
            raise DataError(f"'{self.shard}' cannot be read: {error.strerror}") from error
        if head[_CHECKSUM] != self.checksum or len(content) != self.size:
            raise DataError(f"'{self.shard}' has changed since its head was read")
        return content


@dataclass(frozen=True)
class Sample:
    """An image and its prompt."""

    name: str  # 'shard.tar/name.png', without ending where there is no image
    image: Any  # its file: bytes, a TarMember, or None where it cannot be used
    prompt: str  # "" where there is none
    problem: str = ""  # why it cannot be used, but for its prompt
    is_twice: bool = False  # whether there are more members of its name, of which the first is taken


@dataclass(frozen=True)
class ShardReader:
    """Reads samples out of tar files, one after the other."""

    images: tuple[str, ...]  # endings of image members; the first that a sample has is taken
    prompt: str  # ending of the prompt member
    key: str | None  # of the prompt in that member, which is JSON; None where the member is the prompt

    def samples(
        self, shards: Iterable[Path], skipped: Skipped, part: int = 0, num_parts: int = 1, limit: int | None = None
    ) -> Iterator[tuple[int, Sample]]:
        """Yields usable samples with their numbers among all samples of the shards; `skipped` counts the others.

        Of `num_parts` readers that share these shards, each takes every num_parts-th of the first `limit` samples.
        """
        broken = skipped if part == 0 else Skipped()
        everything = itertools.chain.from_iterable(self.read(shard, broken) for shard in shards)
        for number, sample in enumerate(itertools.islice(everything, limit)):
            if number % num_parts != part:
                continue
            if problem := sample.problem or "without prompt" * (not sample.prompt):
                skipped.add(problem, sample.name)
            else:
                yield number, sample

    def read(self, shard: Path, skipped: Skipped, *, images: bool = True) -> Iterator[Sample]:
        """Yields all samples of a shard; `skipped` counts what is lost. Without `images`, a plain tar's stay there."""
        for key, group in itertools.groupby(self._members(shard, skipped, images), key=operator.itemgetter(0)):
            name, members, is_twice = f"{shard}/{key}", dict[str, Any](), False
            for _, ending, content in group:
                if ending in members:
                    is_twice = True
                    skipped.add(TWICE, f"{name}.{ending}")
                else:
                    members[ending] = content
            ending = next((ending for ending in self.images if ending in members), "")
            image, prompt = members.get(ending), self._prompt(members.get(self.prompt) or b"")
            problem = "" if ending else "without image"
            if ending and (image is None or members.get(self.prompt, b"") is None):
                problem = "too large"
            yield Sample(f"{name}.{ending}" if ending else name, image, prompt, problem, is_twice)

    def _members(self, shard: Path, skipped: Skipped, images: bool) -> Iterator[tuple[str, str, Any]]:
        """Yields (key, ending, content) of the members that are wanted, in their order."""
        try:
            with shard.open("rb") as file:
                seeks = not images and file.read(512)[257:262] == b"ustar"  # what is compressed has no places
                end = file.seek(0, io.SEEK_END)
                file.seek(0)
                with tarfile.open(fileobj=file, mode="r:" if seeks else "r|*", tarinfo=_Entry) as archive:
                    for entry in archive:
                        archive.members = []  # type: ignore[attr-defined]  # or the archive would remember every one
                        has_place = seeks and not entry.issparse()
                        if has_place and not 0 <= entry.size <= end - entry.offset_data:
                            raise tarfile.ReadError("cut off")
                        stem, dot, ending = entry.name.rpartition("/")[2].partition(".")
                        ending = ending.lower()
                        if not (stem and dot and entry.isreg()) or ending not in (*self.images, self.prompt):
                            continue
                        content: bytes | TarMember | None = None
                        if not 0 <= entry.size <= (MAX_PROMPT_BYTES if ending == self.prompt else MAX_IMAGE_BYTES):
                            pass
                        elif has_place and ending != self.prompt:
                            checksum = entry.checksum  # type: ignore[attr-defined]
                            content = TarMember(shard.absolute(), entry.offset_data, entry.size, checksum)
                        elif opened := archive.extractfile(entry):
                            content = opened.read()
                        yield entry.name[: -len(ending) - 1], ending, content
                    if shard.suffix == ".tar" and not _read_to_its_end(file):
                        skipped.add(UNREADABLE, str(shard))
        except Exception:  # a damaged archive breaks tarfile and the decompressors below it in many ways
            skipped.add(UNREADABLE, str(shard))

    def _prompt(self, content: bytes) -> str:
        """Returns the prompt in a member, "" where there is none."""
        try:
            text = content.decode("utf-8-sig")
            return str.strip(text if self.key is None else json.loads(text)[self.key])
        except (ValueError, RecursionError, LookupError, TypeError):  # not UTF-8, not JSON, without end, without a text
            return ""


class _Entry(tarfile.TarInfo):
    """The head of a member. tarfile reads names and notes that have members of their own whole, into memory."""

    checksum: bytes

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Entry:
        entry = super().frombuf(buf, encoding, errors)
        if entry.type in b"LKxgX" and entry.size > MAX_PROMPT_BYTES:
            raise tarfile.ReadError("a name of any size")
        entry.checksum = bytes(buf[_CHECKSUM])
        return entry


def _read_to_its_end(file: BinaryIO) -> bool:
    """Returns whether a tar file ends as it should, and where it was thought to end.

    tarfile takes a damaged or cut header for the end of the archive; the true end is 1,024 zeros and more.
    """
    rest = file.read(65536)
    file.seek(-1024, io.SEEK_END)
    return not any(rest) and not any(file.read())


def shuffled(samples: Iterable[T], size: int, random: np.random.RandomState) -> Iterator[T]:
    """Yields every sample once, drawn from a buffer of the `size` that came first and are not drawn yet."""
    buffer: list[T] = []
    for sample in samples:
        buffer.append(sample)
        if len(buffer) > size:
            drawn = random.randint(len(buffer))
            buffer[drawn], buffer[-1] = buffer[-1], buffer[drawn]
            yield buffer.pop()
    for drawn in random.permutation(len(buffer)):
        yield buffer[drawn]
