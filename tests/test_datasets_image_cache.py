"""The image cache: the same bytes as without it, whatever happens to its file."""

from __future__ import annotations

import dataclasses
import errno
import gc
import logging
import multiprocessing
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import image_table

from ipiqa import files
from ipiqa.datasets import image_cache
from ipiqa.datasets.checks import image_hashes
from ipiqa.datasets.databases.annotated import OwnTable
from ipiqa.datasets.image_cache import CachedImages, DecodedImages, ImageSource, open_images
from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import DataError
from ipiqa.processors.image import SquashProcessor

ROWS = np.array([5, 0, 3, 6])


@pytest.fixture
def table(tmp_path: Path) -> AnnotationTable:
    return image_table(tmp_path / "images", "jpg", 20)


def opened(table: AnnotationTable, size: int = 16, limit_gb: float = 1.0) -> ImageSource:
    cache_dir = table.image_dir.parent / "cache"
    return open_images(table, image_hashes(table), SquashProcessor(size), cache_dir=cache_dir, limit_gb=limit_gb)


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
    assert file.stat().st_size == 4096 + 6 * 16 * 16 * 3 + 6 * 4
    monkeypatch.setattr(image_cache, "_build", None)  # a second build would fail
    backwards = dataclasses.replace(table, names=table.names[::-1])
    assert_right(opened(backwards), backwards)


def test_the_cache_goes_by_content(table: AnnotationTable, tmp_path: Path) -> None:
    opened(table)
    assert_right(opened(table, size=24), table, size=24)
    assert len(cache_files(table)) == 2
    path = table.image_paths[0]
    os.utime(path, (1, 1))
    shutil.move(table.image_dir, tmp_path / "moved")
    moved = dataclasses.replace(table, image_dir=tmp_path / "moved")
    assert_right(opened(moved), moved)
    assert len(cache_files(table)) == 2


def replaced(path: Path, content: bytes) -> None:
    """Puts another content in the place of a file, of the same size and time, as `rsync -t` and `cp -p` do."""
    status = path.stat()
    assert len(content) == status.st_size and content != path.read_bytes()
    path.with_suffix(".new").write_bytes(content)
    os.utime(path.with_suffix(".new"), ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(path.with_suffix(".new"), path)


def rewritten(path: Path, content: bytes) -> None:
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def lower_half(content: bytes) -> bytes:
    return content[:54] + b"\0" * 300 + content[354:]  # a BMP has its last rows first


def turned(content: bytes) -> bytes:
    note = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x01"  # EXIF: orientation, one short, upright
    assert note in content
    return content.replace(note, note[:-1] + b"\x03")


@pytest.mark.parametrize("change", [replaced, rewritten])
@pytest.mark.parametrize("form", ["bmp", "jpg"])
def test_images_changed_under_their_size_and_time_are_noticed(
    table: AnnotationTable, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, bytes], None], form: str
) -> None:
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    path, exif = table.image_paths[0], Image.Exif()
    exif[0x0112] = 1
    image = Image.open(path).convert("RGB")
    image.save(path, "bmp") if form == "bmp" else image.save(path, "jpeg", exif=exif)
    memory = table.image_dir.parent / "hashes"
    before = image_hashes(table, memory)
    assert image_hashes(table, memory) == before
    opened(table)
    content = path.read_bytes()
    change(path, lower_half(content) if form == "bmp" else turned(content))
    after = image_hashes(table, memory)
    assert [a != b for a, b in zip(after, before, strict=True)] == [True, *[False] * 5, True]
    assert_right(opened(table), table)


def test_zeroed_pixels_are_named_once_and_written_again(
    table: AnnotationTable, caplog: pytest.LogCaptureFixture
) -> None:
    opened(table)
    (file,) = cache_files(table)
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\0" * 1600 + content[5696:])  # two images and a part of the third
    for again in (False, True):
        caplog.clear()
        assert_right(opened(table), table)
        images = opened(table)
        images.batch(np.arange(7))
        assert caplog.text.count("is damaged; making what is damaged again") == (0 if again else 2)
    assert file.read_bytes() == content


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
    assert "(its 0.0 GB are more than dataset.cache_limit_gb 1e-06); decoding images in every epoch" in caplog.text


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
    assert isinstance(images, DecodedImages) and not cache_files(table) and not cache_files(table, ".*.tmp")
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
    assert not cache_files(table) and not cache_files(table, ".*.tmp")


