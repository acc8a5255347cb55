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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import numpy as np

T = TypeVar("T")
TWICE, WITHOUT_PROMPT = "twice in their shard", "without prompt"
MAX_IMAGE_BYTES, MAX_PROMPT_BYTES = 64 << 20, 1 << 20  # larger members are not read: a header may claim any size


@dataclass
class Skipped:
    """What could not be used."""

    counts: Counter[str] = field(default_factory=Counter)  # reason -> members, or shards whose whole rest is lost
    first: str = ""  # where the first of them was, as 'shard.tar: name'

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
class Sample:
    """An undecoded image and its prompt; `name` is 'shard.tar: name'."""

    name: str
    image: bytes
    prompt: str


@dataclass(frozen=True)
class Place:
    """Where in its shard a sample begins: a byte, and how many samples to pass over from there."""

    start: int
    passed: int = 0


@dataclass(frozen=True)
class _Member:
    """A file in a tar: key of its sample, content (None: not read), the byte where it begins (None: not known)."""

    key: str
    ending: str
    content: bytes | None
    start: int | None
    size: int


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
        everything = ((shard, *sample) for shard in shards for sample in self._samples(shard, broken))
        for number, (shard, key, members) in enumerate(itertools.islice(everything, limit)):
            if number % num_parts != part:
                continue
            sample, problem = self._usable(f"{shard}: {key}", members)
            if problem:
                skipped.add(problem, sample.name)
            else:
                yield number, sample

    def read(self, shard: Path, place: Place, count: int) -> Iterator[tuple[str, Sample, str]]:
        """Yields up to `count` samples from a place on: name of its image, or else of all of it, content, problem."""
        skipped = Skipped()
        samples = self._samples(shard, skipped, place.start)
        for key, members in itertools.islice(samples, place.passed, place.passed + count):
            sample, problem = self._usable(key, members)
            problem = TWICE if skipped.take().counts[TWICE] else problem
            yield key + next((f".{ending}" for ending in self.images if ending in members), ""), sample, problem

    def scan(self, shard: Path, skipped: Skipped) -> Iterator[tuple[str, Place, int]]:
        """Yields name, place and size in bytes of each sample; of a plain tar only the heads are read."""
        groups = itertools.groupby(self._members(shard, skipped, read=False), key=operator.attrgetter("key"))
        for passed, (key, group) in enumerate(groups):
            members = list(group)
            start = members[0].start
            yield key, Place(0, passed) if start is None else Place(start), sum(member.size for member in members)

    def _usable(self, name: str, members: Mapping[str, bytes | None]) -> tuple[Sample, str]:
        """Returns what a sample holds, and why it cannot be used, or ""."""
        ending = next((ending for ending in self.images if ending in members), "")
        image = members.get(ending)
        prompt = self._prompt(members.get(self.prompt) or b"")
        problem = "" if prompt else WITHOUT_PROMPT
        if not ending:
            problem = "without image"
        elif image is None or members.get(self.prompt, b"") is None:
            problem = "too large"
        return Sample(name, image or b"", prompt), problem

    def _samples(self, shard: Path, skipped: Skipped, start: int = 0) -> Iterator[tuple[str, dict[str, bytes | None]]]:
        """Yields the samples of a shard: name, and ending -> content, None where that is too large."""
        for key, group in itertools.groupby(self._members(shard, skipped, start), key=operator.attrgetter("key")):
            members: dict[str, bytes | None] = {}
            for member in group:
                if member.ending in members:
                    skipped.add(TWICE, f"{shard}: {key}.{member.ending}")
                else:
                    members[member.ending] = member.content
            yield key, members

    def _members(self, shard: Path, skipped: Skipped, start: int = 0, *, read: bool = True) -> Iterator[_Member]:
        """Yields the members that are wanted, in their order, from a byte on; with or without their contents."""
        try:
            with shard.open("rb") as file:
                seeks = not read and file.read(512)[257:262] == b"ustar"  # what is compressed can only be read
                end = file.seek(0, io.SEEK_END)
                file.seek(start)
                mode: Literal["r:", "r|", "r|*"] = "r:" if seeks else "r|" if start else "r|*"
                with tarfile.open(fileobj=file, mode=mode, tarinfo=_Entry) as archive:
                    for entry in archive:
                        archive.members = []  # type: ignore[attr-defined]  # or the archive would remember every one
                        if seeks and not entry.issparse() and not 0 <= entry.size <= end - entry.offset_data:
                            raise tarfile.ReadError("cut off")
                        stem, dot, ending = entry.name.rpartition("/")[2].partition(".")
                        ending = ending.lower()
                        if not (stem and dot and entry.isreg()) or ending not in (*self.images, self.prompt):
                            continue
                        most = MAX_PROMPT_BYTES if ending == self.prompt else MAX_IMAGE_BYTES
                        is_fit = 0 <= entry.size <= most
                        opened = archive.extractfile(entry) if read and is_fit else None
                        content = None if opened is None else opened.read()
                        key, place = entry.name[: -len(ending) - 1], entry.offset if seeks else None
                        yield _Member(key, ending, content, place, entry.size if is_fit else 0)
                    if shard.suffix == ".tar" and not _read_to_its_end(file):
                        skipped.add("unreadable tar", str(shard))
        except Exception:  # a damaged archive breaks tarfile and the decompressors below it in many ways
            skipped.add("unreadable tar", str(shard))

    def _prompt(self, content: bytes) -> str:
        """Returns the prompt in a member, "" where there is none."""
        try:
            text = content.decode("utf-8-sig")
            return str.strip(text if self.key is None else json.loads(text)[self.key])
        except (ValueError, RecursionError, LookupError, TypeError):  # not UTF-8, not JSON, without end, without a text
            return ""


class _Entry(tarfile.TarInfo):
    """The head of a member. tarfile reads names and notes that have members of their own whole, into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Entry:
        entry = super().frombuf(buf, encoding, errors)
        if entry.type in b"LKxgX" and entry.size > MAX_PROMPT_BYTES:
            raise tarfile.ReadError("a name of any size")
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
