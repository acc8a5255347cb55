"""Images: each spoilt in one way, and valid ones of unusual forms."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bad_inputs import PAGE, Case, Spoil, Toy, words
from PIL import Image


def image_of(content: bytes | str) -> Spoil:
    """Returns a spoil that replaces one image of the table by these bytes."""

    def spoil(toy: Toy) -> list[str]:
        toy.image.write_bytes(content.encode() if isinstance(content, str) else content)
        return []

    return spoil


def saved(image: Image.Image, form: str, **settings: Any) -> bytes:
    """Returns the content of an image file."""
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def noise(width: int = 64, height: int = 64) -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8))


def png(width: int, height: int, *, bits: int = 1, colour: int = 0, data: bytes = b"", extra: bytes = b"") -> bytes:
    """Returns a hand-made PNG: its header may claim what its data does not hold."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", zlib.compress(data)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# A whole, valid file of 50 kB that unpacks to 400 million pixels
BOMB = png(20_000, 20_000, data=b"\0" * (20_000 * 2501))
CACHED = ("dataset.image_cache=true", "dataset.cache_dir={folder}/output/cache")


def instead(make: Callable[[Path], object]) -> Spoil:
    """Returns a spoil that removes one image and makes something else of its name."""

    def spoil(toy: Toy) -> list[str]:
        path = toy.image
        path.unlink()
        make(path)
        return []

    return spoil


def cached(spoil: Spoil) -> Spoil:
    """Returns the spoil with the image cache on, as it is by default: every pixel is then read before the training."""
    return lambda toy: [*spoil(toy), *words(*CACHED)(toy)]


ONE = "dataset.images: 1 of 15 images cannot be used, first '"
IMAGES = [
    Case("missing image", instead(lambda path: None), "dataset.images: 1 of 15 images are missing under '"),
    Case("folder for an image", instead(Path.mkdir), "dataset.images: 1 of 15 images are missing under '"),
    Case("link to itself", instead(lambda path: path.symlink_to(path.name)), "dataset.images: 1 of 15 images are"),
    Case("missing folder", words("dataset.images={folder}/no"), "dataset.images: the folder '{folder}/no' does not"),
    Case("page for an image", image_of(PAGE), ONE),
    Case("bomb", image_of(BOMB), ONE),
    Case("truncated", cached(image_of(saved(noise(), "PNG")[:4000])), ONE),
    Case("truncated, not cached", image_of(saved(noise(), "PNG")[:4000]), "'{folder}/images/"),
]


# ------------------------------------------------------------------------------------------------ unusual, but in order


def picture() -> np.ndarray:
    """Returns a picture of 16 colours with a right way up, (40, 60, 3) uint8."""
    y, x = np.mgrid[:40, :60]
    return np.stack([y // 10 * 60, x // 15 * 60, np.full_like(x, 90)], axis=-1).astype(np.uint8)


def grey() -> np.ndarray:
    """Returns the picture's red part as grey, (40, 60, 3) uint8."""
    return np.repeat(picture()[..., :1], 3, axis=-1)


def over_white(alpha: int) -> np.ndarray:
    """Returns the picture, its right half of this opacity, as it looks on white paper."""
    shown = picture().astype(float)
    shown[:, 30:] = shown[:, 30:] * alpha / 255 + 255 * (1 - alpha / 255)
    return shown.round().astype(np.uint8)


def with_alpha(alpha: int) -> Image.Image:
    opacity = np.full((40, 60, 1), 255, np.uint8)
    opacity[:, 30:] = alpha
    return Image.fromarray(np.concatenate([picture(), opacity], axis=-1))


def turned(form: str, note: int, quarters: int) -> bytes:
    """Returns the picture stored turned, with the EXIF note that says how to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = note
    return saved(Image.fromarray(np.ascontiguousarray(np.rot90(picture(), quarters))), form, exif=exif, **BEST[form])


def rows_of(pixels: np.ndarray) -> bytes:
    """Returns 8-bit pixels (H, W, C) as the data of a 16-bit PNG."""
    return b"".join(b"\0" + (row.astype(">u2") * 257).astype(">u2").tobytes() for row in pixels)


BEST: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}}
PALETTE = Image.fromarray(picture()).quantize(16, dither=Image.Dither.NONE)
PHOTO = Image.fromarray(picture())
GREY = Image.fromarray(np.ascontiguousarray(grey()[..., 0]))
BLACK_OR_WHITE = np.where(picture()[..., :1] > 60, 255, 0).repeat(3, axis=-1).astype(np.uint8)

# content, what a viewer shows, by how many of 256 levels a pixel may be off
UNUSUAL: dict[str, tuple[bytes, np.ndarray, int]] = {
    "palette, half transparent": (saved(with_alpha(128).quantize(32), "PNG"), over_white(128), 1),
    "alpha, half transparent": (saved(with_alpha(128), "PNG"), over_white(128), 1),
    "16-bit colours": (png(60, 40, bits=16, colour=2, data=rows_of(picture())), picture(), 0),
    "16-bit alpha": (png(60, 40, bits=16, colour=6, data=rows_of(np.asarray(with_alpha(0)))), over_white(0), 0),
    "progressive": (saved(PHOTO, "JPEG", progressive=True, **BEST["JPEG"]), picture(), 3),
    "turned right": (turned("PNG", 6, 1), picture(), 0),
    "turned left": (turned("PNG", 8, -1), picture(), 0),
}
