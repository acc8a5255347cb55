"""Rows out of tar shards. To list those of a plain tar, its heads and prompts are read, an image when it is scored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ipiqa.datasets.shard_reader import TWICE, UNREADABLE, WITHOUT_PROMPT, ShardReader, Skipped
from ipiqa.datasets.shards import find_shards, make_reader
from ipiqa.errors import DataError
from ipiqa.processors.image import ENDINGS
from ipiqa.scoring.rows import Completion, Inputs, Row, Rows

_SHARDS, _FIRST = 10, 20  # shards searched for samples, and how many of these tell whether there are prompts


def open_shards(pattern: str, inputs: Inputs, complete: Completion) -> Rows:
    """Returns the samples of the shards that a pattern names; DataError: no shard there is has samples, or prompts."""
    member = inputs.prompt_member or "txt"
    shards, reader = find_shards(pattern, "images"), make_reader(ENDINGS, member, "--prompt-member")
    rows = itertools.islice(_rows_of(shards[:_SHARDS], reader), _FIRST)
    first = [(not isinstance(row.source, Path), row.prompt) for row in rows]
    if not any(has_image for has_image, _ in first):
        endings = ", ".join(ENDINGS)
        raise DataError(f"images: '{pattern}': no sample in its first shards has an image that ends in {endings}.")
    if complete.needs_prompt and not inputs.gives_prompts and not any(prompt for _, prompt in first):
        known = f"none of the first {len(first)} samples has a prompt in its {member}"
        more = "Name the right member with --prompt-member, or give --prompt TEXT or --prompts embedded."
        raise DataError(f"images: '{pattern}': {known}. {more}")
    return Rows((), None, lambda: _rows_of(shards, reader), replace(complete, lack=f"no prompt in its {member}"))


def _rows_of(shards: list[Path], reader: ShardReader) -> Iterator[Row]:
    """Yields a row for each sample of one shard after the other, and one for the rest that is lost of a damaged one."""
    for shard in shards:
        skipped, name = Skipped(), ""
        for sample in reader.read(shard, skipped, images=False):
            name, problem = sample.name, TWICE if sample.is_twice else sample.problem
            source = shard.absolute() if sample.image is None else sample.image
            problem = "" if problem == WITHOUT_PROMPT else problem  # it may need none
            yield Row(name, source, sample.prompt or None, (), problem)
        if skipped.counts[UNREADABLE]:
            lost = f": what follows '{name}' is lost" if name else ""
            yield Row(str(shard), shard.absolute(), None, (), UNREADABLE + lost)
