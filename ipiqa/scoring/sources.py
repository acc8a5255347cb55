"""What a user names to be scored -> rows: a picture, a folder, a table, shards or standard input, and its prompts."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ipiqa.datasets.readers import READERS
from ipiqa.datasets.shard_reader import MAX_PROMPT_BYTES, TWICE, UNREADABLE, ShardReader, Skipped
from ipiqa.datasets.shards import find_shards, make_reader
from ipiqa.errors import ConfigError, DataError, did_you_mean, shorten
from ipiqa.processors.image import ENDINGS
from ipiqa.registry import file_path
from ipiqa.scoring.embedded import embedded_prompt
from ipiqa.scoring.rows import Completion, Inputs, Row, Rows
from ipiqa.scoring.tables import WAYS, join_lines, join_table, open_lines, open_table

logger = logging.getLogger("ipiqa")

Kind = Literal["a picture", "a folder", "a table", "shards", "standard input"]

_TAR = re.compile(r"\.(tar|tgz|tar\.\w+)\Z", re.IGNORECASE)
_SHARDS, _FIRST = 10, 20  # shards searched for samples, and how many of these tell whether there are prompts


def sidecar(source: Path | bytes) -> str:
    """Returns the prompt in the text file beside an image: `cat.txt` of `cat.png`; DataError: there is none."""
    assert isinstance(source, Path)
    path = source.with_suffix(".txt")
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            return file.read(MAX_PROMPT_BYTES).strip()
    except OSError as error:
        raise DataError(f"'{path.name}' cannot be read: {error.strerror}") from error


_READ = {"sidecar": sidecar, "embedded": embedded_prompt}


def open_rows(images: str, inputs: Inputs, *, needs_prompt: bool) -> Rows:
    """Returns the rows of a picture, a folder, a table, shards (`data/{000..999}.tar`) or standard input (`-`).

    What is wrong with all of it is a ConfigError or DataError, what is wrong with one row that row's problem.
    """
    path, kind, joins = Path(file_path(images, "images")), _kind(images), inputs.prompts not in (None, *_READ)
    _check(images, kind, inputs, needs_prompt)
    lack = f"no prompt in '{inputs.prompts}'" if joins else "no prompt"
    complete = Completion(needs_prompt, _READ.get(inputs.prompts or ""), lack)
    if kind == "shards":
        rows = _open_shards(images, inputs, complete)
    elif kind == "standard input":
        rows = open_lines(inputs, complete)
    else:
        rows = open_table(path, inputs, complete) if kind == "a table" else _open_images(path, kind, complete)
    if inputs.prompt is not None:
        rows = rows.map(lambda row: replace(row, prompt=inputs.prompt))
    elif joins:
        prompts = Path(file_path(inputs.prompts or "", "prompts"))
        of_folder = kind in ("a picture", "a folder")
        rows = join_lines(rows, prompts) if _is_text(inputs) else join_table(rows, prompts, inputs, of_folder=of_folder)
    return rows if inputs.limit is None else rows.first(inputs.limit)


def _kind(images: str) -> Kind:
    path = file_path(images, "images")
    if images == "-":
        return "standard input"
    if os.path.isdir(path):  # noqa: PTH112 (Path raises for a long one)
        return "a folder"
    ending = os.path.splitext(path)[1].lower()  # noqa: PTH122
    return "a table" if ending in READERS else "shards" if _TAR.search(path.rstrip("}")) else "a picture"


def _is_text(inputs: Inputs) -> bool:
    """Returns whether prompts stand in a file line by line, for the images in their order."""
    return str(inputs.prompts).lower().endswith(".txt")


def _check(images: str, kind: Kind, inputs: Inputs, needs_prompt: bool) -> None:
    """Raises ConfigError where options cannot be used together, or with what is to be scored."""
    prompts, gives, root = str(inputs.prompts), inputs.gives_prompts, inputs.image_root
    joins_table = Path(prompts).suffix.lower() in READERS
    has_columns = kind in ("a table", "standard input")
    if needs_prompt and inputs.prompt is not None and not inputs.prompt.strip():
        raise ConfigError(f"--prompt: {inputs.prompt!r} is no prompt. Give a text.")
    if inputs.prompts is not None and not (prompts in _READ or joins_table or _is_text(inputs)):
        known = f"{shorten(prompts)} is no table, no .txt, and neither sidecar nor embedded"
        raise ConfigError(f"--prompts: {known}.{did_you_mean(prompts, _READ)} Give one text with --prompt.")
    if root is not None and not os.path.isdir(root):  # noqa: PTH112
        raise ConfigError(f"--image-root: {shorten(root)} is no folder. Give that of the images.")
    if needs_prompt and not gives and kind in ("a picture", "a folder"):
        raise ConfigError(f"images: '{images}' is {kind}, and the scores depend on prompts. {WAYS}.")
    if kind == "shards" and inputs.prompts not in (None, "embedded"):
        raise ConfigError(f"--prompts: {prompts!r} cannot be joined with shards. Name their member of prompts.")
    if kind == "standard input" and _is_text(inputs):
        raise ConfigError(f"--prompts: '{prompts}' may have too few lines. Write lines of image<TAB>prompt.")
    is_read = {
        "image_column": has_columns or joins_table, "prompt_column": (has_columns and not gives) or joins_table,
        "image_root": has_columns, "prompt_member": kind == "shards" and not gives,
    }  # fmt: skip
    for option in [name for name, read in is_read.items() if not read and getattr(inputs, name) is not None]:
        given = " and prompts are given" * (option.startswith("prompt") and gives)
        raise ConfigError(f"--{option.replace('_', '-')}: '{images}' is {kind}{given}: nothing reads it. Leave it out.")


def _open_images(path: Path, kind: Kind, complete: Completion) -> Rows:
    """Returns the rows of a folder or of one picture."""
    if kind == "a folder":
        root, names = path.absolute(), image_names(path)
        return Rows((), len(names), lambda: (Row(name, root / name, None) for name in names), complete)
    if not os.path.isfile(path):  # noqa: PTH113 (Path raises for a long one)
        right = "Give a picture, a folder, a table (.csv, .jsonl, ...), shards (.tar) or - for standard input."
        problem = "is no file" if os.path.exists(path) else "does not exist"  # noqa: PTH110
        raise DataError(f"images: {shorten(str(path))} {problem}. {right}")
    return Rows((), 1, lambda: iter([Row(str(path), path.absolute(), None)]), complete)


def _open_shards(pattern: str, inputs: Inputs, complete: Completion) -> Rows:
    """Returns the samples of the shards that a pattern names; DataError: no shard there is has samples, or prompts."""
    member = inputs.prompt_member or "txt"
    shards, reader = find_shards(pattern, "images"), make_reader(ENDINGS, member, "--prompt-member")
    rows = itertools.islice(_samples_of(shards[:_SHARDS], reader), _FIRST)
    first = [(not isinstance(row.source, Path), row.prompt) for row in rows]
    if not any(has_image for has_image, _ in first):
        endings = ", ".join(ENDINGS)
        raise DataError(f"images: '{pattern}': no sample in its first shards has an image that ends in {endings}.")
    if complete.needs_prompt and not inputs.gives_prompts and not any(prompt for _, prompt in first):
        known = f"none of the first {len(first)} samples has a prompt in its {member}"
        more = "Name the right member with --prompt-member, or give --prompt TEXT or --prompts embedded."
        raise DataError(f"images: '{pattern}': {known}. {more}")
    return Rows((), None, lambda: _samples_of(shards, reader), replace(complete, lack=f"no prompt in its {member}"))


def _samples_of(shards: list[Path], reader: ShardReader) -> Iterator[Row]:
    """Yields a row for each sample of one shard after the other, and one for the rest that is lost of a damaged one."""
    for shard in shards:
        skipped, name = Skipped(), ""
        for sample in reader.read(shard, skipped, images=False):
            name, source = sample.name, shard.absolute() if sample.image is None else sample.image
            yield Row(name, source, sample.prompt or None, (), TWICE if sample.is_twice else sample.problem)
        if skipped.counts[UNREADABLE]:
            lost = f": what follows '{name}' is lost" if name else ""
            yield Row(str(shard), shard.absolute(), None, (), UNREADABLE + lost)


def image_names(folder: Path) -> list[str]:
    """Returns the images in a folder and its subfolders by their relative POSIX paths, sorted.

    Hidden files and folders are left out, other files are counted in the log. DataError: there is no image.
    """
    names, links, others = list[str](), list[str](), Counter[str]()

    def refuse(error: OSError) -> None:
        raise DataError(f"images: the folder '{error.filename}' cannot be read: {error.strerror}.")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links += [name for name in folders if os.path.islink(os.path.join(parent, name))]  # noqa: PTH114, PTH118
        start = Path(parent).relative_to(folder)
        for name in [name for name in files if not name.startswith(".")]:
            ending = name.rpartition(".")[2].lower() if "." in name else "no ending"
            if ending in ENDINGS:
                names.append((start / name).as_posix())
            else:
                others[ending] += 1
    if others:
        kinds = ", ".join(f"{number} {ending}" for ending, number in others.most_common(5))
        logger.info("images: '%s': %d files that are no images are left out: %s", folder, others.total(), kinds)
    if links:
        logger.warning("images: '%s': %d links to folders are not followed, first %r", folder, len(links), links[0])
    if not names:
        shards = f" Give its shards as '{folder}/*.tar'." if "tar" in others else ""
        raise DataError(f"images: '{folder}' holds no image that ends in {', '.join(ENDINGS)}.{shards}")
    return sorted(names)
