"""The image processor: equal to torchvision's transforms, and what it makes of unusual and of broken files."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
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
    "mean": ({"mean": [0.5]}, "processor.mean: 1 values. Give three: red, green, blue."),
    "std": ({"std": [0.5, 0.0, 0.5]}, "processor.std: 0 is not above 0."),
    "infinite std": ({"std": [0.5, float("inf"), 0.5]}, r"processor.std: \[0.5, inf, 0.5\] is not finite."),
    "mean that is no number": ({"mean": [float("nan"), 0.5, 0.5]}, r"processor.mean: \[nan, 0.5, 0.5\] is not finite."),
    "flip that is no number": ({"flip": float("nan")}, "processor.flip: nan is not a probability."),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_refused(case: str) -> None:
    settings, expected = SETTINGS[case]
    with pytest.raises(ConfigError, match=expected):
        SquashProcessor(SIZE, **settings)  # type: ignore[arg-type]


# ------------------------------------------------------------------------- unusual files look as a viewer shows them


def expected(rgb: np.ndarray) -> np.ndarray:
    resized = Image.fromarray(rgb).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1).astype(int)


def half_transparent() -> Image.Image:
    """Returns a red square, its right half wholly transparent (and black underneath)."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, :16] = (255, 0, 0, 255)
    return Image.fromarray(pixels)


def over_white() -> np.ndarray:
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[:, :16] = (255, 0, 0)
    return pixels


def upside_down(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # "turn by 180 degrees"
    Image.fromarray(photo()[::-1, ::-1]).save(path, exif=exif)


def keyed(path: Path) -> None:
    pixels = over_white()
    pixels[:, 16:] = (0, 0, 255)
    Image.fromarray(pixels).save(path, transparency=(0, 0, 255))


GREY16 = (np.linspace(0, 65535, 1600).reshape(40, 40)).astype(np.uint16)
GREY8 = np.repeat(np.round(GREY16 / 257).astype(np.uint8)[..., None], 3, axis=-1)
USABLE: dict[str, tuple[str, Callable[[Path], None], np.ndarray, int]] = {
    "png": ("a.png", lambda path: Image.fromarray(photo()).save(path), photo(), 0),
    "palette": ("a.png", lambda path: Image.fromarray(photo()).quantize(256).save(path), photo(), 24),
    "palette with transparency": ("a.png", lambda path: half_transparent().quantize(8).save(path), over_white(), 1),
    "gif": ("a.gif", lambda path: half_transparent().save(path), over_white(), 1),
    "alpha": ("a.png", lambda path: half_transparent().save(path), over_white(), 0),
    "grey with alpha": (
        "a.png",
        lambda path: Image.new("LA", (32, 32), (0, 0)).save(path),
        np.full((32, 32, 3), 255, np.uint8),
        0,
    ),
    "transparent colour": ("a.png", keyed, over_white(), 0),
    "grey": ("a.png", lambda path: Image.fromarray(GREY8[..., 0]).save(path), GREY8, 0),
    "16-bit grey": ("a.png", lambda path: Image.fromarray(GREY16).save(path), GREY8, 0),
    "16-bit grey tiff": ("a.tif", lambda path: Image.fromarray(GREY16).save(path), GREY8, 0),
    "black and white": (
        "a.png",
        lambda path: Image.new("1", (32, 32), 1).save(path),
        np.full((32, 32, 3), 255, np.uint8),
        0,
    ),
    "cmyk": ("a.jpg", lambda path: Image.fromarray(photo()).convert("CMYK").save(path, quality=100), photo(), 4),
    "exif": ("a.png", upside_down, photo(), 0),
    "photo with preview": (
        "a.jpg",
        lambda path: Image.fromarray(photo()).save(
            path, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))], quality=100
        ),
        photo(),
        2,
    ),
    "webp": ("a.webp", lambda path: Image.fromarray(photo()).save(path, lossless=True), photo(), 0),
    "png named jpg": ("a.jpg", lambda path: Image.fromarray(photo()).save(path, "PNG"), photo(), 0),
}


