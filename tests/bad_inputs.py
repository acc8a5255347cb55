"""What a case of bad input is, and the configs and tables that are spoilt in one way each."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import openpyxl


@dataclass(frozen=True)
class Toy:
    """A fresh toy dataset with its config, and what a test may need besides."""

    folder: Path
    run_dir: Path  # a trained run of the same dataset, not to be changed
    archive: Path | None = None  # weights in the released form, where the case asks for them

    @property
    def cfg(self) -> Path:
        return self.folder / "toy.yaml"

    @property
    def table(self) -> Path:
        return self.folder / "data.csv"

    @property
    def image(self) -> Path:
        """One image of the table."""
        return self.folder / "images" / self.rows()[4][0]

    def rows(self) -> list[list[str]]:
        """Returns the cells of the table, the heading first."""
        with self.table.open(newline="") as file:
            return list(csv.reader(file))

    def write_rows(self, rows: list[list[str]]) -> None:
        with self.table.open("w", newline="") as file:
            csv.writer(file).writerows(rows)


Spoil = Callable[[Toy], list[str]]

PAGE = b"<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n"


@dataclass(frozen=True)
class Case:
    """One thing that is wrong.

    Attributes:
        name: id of the test.
        spoil: does the harm to a toy and returns the words to add to the command line.
        told: what the one line must hold.
        needs_archive: whether `Toy.archive` is used.
    """

    name: str
    spoil: Spoil
    told: tuple[str, ...]
    needs_archive: bool = False


def words(*extra: str) -> Spoil:
    """Returns a spoil that leaves the files alone; "{folder}" in a word is the toy's."""
    return lambda toy: [word.replace("{folder}", str(toy.folder)) for word in extra]


def config_of(content: bytes | str) -> Spoil:
    """Returns a spoil that replaces the whole config."""

    def spoil(toy: Toy) -> list[str]:
        toy.cfg.write_bytes(content.encode() if isinstance(content, str) else content)
        return []

    return spoil


def config_with(old: str, new: str) -> Spoil:
    """Returns a spoil that replaces one piece of the config."""

    def spoil(toy: Toy) -> list[str]:
        text = toy.cfg.read_text()
        assert text.count(old) == 1
        toy.cfg.write_text(text.replace(old, new))
        return []

    return spoil


def bases(**files: str) -> Spoil:
    """Returns a spoil that writes configs and starts `leaf.yaml`."""

    def spoil(toy: Toy) -> list[str]:
        for name, text in files.items():
            (toy.folder / f"{name}.yaml").write_text(text)
        return ["--cfg-path", str(toy.folder / "leaf.yaml")]

    return spoil


# 9 levels of 9 references each: 400 million values in a few hundred bytes
ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))

