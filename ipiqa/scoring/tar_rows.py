"""Rows out of tar shards: parts that say where in which shard their samples are, and read them there."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ipiqa.datasets.shard_reader import WITHOUT_PROMPT, Place, ShardReader, Skipped
from ipiqa.datasets.shards import find_shards, make_reader
from ipiqa.errors import DataError
from ipiqa.processors.image import ENDINGS
from ipiqa.scoring.completion import Completion
from ipiqa.scoring.rows import Row

logger = logging.getLogger("ipiqa")

MAX_PART_BYTES = 128 << 20  # of undecoded images, which a part holds all at once
_LOOKED_AT, _FIRST = 10, 20  # shards searched for samples, and how many of these tell whether there are prompts


@dataclass(frozen=True)
class ShardPart:
    """Samples of one shard that follow each other; a row more where the rest of the shard is lost."""

    number: int
    shard: Path  # absolute
    name: str  # as the user has named it
    reader: ShardReader
    complete: Completion
    place: Place
    num_samples: int
    damage: str = ""

    def __len__(self) -> int:
        return self.num_samples + bool(self.damage)

    def rows(self) -> list[Row]:
        rows = []
        for name, sample, problem in self.reader.read(self.shard, self.place, self.num_samples):
            problem = "" if problem == WITHOUT_PROMPT else problem  # it may need none
            rows.append(Row(f"{self.name}/{name}", sample.image, sample.prompt or None, (), problem))
        lost = Row(self.name, self.shard, None, (), "the shard has changed while it was scored")
        rows += [lost] * (self.num_samples - len(rows)) + [replace(lost, problem=self.damage)] * bool(self.damage)
        return [self.complete(row) for row in rows]


@dataclass(frozen=True)
class ShardRows:
    """The samples of shards, one shard after the other."""

    shards: list[Path]
    reader: ShardReader
    complete: Completion
    limit: int | None
    columns: tuple[str, ...] = ()
    num_rows: int | None = None

    def parts(self, size: int) -> Iterator[ShardPart]:
        left = math.inf if self.limit is None else self.limit
        everything = itertools.chain.from_iterable(self._parts_of(shard, size) for shard in self.shards)
        for number, part in enumerate(everything):
            if left < len(part):
                part = replace(part, num_samples=int(left), damage="")
            yield replace(part, number=number)
            left -= len(part)
            if left <= 0:
                return

    def _parts_of(self, shard: Path, size: int) -> Iterator[ShardPart]:
        """Yields the parts of a shard, whose heads are read to find them."""
        skipped, last = Skipped(), ""
        empty = ShardPart(0, shard.absolute(), str(shard), self.reader, self.complete, Place(0), 0)
        part, held = empty, 0
        for name, place, num_bytes in self.reader.scan(shard, skipped):
            if part.num_samples == size or (part.num_samples and held + num_bytes > MAX_PART_BYTES):
                yield part
                part, held = replace(empty, place=place), 0
            part, held, last = replace(part, num_samples=part.num_samples + 1), held + num_bytes, name
        if part.num_samples == size or (part.num_samples and not skipped):
            yield part
            part = empty
        if skipped:
            yield replace(part, damage=f"unreadable tar: what follows {last!r} is lost" if last else "unreadable tar")


def open_shards(pattern: str, prompt_member: str, complete: Completion, limit: int | None) -> ShardRows:
    """Returns the samples of the shards that a pattern names; DataError: no shard there is has samples, or prompts."""
    shards = find_shards(pattern, "images")
    complete = replace(complete, lack=f"no prompt in its {prompt_member}")
    rows = ShardRows(shards, make_reader(ENDINGS, prompt_member, "--prompt-member"), complete, limit)
    if compressed := [shard for shard in shards if shard.suffix.lower() != ".tar"]:
        message = "images: '%s' is compressed, and read from its start for each part. Unpacked to .tar, it is faster"
        logger.warning(message, compressed[0])
    first: list[Row] = []
    for shard in shards[:_LOOKED_AT]:
        part = ShardPart(0, shard.absolute(), str(shard), rows.reader, complete, Place(0), _FIRST)
        first += [row for row in part.rows() if row.source != part.shard] if len(first) < _FIRST else []
    if not any(row.source for row in first):
        endings = ", ".join(ENDINGS)
        raise DataError(f"images: '{pattern}': no sample in its first shards has an image that ends in {endings}.")
    if complete.needs_prompt and not any(row.prompt for row in first):
        known = f"none of the first {len(first)} samples has a prompt in its {prompt_member}"
        more = "Name the right member with --prompt-member, or give --prompt TEXT or --prompts embedded."
        raise DataError(f"images: '{pattern}': {known}. {more}")
    return rows
