"""Tar shards: what is read in which order by whom, and what damaged ones do."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import logging
import tarfile
import tracemalloc
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies
from tar_shards import make, pair, png, write_shards, write_tar

from ipiqa.datasets.loaders import Loading
from ipiqa.datasets.shard_reader import Sample, ShardReader, Skipped, shuffled
from ipiqa.datasets.shards import ShardBatches, Shards
from ipiqa.errors import DataError
from ipiqa.processors.image import SquashProcessor

pytest.importorskip("braceexpand", reason="the extra [shards] is not installed")

PROCESSOR = SquashProcessor(8)
READER = ShardReader(("png",), "txt", None)


def tokenize(prompts: list[str]) -> torch.Tensor:
    return torch.tensor([[int(word) for word in prompt.split()] for prompt in prompts])


def loading(**changes: Any) -> Loading:
    return Loading(**({"batch_size": 2, "eval_batch_size": 2, "seed": 1, "num_workers": 0} | changes))


def train(dataset: Shards, epoch: int = 0, first_step: int = 0, **changes: Any) -> ShardBatches:
    batches = dataset.train_batches(PROCESSOR, tokenize, loading(**changes))
    batches.set_epoch(epoch, first_step)
    return batches


def held_out(dataset: Shards, **changes: Any) -> ShardBatches:
    return dataset.val_batches(PROCESSOR, tokenize, loading(**changes))


def seen(batches: Iterable[dict[str, torch.Tensor]]) -> list[tuple[int, int]]:
    """Returns (shard, number) of each sample, as its image tells, and checks that its tokens tell the same."""
    out = []
    for batch in batches:
        pixels = batch["images"][:, :2, 3, 3].long()
        assert torch.equal(pixels, batch["tokens"])
        out += [(shard, sample) for shard, sample in pixels.tolist()]
    return out


def everything(num_shards: int, num_samples: int) -> list[tuple[int, int]]:
    return list(itertools.product(range(num_shards), range(num_samples)))


# ------------------------------------------------------------------------------------------------------------ order


def test_batch(tmp_path: Path) -> None:
    batches = train(make(write_shards(tmp_path, 2, 6)), batch_size=4)
    assert len(batches) == 2
    first, second = batches
    assert {key: (value.dtype, tuple(value.shape)) for key, value in first.items()} == {
        "images": (torch.uint8, (4, 3, 8, 8)),
        "tokens": (torch.int64, (4, 2)),
        "rows": (torch.int64, (4,)),
    }
    assert first["images"].is_contiguous(memory_format=torch.channels_last)
    assert first["rows"].tolist() == [0, 1, 2, 3] and second["rows"].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (1, 2), (2, 2)])
def test_streams_share_an_epoch(tmp_path: Path, world_size: int, num_workers: int) -> None:
    dataset = make(write_shards(tmp_path, 4, 4), 16, shuffle_buffer=3)
    ranks = [
        list(train(dataset, rank=rank, world_size=world_size, num_workers=num_workers)) for rank in range(world_size)
    ]
    assert [len(batches) for batches in ranks] == [8 // world_size] * world_size
    assert sorted(sample for batches in ranks for sample in seen(batches)) == everything(4, 4)
    rows = [row for batches in ranks for batch in batches for row in batch["rows"].tolist()]
    assert sorted(rows) == list(range(16))


@pytest.mark.parametrize(("world_size", "num_workers", "batch_size"), [(2, 2, 3), (3, 0, 2)])
def test_fewer_shards_than_streams(tmp_path: Path, world_size: int, num_workers: int, batch_size: int) -> None:
    dataset = make(write_shards(tmp_path, 1, 12), 12)
    changes: dict[str, Any] = {"world_size": world_size, "num_workers": num_workers, "batch_size": batch_size}
    ranks = [seen(train(dataset, rank=rank, **changes)) for rank in range(world_size)]
    assert sorted(itertools.chain(*ranks)) == everything(1, 12)


def test_every_shard_has_its_turn_over_the_epochs(tmp_path: Path) -> None:
    dataset = make(write_shards(tmp_path, 6, 4), shuffle_buffer=0)
    epochs = [seen(train(dataset, epoch)) for epoch in range(6)]
    assert sorted(itertools.chain(*epochs[:3])) == sorted(itertools.chain(*epochs[3:])) == everything(6, 4)
    assert [{shard for shard, _ in epoch} for epoch in epochs[:3]] != [{s for s, _ in epoch} for epoch in epochs[3:]]


def test_order_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    dataset = make(write_shards(tmp_path, 3, 4), 12)
    whole = seen(train(dataset))
    assert whole == seen(train(dataset)) == seen(train(dataset, num_workers=1))
    assert whole != sorted(whole)
    for other in (train(dataset, epoch=1), train(dataset, seed=2)):
        assert sorted(whole) == sorted(mixed := seen(other)) and mixed != whole


@pytest.mark.parametrize(("num_shards", "num_samples", "shuffle_buffer"), [(1, 20, 1000), (20, 1, 0)])
def test_both_shuffles_follow_the_seed(tmp_path: Path, num_shards: int, num_samples: int, shuffle_buffer: int) -> None:
    dataset = make(write_shards(tmp_path, num_shards, num_samples), 20, shuffle_buffer=shuffle_buffer)
    orders = [seen(train(dataset, epoch, seed=seed)) for epoch, seed in ((0, 1), (0, 2), (1, 1))]
    assert all(sorted(order) == everything(num_shards, num_samples) for order in orders)
    assert all(one != other for one, other in itertools.combinations(orders, 2))


@pytest.mark.parametrize(("num_shards", "world_size"), [(4, 1), (4, 2), (1, 2)])
def test_an_epoch_of_several_passes(tmp_path: Path, num_shards: int, world_size: int) -> None:
    dataset = make(write_shards(tmp_path, num_shards, 4), 8 * num_shards, shuffle_buffer=2)
    ranks = [seen(train(dataset, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(itertools.chain(*ranks)) == sorted(everything(num_shards, 4) * 2)
    half = 4 * num_shards // world_size
    assert sorted(itertools.chain(*(rank[:half] for rank in ranks))) == everything(num_shards, 4)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_within_an_epoch(tmp_path: Path, num_workers: int) -> None:
    dataset = make(write_shards(tmp_path, 2, 9), 14, shuffle_buffer=4)
    write_tar(tmp_path / "000.tar", [("a.png", b"broken"), ("a.txt", b"0 0"), *pair(0, 1), *pair(0, 2), *pair(0, 3)])
    batches = train(dataset, epoch=3, num_workers=num_workers)
    whole, skipped = list(batches), str(batches.skipped)
    for first_step in (1, 4, 7):
        rest = train(dataset, epoch=3, first_step=first_step, num_workers=num_workers)
        again = list(rest)
        assert len(rest) == 7 and len(again) == 7 - first_step
        for one, other in zip(whole[first_step:], again, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)
        assert not again or str(rest.skipped) == skipped


def test_a_finished_epoch_reads_nothing(tmp_path: Path) -> None:
    dataset = make(write_shards(tmp_path, 1, 9))
    batches = train(dataset, first_step=4)
    (tmp_path / "000.tar").unlink()
    assert list(batches) == []


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 0), (2, 0), (1, 2), (3, 1)])
def test_held_out_samples_do_not_depend_on_processes(tmp_path: Path, world_size: int, num_workers: int) -> None:
    dataset = make(write_shards(tmp_path, 3, 4), val_samples=9)
    ranks = [
        list(held_out(dataset, rank=rank, world_size=world_size, num_workers=num_workers)) for rank in range(world_size)
    ]
    rows = [row for batches in ranks for batch in batches for row in batch["rows"].tolist()]
    samples = [sample for batches in ranks for sample in seen(batches)]
    assert sorted(zip(rows, samples, strict=True)) == list(enumerate(everything(3, 4)[:9]))


def test_held_out_share_may_be_empty(tmp_path: Path) -> None:
    dataset = make(write_shards(tmp_path, 1, 2))
    assert [seen(held_out(dataset, rank=rank, world_size=3)) for rank in range(3)] == [[(0, 0)], [(0, 1)], []]


def test_shuffling_holds_no_more_than_its_buffer() -> None:
    read = 0

    def samples() -> Iterable[Sample]:
        nonlocal read
        for number in range(100):
            read += 1
            yield Sample(str(number), b"", "")

    drawn = shuffled(samples(), 5, np.random.RandomState(0))
    names = []
    for count, sample in enumerate(drawn, start=1):
        names.append(int(sample.name))
        assert read <= count + 5
    assert sorted(names) == list(range(100)) and names != sorted(names)
    other = [int(sample.name) for sample in shuffled(samples(), 5, np.random.RandomState(1))]
    assert other[:90] != names[:90]
    assert [s.name for s in shuffled(iter([Sample("a", b"", ""), Sample("b", b"", "")]), 0, np.random)] == ["a", "b"]


# ---------------------------------------------------------------------------------------------------------- members


def test_prompts_in_json_and_other_endings(tmp_path: Path) -> None:
    first = json.dumps({"p": " 0 1 ", "seed": 3}).encode()
    members = [("x/1.JPG", png(0, 1)), ("x/1.json", first), ("x/2.webp", b"preview"), ("x/2.png", png(0, 2))]
    members += [("x/2.json", b'{"p": "0 2"}'), ("readme.md", b"#"), ("x/._1.png", b"junk"), ("noending", b"")]
    write_tar(tmp_path / "a.tar.gz", members, "w:gz")
    dataset = make(f"{tmp_path}/*.tar.gz", 2, image="png;jpg;webp", prompt="json:p")
    batches = train(dataset, num_workers=1)
    assert sorted(seen(batches)) == [(0, 1), (0, 2)] and not batches.skipped.counts


def damage_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = content.index(b"0020.png")
    content[start + 148 : start + 156] = b"\xff" * 8  # its checksum
    path.write_bytes(content)


def test_damaged_members_are_counted_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shards(tmp_path, 4, 40)
    write_tar(
        tmp_path / "000.tar",
        [
            ("0000.png", png(0, 0)[:45]), ("0000.txt", b"0 0"),  # truncated image
            ("0001.png", b"<html>"), ("0001.txt", b"0 1"),
            ("0002.png", png(0, 2)), ("0002.txt", b" \n"),
            ("0003.png", png(0, 3)),
            ("0004.png", png(0, 4)), ("0004.txt", b"\xff\xfe"),
            ("0005.txt", b"0 5"),
            *pair(0, 6), pair(0, 6)[0],
        ],
    )  # fmt: skip
    (tmp_path / "001.tar").write_bytes(b"<html>not found</html>")
    (tmp_path / "002.tar").write_bytes((tmp_path / "002.tar").read_bytes()[: 60 * 1024 + 200])
    damage_header(tmp_path / "003.tar")
    (tmp_path / "004.tar").write_bytes(b"")
    dataset = make(f"{tmp_path}/*.tar", 40)
    for num_workers in (0, 2):
        caplog.clear()
        batches = held_out(dataset, num_workers=num_workers)
        usable = seen(batches)
        assert usable[0] == (0, 6) and {shard for shard, _ in usable} == {0, 2, 3}
        assert sum(shard == 3 for shard, _ in usable) == 20
        assert batches.skipped.counts == {
            "not decodable": 2, "without prompt": 3, "without image": 1, "twice in their shard": 1, "unreadable tar": 4,
        }  # fmt: skip
        line = "dataset.val_shards: 11 members skipped: 2 not decodable, 3 without prompt, "
        assert caplog.text.count("members skipped") == 1 and line in caplog.text
        assert f"; first '{tmp_path}/000.tar/0000.png'" in caplog.text
    stream = train(dataset, num_workers=2)
    assert len(seen(stream)) == 40 and sum(stream.skipped.counts.values()) >= 1


def test_nothing_is_said_of_sound_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = make(write_shards(tmp_path, 2, 20))
    with caplog.at_level(logging.INFO):
        seen(train(dataset))
        seen(held_out(dataset))
    assert caplog.text == ""


@pytest.mark.parametrize("num_workers", [0, 1])
def test_no_usable_image_at_all(tmp_path: Path, num_workers: int) -> None:
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", [("a.png", b"gone"), ("a.txt", b"0 0")])
    dataset = make(f"{tmp_path}/?.tar")
    for batches, setting in (
        (train(dataset, num_workers=num_workers), "shards"),
        (held_out(dataset, num_workers=num_workers), "val_shards"),
    ):
        message = ""
        try:  # not pytest.raises, which would keep the workers alive
            seen(batches)
        except DataError as error:
            message = str(error)
        assert message.startswith(
            f"dataset.{setting}: no usable image in 3 shards. 3 members skipped: 3 not decodable;"
        )
        assert "\n" not in message and ".tar/a.png'" in message


def test_too_few_samples(tmp_path: Path) -> None:
    dataset = make(write_shards(tmp_path, 1, 2))
    with pytest.raises(DataError, match="no usable image in 1 shards. They hold too few samples for 4 workers."):
        seen(train(dataset, rank=3, world_size=4))
    write_tar(tmp_path / "000.tar", [])
    with pytest.raises(DataError, match="dataset.val_shards: no usable image in 1 shards. They hold too few samples"):
        seen(held_out(dataset))
    with pytest.raises(
        DataError, match="run.batch_size: 5 x 2 processes is more than dataset.samples_per_epoch, 8. Use"
    ):
        train(dataset, batch_size=5, world_size=2)


def test_wrong_endings_are_told_at_once(tmp_path: Path) -> None:
    dataset = make(write_shards(tmp_path, 25, 1), prompt="caption")
    with pytest.raises(DataError) as caught:
        train(dataset)
    assert str(caught.value) == (
        "dataset.shards: 9 of 25 shards were looked at, and none has a sample of png or jpg or jpeg or webp with a "
        f"caption: 9 members skipped: 9 without prompt; first '{tmp_path}/000.tar/0000.png'. "
        "Set dataset.image and dataset.prompt to the endings in your shards."
    )


def test_each_part_counts_its_own(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [*pair(0, 0), ("b.png", b""), *pair(0, 2), ("d.png", b"")])
    counts = []
    for part in range(2):
        skipped = Skipped()
        counts.append(([n for n, _ in READER.samples([path], skipped, part, 2)], dict(skipped.counts)))
    assert counts == [([0, 2], {}), ([], {"without prompt": 2})]


def test_members_of_any_claimed_size_are_not_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [*pair(0, 0), ("1.png", png(0, 1)), ("1.txt", b"x" * (1 << 20) + b"x")])
    sparse = tarfile.TarInfo("2.png")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[482], header[483:495] = 0, b"%011o\0" % (3 << 30)  # no more maps; the true size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    end = (tmp_path / "end.tar").read_bytes() if write_tar(tmp_path / "end.tar", pair(0, 3)) else b""
    path.write_bytes(path.read_bytes().rstrip(b"\0").ljust(-(-len(path.read_bytes().rstrip(b"\0")) // 512) * 512, b"\0")
                     + bytes(header) + end)  # fmt: skip
    skipped = Skipped()
    tracemalloc.start()
    names = [sample.name[-8:-4] for _, sample in READER.samples([path], skipped)]
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert names == ["0000", "0003"] and skipped.counts == {"too large": 2}


def test_names_of_any_size_are_not_read(tmp_path: Path) -> None:
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 200 << 20
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(long.tobuf(tarfile.GNU_FORMAT) + bytes(60 << 20), compresslevel=1))
    skipped = Skipped()
    tracemalloc.start()
    assert list(READER.samples([path], skipped)) == [] and skipped.counts == {"unreadable tar": 1}
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize("prompt", ["[" * 100_000, '{"p": ' + "9" * 5000 + "}", '{"p": 7}', "[1]", '{"p": ["a"]}'])
def test_json_that_holds_no_prompt(tmp_path: Path, prompt: str) -> None:
    path = write_tar(tmp_path / "a.tar", [("1.png", png(0, 1)), ("1.json", prompt.encode())])
    skipped = Skipped()
    assert list(ShardReader(("png",), "json", "p").samples([path], skipped)) == []
    assert skipped.counts == {"without prompt": 1}


@settings(
    max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(strategies.data())
def test_whatever_a_shard_holds_is_read_or_counted(tmp_path: Path, data: strategies.DataObject) -> None:
    compression = data.draw(strategies.sampled_from(["w", "w:gz", "w:bz2", "w:xz"]))
    path = write_tar(tmp_path / "a.tar", [*pair(0, 0), *pair(0, 1)], compression)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(strategies.integers(1, 8))):
        content[data.draw(strategies.integers(0, min(len(content), 1600) - 1))] = data.draw(strategies.integers(0, 255))
    path.write_bytes(content[: data.draw(strategies.integers(0, len(content)))])
    skipped = Skipped()
    for _, sample in READER.samples([path], skipped):
        with contextlib.suppress(DataError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            PROCESSOR.decode(sample.image, sample.name)
    with contextlib.suppress(DataError):
        list(held_out(make(str(path))))