CONFIGS = [
    Case("unknown section", config_with("split:", "spilt:"), ("spilt: no such section. Did you mean 'split'?",)),
    Case("unknown key", config_with("num_folds", "num_fold"), ("run.num_fold: no such", "'num_folds'", "It takes:")),
    Case("unknown key of a part", words("model.head.dorpout=0"), ("model.head.dorpout: no such", "'dropout'")),
    Case("unknown name", words("model.fusion.name=cross"), ("model.fusion.name: no fusion is called 'cross'", "There")),
    Case("unknown name of a dataset", words("dataset.name=agiqa3k"), ("dataset.name:", "Did you mean 'agiqa_3k'?")),
    Case("text for a number", words("run.batch_size=eight"), ("run.batch_size: 'eight' is not a whole number.",)),
    Case("fraction for a whole number", words("run.seed=1.5"), ("run.seed: 1.5 is not a whole number.",)),
    Case("truth for a number", words("split.train_fraction=true"), ("split.train_fraction: True is not a number.",)),
    Case("number for a text", words("dataset.annotations=5"), ("dataset.annotations: 5 is not text.",)),
    Case("list of a wrong type", words("dataset.targets=[1]"), ("dataset.targets: [1] is not a list (text each)",)),
    Case("mapping for a list", words("processor.mean={a: 1}"), ("processor.mean: {'a': 1} is not a list",)),
    Case("list for a section", words("model.head=[mlp]"), ("model.head: ['mlp'] is not a mapping. Write name:",)),
    Case(
        "text for a section", config_with("split: {kind: holdout, seed: 1}", "split: x"), ("split: 'x' is not a map",)
    ),
    Case("a key that is no text", config_with("{kind: holdout", "{1: holdout"), ("split.1: no such setting.",)),
    Case(
        "a key that is a list",
        config_with("{kind: holdout", "{[a]: holdout"),
        ("toy.yaml, line 14: no valid YAML", "Check"),
    ),
    Case("duplicate key", config_with("num_folds: 2", "seed: 1\n  seed: 2"), ("toy.yaml, line", "duplicate key seed")),
    Case("duplicate section", config_with("split:", "run: {}\nsplit:"), ("toy.yaml, line", "duplicate key run")),
    Case("tab", config_with("  num_folds", "\tnum_folds"), ("toy.yaml, line 17: a tab. YAML is indented with spaces",)),
    Case("empty file", config_of(""), ("toy.yaml: is empty. A config has the sections image_size, model",)),
    Case("comments only", config_of("# image_size: 32\n"), ("toy.yaml: is empty. A config has the sections",)),
    Case("list", config_of("- image_size\n- model\n"), ("toy.yaml: holds a list, not a mapping. A config has",)),
    Case("words", config_of("image_size 32\n"), ("toy.yaml: holds the text 'image_size 32', not a mapping.",)),
    Case("binary", config_of(bytes(range(128, 256))), ("toy.yaml: cannot be read: it is no text", "Give a YAML file.")),
    Case("zero bytes", config_of(b"\0" * 64), ("toy.yaml", "no valid YAML", "Check indentation")),
    Case("utf-16", config_of("image_size: 32\n".encode("utf-16")), ("toy.yaml: cannot be read", "UTF-8")),
    Case("open brace", config_of("model: {name: ipiqa\n"), ("toy.yaml, line 2: no valid YAML", "Check indentation")),
    Case("two documents", config_of("image_size: 32\n---\nrun: {}\n"), ("toy.yaml", "no valid YAML")),
    Case("references to itself", config_of("run: &a {b: *a}\n"), ("toy.yaml", "no valid YAML")),
    Case("references that multiply", config_of(ALIASES), ("toy.yaml", "YAML")),
    Case("python object", config_of("a: !!python/name:os.system\n"), ("toy.yaml, line 1: no valid YAML",)),
    Case("function in a value", words("run.output_dir=${oc.env:HOME}"), ("run.output_dir:", "calls a function. Write")),
    Case("reference to nothing", words("run.seed=${run.sede}"), ("run.seed: Interpolation key 'run.sede' not found.",)),
    Case("left open", config_with("rate: 1e-3", "rate: ???"), ("run.learning_rate: missing ('???'). Give it a value",)),
    Case(
        "missing section", config_with("dataset:", "data_set:"), ("data_set: no such section. Did you mean 'dataset'",)
    ),
    Case("no output folder", config_with("  output_dir", "  # output_dir"), ("run.output_dir: missing. Give text.",)),
    Case(
        "missing config", words("--cfg-path", "{folder}/toi.yaml"), ("toi.yaml' does not exist. Did you mean 'toy.ya",)
    ),
    Case(
        "folder for a config",
        words("--cfg-path", "{folder}"),
        (
            "--cfg-path:",
            "is a folder. Configs are in",
        ),
    ),
    Case(
        "missing base", bases(leaf="base: toi.yaml\n"), ("leaf.yaml: base:", "does not exist. Did you mean 'toy.yaml'")
    ),
    Case("base of itself", bases(leaf="base: leaf.yaml\n"), ("leaf.yaml: base: leads in a circle", "Remove one")),
    Case(
        "base cycle",
        bases(leaf="base: twig.yaml\n", twig="base: branch.yaml\n", branch="base: twig.yaml\n"),
        ("twig.yaml: base: leads in a circle (leaf.yaml -> twig.yaml -> branch.yaml -> twig.yaml). Remove one",),
    ),
    Case("base that is no name", bases(leaf="base: {a: 1}\n"), ("leaf.yaml: base:", "is not a file name. Give one")),
    Case("broken base", bases(leaf="base: twig.yaml\n", twig="a: [\n"), ("twig.yaml, line", "no valid YAML")),
    Case("base that is an image", words("--cfg-path", "{folder}/images/gen0_normal_000.png"), ("png: cannot be read",)),
    Case("not a setting", words("max_epochs"), ("'max_epochs': not a setting. Write key=value with a dotted key",)),
    Case("nan", words("run.learning_rate=.nan"), ("run.learning_rate: nan is out of range. Give a number 0 or more.",)),
    Case("infinite", words("run.weight_decay=.inf"), ("run.weight_decay: inf is out of range. Give a number",)),
    Case("key of the reference code", words("run.init_lr=1"), ("run.init_lr:", "run.learning_rate")),
    Case(
        "number past all limits", words(f"run.batch_size=1{'0' * 99}"), ("run.batch_size:", "329 bits", "a smaller one")
    ),
    Case(
        "size past all limits", words("image_size=3200000"), ("image_size: 3200000 is out of range. Give at most 8192",)
    ),
    Case(
        "size",
        words("image_size=100"),
        ("image_size: 100 is not a multiple of 32 pixels, as a ResNet needs. Give 96",),
    ),
    Case("flip", words("processor.flip=2"), ("processor.flip: 2 is not a probability. Give a number from 0 to 1.",)),
    Case("tower that cannot be", words("model.image_encoder.width=3"), ("model.image_encoder:", "Give four stages")),
    Case(
        "too many folds", words("split.kind=kfold", "run.num_folds=9"), ("num_folds: kfold cannot cut 5 groups", "Use")
    ),
    Case("no such fold", words("--folds", "7"), ("--folds: 7 is not a choice from 0 to 0. Folds are counted from 0.",)),
    Case("unknown target", words("dataset.targets=[qualty]"), ("dataset.targets:", "Did you mean 'quality'?", "There")),
    Case("nothing to evaluate", words("run.evaluate=true"), ("run.evaluate: there is nothing to evaluate. Name a",)),
]


