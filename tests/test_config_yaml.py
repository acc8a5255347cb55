"""The one reader of YAML: what it makes of a text, and what it refuses."""

from __future__ import annotations

import contextlib
import errno
import re
import time
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY, error_of, refused
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ipiqa.ablation import load_grid
from ipiqa.config.loading import load_config
from ipiqa.config.yaml_file import parse, read_mapping

# 9 levels of 9 references each: 400 million values in a few hundred bytes
LEVELS = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)]
LISTS = "a0: &a0 [x, x]\n" + "".join(LEVELS)
MERGES = "a0: &a0 {x: 1}\n" + re.sub(r"\[(.*)\]", r"{<<: [\1]}", "".join(LEVELS))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-4", 0.0001),
        ("a: 1.5E3", 1500.0),
        ("a: 2026-01-31", "2026-01-31"),
        ("a: {1: b, on: c, null: d}", {"1": "b", "on": "c", "null": "d"}),
        ("x: &x {b: 1, c: 2}\na: {<<: *x, c: 3}", {"b": 1, "c": 3}),
        ("x: &x [1]\na: [*x, *x]", [[1], [1]]),
        ("a: '1'", "1"),
        ("a:", None),
    ],
)
def test_values(text: str, value: object) -> None:
    assert repr(parse(text)["a"]) == repr(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# nothing but this\n", ": holds no mapping of settings. It holds x."),
        (b"just words\n", ": holds no mapping of settings."),
        (b"run:\n  seed: 1\n\tmax_epochs: 2\n", ", line 3: invalid YAML: found character '\\t' that cannot start any"),
        (b"run:\n  seed: 1\n  seed: 1\n", ", line 3: invalid YAML: duplicate key 'seed'. Write `key: value`, indented"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", ": cannot be read: it is no text file (not UTF-8). Give a YAML file."),
        (b"\x00\x01\x02", ": invalid YAML: "),
        (b"model: {name: ipiqa\n", ", line 2: invalid YAML: "),
        (b"a: 1\n---\nb: 2\n", ", line 2: invalid YAML: "),
        (b"a: &a [*a]\n", ", line 1: invalid YAML: more than 50"),
        (b"a: !!python/object/apply:os.system ['touch executed']\n", ", line 1: invalid YAML: the tag"),
        (b"a: !!set {1, 2}\n", ", line 1: invalid YAML: the tag '!!set' is not for settings."),
        (b"a: !!bool maybe\n", ": invalid YAML: a value does not fit its tag"),
        (b"a: {{ name }}\n", ", line 1: invalid YAML: a key that is a mapping or a list."),
        (b"a: " + b"9" * 5000, ", line 1: invalid YAML: a number of 5000 digits."),
        (b"[" * 100_000, ": invalid YAML: more than 50 mappings and lists within each other."),
        (b"- " * 100_000, ": invalid YAML: more than 50"),
        (LISTS.encode(), ", line 1: invalid YAML: more than 100000 values, with references written out."),
        (MERGES.encode(), ", line 2: invalid YAML: more than 100000"),
        (b"a: 1 # " + b"x" * (1 << 20), ": has 1048583 bytes, more than 1048576. It holds x."),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else "",
)  # fmt: skip
def test_bad_file_is_refused_in_one_line_and_soon(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    start = time.process_time()
    assert refused(lambda: read_mapping(path, "--x", "It holds x.")).startswith(f"{path}{message}")
    assert time.process_time() - start < 5 and not Path("executed").exists()


def test_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "a.yaml"
    path.write_text("a: 1")
    monkeypatch.setattr(Path, "read_text", deny)
    assert (
        refused(lambda: read_mapping(path, "--x", ""))
        == f"{path}: cannot be read: Permission denied. Give a YAML file."
    )


# ----------------------------------------------------------------------------------------------------------------- fuzz

PROJECTS = sorted((REPOSITORY / "ipiqa" / "projects").rglob("*.yaml"))
PIECES = ["&a ", "*a", "{", "}", "[", "]", ": ", "- ", "\n", "'", "${", "${run.seed}", "!!int ", "<<: ", "???", "null"]
PIECES += ["1e999", "-1", "~", "\t", "\0", "\ud800", "{{ x }}", "name: ", "base: ", "9" * 5000, "x" * 5000, "../" * 99]


@st.composite
def spoilt(draw: st.DrawFn, path: Path) -> str:
    """Draws a shipped file with some pieces put in, words exchanged and lines taken out."""
    words = re.split(r"(\s+)", path.read_text(encoding="utf-8"))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, len(words) - 1))
        words[place : place + draw(st.integers(0, 3))] = [draw(st.sampled_from(PIECES) | st.text(max_size=9))]
    return "".join(words)


FUZZ = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_bytes(text.encode(errors="surrogatepass"))
    return folder / name


@FUZZ
@given(st.sampled_from(PROJECTS).flatmap(spoilt) | st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
@example("model: {arch: [a]}\nrun: {init_lr: 1, task: [a]}\ndataset: {vis_root: {a: 1}}\n")
@example("image_size: 64\nrun: {output_dir: '" + "${" * 2000 + "'}\n")
@example("base: '" + "x" * 5000 + "'\n")
def test_any_file_is_a_config_or_refused_in_one_line(tmp_path: Path, text: str) -> None:
    error_of(lambda: load_config(write(tmp_path, "any.yaml", text)))


@FUZZ
@given(st.sampled_from([p for p in PROJECTS if p.name == "ablation.yaml"]).flatmap(spoilt) | st.text())
@example("config: ipiqa.yaml\noutput_dir: o\nrows: [{name: a, set: {a.b.c: {{ name }}}}]\n")
@example("config: ipiqa.yaml\noutput_dir: o\ngrid: {run.seed: [1, 2, 3], a: [&a [*a]]}\n")
@example(f"config: ipiqa.yaml\noutput_dir: o\ngrid: {{run.seed: {list(range(1001))}}}\n")
def test_any_file_is_a_grid_or_refused_in_one_line(tmp_path: Path, text: str) -> None:
    if not (tmp_path / "ipiqa.yaml").exists():
        (tmp_path / "ipiqa.yaml").write_text((REPOSITORY / "ipiqa/projects/demo/ipiqa.yaml").read_text())
    error_of(lambda: load_grid(write(tmp_path, "any.yaml", text)))


@FUZZ
@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_parse_fails_with_its_one_error(text: str) -> None:
    with contextlib.suppress(yaml.YAMLError):
        parse(text)