@pytest.mark.parametrize("case", USABLE)
def test_unusual_files(tmp_path: Path, processor: SquashProcessor, case: str) -> None:
    name, write, rgb, tolerance = USABLE[case]
    write(tmp_path / name)
    processor.verify(tmp_path / name)
    difference = np.abs(processor.decode(tmp_path / name).numpy().astype(int) - expected(rgb))
    assert difference.max() <= tolerance


# --------------------------------------------------------------------------------------------- broken files are named


def truncated(path: Path) -> None:
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


def bomb(path: Path) -> None:
    """Writes a few bytes that claim 20,000 x 20,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def animated(path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def cut_animation(path: Path) -> None:
    """Writes an animation up to where its second frame begins."""
    frames = [Image.fromarray(np.full((32, 32, 3), shade, np.uint8)) for shade in (0, 80, 160)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    content = path.read_bytes()
    if path.suffix == ".gif":
        path.write_bytes(content[: content.index(b"\x2c", content.index(b"\x2c") + 1) + 4])
    else:  # the first directory names a second one that is cut
        start = int.from_bytes(content[4:8], "little")
        entries = int.from_bytes(content[start : start + 2], "little")
        second = int.from_bytes(content[start + 2 + 12 * entries :][:4], "little")
        path.write_bytes(content[: second + 1])


BROKEN: dict[str, tuple[str, Callable[[Path], Any], str, bool]] = {
    # name, writer, message, whether the header alone shows it
    "missing": ("a.jpg", lambda path: None, "cannot be read: No such file or directory.", True),
    "folder": ("a.jpg", lambda path: path.mkdir(), "cannot be read: Is a directory.", True),
    "0 bytes": ("a.jpg", lambda path: path.touch(), "is not an image: it has 0 bytes.", True),
    "text": (
        "a.jpg",
        lambda path: path.write_text("<html>404 not found"),
        "is not an image: it starts with b'<html>404 no'.",
        True,
    ),
    "postscript": (
        "a.jpg",
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"),
        "is not an image: it starts with b'%!PS-Adobe-3'",
        True,
    ),
    "1x1": ("a.png", lambda path: Image.new("RGB", (1, 1)).save(path), "is 1x1 pixels, too small to judge.", True),
    "bomb": ("a.png", bomb, "has more than the 179 million pixels that are safe to decode.", True),
    "animated gif": ("a.gif", animated, "is animated (3 frames); save the one frame to be judged.", True),
    "animated webp": ("a.webp", animated, "is animated (3 frames)", True),
    "float": (
        "a.tif",
        lambda path: Image.new("F", (16, 16)).save(path),
        "has floating-point pixels of unknown range",
        True,
    ),
    "32-bit": (
        "a.tif",
        lambda path: Image.new("I", (16, 16), 70_000).save(path),
        "cannot be decoded: its grey values do not fit in 16 bits.",
        False,
    ),
    "truncated jpeg": ("a.jpg", truncated, "cannot be decoded: image file is truncated", False),
    "truncated png": ("a.png", truncated, "cannot be decoded: image file is truncated", False),
    "animated gif, cut in a frame": ("a.gif", cut_animation, "cannot be read: ", True),
    "tiff of two pages, cut": ("a.tif", cut_animation, "cannot be ", True),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(tmp_path: Path, processor: SquashProcessor, case: str) -> None:
    name, write, reason, header = BROKEN[case]
    path = tmp_path / name
    write(path)
    for look in (processor.decode, lambda path: processor.verify(path, full=True)):
        with pytest.raises(DataError) as caught:
            look(path)
        assert str(caught.value).startswith(f"'{path}' {reason}") and "\n" not in str(caught.value)
    if header:
        with pytest.raises(DataError, match="a[.]"):
            processor.verify(path)
    else:
        processor.verify(path)


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
