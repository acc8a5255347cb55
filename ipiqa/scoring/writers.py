"""What a scoring job writes: its columns, and files of them."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from ipiqa.errors import ConfigError
from ipiqa.files import replacing, require_package

WIDEST = 40  # characters of a text on the screen
ROW_GROUP = 2**14  # rows of a parquet file that are written at once

Cell = str | float | None
Chunks = Iterable[list[list[Cell]]]  # rows, some at a time


@dataclass(frozen=True)
class Columns:
    """The columns of a job's output."""

    carried: tuple[str, ...]  # of the input's other columns
    scores: tuple[str, ...]

    @classmethod
    def of(cls, carried: Sequence[str], scores: tuple[str, ...]) -> Columns:
        """Returns columns with names for those carried through: what the job itself writes is `input_<name>` there."""
        names: list[str] = []
        own = {"image", "prompt", *scores, "error"}
        for name in carried:
            new = name
            while new in own or (new != name and new in carried) or new in names:
                new = f"input_{new}"
            names.append(new)
        return cls(tuple(names), scores)

    @property
    def names(self) -> list[str]:
        """All names, in order: texts, then numbers, then the error."""
        return ["image", "prompt", *self.carried, *self.scores, "error"]


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raises ConfigError where a file cannot be written: its form, its place, or a package that is not there."""
    if out.suffix not in WRITERS:
        raise ConfigError(f"--out: '{out}' has no form that is known. End it in {', '.join(WRITERS)}; - is csv, too.")
    if out.suffix == ".parquet":
        require_package("pyarrow", f"--out: '{out}'")
    if out.is_dir():
        raise ConfigError(f"--out: '{out}' is a folder. Give a file.")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out: '{out}' exists. Give another file, or --overwrite.")


def write_output(out: Path, columns: Columns, chunks: Chunks) -> None:
    """Writes rows atomically to a file, some at a time; its suffix, one of `WRITERS`, chooses the form."""
    with replacing(out, "wb" if out.suffix == ".parquet" else "w") as file:
        WRITERS[out.suffix](file, columns, chunks)


def write_csv(file: IO[str], columns: Columns, chunks: Chunks) -> None:
    """Writes comma-separated values: empty where there is nothing."""
    # With "\r\n" for an end of line, cells with either of the two characters are quoted by every version of Python.
    writer = csv.writer(SimpleNamespace(write=lambda line: file.write(line[:-2] + "\n")), lineterminator="\r\n")
    writer.writerow(columns.names)
    for rows in chunks:
        writer.writerows(rows)
        file.flush()


def write_jsonl(file: IO[str], columns: Columns, chunks: Chunks) -> None:
    """Writes a JSON object a line: null where there is nothing."""
    names = columns.names
    for row in itertools.chain.from_iterable(chunks):
        file.write(json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) + "\n")


def write_parquet(file: IO[bytes], columns: Columns, chunks: Chunks) -> None:
    """Writes columns of strings and of float32: null where there is nothing."""
    pyarrow, parquet = (require_package(name, "--out") for name in ("pyarrow", "pyarrow.parquet"))
    kinds = [pyarrow.float32() if name in columns.scores else pyarrow.string() for name in columns.names]
    schema = pyarrow.schema([*zip(columns.names, kinds, strict=True)])
    rows = itertools.chain.from_iterable(chunks)
    with parquet.ParquetWriter(file, schema) as writer:
        while group := [*itertools.islice(rows, ROW_GROUP)]:
            arrays = [pyarrow.array(c, k) for c, k in zip(zip(*group, strict=True), kinds, strict=True)]
            writer.write_table(pyarrow.table(arrays, schema=schema))


WRITERS: dict[str, Callable[[Any, Columns, Chunks], None]] = {
    ".csv": write_csv, ".jsonl": write_jsonl, ".parquet": write_parquet,
}  # fmt: skip


def write_aligned(file: IO[str], columns: Columns, chunks: Chunks) -> None:
    """Writes a table for people: long texts are cut, spreads left out, an error stands in the place of scores."""
    shown = [(i, name) for i, name in enumerate(columns.names) if name in columns.scores and not name.endswith("_std")]
    titles = ["percentile" if name.endswith("_percentile") else name for _, name in shown]
    lines, widths = [["image", "prompt", *titles]], list[int]()
    for rows in chunks:
        for row in rows:
            image, prompt, error = _legible(row[0]), _legible(row[1]), _legible(row[-1])
            image = image if len(image) <= WIDEST else f"…{image[1 - WIDEST :]}"
            prompt = prompt if len(prompt) <= WIDEST else f"{prompt[: WIDEST - 1]}…"
            digits = (0 if title == "percentile" else 3 for title in titles)
            scores = [error] if error else [f"{row[i]:.{n}f}" for (i, _), n in zip(shown, digits, strict=True)]
            lines.append([image, prompt, *scores])
        widths = widths or [max(len(line[i]) for line in lines) for i in (0, 1)]
        for image, prompt, *scores in lines:
            cells = [score.rjust(max(len(title), 6)) for score, title in zip(scores, titles, strict=False)]
            file.write("  ".join([image.ljust(widths[0]), prompt.ljust(widths[1]), *cells]).rstrip() + "\n")
        lines = []
        file.flush()


def _legible(cell: Cell) -> str:
    """Returns a text on one line, without what would steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(cell or "")).strip()
