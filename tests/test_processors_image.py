"""The image processor: equal to torchvision's transforms, and what it makes of unusual and of broken files."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_images import BROKEN, UNUSUAL
from hypothesis import given, settings, strategies
from PIL import Image
from torchvision import transforms

from ipiqa import registry
from ipiqa.errors import ConfigError, DataError
from ipiqa.processors.image import CLIP_MEAN, CLIP_STD, SquashProcessor

SIZE = 16


def photo(height: int = 40, width: int = 60) -> np.ndarray:
    """Returns smooth colours with an upright direction, (height, width, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 255 * (x + y) / (height + width)], axis=-1).astype(np.uint8)


@pytest.fixture
def processor() -> SquashProcessor:
    return SquashProcessor(SIZE)


def test_registered() -> None:
    section = registry.resolve("processor", {"name": "squash", "flip": 1}, "processor")
    assert section == {"name": "squash", "flip": 1.0, "interpolation": "bicubic", "mean": None, "std": None}
    assert registry.build("processor", section, "processor", {"image_size": 32}).image_size == 32


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("flip", [False, True])
def test_equals_torchvision(tmp_path: Path, interpolation: Any, flip: bool) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(photo()).save(path)
    processor = SquashProcessor(SIZE, interpolation=interpolation)
    reference = transforms.Compose(
        [
            transforms.Resize((SIZE, SIZE), interpolation=transforms.InterpolationMode(interpolation)),
            transforms.RandomHorizontalFlip(float(flip)),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    images = processor.decode(path)[None]
    assert images.dtype == torch.uint8 and images.shape == (1, 3, SIZE, SIZE)
    assert torch.equal(processor.normalise(images, torch.tensor([flip]))[0], reference(Image.open(path)))


def test_normalise_every_level(processor: SquashProcessor) -> None:
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    normalised = processor.normalise(levels)
    assert torch.equal(normalised, (levels / 255 - mean) / std) and normalised.dtype == torch.float32


def test_normalise_flips_the_chosen_and_keeps_the_layout(processor: SquashProcessor) -> None:
    images = torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    before = images.clone()
    plain, some = processor.normalise(images), processor.normalise(images, torch.tensor([True, False, True]))
    assert torch.equal(some[1], plain[1]) and torch.equal(some[0], plain[0].flip(-1))
    assert some.is_contiguous(memory_format=torch.channels_last) and torch.equal(images, before)


def test_flips_belong_to_the_row(processor: SquashProcessor) -> None:
    def flips(rows: list[int], **changes: int) -> list[bool]:
        draw = {"num_rows": 1000, "seed": 42, "fold": 1, "epoch": 2} | changes
        chosen: list[bool] = processor.flips(torch.tensor(rows), **draw).tolist()
        return chosen

    everyone = flips(list(range(1000)))
    assert flips([7, 3, 999]) == [everyone[7], everyone[3], everyone[999]]
    assert 400 < sum(everyone) < 600
    for change in ({"seed": 43}, {"fold": 2}, {"epoch": 3}):
        assert flips(list(range(1000)), **change) != everyone
    assert not SquashProcessor(SIZE, flip=0.0).flips(torch.arange(9), num_rows=9, seed=1, fold=0, epoch=0).any()
    assert SquashProcessor(SIZE, flip=1.0).flips(torch.arange(9), num_rows=9, seed=1, fold=0, epoch=0).all()


def test_key_names_what_decides_the_pixels() -> None:
    keys = {SquashProcessor(16).key, SquashProcessor(32).key, SquashProcessor(16, interpolation="bilinear").key}
    assert len(keys) == 3
    assert SquashProcessor(16, flip=0.0, mean=[0.0] * 3).key == SquashProcessor(16).key


def test_a_processor_says_the_section_that_rebuilds_it() -> None:
    given = {
        "name": "squash",
        "flip": 0.25,
        "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.1, 0.2, 0.3],
    }
    built = registry.build(
        "processor", registry.resolve("processor", given, "processor"), "processor", {"image_size": 8}
    )
    assert built.section() == given
    assert SquashProcessor(SIZE).section() == {
        "name": "squash", "flip": 0.5, "interpolation": "bicubic", "mean": CLIP_MEAN, "std": CLIP_STD
    }  # fmt: skip


def test_flips_of_streamed_rows_take_no_memory() -> None:
    def flips(rows: list[int], epoch: int = 0) -> list[bool]:
        return SquashProcessor(SIZE).flips(torch.tensor(rows), num_rows=None, seed=1, fold=0, epoch=epoch).tolist()

    rows = list(range(4000, 4200))
    assert flips(rows) == flips(rows[:100]) + flips(rows[100:]) != flips(rows, epoch=1)
    assert 60 < sum(flips(rows)) < 140
    assert flips([10**12, 5]) == [*flips([10**12]), *flips([5])]


SETTINGS = {
    "flip": ({"flip": 1.5}, "processor.flip: 1.5 is not a probability."),
    "mean": ({"mean": [0.5]}, r"processor.mean: invalid value \[0.5\]. Give three finite numbers: of red, green and"),
    "std": ({"std": [0.5, 0.0, 0.5]}, r"processor.std: invalid value \[0.5, 0.0, 0.5\]. .*, each above 0: of"),
    "infinite std": ({"std": [0.5, float("inf"), 0.5]}, "processor.std: invalid value"),
    "mean that is no number": ({"mean": [float("nan"), 0.5, 0.5]}, "processor.mean: invalid value"),
    "no mean": ({"mean": []}, r"processor.mean: invalid value \[\]"),
    "flip that is no number": ({"flip": float("nan")}, "processor.flip: nan is not a probability."),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_refused(case: str) -> None:
    settings, expected = SETTINGS[case]
    with pytest.raises(ConfigError, match=expected):
        SquashProcessor(SIZE, **settings)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------- unusual and broken files


@pytest.mark.parametrize("form", UNUSUAL)
def test_unusual_files_look_as_a_viewer_shows_them(tmp_path: Path, processor: SquashProcessor, form: str) -> None:
    content, shown, tolerance = UNUSUAL[form]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    processor.verify(path)
    decoded = processor.decode(path)
    resized = Image.fromarray(shown).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    assert np.abs(decoded.numpy().astype(int) - np.asarray(resized).transpose(2, 0, 1)).max() <= tolerance
    assert torch.equal(decoded, processor.decode(content, "x"))


@pytest.mark.parametrize("form", BROKEN)
def test_broken_files_are_named(tmp_path: Path, processor: SquashProcessor, form: str) -> None:
    content, reason, in_header = BROKEN[form]
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for look in (processor.decode, processor.verify)[: 1 + in_header]:
        assert told_by(lambda look=look: look(path)).startswith(f"'{path}' {reason}")
    assert told_by(lambda: processor.decode(content, "x.tar: 7")).startswith(f"'x.tar: 7' {reason}")
    if not in_header:
        processor.verify(path)


def test_files_that_cannot_be_read(tmp_path: Path, processor: SquashProcessor) -> None:
    assert told_by(lambda: processor.verify(tmp_path)) == f"'{tmp_path}' cannot be read: Is a directory."
    path = tmp_path / "a.png"
    assert told_by(lambda: processor.verify(path)) == f"'{path}' cannot be read: No such file or directory."
    path = tmp_path / "a\0.png"
    assert told_by(lambda: processor.verify(path)) == f"'{path}' cannot be read: embedded null byte."


def told_by(look: Callable[[], object]) -> str:
    """Returns the one line that a file is refused with."""
    with pytest.raises(DataError) as caught:
        look()
    assert "\n" not in str(caught.value)
    return str(caught.value)


FORMATS = {"PNG": {}, "JPEG": {}, "WEBP": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "GIF": {}, "PPM": {}}


@pytest.mark.filterwarnings("ignore")  # Pillow's, about odd files
@settings(max_examples=150, derandomize=True, deadline=None)
@given(strategies.data())
def test_any_bytes_decode_or_are_refused(data: strategies.DataObject) -> None:
    form = data.draw(strategies.sampled_from(sorted(FORMATS)))
    frames = [Image.fromarray(photo(12, 12)), Image.fromarray(photo(12, 12)[::-1])]
    several = {"save_all": True, "append_images": frames[1:]} if data.draw(strategies.booleans()) else {}
    file = io.BytesIO()
    frames[0].save(file, form, **FORMATS[form], **(several if form in ("PNG", "WEBP", "TIFF", "GIF") else {}))
    content = bytearray(file.getvalue())
    for _ in range(data.draw(strategies.integers(0, 6))):
        content[data.draw(strategies.integers(0, len(content) - 1))] = data.draw(strategies.integers(0, 255))
    with contextlib.suppress(DataError):
        pixels = SquashProcessor(8).decode(bytes(content[: data.draw(strategies.integers(0, len(content)))]))
        assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.uint8
