"""Settings of tar shards: which files they name, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import refused
from tar_shards import make, write_shards

from ipiqa import registry
from ipiqa.datasets.shards import Shards, find_shards

pytest.importorskip("webdataset", reason="the extra [shards] is not installed")


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
        ({"shards": []}, "dataset.shards: empty. Give paths of tar files, as in 'data/{{000000..000999}}.tar'."),
        (
            {"shards": "pipe:touch x"},
            "dataset.shards: 'pipe:touch x' is not a path. Shards are read from disk: download",
        ),
        ({"shards": ["https://x.org/a.tar"]}, "dataset.shards: 'https://x.org/a.tar' is not a path."),
        (
            {"shards": "{{1..2.tar"},
            "dataset.shards: '{{1..2.tar' has an unmatched brace. Write {{000..999}} or {{a,b}}.",
        ),
        ({"val_shards": "{folder}/*.tar"}, "dataset.val_shards: 2 of 3 are in dataset.shards too, first '{folder}/000"),
    ],
)
def test_bad_paths(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write_shards(tmp_path, 3, 1)
    given = {"shards": "{folder}/{{000..001}}.tar", "val_shards": "{folder}/002.tar"} | settings
    filled = {key: v.format(folder=tmp_path) if isinstance(v, str) else v for key, v in given.items()}
    with pytest.raises(Exception, match="dataset") as caught:
        Shards(samples_per_epoch=1, **filled).check()
    assert str(caught.value).startswith(message.format(folder=tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples_per_epoch": 0}, "dataset.samples_per_epoch: 0 is below 1. Give a number of samples."),
        ({"val_samples": 0}, "dataset.val_samples: 0 is below 1."),
        ({"shuffle_buffer": -1}, "dataset.shuffle_buffer: -1 is below 0."),
        ({"image": "png;;jpg"}, "dataset.image: 'png;;jpg' has an empty ending. Give endings, as in 'png;jpg'."),
        ({"prompt": "json:"}, "dataset.prompt: 'json:' names no prompt. Give an ending, as 'txt', or 'json:<key>'."),
        ({"prompt": "png"}, "dataset.prompt: 'png' names no prompt."),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    assert refused(lambda: make("a.tar", **settings)).startswith(message)


def test_sound_settings_pass(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, 1)
    make(f"{tmp_path}/{{000..001}}.tar", val_shards=f"{tmp_path}/002.tar").check()


def test_webdataset_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)  # as Python remembers a module that is not there
    assert refused(make(str(tmp_path)).check) == (
        "dataset.shards needs the package webdataset, which is not installed. "
        "Install it with: pip install -e '.[shards]'"
    )
