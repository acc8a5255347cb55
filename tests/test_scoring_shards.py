"""Tar shards as rows to be scored: parts that are read anywhere, and what is lost of damaged ones."""

from __future__ import annotations

import io
import itertools
import json
import random
import re
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies
from PIL import Image
from scored_rows import brief, message, opened, rows_of
from tar_shards import pair, png, write_shards, write_tar
from test_scoring_embedded import png as png_with_notes

from ipiqa.datasets import shard_reader
from ipiqa.errors import ConfigError, DataError
from ipiqa.scoring.rows import Row

LOST = "unreadable tar: what follows {!r} is lost"


def sample_of(row: Row) -> tuple[int, int]:
    """Returns shard and number of a sample, as its image tells."""
    content = row.file()
    assert isinstance(content, bytes)
    red, green, _ = Image.open(io.BytesIO(content)).getpixel((3, 3))  # type: ignore[misc]
    return red, green


@pytest.mark.parametrize("limit", [None, 1, 5, 7, 100])
def test_shards_in_order(tmp_path: Path, limit: int | None) -> None:
    pytest.importorskip("braceexpand", reason="the extra [shards] is not installed")
    rows = rows_of(write_shards(tmp_path, 3, 5), limit=limit)
    expected = list(itertools.product(range(3), range(5)))[:limit]
    assert [sample_of(row) for row in rows] == expected
    assert brief(rows) == [(f"{tmp_path}/{i:03d}.tar/{j:04d}.png", f"{i} {j}", "") for i, j in expected]