# -------------------------------------------------------------------------------------------------------------- tables


def cell(row: int, column: int, text: str) -> Spoil:
    """Returns a spoil that writes one cell; row 0 is the heading."""

    def spoil(toy: Toy) -> list[str]:
        rows = toy.rows()
        rows[row][column] = text
        toy.write_rows(rows)
        return []

    return spoil


def table_of(content: bytes | str, name: str = "data.csv") -> Spoil:
    """Returns a spoil that writes another table file and names it."""

    def spoil(toy: Toy) -> list[str]:
        (toy.folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return [f"dataset.annotations={toy.folder / name}"]

    return spoil


def changed(change: Callable[[list[list[str]]], list[list[str]]]) -> Spoil:
    """Returns a spoil that rewrites the rows of the table, heading included."""

    def spoil(toy: Toy) -> list[str]:
        toy.write_rows(change(toy.rows()))
        return []

    return spoil


def workbook(change: Callable[[openpyxl.worksheet.worksheet.Worksheet], object]) -> Spoil:
    """Returns a spoil that makes a workbook of the table, with one change, and names it."""

    def spoil(toy: Toy) -> list[str]:
        book = openpyxl.Workbook()
        heading, *rows = toy.rows()
        for row in [heading, *([name, text, float(a), float(b)] for name, text, a, b in rows)]:
            book.worksheets[0].append(row)
        change(book.worksheets[0])
        book.save(toy.folder / "data.xlsx")
        return [f"dataset.annotations={toy.folder / 'data.xlsx'}"]

    return spoil


def half_workbook(toy: Toy) -> list[str]:
    extra = workbook(lambda sheet: None)(toy)
    path = toy.folder / "data.xlsx"
    path.write_bytes(path.read_bytes()[:2000])
    return extra


def json_lines(first: dict[str, object]) -> Spoil:
    """Returns a spoil that makes json lines of the table and changes its first row."""

    def spoil(toy: Toy) -> list[str]:
        heading, *rows = toy.rows()
        objects = [dict(zip(heading, row, strict=True)) for row in rows]
        objects[0] = {**objects[0], **first}
        (toy.folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in objects))
        return [f"dataset.annotations={toy.folder / 'data.jsonl'}"]

    return spoil


