"""From an image file to pixels (once, cached), and from pixels to the normalised tensor (every step, on the device)."""

import contextlib
import functools
import io
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import nn

from ipiqa.errors import ConfigError, DataError
from ipiqa.registry import register

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]

# Only what is expected: of the other formats, some start programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
ENDINGS = (
    "png", "jpg", "jpeg", "webp", "bmp", "dib", "tif", "tiff", "gif", "ppm", "pgm", "pbm", "pnm", "jpe", "jfif", "apng",
)  # fmt: skip
MIN_SIDE = 8
_FLIPS = 4  # number in the RandomState seed: a stream that splits and batches do not share
_BLOCK = 4096  # streamed rows whose flips are drawn together


@register("processor", "squash")
class SquashProcessor:
    """Resizes to a square regardless of aspect ratio, flips at random for training, normalises.

    # reference: squash-resize with Pillow's bicubic filter, flip with probability 0.5, CLIP's mean and std; no crop.

    Args:
        image_size: side S of the square, in pixels.
        flip: probability of a horizontal flip in training.
        interpolation: Pillow's resize filter.
        mean: of each channel, on the scale 0 to 1; None for CLIP's (in a config: for those of the image encoder).
        std: of each channel, above 0; None as for mean.
    """

    gives_views = False  # whether `normalise` gives several views of an image

    def __init__(
        self, image_size: int, *, flip: float = 0.5, interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        mean: list[float] | None = None, std: list[float] | None = None,
    ) -> None:  # fmt: skip
        if not 0 <= flip <= 1:
            raise ConfigError(f"processor.flip: {flip:g} is not a probability. Give a number from 0 to 1.")
        mean, std = CLIP_MEAN if mean is None else mean, CLIP_STD if std is None else std
        for setting, values in (("mean", mean), ("std", std)):
            if len(values) != 3 or not all(map(math.isfinite, values)) or (setting == "std" and min(values) <= 0):
                wanted = f"three finite numbers{', each above 0' if setting == 'std' else ''}: of red, green and blue"
                raise ConfigError(f"processor.{setting}: invalid value {values}. Give {wanted}.")
        self.image_size, self.flip, self.interpolation = image_size, flip, interpolation
        self._mean, self._std = list(mean), list(std)  # as given: float32 has not all of their digits
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (mean, std))

    def section(self) -> dict[str, Any]:
        """Returns the settings that build this processor again, for any image size."""
        settings = {"name": "squash", "flip": self.flip, "interpolation": self.interpolation}
        return settings | {"mean": self._mean, "std": self._std}

    @property
    def key(self) -> str:
        """All that decides the decoded pixels: settings, version of this code, and of the libraries that decode."""
        libraries = f"pillow {PIL.__version__}, jpeg {features.version('jpg')}, webp {features.version('webp')}"
        return f"squash 1, {self.image_size}, {self.interpolation}, {libraries}"

    def verify(self, path: Path) -> None:
        """Raises DataError, as `decode` does, where the header of a file cannot be used."""
        _open(path, str(path)).close()

    def decode(self, source: Path | bytes | Image.Image, name: str | None = None) -> torch.Tensor:
        """Returns the image (3, S, S), uint8; arguments and errors as for `upright`."""
        image = upright(source, name)
        resample = Image.Resampling[self.interpolation.upper()]
        pixels = np.array(image.resize((self.image_size, self.image_size), resample))  # (S, S, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def flips(self, rows: torch.Tensor, *, num_rows: int | None, seed: int, fold: int, epoch: int) -> torch.Tensor:
        """Returns which images to flip, bool (B,), of row numbers (B,): the same whichever process or worker has a row.

        `num_rows` is that of the table; None where rows are streamed, of which there may be any number.
        """
        if num_rows is not None:
            return torch.from_numpy(draws((seed, fold, epoch, _FLIPS), num_rows)[rows.numpy()] < self.flip)
        blocks = [draws((seed, fold, epoch, _FLIPS, row // _BLOCK), _BLOCK)[row % _BLOCK] for row in rows.tolist()]
        return torch.from_numpy(np.array(blocks) < self.flip)

    def normalise(self, images: torch.Tensor, flips: torch.Tensor | None = None) -> torch.Tensor:
        """Returns float32 of uint8 (B, 3, S, S), equal to the last bit to torchvision's transforms.

        Images stay on their device; `flips`, bool (B,), says which are mirrored left to right.
        """
        if flips is not None and bool(flips.any()):
            images = images.clone()
            for i in flips.nonzero()[:, 0].tolist():  # one by one: indexing by a mask takes ten times as long
                images[i] = images[i].flip(-1)
        # Whole rows of pixels against a row of means: with three channels innermost, broadcasting would go by threes.
        rows = images.permute(0, 2, 3, 1).flatten(2)  # (B, S, S * 3)
        mean, std = (value.to(images.device).flatten().repeat(images.shape[-1]) for value in (self.mean, self.std))
        rows = rows.to(torch.float32).div_(255).sub_(mean).div_(std)
        return rows.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)

    def from_floats(self, images: torch.Tensor) -> torch.Tensor:
        """Returns what `normalise` gives, of floats (N, 3, H, W) from 0 to 1, on their device; gradients pass."""
        size = (self.image_size, self.image_size)
        if images.shape[2:] != size:
            images = nn.functional.interpolate(images, size, mode=self.interpolation, antialias=True).clamp(0, 1)
        return (images - self.mean.to(images.device)) / self.std.to(images.device)


def upright(source: Path | bytes | Image.Image, name: str | None = None) -> Image.Image:
    """Returns an RGB image as a viewer shows it: upright by its EXIF note, transparency over white.

    `source` is a file, the content of one, or what Pillow has opened; DataError, which calls it `name` or by its path,
    where it cannot be used.
    """
    shown = name or (str(source) if isinstance(source, Path) else "image in memory")
    with contextlib.nullcontext(source) if isinstance(source, Image.Image) else _open(source, shown) as opened:
        try:
            return _to_rgb(ImageOps.exif_transpose(opened))
        except Exception as error:  # Pillow's decoders fail in many ways, all of which mean a broken file
            raise DataError(f"'{shown}' cannot be decoded: {one_line(error)}.") from error


@functools.lru_cache(maxsize=4)  # batch after batch of an epoch asks for the same ones
def draws(seed: tuple[int, ...], count: int) -> np.ndarray:
    """Returns numbers in [0, 1), (count,), by a seed of several numbers; not to be changed in place."""
    return np.random.RandomState(list(seed)).random_sample(count)


def _open(source: Path | bytes, shown: str) -> Image.Image:
    """Returns an image whose header can be used, its pixels not yet decoded; raises DataError that calls it `shown`."""
    image = None
    try:
        image = Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS)
        problem = _problem(image)
    except UnidentifiedImageError:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
            start = file.read(12)
        problem = f"is not an image: {f'it starts with {start!r}' if start else 'it has 0 bytes'}"
    except Exception as error:  # missing, too large, or what breaks Pillow's parsers, as counting the frames can, too
        problem = f"cannot be read: {one_line(error)}"
    if image is not None and not problem:
        return image
    if image is not None:
        image.close()
    raise DataError(f"'{shown}' {problem}.")


def _problem(image: Image.Image) -> str:
    """Returns why an image is not used, by its header, or ""."""
    if min(image.size) < MIN_SIDE:
        return f"is {image.width}x{image.height} pixels, too small to judge"
    if getattr(image, "is_animated", False) and image.format != "MPO":  # MPO: a JPEG photo and its preview
        return f"is animated ({getattr(image, 'n_frames', 2)} frames); save the one frame to be judged"
    if image.mode == "F":
        return "has floating-point pixels of unknown range; save it with 8 or 16 bits"
    return ""


def _to_rgb(image: Image.Image) -> Image.Image:
    """Returns an 8-bit RGB image: 16-bit grey scaled (Pillow alone would clip it), transparency over white."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its grey values do not fit in 16 bits")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def one_line(error: Exception) -> str:
    """Returns what Pillow or the system says of a file, in one line without a stop."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")
