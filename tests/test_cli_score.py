"""`ipiqa score`, from the command line to the file: what it prints, its exit statuses, stops and restarts."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from PIL import Image, PngImagePlugin
from test_layout import blocks
from toy import write_dataset, write_folds

import ipiqa
from ipiqa import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `model`, a run of two folds, and the toy dataset: `data.csv` and `images`."""
    folder = tmp_path_factory.mktemp("score")
    write_dataset(folder)
    write_folds(folder / "model")
    return folder


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory beside links to what `folder` holds."""
    for name in ("model", "data.csv", "images"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def run(*words: str) -> int:
    return cli.main(["score", *words])


def test_a_table_is_scored_in_its_order(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("model", "data.csv", "--out", "scores.csv") == 0
    printed = capsys.readouterr()
    assert printed.out == "scores.csv\n" and re.fullmatch(r"40 rows; [\d.]+ images/s\n", printed.err)
    rows, given = table(here / "scores.csv"), table(here / "data.csv")
    assert [*rows[0]][:4] == ["image", "prompt", "mos_quality", "mos_align"] and [*rows[0]][-1] == "error"
    assert [[*row.values()][:4] for row in rows] == [[*row.values()] for row in given]
    scorer = ipiqa.load("model")
    frame = scorer.frame([here / "images" / row["name"] for row in given], [row["prompt"] for row in given])
    for name in ("quality", "alignment_percentile", "quality_std"):
        np.testing.assert_allclose([float(row[name]) for row in rows], frame[name], rtol=1e-3)
        assert all(str(np.float32(row[name])) == row[name] for row in rows)  # no more digits than float32 has
    assert run("model", "data.csv", "--out", "one.csv", "--folds", "1", "--limit", "3") == 0
    one = table(here / "one.csv")
    assert len(one) == 3 and "quality_std" not in one[0]
    expected = ipiqa.load("model/fold_01").score(here / "images" / one[0]["image"], one[0]["prompt"])[0]
    np.testing.assert_allclose([float(one[0]["quality"]), float(one[0]["alignment"])], expected, rtol=1e-3)


def test_rows_that_fail_are_listed_and_the_others_scored(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (here / "data.csv").read_text().splitlines()
    names = [f"missing{i}.png,a,1,1" for i in range(25)]
    (here / "some.csv").write_text("\n".join([*lines[:3], *names, *lines[3:]]) + "\n")
    assert run("model", "some.csv", "--image-root", "images", "--out", "scores.csv") == 3
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 22 and errors[0].startswith("missing0.png: '") and errors[20] == "... and 5 more"
    assert errors[-1].startswith("65 rows, 25 could not be scored; ")
    rows = table(here / "scores.csv")
    assert [bool(row["error"]) for row in rows] == [False] * 2 + [True] * 25 + [False] * 38
    assert all((row["quality"] == "") == bool(row["error"]) for row in rows)


def test_one_picture_is_shown_in_columns(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "not.png").write_text("not")
    assert run("model", "images/gen0_normal_000.png", "--prompt", "a red\ttree " + "very " * 20 + "old") == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["image", "prompt", "quality", "percentile", "alignment", "percentile"]
    for name in heading.split()[2:4]:
        assert row[: heading.index(name) + len(name)].endswith(row.split()[heading.split().index(name) - 6])
    assert re.search(r"^images/gen0_normal_000.png  a red tree very .{23}…  +-?\d\.\d{3} +\d+ +-?\d\.\d{3} +\d+$", row)
    assert run("model", "not.png", "--prompt", "a") == 3
    assert "'" + str(here / "not.png") + "' is not an image" in capsys.readouterr().out.splitlines()[1]


def test_standard_output_takes_csv(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("model", "data.csv", "--out", "-") == 0
    printed = capsys.readouterr().out
    assert run("model", "data.csv", "--out", "scores.csv") == 0
    assert printed == (here / "scores.csv").read_text()


def test_a_reader_that_has_gone_ends_the_job(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert run("model", "data.csv", "--out", "-") == 141


def test_a_dry_run_shows_what_would_be_done(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (here / "data.csv").read_text().replace("mos_quality", "quality")
    (here / "some.csv").write_text(text.replace("gen1_normal_000.png", "gone.png") + ",a,1,1\n")
    before = sorted(here.iterdir())
    assert run("model", "some.csv", "--image-root", "images", "--out", "scores.csv", "--dry-run") == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[1].split(maxsplit=1) == ["gen0_normal_000.png", "a red blue"] and len(lines) == 9
    assert lines[-2] == "41 rows: 1 images are missing, 1 rows are unusable otherwise"
    assert lines[-1].startswith("columns: image, prompt, input_quality, mos_align, quality, quality_percentile, ")
    assert printed.err == "columns of the input, renamed because the output has such: quality -> input_quality\n"
    assert sorted(here.iterdir()) == before


def test_mistakes_are_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "there.csv").touch()
    for words, message in [
        (["model", "images", "--prompt", "a", "--out", "there.csv"], "exists. Give another file, or --overwrite."),
        (["nothing", "images", "--prompt", "a"], "does not exist"),
        (["model", "nothing", "--prompt", "a"], "does not exist"),
        (["model", "images"], "depend on prompts"),
        (["model", "images", "--prompt", "a", "--batch-size", "0"], "--batch-size: '0' is out of range"),
    ]:
        assert run(*words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert run("model", "images", "--prompt", "a", "--out", "there.csv", "--overwrite", "--batch-size", "auto") == 0
    assert len(table(here / "there.csv")) == 40


def test_long_prompts_are_told_of_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("model", "images", "--prompt", "tree " * 90, "--out", "scores.csv") == 0
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "prompts: 40 of 40 rows have longer ones than the model reads; their last words do not count"


def write_many(path: Path, images: Path, count: int) -> None:
    names = sorted(images.iterdir())
    lines = [f"{names[i % len(names)]},a {i % 50} tree,{i}" for i in range(count)]
    path.write_text("\n".join(["image,prompt,number", *lines]) + "\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_scored(here: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    write_many(here / "many.csv", here / "images", 1500)

    def send() -> None:
        deadline = time.monotonic() + 30
        while not (here / "some.csv.parts" / "part-0000001.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    assert run("model", "many.csv", "--out", "some.csv") == 128 + number
    sender.join()
    assert re.search(r"ipiqa: stopped after \d+ rows. Go on with the same command\n$", capsys.readouterr().err)
    assert not (here / "some.csv").exists()
    assert run("model", "many.csv", "--out", "some.csv") == 0
    assert run("model", "many.csv", "--out", "whole.csv") == 0
    assert (here / "some.csv").read_bytes() == (here / "whole.csv").read_bytes()
    assert not (here / "some.csv.parts").exists()


@pytest.mark.slow
def test_a_killed_job_goes_on_to_the_same_bytes(here: Path) -> None:
    write_many(here / "many.csv", here / "images", 2000)
    command = [sys.executable, "-m", "ipiqa", "score", "model", "many.csv", "--out"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "whole.csv"], env=environment, check=True, capture_output=True)
    for part in (1, 6):
        job = subprocess.Popen([*command, "some.csv"], env=environment, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not (here / "some.csv.parts" / f"part-{part:07d}.jsonl").exists():
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        job.kill()
        job.communicate()
        assert not (here / "some.csv").exists()
    subprocess.run([*command, "some.csv"], env=environment, check=True, capture_output=True)
    assert (here / "some.csv").read_bytes() == (here / "whole.csv").read_bytes()
    assert sorted(path.name for path in here.glob("some*")) == ["some.csv"]


def test_real_images_are_scored_with_their_table(here: Path, shared: Path) -> None:
    ratings = shared / "data" / "avt_ai_images" / "ratings.csv"
    assert run("model", str(ratings), "--out", "scores.csv") == 0
    rows, given = table(here / "scores.csv"), table(ratings)
    assert len(rows) == 134 and [*rows[0]][: len(given[0])] == [*given[0]]
    assert [[row[name] for name in given[0]] for row in rows] == [[*row.values()] for row in given]
    assert {row["error"] for row in rows} == {""} and len({row["quality"] for row in rows}) > 100


def lay_out(folder: Path, here: Path) -> None:
    """Makes what docs/score.md names, in an empty directory."""
    shutil.copytree(folder / "model", here / "output" / "demo" / "ipiqa")
    shutil.copytree(folder / "images", here / "cache" / "demo" / "images")
    shutil.copy(folder / "data.csv", here / "cache" / "demo")
    images = sorted((folder / "images").iterdir())[:3]
    shutil.copy(images[0], here / "cache" / "demo" / "images" / "scribe1.0_normal_000.jpg")
    with (here / "cache" / "demo" / "data.csv").open("a") as file:
        file.write("scribe1.0_normal_000.jpg,three yellow triangles,1,1\n")
    (here / "pictures").mkdir()
    (here / "shards").mkdir()
    for name in ("cat", "dog"):
        note = PngImagePlugin.PngInfo()
        note.add_text("parameters", f"a {name} of glass\nSteps: 20")
        Image.open(images[1]).save(here / "pictures" / f"{name}.png", pnginfo=note)
        (here / "pictures" / f"{name}.txt").write_text(f"a {name}\n")
        (here / "pictures" / f"{name}.json").write_text(json.dumps({"caption": f"one {name}"}))
    (here / "lines.txt").write_text("a cat\na dog\n")
    (here / "list.txt").write_text("pictures/cat.png\npictures/dog.png\n")
    lines = [json.dumps({"file": f"{name}.png", "caption": f"a {name}", "seed": 7}) for name in ("dog", "cat")]
    (here / "table.jsonl").write_text("\n".join(lines))
    for number in range(2):
        with tarfile.open(here / "shards" / f"{number:03d}.tar", "w") as shard:
            for file in sorted((here / "pictures").iterdir()):
                shard.add(file, f"{number}{file.name}")


def test_every_command_of_the_page_runs_as_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    lay_out(folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("docs/score.md", "bash") for line in block.splitlines()]
    assert len(commands) == 11
    for command in commands:
        words = shlex.split(command)
        with open(words.pop() if words[-2] == "<" else os.devnull) as given:  # noqa: PTH123
            monkeypatch.setattr(sys, "stdin", given)
            assert cli.main([word for word in words[1:] if word != "<"]) == 0, command
    printed = capsys.readouterr().out
    prompts = {path.stem: [row["prompt"] for row in table(path)] for path in sorted(tmp_path.glob("*.csv"))}
    assert prompts == {
        "captions": ["one cat", "one dog"] * 2, "embedded": ["a cat of glass", "a dog of glass"],
        "lines": ["a cat", "a dog"], "one_prompt": ["a cat with a red hat"] * 2, "scores": prompts["scores"],
        "shards": ["a cat", "a dog"] * 2, "sidecar": ["a cat", "a dog"],
    }  # fmt: skip
    assert len(prompts["scores"]) == 41 and prompts["scores"][-1] == "three yellow triangles"
    rows = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    found = [(row["image"], row["prompt"], row["seed"]) for row in rows]
    assert found == [("dog.png", "a dog", "7"), ("cat.png", "a cat", "7")]
    assert printed.splitlines()[-1].startswith("pictures/dog.png,a cat with a red hat,")
