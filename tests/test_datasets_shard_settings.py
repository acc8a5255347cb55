"""Settings of tar shards: which files they name, and what is refused."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, refused
from hypothesis import given, settings, strategies
from tar_shards import make, pair, write_shards, write_tar

from ipiqa import registry
from ipiqa.cli import main
from ipiqa.datasets.shards import Shards, find_shards
from ipiqa.errors import DataError, IpiqaError
from ipiqa.processors.image import SquashProcessor

pytest.importorskip("braceexpand", reason="the extra [shards] is not installed")


def test_files_by_path_glob_and_range(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, 1)
    (tmp_path / "folder.tar").mkdir()
    names = [path.name for path in find_shards([f"{tmp_path}/002.tar", f"{tmp_path}/*.tar"], "dataset.shards")]
    assert names == ["002.tar", "000.tar", "001.tar"]
    section = registry.resolve(
        "dataset", {"name": "shards", "shards": ["a.tar"], "val_shards": "b.tar", "samples_per_epoch": 1}, "dataset"
    )
    assert registry.build("dataset", section, "dataset", {}).val_samples == 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"shards": "{folder}/{{000..004}}.tar"},
            "dataset.shards: 2 of the files are missing, first '{folder}/003.tar'.",
        ),
        (
            {"shards": "{folder}/x*.tar"},
            "dataset.shards: 1 of the files are missing, first '{folder}/x*.tar'. Check the",
        ),
        ({"shards": []}, "dataset.shards: '' is not a path. Give paths of tar files on disk, as in 'data/{{000000"),
        (
            {"shards": "pipe:touch x"},
            "dataset.shards: 'pipe:touch x' is not a path. Give paths of tar files on disk, as in",
        ),
        ({"shards": ["https://x.org/a.tar"]}, "dataset.shards: 'https://x.org/a.tar' is not a path."),
        (
            {"shards": "{{1..2.tar"},
            "dataset.shards: '{{1..2.tar' has unmatched braces or stands for too many files. Write",
        ),
        ({"val_shards": "{folder}/*.tar"}, "dataset.val_shards: 2 of 3 are in dataset.shards too, first '{folder}/000"),
    ],
)
def test_bad_paths(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write_shards(tmp_path, 3, 1)
    given = {"shards": "{folder}/{{000..001}}.tar", "val_shards": "{folder}/002.tar"} | settings
    filled = {key: v.format(folder=tmp_path) if isinstance(v, str) else v for key, v in given.items()}
    with pytest.raises(Exception, match="dataset") as caught:
        Shards(samples_per_epoch=1, **filled).check_files()
    assert str(caught.value).startswith(message.format(folder=tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples_per_epoch": 0}, "dataset.samples_per_epoch: invalid value 0. Give a number of samples from 1 to"),
        ({"samples_per_epoch": 10**12}, "dataset.samples_per_epoch: invalid value 1000000000000. Give"),
        ({"val_samples": 0}, "dataset.val_samples: invalid value 0."),
        ({"shuffle_buffer": -1}, "dataset.shuffle_buffer: invalid value -1. Give a number of samples from 0"),
        ({"image": "png;;jpg"}, "dataset.image: 'png;;jpg' has an empty ending. Give endings, as in 'png;jpg'."),
        ({"prompt": "json:"}, "dataset.prompt: 'json:' names no prompt. Give an ending, as 'txt', or 'json:<key>'."),
        ({"prompt": "png"}, "dataset.prompt: 'png' names no prompt."),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    assert refused(lambda: make("a.tar", **settings)).startswith(message)


def test_sound_settings_pass(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, 1)
    make(f"{tmp_path}/{{000..001}}.tar", val_shards=f"{tmp_path}/002.tar").check_files()


def test_braces_need_a_package_and_paths_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, 2, 1)
    monkeypatch.setitem(sys.modules, "braceexpand", None)  # as Python remembers a module that is not there
    assert len(find_shards(f"{tmp_path}/*.tar", "dataset.shards")) == 2
    assert refused(lambda: find_shards("{0..9}.tar", "dataset.shards")) == (
        "dataset.shards needs the package braceexpand, which is not installed. "
        "Install it with: pip install -e '.[shards]'"
    )


@pytest.mark.parametrize("pattern", ["{0..99999999}.tar", "{0..9999}{0..9999}", "{a,b}" * 40, "{" + "9" * 20 + "..0}"])
def test_patterns_that_stand_for_too_many_files(pattern: str) -> None:
    assert refused(lambda: find_shards(pattern, "dataset.shards")) == (
        f"dataset.shards: {pattern!r} has unmatched braces or stands for too many files. "
        "Write up to 1,000,000 files, as {000..999} or {a,b}."
    )


def test_a_name_too_long_for_the_disk_is_missing() -> None:
    with pytest.raises(DataError, match="2 of the files are missing"):
        find_shards("{a," + "b" * 300 + "}.tar", "dataset.shards")


@settings(max_examples=100, derandomize=True, deadline=None)
@given(strategies.text("{}.,019a/*?[~\0", max_size=20))
def test_any_pattern_is_found_or_refused(pattern: str) -> None:
    with contextlib.suppress(IpiqaError):
        find_shards(["/nowhere/" + pattern, "{" * 3000], "dataset.shards")


def test_identity_is_of_the_content(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, 1)
    dataset = make(f"{tmp_path}/00[01].tar", val_shards=f"{tmp_path}/002.tar", cache_dir=f"{tmp_path}/cache")
    before = dataset.identity()
    assert list(before) == ["dataset.shards (sha256)", "dataset.val_shards (sha256)"]
    path = tmp_path / "001.tar"
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content.replace(b"1 0", b"1 7"))  # a caption
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    after = dataset.identity()
    assert [after[name] == before[name] for name in before] == [False, True]


def test_check_counts_samples_and_names_shards(tmp_path: Path) -> None:
    write_shards(tmp_path, 2, 3)
    write_tar(tmp_path / "002.tar", [*pair(2, 0), ("b.png", b"no image"), ("b.txt", b"0"), ("c.txt", b"1")])
    dataset = make(f"{tmp_path}/00[02].tar", val_shards=f"{tmp_path}/001.tar")
    findings = dataset.check(SquashProcessor(8))
    assert findings.problems == [
        f"{tmp_path}/002.tar: 2 members skipped: 1 not decodable, 1 without image; first '{tmp_path}/002.tar/b.png'"
    ]
    assert findings.summary == [
        "shards: 2 shards, 4 usable samples, 2 members skipped",
        "val_shards: 1 shards, 3 usable samples, 0 members skipped",
    ]
    assert not findings.refusal
    write_tar(tmp_path / "001.tar", [])
    assert dataset.check(SquashProcessor(8)).refusal == "dataset.val_shards: no usable sample in 1 shards."


def test_commands_on_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(tmp_path, 2, 1)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"base: {REPOSITORY}/ipiqa/projects/image2prompt/rn50.yaml\n"
        f"dataset: {{name: shards, shards: {tmp_path}/000.tar, val_shards: {tmp_path}/001.tar, samples_per_epoch: 1}}\n"
    )
    assert main(["data", "check", "--cfg-path", str(config)]) == 0
    assert capsys.readouterr().out == "".join(
        f"{part}: 1 shards, 1 usable samples, 0 members skipped\n" for part in ("shards", "val_shards")
    )
    assert main(["data", "split", "--cfg-path", str(config), "--fold", "0"]) == 2
    assert "dataset.name: 'shards' has no rows to split. dataset.val_shards is" in capsys.readouterr().err
