"""Stored features of a frozen image tower: the file, what it goes by, and what is read from it."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import RESNET, build, image_table

from ipiqa import registry
from ipiqa.datasets.checks import image_hashes
from ipiqa.datasets.image_cache import DecodedImages, open_images
from ipiqa.datasets.table import AnnotationTable
from ipiqa.engine.features import FeatureStore
from ipiqa.engine.stop import Interrupted, StopSignals
from ipiqa.errors import DataError
from ipiqa.models.towers.image_tower import ImageTower
from ipiqa.processors.image import SquashProcessor

CPU, ROWS = torch.device("cpu"), torch.tensor([5, 0, 3, 6, 1, 5])
FLIPS = torch.tensor([True, False, True, True, False, False])


@pytest.fixture
def table(tmp_path: Path) -> AnnotationTable:
    return image_table(tmp_path / "images", "png", 40)


def tower_of(name: str = "clip_resnet", seed: int = 0) -> ImageTower:
    torch.manual_seed(seed)
    sections = {
        "clip_resnet": RESNET, "torchvision_resnet": {"name": "torchvision_resnet", "depth": 18},
        "clip": {"name": "clip", "architecture": "ViT-B-32-quickgelu"},
        "timm": {"name": "timm", "architecture": "resnet10t"},
    }  # fmt: skip
    section = registry.resolve("image_encoder", sections[name] | {"freeze": "all"}, "model.image_encoder")
    return registry.build("image_encoder", section, "model.image_encoder", {"image_size": 32})


def store_of(table: AnnotationTable, tower: Any = None, **changes: Any) -> FeatureStore:
    processor = changes.pop("processor", SquashProcessor(32))
    hashes = image_hashes(table)
    given: dict[str, Any] = {
        "tower": tower or tower_of(), "images": DecodedImages(table.image_paths, hashes, processor), "hashes": hashes,
        "processor": processor, "device": CPU, "amp": "none", "batch_size": 4, "keeps_map": True,
    }  # fmt: skip
    return FeatureStore(**(given | changes))


def opened(table: AnnotationTable, tower: Any = None, limit_gb: float = 1.0, **changes: Any) -> FeatureStore:
    store = store_of(table, tower, **changes)
    assert store.open(table.image_dir.parent / "cache", limit_gb, StopSignals())
    return store


def files_of(table: AnnotationTable, pattern: str = "*.features") -> list[Path]:
    return sorted((table.image_dir.parent / "cache").glob(pattern))


def outputs(store: FeatureStore, flips: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what the tower gives for ROWS, computed here."""
    images = store.processor.normalise(store.images.batch(ROWS.numpy()), flips)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=store.amp == "bf16"):
        return store.tower(images)


@pytest.mark.parametrize("amp", ["none", "bf16"])
@pytest.mark.parametrize("name", ["clip_resnet", "torchvision_resnet", "clip", "timm"])
def test_features_are_those_of_the_tower_also_of_mirrored_images(table: AnnotationTable, name: str, amp: str) -> None:
    store = opened(table, tower_of(name), amp=amp, batch_size=6)
    for flips in (None, FLIPS):
        tolerance = {"none": 1e-5, "bf16": 0.02}[amp]  # batches of another size are summed in another order
        for stored, computed in zip(store(ROWS, flips), outputs(store, flips), strict=True):
            assert stored.shape == computed.shape
            scale = computed.float().abs().max().item()
            assert (stored.float() - computed.float()).abs().max().item() <= tolerance * scale
    plain, mirrored = (store(ROWS, flips)[1][FLIPS].float() for flips in (None, FLIPS))
    assert (plain - mirrored).abs().max() > 1e-3 * plain.abs().max()


def test_given_features_pass_through_the_tower() -> None:
    given = torch.rand(2, 128, 1, 1), torch.rand(2, 8)
    assert tower_of()(given) is given