def no_table(toy: Toy) -> list[str]:
    toy.table.unlink()
    return []


WHERE = "dataset.annotations: '"
OUTSIDE = (
    WHERE,
    "1 of 15 rows name an image outside the image folder, first",
    "Write names relative to dataset.images",
)

TABLES = [
    Case("missing table", no_table, (WHERE, "data.csv' does not exist. Get AGIQA-3k from")),
    Case("folder for a table", words("dataset.annotations={folder}/images"), (WHERE, "is a folder, not a file. Get")),
    Case("ending", table_of("x", "data.xls"), ("ends in '.xls'. Tables are read from .csv, .tsv, .xlsx",)),
    Case("empty table", table_of(""), (WHERE, "data.csv' is empty. Get AGIQA-3k from")),
    Case("no rows", changed(lambda rows: rows[:1]), (WHERE, "has a heading but no rows. Get AGIQA-3k from")),
    Case("blank rows", changed(lambda rows: [rows[0], ["", "", "", ""]]), ("has a heading but no rows.",)),
    Case(
        "missing column",
        cell(0, 2, "score"),
        (
            "has no column 'mos_quality' (or 'quality').",
            "Its columns are: 'name'",
        ),
    ),
    Case("misspelt column", cell(0, 3, "mos_algin"), ("has no column 'mos_align'", "Did you mean 'mos_algin'?")),
    Case("column twice", cell(0, 3, "mos_quality"), ("has 2 columns for 'mos_quality'", "Rename all but one.")),
    Case(
        "text in MOS", cell(3, 2, "good"), ("1 of 15 rows", "not a number, first 'good' (line 4). Write numbers such")
    ),
    Case("comma in MOS", cell(3, 2, "2,75"), ("not a number, first '2,75' (line 4). Write numbers such as 2.75.",)),
    Case("empty MOS", cell(1, 3, ""), ("an alignment score that is not a number, first '' (line 2).",)),
    Case("NaN", cell(5, 3, "nan"), ("score that is not finite, first 'nan' (line 6). Correct or remove",)),
    Case("inf", cell(5, 2, "-inf"), ("a quality score that is not finite, first '-inf' (line 6). Correct",)),
    Case("too large to be finite", cell(5, 2, "1e999"), ("a quality score that is not finite, first '1e999'",)),
    Case(
        "MOS out of range", cell(2, 2, "50"), ("a quality score outside 0 to 5, first 50 (line 3). Check the column",)
    ),
    Case("empty prompt", cell(2, 1, " "), ("1 of 15 rows have an empty prompt, first line 3. Fill in",)),
    Case(
        "empty image name", cell(2, 0, ""), ("1 of 15 rows have an empty image name, first line 3. Fill in every row.",)
    ),
    Case(
        "duplicate image",
        changed(lambda rows: [*rows, rows[1]]),
        ("first 'gen0_normal_000.png' (line 2, line 17)", "Re"),
    ),
    Case(
        "duplicate in disguise", cell(2, 0, "./gen0_normal_000.png"), ("1 images stand in several rows", "Remove the")
    ),
    Case(
        "duplicate with another prompt",
        lambda toy: [*cell(2, 0, "gen0_normal_000.png")(toy), *cell(2, 1, "a fish")(toy), "dataset.duplicates=keep"],
        ("'gen0_normal_000.png' stands in line 2, line 3", "One image has one prompt: correct the table."),
    ),
    Case(
        "latin-1", table_of("name,prompt\na,café\n".encode("latin-1")), ("byte 0xe9 in line 2. Save it again as UTF-8",)
    ),
    Case("utf-16 table", table_of("name,prompt\n".encode("utf-16")), ("is not UTF-8 text: byte 0xff in line 1. Save",)),
    Case("uneven rows", changed(lambda rows: [*rows, ["a", "b"]]), ("first line 17 has 2. Put quotes around",)),
    Case("open quote", table_of('name,prompt\n"a,b\n'), ("is not well-formed near line", "Check the quotes.")),
    Case(
        "merged cells",
        workbook(lambda s: s.merge_cells("B2:B4")),
        ("data.xlsx': 1 merged cells, first B2:B4. Unmerge",),
    ),
    Case(
        "formula", workbook(lambda s: s.__setitem__("C3", "=C2+1")), ("1 formula cells have no stored", "paste the val")
    ),
    Case("error cell", workbook(lambda s: s.__setitem__("C3", "#N/A")), ("not a number, first '#N/A' (row 3). Write",)),
    Case("empty workbook", workbook(lambda s: s.delete_rows(1, 99)), ("data.xlsx' is empty. Get AGIQA-3k from",)),
    Case("truncated workbook", half_workbook, ("data.xlsx' is not an Excel workbook (BadZipFile). Save it again",)),
    Case("page named xlsx", table_of("<html>", "t.xlsx"), ("t.xlsx' is not an Excel workbook (BadZipFile). Save",)),
    Case("broken json", table_of('{"name": \n', "t.jsonl"), ("line 1 is not JSON", "Write one object a line.")),
    Case("json array", table_of("[1, 2]\n", "t.jsonl"), ("line 1 is a list. Write one object a line.",)),
    Case("deep json", table_of("[" * 100_000, "t.jsonl"), ("line 1 is not JSON", "Write one object a line.")),
    Case(
        "half a character",
        json_lines({"prompt": "a \ud83d cat"}),
        ("line 1 is not JSON", "surrogates not allowed", "Write one"),
    ),
    Case(
        "one group",
        changed(lambda rows: rows[:4]),
        ("split: all 3 rows belong to one group, '000'", "Check dataset.gr"),
    ),
    Case("name without a group", cell(1, 0, "cat.png"), ("'cat.png' has no prompt id. AGIQA-3k names have the form",)),
    Case(
        "own table without targets",
        words("dataset.name=table", "dataset.targets=[]"),
        ("dataset.targets: empty. Name",),
    ),
    Case(
        "own range",
        words("dataset={name: table, targets: [mos_align], image: name, mos_min: 5, mos_max: 1}"),
        ("mos_min",),
    ),
    Case(
        "batch of more than all",
        words("run.batch_size=99"),
        ("run.batch_size: 99 is more than the 12 training images",),
    ),
    Case("path to a parent", cell(1, 0, "../../etc/passwd"), (*OUTSIDE, "'../../etc/passwd' (line 2)")),
    Case("path to a parent, hidden", cell(1, 0, "a/../../x_000.png"), (*OUTSIDE, "'a/../../x_000.png' (line 2)")),
    Case("absolute path", cell(1, 0, "/etc/passwd"), (*OUTSIDE, "'/etc/passwd' (line 2)")),
    Case("Windows path", cell(1, 0, "..\\..\\x_000.png"), (*OUTSIDE, "x_000.png' (line 2)")),
    Case("drive", cell(1, 0, "C:x_000.png"), (*OUTSIDE, "'C:x_000.png' (line 2)")),
    Case("server", cell(1, 0, "\\\\server\\x_000.png"), (*OUTSIDE, "server")),
    Case("NUL in a name", cell(1, 0, "x\0_000.png"), (*OUTSIDE, "'x\\x00_000.png' (line 2)")),
    Case("endless name", cell(1, 0, "x" * 5000 + "_000.png"), ("File name too long", "Check the path")),
]