def test_names_are_as_given_and_parts_work_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", [("in/x.y.png", b"no"), ("in/1.jpg", b"1"), ("in/1.png", b"2"), ("in/1.txt", b"p")])
    monkeypatch.chdir(tmp_path)
    [part] = opened("a.tar").parts(9)
    monkeypatch.chdir("/")
    [row] = part.rows()
    assert (row.image, row.file(), row.prompt) == ("a.tar/in/1.png", b"2", "p")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_samples_are_read_where_they_are(tmp_path: Path, mode: str, tar_format: int) -> None:
    path = tmp_path / f"a.tar{'.' + mode[2:] if mode != 'w' else ''}"
    with tarfile.open(path, mode, format=tar_format) as archive:  # type: ignore[call-overload]
        for number in range(7):
            folder = "é" * 45 + "/" + "b" * 60  # a name that has a head of its own
            for name, content in (("readme", b"x" * 600), *((f"{folder}/{n}", c) for n, c in pair(0, number))):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    for size in (1, 2, 3, 100):
        parts = list(opened(path).parts(size))
        assert [len(part) for part in parts] == [size] * (7 // size) + [7 % size] * (7 % size > 0)
        assert [sample_of(row) for part in parts for row in part.rows()] == [(0, n) for n in range(7)]
        assert [part.rows()[0].prompt for part in reversed(parts)] == [f"0 {n}" for n in reversed(range(0, 7, size))]


def test_finding_the_parts_reads_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = [
        (f"{n}.{ending}", b"x" * (1 << 20 if ending == "png" else 1)) for n in range(20) for ending in ("png", "txt")
    ]
    rows = opened(write_tar(tmp_path / "a.tar", content))
    read = 0

    class Counting(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:  # type: ignore[override]
            nonlocal read
            content = super().read(-1 if size is None else size)
            read += len(content)
            return content

    monkeypatch.setattr(Path, "open", lambda path, mode: Counting(str(path)))
    parts = list(rows.parts(6))
    assert [len(part) for part in parts] == [6, 6, 6, 2]
    assert 20 * 1024 < read < 300_000
    assert parts[3].rows()[1].file() == b"x" * (1 << 20) and read > 1 << 20


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_part_holds_no_more_than_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr("ipiqa.scoring.rows.MAX_PART_BYTES", 1_500_000)
    content = [(f"{n}.png", random.Random(n).randbytes(3_000_000 if n == 4 else 1_000_000)) for n in range(7)]
    path = write_tar(tmp_path / ("a.tar" if mode == "w" else "a.tgz"), content, mode)
    rows = opened(path, prompt="p")
    tracemalloc.start()
    sizes = [len(part.rows()) for part in rows.parts(100)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == ([7] if mode == "w" else [2, 2, 1, 2]) and peak < (1e6 if mode == "w" else 15e6)


def test_prompts_of_samples(tmp_path: Path) -> None:
    noted = png_with_notes({"parameters": "noted\nSteps: 2, x"})
    members = [("1.png", noted), ("1.json", json.dumps({"p": " A ", "seed": 3}).encode()), ("1.txt", b"a")]
    members += [("2.png", png(0, 0)), ("2.json", b'{"seed": 3}'), ("3.png", png(0, 0)), ("3.txt", b"c")]
    path = write_tar(tmp_path / "a.tar", members)
    name = f"{path}/{{}}.png".format
    assert brief(rows_of(path)) == [(name(1), "a", ""), (name(2), None, "no prompt in its txt"), (name(3), "c", "")]
    of_json = [
        (name(1), "A", ""),
        (name(2), None, "no prompt in its json:p"),
        (name(3), None, "no prompt in its json:p"),
    ]
    assert brief(rows_of(path, prompt_member="json:p")) == of_json
    assert brief(rows_of(path, prompt="all")) == [(name(n), "all", "") for n in (1, 2, 3)]
    lack = "no prompt: no generator has noted one in the image"
    expected = [(name(1), "noted", ""), (name(2), None, lack), (name(3), None, lack)]
    assert brief(rows_of(path, prompts="embedded")) == expected
    assert brief(rows_of(path, needs_prompt=False)) == [(name(1), "a", ""), (name(2), None, ""), (name(3), "c", "")]


def test_damaged_members_are_rows_with_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "MAX_IMAGE_BYTES", 1000)
    members = [*pair(0, 0), ("0001.txt", b"x"), ("0002.png", b"x" * 1001), ("0002.txt", b"x"), ("0003.png", png(0, 3))]
    members += [("0003.txt", b"\xff\xfe"), *pair(0, 4), pair(0, 4)[0], ("0005.png", b"<html>"), ("0005.txt", b"p")]
    path = write_tar(tmp_path / "a.tar", members)
    assert [(image[len(f"{path}/") :], prompt, problem) for image, prompt, problem in brief(rows_of(path))] == [
        ("0000.png", "0 0", ""), ("0001", "x", "without image"), ("0002.png", "x", "too large"),
        ("0003.png", None, "no prompt in its txt"), ("0004.png", "0 4", "twice in their shard"), ("0005.png", "p", ""),
    ]  # fmt: skip


def damage_head(content: bytes) -> bytes:
    start = content.index(b"0003.png")
    return content[: start + 148] + b"\xff" * 8 + content[start + 156 :]  # its checksum


CUTS = {
    "in a head": (lambda content: content[: 3 * 2048 + 200], 3, "0002"),
    "in an image": (lambda content: content[: 3 * 2048 + 530], 3, "0002"),
    "in a prompt": (lambda content: content[: 3 * 2048 + 1024 + 513], 4, "0003"),
    "before the end": (lambda content: content[: 3 * 2048], 3, "0002"),
    "bad head": (damage_head, 3, "0002"),
}


@pytest.mark.parametrize("case", CUTS)
def test_the_lost_rest_of_a_shard_is_a_row(tmp_path: Path, case: str) -> None:
    cut, num_samples, last = CUTS[case]
    for shard in (0, 1):
        write_tar(tmp_path / f"{shard}.tar", itertools.chain.from_iterable(pair(shard, n) for n in range(5)))
    path = tmp_path / "0.tar"
    path.write_bytes(cut(path.read_bytes()))
    rows = rows_of(tmp_path / "*.tar", needs_prompt=False)
    samples = [(0, n) for n in range(num_samples)] + [(1, n) for n in range(5)]
    assert [sample_of(row) for row in rows if not row.problem] == samples
    assert brief(rows)[num_samples] == (str(path), None, LOST.format(f"{path}/{last}.png"))
    assert len(rows) == len(samples) + 1
    assert len(rows_of(tmp_path / "*.tar", needs_prompt=False, limit=num_samples)) == num_samples


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"x" * 2000])
def test_a_shard_that_is_no_tar_is_a_row(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    write_tar(tmp_path / "1.tar", pair(1, 1))
    rows = rows_of(f"{tmp_path}/*.tar")
    assert brief(rows)[0] == (f"{tmp_path}/0.tar", None, "unreadable tar")
    assert [sample_of(row) for row in rows[1:]] == [(1, 1)]


def test_a_shard_that_changes_meanwhile(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [*pair(0, 0), *pair(0, 1), *pair(0, 2)])
    [part] = opened(path).parts(3)
    write_tar(path, [*pair(0, 0), ("0001.jpg", png(0, 1)), ("0001.txt", b"0 1")])
    first, *others = part.rows()
    assert sample_of(first) == (0, 0)
    for row in others:
        with pytest.raises(DataError, match=re.escape(f"'{path}' has changed since its head was read")):
            row.file()
    path.unlink()
    with pytest.raises(DataError, match=re.escape(f"'{path}' cannot be read: No such file or directory")):
        first.file()


def test_shards_that_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [(f"{n}.png", png(0, 0)) for n in range(30)])
    assert message(DataError, path) == (
        f"images: '{path}': none of the first 20 samples has a prompt in its txt. Name the right member with "
        "--prompt-member, or give --prompt TEXT or --prompts embedded."
    )
    assert len(rows_of(path, prompt="p")) == 30
    assert "--prompt-member: 'json:' names no prompt. Give" in message(ConfigError, path, prompt_member="json:")
    assert "'gone.tar'. Check the path." in message(DataError, "gone.tar")
    write_tar(path, [("a.txt", b"p")])
    assert f"images: '{path}': no sample in its first shards has an image that ends in png, jpg," in message(
        DataError, path
    )


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(strategies.data())
def test_parts_of_whatever_a_shard_holds(tmp_path: Path, data: strategies.DataObject) -> None:
    mode = data.draw(strategies.sampled_from(["w", "w", "w:gz"]))
    path = write_tar(tmp_path / "a.tar", itertools.chain.from_iterable(pair(0, n) for n in range(3)), mode)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(strategies.integers(0, 6))):
        content[data.draw(strategies.integers(0, min(len(content), 6000) - 1))] = data.draw(strategies.integers(0, 255))
    path.write_bytes(
        content[: data.draw(strategies.sampled_from([len(content), data.draw(strategies.integers(0, len(content)))]))]
    )
    try:
        rows = opened(path, needs_prompt=False)
    except DataError:
        return
    whole, ones = ([part.rows() for part in rows.parts(size)] for size in (100, 1))
    assert [row for part in whole for row in part] == [row for part in ones for row in part]
    assert all(len(part.rows()) == len(part) for part in rows.parts(2))
