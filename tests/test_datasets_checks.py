"""Checks of the image files of a table, before anything is trained."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ipiqa import files
from ipiqa.datasets.checks import Findings, image_hashes, image_set_sha256, look_at_images
from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import DataError
from ipiqa.processors.image import SquashProcessor

PROCESSOR = SquashProcessor(16)


def images_sha256(table) -> str:
    return image_set_sha256(table, image_hashes(table))


def make(folder: Path, names: list[str]) -> AnnotationTable:
    count = len(names)
    return AnnotationTable(tuple(names), ("p",) * count, np.zeros((count, 1)), ("quality",), ("g",) * count, folder)


@pytest.fixture
def table(tmp_path: Path) -> AnnotationTable:
    names = [f"{number}.png" for number in range(6)]
    for name in names:
        Image.new("RGB", (16, 16), "red").save(tmp_path / name)
    return make(tmp_path, names)


def look(table: AnnotationTable, full: bool = False) -> Findings:
    return look_at_images(table, PROCESSOR.decode if full else PROCESSOR.verify, "Get it there.")


def test_sound_images(table: AnnotationTable) -> None:
    assert look(table) == look(table, full=True) == Findings()


def test_missing_folder(tmp_path: Path) -> None:
    found = look(make(tmp_path / "none", ["a.png"]))
    assert found.refusal == f"dataset.images: the folder '{tmp_path}/none' does not exist. Get it there."


def test_a_name_too_long_for_the_disk_is_missing(tmp_path: Path) -> None:
    assert "1 of 1 images are missing" in look(make(tmp_path, ["a" * 300])).refusal


def test_unusable_and_missing_images_are_counted(table: AnnotationTable) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(table.image_dir / "1.png")
    (table.image_dir / "1.png").write_bytes((table.image_dir / "1.png").read_bytes()[:5000])
    assert look(table) == Findings()
    (table.image_dir / "3.png").write_text("no picture")
    quick, full = look(table), look(table, full=True)
    assert quick.problems == [f"'{table.image_dir}/3.png' is not an image: it starts with b'no picture'."]
    assert quick.refusal == (
        f"dataset.images: 1 of 6 images cannot be used, first {quick.problems[0]} "
        "Replace them, or list them with: ipiqa data check --cfg-path ..."
    )
    assert "1.png' cannot be decoded" in full.problems[0] and full.problems[1:] == quick.problems
    for number in (4, 2):
        (table.image_dir / f"{number}.png").unlink()
    found = look(table, full=True)
    assert found.problems == ["missing: 2.png", "missing: 4.png", *full.problems]
    assert found.refusal == (
        f"dataset.images: 2 of 6 images are missing under '{table.image_dir}', first '2.png'. "
        "Check the path, or list them with: ipiqa data check --cfg-path ..."
    )


def test_image_set_hash_sees_exchanged_images(table: AnnotationTable) -> None:
    before = images_sha256(table)
    assert images_sha256(make(table.image_dir, list(reversed(table.names)))) == before
    Image.new("RGB", (99, 99), "blue").save(table.image_dir / "0.png")
    assert images_sha256(table) != before


def test_hashes_are_kept_between_runs(table: AnnotationTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, read = tmp_path / "cache" / "hashes", []
    whole = files._sha256
    monkeypatch.setattr(files, "_sha256", lambda path: read.append(path.name) or whole(path))
    first = image_hashes(table, memory)
    assert not memory.exists() and image_hashes(table, memory) == first and len(read) == 12  # written a moment ago
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    assert image_hashes(table, memory) == first
    del read[:]
    assert image_hashes(table, memory) == first and read == []
    Image.new("RGB", (16, 16), "blue").save(table.image_dir / "2.png")
    assert image_hashes(table, memory)[2] != first[2] and read == ["2.png"]
    size = memory.stat().st_size
    for content in (b"", b"no hashes", memory.read_bytes()[:-1] + b"x", memory.read_bytes()[:-48]):
        memory.write_bytes(content)
        assert image_hashes(table, memory)[3:] == first[3:] and memory.stat().st_size <= size
    assert len(read) == 1 + 4 * 6
    monkeypatch.setattr(files, "_MOST_HASHES", 3)
    Image.new("RGB", (16, 16), "green").save(table.image_dir / "2.png")
    image_hashes(table, memory)
    assert len(files._read_hashes(memory)) == 3


def test_hashing_goes_on_where_nothing_can_be_kept(table: AnnotationTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    assert image_hashes(table, table.image_dir / "0.png" / "hashes") == image_hashes(table)
    (table.image_dir / "4.png").unlink()
    with pytest.raises(DataError, match=r"^dataset.images: '.*4.png' cannot be read: No such file or directory.$"):
        image_hashes(table)


def test_headers_of_3000_images_take_about_a_second(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "0.jpg")
    for number in range(1, 3000):
        (tmp_path / f"{number}.jpg").hardlink_to(tmp_path / "0.jpg")
    table = make(tmp_path, [f"{number}.jpg" for number in range(3000)])
    start = time.perf_counter()
    look(table)
    assert time.perf_counter() - start < 3  # measured 0.3; the margin is for busy machines