class Counted:
    """Counts the images a tower encodes while the block runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tower: ImageTower) -> None:
        self.images, encode = 0, type(tower).encode

        def counted(own: ImageTower, images: torch.Tensor) -> Any:
            self.images += len(images)
            return encode(own, images)

        monkeypatch.setattr(type(tower), "encode", counted)


def test_computed_once_and_each_image_once(
    table: AnnotationTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tower = tower_of()
    counted = Counted(monkeypatch, tower)
    with caplog.at_level(logging.INFO):
        opened(table, tower)
    assert counted.images == 2 * 6 + 1  # one to learn the type of the outputs
    (file,) = files_of(table)
    size = file.stat().st_size
    assert size == 4096 + 12 * (4 * (tower.channels * tower.grid[0] ** 2 + tower.embed_dim) + 4)
    assert f"encoding 6 images and as many mirrored with the frozen tower once to '{file}' (0.00 GB)" in caplog.text
    backwards = dataclasses.replace(table, names=table.names[::-1])
    again = opened(backwards, tower, images=None)  # no image is looked at either
    again(ROWS, FLIPS)
    assert counted.images == 13 and files_of(table) == [file]


def test_without_flips_and_without_a_map_the_file_is_smaller(table: AnnotationTable) -> None:
    whole = opened(table)
    unmirrored, mapless = opened(table, processor=SquashProcessor(32, flip=0.0)), opened(table, keeps_map=False)
    sizes = [store.records.file.total_bytes for store in (whole, unmirrored, mapless)]
    assert sizes[1] - 4096 == (sizes[0] - 4096) / 2 and sizes[2] == 4096 + 12 * (4 * 8 + 4)
    token_map, feature = mapless(ROWS, FLIPS)
    assert token_map.shape == (6, 0, 1, 1) and torch.equal(feature, whole(ROWS, FLIPS)[1])
    assert torch.equal(unmirrored(ROWS)[0], whole(ROWS)[0])


def test_the_file_goes_by_weights_images_processor_precision_and_sizes(table: AnnotationTable) -> None:
    def change(row: int) -> AnnotationTable:
        Image.new("RGB", (40, 30), (row, 0, 0)).save(table.image_paths[row])
        return table

    norm = tower_of()
    norm.tower.bn1.running_mean += 1e-3
    stores = [
        opened(table), opened(table, tower_of(seed=1)), opened(table, norm), opened(table, amp="bf16"),
        opened(table, processor=SquashProcessor(32, mean=[0.5, 0.5, 0.5])),
        opened(table, processor=SquashProcessor(32, interpolation="bilinear")),
        opened(table, keeps_map=False), opened(change(2)),
    ]  # fmt: skip
    assert len(files_of(table)) == len({store.records.file.path for store in stores}) == len(stores)
    opened(table, processor=SquashProcessor(32, flip=0.2), batch_size=2)  # neither of them decides an output
    assert len(files_of(table)) == len(stores)


def test_damaged_records_are_computed_again(table: AnnotationTable, caplog: pytest.LogCaptureFixture) -> None:
    right = opened(table, batch_size=1)(ROWS, FLIPS)
    (file,) = files_of(table)
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\0" * 2000 + content[6096:])
    for again in (False, True):
        caplog.clear()
        store = opened(table)
        for flips in (False, True):
            store(torch.arange(7), torch.full((7,), flips))
        assert all(torch.equal(a, b) for a, b in zip(store(ROWS, FLIPS), right, strict=True))
        assert caplog.text.count("is damaged; making what is damaged again") == (0 if again else 1)
    assert file.read_bytes() == content


@pytest.mark.parametrize("damage", ["truncated", "longer", "header", "empty"])
def test_a_damaged_file_is_built_again(table: AnnotationTable, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    opened(table)
    (file,) = files_of(table)
    content = file.read_bytes()
    harm = {"truncated": content[:-1], "longer": content + b"\0", "header": b"x" + content[1:], "empty": b""}
    file.write_bytes(harm[damage])
    opened(table)
    assert f"feature cache: '{file}' is damaged; building it again" in caplog.text and file.read_bytes() == content


def test_what_does_not_fit_is_not_stored(
    table: AnnotationTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = table.image_dir.parent / "cache"
    assert not store_of(table).open(folder, 1e-6, StopSignals())
    assert "(its 0.0 GB are more than dataset.cache_limit_gb 1e-06); the frozen image tower runs in" in caplog.text

    def fail(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert not store_of(table).open(folder, 1.0, StopSignals())
    assert "(No space left on device); the frozen image tower runs in every epoch" in caplog.text
    assert not files_of(table) and not files_of(table, ".*.tmp")


def test_images_and_features_share_the_limit_of_the_folder(table: AnnotationTable) -> None:
    tower, folder, limit_gb = tower_of(), table.image_dir.parent / "cache", 23000e-9  # 22,552 and 10,672 bytes
    given = table, image_hashes(table), SquashProcessor(32)
    opened(table, tower, limit_gb)
    assert len(files_of(table)) == 1
    open_images(*given, cache_dir=folder, limit_gb=limit_gb)
    assert len(files_of(table, "*.images")) == 1 and not files_of(table)
    kept = opened(table, tower, limit_gb)
    assert not files_of(table, "*.images")
    images = open_images(*given, cache_dir=folder, limit_gb=limit_gb)
    assert isinstance(images, DecodedImages) and kept.records.file.path.exists()  # what is in use stays


def test_a_signal_stops_the_pass_and_leaves_no_file(table: AnnotationTable) -> None:
    stop = StopSignals()
    stop.signal_number = signal.SIGTERM
    with pytest.raises(Interrupted, match="while features were computed"):
        store_of(table).open(table.image_dir.parent / "cache", 1.0, stop)
    assert not files_of(table) and not files_of(table, ".*.tmp")


def test_an_image_that_changes_meanwhile_is_refused(table: AnnotationTable) -> None:
    store = store_of(table)
    Image.new("RGB", (40, 30)).save(table.image_paths[4])
    with pytest.raises(DataError, match=r"4.png' has changed since this run began"):
        store.open(table.image_dir.parent / "cache", 1.0, StopSignals())
    assert not files_of(table) and not files_of(table, ".*.tmp")


@pytest.mark.parametrize(
    ("name", "parts"),
    [("ipiqa", {"fusion": "image_only"}), ("ipiqa", {"fusion": "concatenation"}), ("image_only", {}),
     ("linear_probe", {}), ("clip_linear", {}), ("clip_cosine", {}), ("clip_antonyms", {}), ("kernel_ridge", {})],
)  # fmt: skip
def test_models_that_say_they_read_no_token_map_do_without(name: str, parts: dict[str, str]) -> None:
    model, images, prompts = build(name, **parts)[0], torch.rand(3, 3, 64, 64), ["a cat", "a dog", "a red tree"]
    assert model.reads_token_map is False and build()[0].reads_token_map is True
    with torch.inference_mode():
        token_map, feature = model.image_encoder(images)
        assert torch.equal(model((token_map[:, :0], feature), prompts), model(images, prompts))