def test_missing_image(table: AnnotationTable) -> None:
    table.image_paths[1].unlink()
    with pytest.raises(DataError, match="^dataset.images: '.*1.jpg' cannot be read: No such file or directory.$"):
        opened(table)


def test_image_that_changes_after_it_was_hashed_is_refused(table: AnnotationTable) -> None:
    hashes = image_hashes(table)
    shutil.copy(table.image_paths[1], table.image_paths[2])
    for limit_gb in (0.0, 1.0):
        with pytest.raises(DataError, match=r"2.jpg' has changed since this run began. Leave the images alone"):
            images = open_images(table, hashes, SquashProcessor(16), cache_dir=table.image_dir, limit_gb=limit_gb)
            images.batch(np.array([2]))


def test_leftovers_of_a_killed_build(table: AnnotationTable, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "cache" / ".0.images.1.tmp").write_bytes(b"half")
    (tmp_path / "cache" / ".1.images.1.tmp").symlink_to(tmp_path / "precious")
    assert_right(opened(table), table)
    assert not cache_files(table, ".*.tmp")


def test_links_in_the_place_of_its_files_are_not_followed(
    table: AnnotationTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "precious").write_text("precious")
    monkeypatch.setattr(files, "fcntl", None)  # or the link would be cleared away
    opened(table)
    (file,) = cache_files(table)
    file.unlink()
    file.symlink_to(tmp_path / "precious")
    assert isinstance(opened(table), CachedImages)
    file.unlink()
    (tmp_path / "cache" / "build.lock").unlink()
    (tmp_path / "cache" / "build.lock").symlink_to(tmp_path / "made")
    assert isinstance(opened(table), DecodedImages)
    assert (tmp_path / "precious").read_text() == "precious" and not (tmp_path / "made").exists()


def test_the_limit_is_for_the_folder(table: AnnotationTable, caplog: pytest.LogCaptureFixture) -> None:
    limit = 2.5 * (4096 + 6 * 3 * 16**2) / 1e9  # two files of this size
    opened(table, 17, limit_gb=1.0)
    assert len(cache_files(table)) == 1
    caplog.set_level(logging.INFO)
    kept = opened(table, 16, limit_gb=limit)
    for size in (15, 14):  # the first is used least lately, the second is in use
        time.sleep(0.01)
        del_ = opened(table, size, limit_gb=limit)
        assert isinstance(del_, CachedImages)
        del del_
    gc.collect()
    assert isinstance(kept, CachedImages) and kept.path.exists()
    assert len(cache_files(table)) == 2 and caplog.text.count("removed 1 unused files (0.00 GB)") == 2
    others = [opened(table, 16, limit_gb=limit), opened(table, 14, limit_gb=limit)]
    assert isinstance(opened(table, 15, limit_gb=limit), DecodedImages)
    assert "the files in use fill dataset.cache_limit_gb" in caplog.text
    for images, size in zip(others, (16, 14), strict=True):
        assert_right(images, table, size)


def test_without_file_locks(table: AnnotationTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    images = opened(table)
    assert isinstance(images, CachedImages)
    assert_right(images, table)
    assert not cache_files(table, ".*.tmp")


def test_pickles_without_its_images(table: AnnotationTable) -> None:
    images = opened(table, size=128)
    content = pickle.dumps(images)
    assert len(content) < 5000  # of 300,000
    assert_right(pickle.loads(content), table, size=128)


def test_map_is_read_only(table: AnnotationTable) -> None:
    images = opened(table)
    assert isinstance(images, CachedImages)
    with pytest.raises(ValueError, match="read-only"):
        images.records.data[0] = 0
    images.batch(ROWS).zero_()
    assert_right(images, table)


def _open_slowly(table: AnnotationTable, built: Path) -> None:
    class Slow(SquashProcessor):
        def decode(self, source: Path | bytes, name: str | None = None) -> torch.Tensor:
            time.sleep(0.05)
            with (built / Path(str(name)).name).open("a") as file:
                file.write("x")
            return super().decode(source, name)

    images = open_images(table, image_hashes(table), Slow(16), cache_dir=table.image_dir.parent / "cache", limit_gb=1)
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
    hashes = image_hashes(table)
    assert isinstance(dataset(image_cache=False).open_images(table, hashes, processor), DecodedImages)
    assert isinstance(dataset(cache_limit_gb=1e-7).open_images(table, hashes, processor), DecodedImages)
    assert not (tmp_path / "here").exists()
    assert isinstance(dataset().open_images(table, hashes, processor), CachedImages)
    assert len(list((tmp_path / "here").glob("*.images"))) == 1
