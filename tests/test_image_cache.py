"""The image cache: the same bytes as without it, whatever happens to its file."""

from __future__ import annotations

import dataclasses
import errno
import logging
import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ipiqa.datasets import image_cache
from ipiqa.datasets.databases.agiqa import OwnTable
from ipiqa.datasets.image_cache import CachedImages, DecodedImages, ImageSource, open_images
from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import DataError
from ipiqa.processors.image import SquashProcessor

ROWS = np.array([5, 0, 3, 6])


@pytest.fixture
def table(tmp_path: Path) -> AnnotationTable:
    """Seven rows of six images: the first image stands in the last row, too."""
    folder = tmp_path / "images"
    folder.mkdir()
    names = [f"{number}.jpg" for number in (3, 1, 2, 5, 4, 0)]
    for number, name in enumerate(names):
        pixels = np.random.RandomState(number).randint(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    names.append(names[0])
    return AnnotationTable(tuple(names), ("p",) * 7, np.zeros((7, 1)), ("quality",), ("g",) * 7, folder)


def opened(table: AnnotationTable, size: int = 16, limit_gb: float = 1.0) -> ImageSource:
    cache_dir = table.image_dir.parent / "cache"
    return open_images(table, SquashProcessor(size), cache_dir=cache_dir, limit_gb=limit_gb)


def cache_files(table: AnnotationTable, ending: str = ".images") -> list[Path]:
    return sorted((table.image_dir.parent / "cache").glob(f"*{ending}"))


def assert_right(images: ImageSource, table: AnnotationTable, size: int = 16) -> None:
    expected = torch.stack([SquashProcessor(size).decode(table.image_paths[row]) for row in ROWS])
    batch = images.batch(ROWS)
    assert batch.dtype == torch.uint8 and torch.equal(batch, expected)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_same_bytes_with_and_without(table: AnnotationTable) -> None:
    cached, decoded = opened(table), opened(table, limit_gb=0)
    assert isinstance(cached, CachedImages) and isinstance(decoded, DecodedImages)
    assert_right(cached, table)
    assert_right(decoded, table)
    assert cached.batch(ROWS).stride() == decoded.batch(ROWS).stride()


def test_built_once(table: AnnotationTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        opened(table)
    (file,) = cache_files(table)
    assert f"image cache: decoding 6 images once to '{file}' (0.00 GB)" in caplog.text
    assert file.stat().st_size == 4096 + 6 * 16 * 16 * 3
    monkeypatch.setattr(image_cache, "_build", None)  # a second build would fail
    backwards = dataclasses.replace(table, names=table.names[::-1])
    assert_right(opened(backwards), backwards)


def test_another_size_or_changed_image_is_another_cache(table: AnnotationTable) -> None:
    opened(table)
    assert_right(opened(table, size=24), table, size=24)
    assert len(cache_files(table)) == 2
    path = table.image_paths[0]
    Image.new("RGB", (20, 20), "red").save(path)
    assert_right(opened(table), table)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    opened(table)
    assert len(cache_files(table)) == 4


@pytest.mark.parametrize("damage", ["truncated", "longer", "header", "empty", "pickle"])
def test_damaged_file_is_built_again(table: AnnotationTable, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    opened(table)
    (file,) = cache_files(table)
    content = file.read_bytes()
    harm = {
        "truncated": content[:-1],
        "longer": content + b"\0",
        "header": content.replace(b"uint8", b"int16", 1),
        "empty": b"",
        "pickle": pickle.dumps(Payload(table.image_dir / "payload.ran")).ljust(len(content), b"\0"),
    }
    file.write_bytes(harm[damage])
    caplog.clear()
    images = opened(table)
    assert isinstance(images, CachedImages) and f"'{file}' is damaged; building it again" in caplog.text
    assert_right(images, table)
    assert file.read_bytes() == content and not (table.image_dir / "payload.ran").exists()


class Payload:
    """Unpickling one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_limit(table: AnnotationTable, caplog: pytest.LogCaptureFixture) -> None:
    images = opened(table, limit_gb=1e-6)
    assert isinstance(images, DecodedImages) and not cache_files(table)
    assert "6 images take 0.0 GB, more than dataset.cache_limit_gb 1e-06; decoding them in every epoch" in caplog.text


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_full_disk(
    table: AnnotationTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if when == "before":
        usage = shutil.disk_usage("/")._replace(free=100)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    else:
        monkeypatch.setattr(os, "fsync", fail)
    images = opened(table)
    assert isinstance(images, DecodedImages) and not cache_files(table) and not cache_files(table, "partial")
    reason = "0.0 GB do not fit on the disk" if when == "before" else "No space left on device"
    assert f"({reason}); decoding images in every epoch" in caplog.text
    assert_right(images, table)


def test_folder_that_cannot_be_made(table: AnnotationTable, caplog: pytest.LogCaptureFixture) -> None:
    (table.image_dir.parent / "cache").write_text("a file is in the way")
    assert isinstance(opened(table), DecodedImages)
    assert "image cache: cannot use" in caplog.text


def test_broken_images_are_counted_and_leave_no_file(table: AnnotationTable) -> None:
    for row in (1, 2):
        path = table.image_paths[row]
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(
        DataError, match="^dataset.images: 2 of 6 images cannot be used, first '.*1.jpg' cannot be decoded"
    ):
        opened(table)
    assert not cache_files(table) and not cache_files(table, "partial")


def test_missing_image(table: AnnotationTable) -> None:
    table.image_paths[1].unlink()
    with pytest.raises(DataError, match="^dataset.images: '.*1.jpg' cannot be read: No such file or directory.$"):
        opened(table)


def test_leftover_of_a_killed_build(table: AnnotationTable) -> None:
    opened(table)
    (file,) = cache_files(table)
    file.rename(file.with_suffix(".partial"))
    file.with_suffix(".partial").write_bytes(b"half")
    assert_right(opened(table), table)
    assert not cache_files(table, "partial")


def test_without_file_locks(table: AnnotationTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "fcntl", None)
    images = opened(table)
    assert isinstance(images, CachedImages)
    assert_right(images, table)
    assert not cache_files(table, "partial")


def test_pickles_without_its_images(table: AnnotationTable) -> None:
    images = opened(table, size=128)
    content = pickle.dumps(images)
    assert len(content) < 2000
    assert_right(pickle.loads(content), table, size=128)


def test_map_is_read_only(table: AnnotationTable) -> None:
    images = opened(table)
    assert isinstance(images, CachedImages)
    with pytest.raises(ValueError, match="read-only"):
        images.images[0] = 0
    images.batch(ROWS).zero_()
    assert_right(images, table)


def _open_slowly(table: AnnotationTable, built: Path) -> None:
    class Slow(SquashProcessor):
        def decode(self, path: Path) -> torch.Tensor:
            time.sleep(0.05)
            with (built / path.name).open("a") as file:
                file.write("x")
            return super().decode(path)

    images = open_images(table, Slow(16), cache_dir=table.image_dir.parent / "cache", limit_gb=1)
    assert isinstance(images, CachedImages)


def test_processes_at_the_same_time_build_once(table: AnnotationTable, tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_open_slowly, args=(table, tmp_path / "built")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert {file.read_text() for file in (tmp_path / "built").iterdir()} == {"x"}
    assert_right(opened(table), table)


def test_settings_of_the_dataset(table: AnnotationTable, tmp_path: Path) -> None:
    def dataset(**settings: object) -> OwnTable:
        given = {"annotations": "x", "images": "x", "targets": ["quality"], "cache_dir": str(tmp_path / "here")}
        return OwnTable(**(given | settings))  # type: ignore[arg-type]

    processor = SquashProcessor(16)
    assert isinstance(dataset(image_cache=False).open_images(table, processor), DecodedImages)
    assert isinstance(dataset(cache_limit_gb=1e-7).open_images(table, processor), DecodedImages)
    assert not (tmp_path / "here").exists()
    assert isinstance(dataset().open_images(table, processor), CachedImages)
    assert len(list((tmp_path / "here").glob("*.images"))) == 1
