"""Images: each spoilt in one way, and valid ones of unusual forms."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bad_inputs import Case, Spoil, Toy, words
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
LONG_TEXT = png(32, 32, extra=_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000)))
FRAMES = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
CUT = "cannot be decoded: image file is truncated"
ONE = "dataset.images: 1 of 15 images cannot be used, first '"
CACHED = ("dataset.image_cache=true", "dataset.cache_dir={folder}/output/cache")


def animated(form: str) -> bytes:
    return saved(FRAMES[0], form, save_all=True, append_images=FRAMES[1:])


def cut_gif() -> bytes:
    """Returns an animation that ends in the head of its second frame."""
    content = animated("GIF")
    return content[: content.index(b"\x2c", content.index(b"\x2c") + 1) + 4]


def cut_tiff() -> bytes:
    """Returns pages of which the first names a second one, whose head is cut."""
    content = animated("TIFF")
    start = int.from_bytes(content[4:8], "little")
    end = start + 2 + 12 * int.from_bytes(content[start : start + 2], "little")
    return content[: int.from_bytes(content[end : end + 4], "little") + 1]


# content, why it is refused, whether its header shows it
BROKEN: dict[str, tuple[bytes, str, bool]] = {
    "zero bytes": (b"", "is not an image: it has 0 bytes.", True),
    "text": (b"<html>404 not found", "is not an image: it starts with b'<html>404 no'.", True),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not an image: it starts with b'%!P", True),
    "1x1": (saved(Image.new("RGB", (1, 1)), "PNG"), "is 1x1 pixels, too small to judge.", True),
    "thread": (saved(Image.new("RGB", (3000, 2)), "PNG"), "is 3000x2 pixels, too small to judge.", True),
    "bomb": (BOMB, "cannot be read: Image size (400000000 pixels) exceeds limit of 178956970 pixels", True),
    "long text": (LONG_TEXT, "cannot be read: Decompressed data too large", True),
    "animated gif": (animated("GIF"), "is animated (3 frames); save the one frame to be judged.", True),
    "animated webp": (animated("WEBP"), "is animated (3 frames); save the one", True),
    "animated png": (animated("PNG"), "is animated (3 frames); save the one", True),
    "animated gif, cut": (cut_gif(), "cannot be read: ", True),
    "tiff of pages, cut": (cut_tiff(), "cannot be ", True),
    "float": (saved(Image.new("F", (32, 32)), "TIFF"), "has floating-point pixels of unknown range", True),
    "32-bit": (saved(Image.new("I", (32, 32), 70_000), "TIFF"), "cannot be decoded: its grey values do not", False),
    "header only": (saved(noise(), "PNG")[:20], "", True),
    "truncated png": (saved(noise(), "PNG")[:4000], CUT, False),
    "truncated jpeg": (saved(noise(), "JPEG")[:-900], CUT, False),
    "damaged png": (png(32, 32, bits=8, data=b"\7" * 1056), "cannot be decoded: ", False),
}


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


IMAGES = [
    Case("missing image", instead(lambda path: None), "dataset.images: 1 of 15 images are missing under '"),
    Case("folder for an image", instead(Path.mkdir), "dataset.images: 1 of 15 images are missing under '"),
    Case("link to itself", instead(lambda path: path.symlink_to(path.name)), "dataset.images: 1 of 15 images are"),
    Case("missing folder", words("dataset.images={folder}/no"), "dataset.images: the folder '{folder}/no' does not"),
    Case("page for an image", image_of(BROKEN["text"][0]), ONE),
    Case("bomb", image_of(BOMB), ONE),
    Case("truncated", cached(image_of(BROKEN["truncated png"][0])), ONE),
    Case("truncated, not cached", image_of(BROKEN["truncated png"][0]), "'{folder}/images/"),
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


def without_corner() -> np.ndarray:
    """Returns the picture, white where it is of its darkest colour."""
    shown = picture()
    shown[(shown == (0, 0, 90)).all(axis=-1)] = 255
    return shown


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
    "palette": (saved(PALETTE, "PNG"), picture(), 0),
    "palette, one colour transparent": (saved(with_alpha(0).quantize(32), "PNG"), over_white(0), 0),
    "palette, half transparent": (saved(with_alpha(128).quantize(32), "PNG"), over_white(128), 1),
    "alpha": (saved(with_alpha(0), "PNG"), over_white(0), 0),
    "alpha, half transparent": (saved(with_alpha(128), "PNG"), over_white(128), 1),
    "grey": (saved(GREY, "PNG"), grey(), 0),
    "grey jpeg": (saved(GREY, "JPEG", quality=100), grey(), 2),
    "grey with alpha": (saved(GREY.convert("LA"), "PNG"), grey(), 0),
    "16-bit grey": (saved(Image.fromarray(grey()[..., 0].astype(np.uint16) * 257), "PNG"), grey(), 0),
    "16-bit colours": (png(60, 40, bits=16, colour=2, data=rows_of(picture())), picture(), 0),
    "16-bit alpha": (png(60, 40, bits=16, colour=6, data=rows_of(np.asarray(with_alpha(0)))), over_white(0), 0),
    "16-bit grey tiff": (saved(Image.fromarray(grey()[..., 0].astype(np.uint16) * 257), "TIFF"), grey(), 0),
    "transparent colour": (saved(PHOTO, "PNG", transparency=(0, 0, 90)), without_corner(), 0),
    "1 bit": (saved(Image.fromarray(BLACK_OR_WHITE).convert("1"), "PNG"), BLACK_OR_WHITE, 0),
    "cmyk": (saved(PHOTO.convert("CMYK"), "JPEG", **BEST["JPEG"]), picture(), 4),
    "progressive": (saved(PHOTO, "JPEG", progressive=True, **BEST["JPEG"]), picture(), 3),
    "turned right": (turned("PNG", 6, 1), picture(), 0),
    "turned left": (turned("PNG", 8, -1), picture(), 0),
    "turned jpeg": (turned("JPEG", 6, 1), picture(), 3),
    "photo with preview": (
        saved(PHOTO, "MPO", save_all=True, append_images=[Image.new("RGB", (30, 20))], **BEST["JPEG"]),
        picture(),
        3,
    ),
    "gif": (saved(PALETTE, "GIF"), picture(), 0),
    "webp": (saved(with_alpha(0), "WEBP", lossless=True), over_white(0), 0),
    "tiff": (saved(PHOTO, "TIFF", compression="tiff_lzw"), picture(), 0),
    "bmp": (saved(PHOTO, "BMP"), picture(), 0),
}
