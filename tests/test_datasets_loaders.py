"""Loaders: which rows stand in which batch, and what reaches the training loop."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ipiqa.datasets.checks import image_hashes
from ipiqa.datasets.image_cache import CachedImages, DecodedImages, open_images
from ipiqa.datasets.loaders import BatchLoader, Loading, deliver, eval_loader, train_loader
from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import DataError
from ipiqa.processors.image import SquashProcessor

PROCESSOR = SquashProcessor(8)
NUM_ROWS = 20
TOKENS = torch.arange(NUM_ROWS * 77).view(NUM_ROWS, 77)
TRAIN_ROWS = np.arange(1, 19)  # 18 rows


@pytest.fixture
def table(tmp_path: Path) -> AnnotationTable:
    names = tuple(f"{row}.png" for row in range(NUM_ROWS))
    for row, name in enumerate(names):
        Image.new("RGB", (8, 8), (row, 0, 0)).save(tmp_path / name)
    scores = np.stack([np.arange(NUM_ROWS) / 7, np.arange(NUM_ROWS) / 3], axis=1)
    return AnnotationTable(names, names, scores, ("quality", "alignment"), names, tmp_path)


def train(table: AnnotationTable, **changes: Any) -> BatchLoader:
    images = DecodedImages(table.image_paths, image_hashes(table), PROCESSOR)
    given = {"batch_size": 4, "eval_batch_size": 2, "seed": 42, "num_workers": 0} | changes
    fold = given.pop("fold", 0)
    return train_loader(table, images, TOKENS, TRAIN_ROWS, Loading(**given), fold=fold)


def rows_of(loader: BatchLoader) -> list[list[int]]:
    return [batch["rows"].tolist() for batch in loader]


def test_batch(table: AnnotationTable) -> None:
    batch = next(iter(train(table)))
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
        "images": (torch.uint8, (4, 3, 8, 8)),
        "tokens": (torch.int64, (4, 77)),
        "targets": (torch.float32, (4, 2)),
        "rows": (torch.int64, (4,)),
    }
    rows = batch["rows"]
    assert torch.equal(batch["images"][:, 0, 0, 0].long(), rows)
    assert torch.equal(batch["tokens"], TOKENS[rows])
    assert torch.equal(batch["targets"], torch.from_numpy(table.scores)[rows].float())


def test_epochs_are_permutations_without_the_rest(table: AnnotationTable) -> None:
    loader = train(table)
    seen = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches = rows_of(loader)
        flat = [row for batch in batches for row in batch]
        assert len(batches) == len(loader) == 4 and len(set(flat)) == 16 and set(flat) <= set(TRAIN_ROWS.tolist())
        seen.append(flat)
    assert seen[0] != seen[1] != seen[2]
    loader.set_epoch(0)
    assert [row for batch in rows_of(loader) for row in batch] == seen[0]


def test_order_depends_on_seed_and_fold(table: AnnotationTable) -> None:
    assert rows_of(train(table)) == rows_of(train(table))
    assert rows_of(train(table, seed=43)) != rows_of(train(table))
    assert rows_of(train(table, fold=1)) != rows_of(train(table))


@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_share_the_global_batches(table: AnnotationTable, world_size: int) -> None:
    alone = rows_of(train(table))
    parts = [
        rows_of(train(table, batch_size=4 // world_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert [list(itertools.chain(*slices)) for slices in zip(*parts, strict=True)] == alone


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_within_an_epoch(table: AnnotationTable, num_workers: int) -> None:
    loader = train(table, num_workers=num_workers)
    loader.set_epoch(5)
    whole = rows_of(loader)
    loader.set_epoch(5, first_step=3)
    assert rows_of(loader) == whole[3:] and len(loader) == 4
    loader.set_epoch(5, first_step=4)
    assert rows_of(loader) == []
    loader.set_epoch(6)
    assert len(rows_of(loader)) == 4


def test_skipped_steps_are_not_decoded(table: AnnotationTable) -> None:
    loader = train(table)
    loader.set_epoch(0)
    for row in rows_of(loader)[0]:
        table.image_paths[row].unlink()
    loader.set_epoch(0, first_step=1)
    assert len(rows_of(loader)) == 3


def test_workers_give_the_same_batches(table: AnnotationTable) -> None:
    for epoch in range(2):  # persistent workers follow the epoch
        alone, workers = train(table), train(table, num_workers=2)
        for loader in (alone, workers):
            loader.set_epoch(epoch)
        for one, other in zip(alone, workers, strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)
            assert one["images"].stride() == other["images"].stride()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_evaluation_sees_every_row_once(table: AnnotationTable, world_size: int) -> None:
    images, held_out = DecodedImages(table.image_paths, image_hashes(table), PROCESSOR), np.array([2, 3, 5, 7, 11])
    loaders = [
        eval_loader(table, images, TOKENS, held_out, Loading(batch_size=1, eval_batch_size=2, seed=0, rank=rank,
                                                             world_size=world_size, num_workers=0))
        for rank in range(world_size)
    ]  # fmt: skip
    seen = [row for loader in loaders for batch in rows_of(loader) for row in batch]
    assert sorted(seen) == held_out.tolist()
    if world_size == 1:
        assert rows_of(loaders[0]) == [[2, 3], [5, 7], [11]]


def test_too_few_rows_for_a_batch(table: AnnotationTable) -> None:
    with pytest.raises(DataError) as caught:
        train(table, batch_size=10, world_size=2)
    assert str(caught.value) == "run.batch_size: 10 x 2 processes is more than the 18 training images. Use at most 9."
    with pytest.raises(DataError, match="run.batch_size: 19 is more than the 18 training images. Use at most 18."):
        train(table, batch_size=19)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_image_that_breaks_on_the_way_is_named(table: AnnotationTable, num_workers: int) -> None:
    for path in table.image_paths:
        path.write_text("gone")
    message = error_of(train(table, num_workers=num_workers))
    assert message.endswith("is not an image: it starts with b'gone'.")


@pytest.mark.parametrize("persistent", [False, True])
def test_a_killed_worker_is_named_between_two_batches(table: AnnotationTable, persistent: bool) -> None:
    loader = train(table, num_workers=2, batch_size=2)
    loader.set_epoch(0)
    if persistent:
        rows_of(loader)
    batches = iter(loader)
    next(batches)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    time.sleep(0.1)  # here PyTorch's handler of the signal would raise
    expected = (
        "run.num_workers: one of the 2 processes that load images has ended unexpectedly, as it does where memory"
    )
    assert error_of(batches).startswith(expected)
    if persistent:
        assert error_of(loader).startswith(expected)  # when a round begins, too


@pytest.mark.parametrize(
    "error", [ConnectionResetError(), EOFError(), RuntimeError("DataLoader worker (pid 1) is killed")]
)
def test_whatever_breaks_with_a_worker_is_one_line(error: Exception) -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise error

    assert "one of the 3 processes" in error_of(deliver(batches, 3))
    with pytest.raises(type(error)):
        list(deliver(batches, 0))


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("Caught OSError in DataLoader worker process 0.")])
def test_a_mistake_of_the_program_is_not_hidden(error: Exception) -> None:
    def batches() -> Iterator[int]:
        yield 1
        raise error

    with pytest.raises(type(error)):
        list(deliver(batches, 3))


def error_of(batches: Iterable[object]) -> str:
    """Returns the one line that the batches end with; pytest.raises would keep the workers alive."""
    try:
        list(batches)
    except DataError as error:
        return " | ".join(str(error).splitlines())
    return ""


def test_suggested_workers(table: AnnotationTable, tmp_path: Path) -> None:
    cached = open_images(table, image_hashes(table), PROCESSOR, cache_dir=tmp_path / "cache", limit_gb=1)
    loading = Loading(batch_size=1, eval_batch_size=1, seed=0)
    assert isinstance(cached, CachedImages)
    assert eval_loader(table, cached, TOKENS, TRAIN_ROWS, loading).num_workers == 0
    assert 1 <= train(table, num_workers=None).num_workers <= 8
