"""Several views of one image, its aspect kept: crops at full detail, and the whole of it made smaller."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from ipiqa.errors import ConfigError
from ipiqa.processors.image import SquashProcessor, draws, upright
from ipiqa.registry import register

_CROPS = 5  # number in the RandomState seed: a stream that splits, batches and flips do not share


@register("processor", "views")
class ViewsProcessor(SquashProcessor):
    """Random crops in training, a grid of crops otherwise, and the whole image once; scores are the mean over views.

    Views are cut from what is decoded and cached: the image, its longer side as long as `stored_size`, at the top left
    of a square whose rest is a pattern that no picture has.

    Args:
        image_size: side of a view, in pixels: what the model sees.
        stored_size: longer side of an image that views are cut from, in pixels.
        crops: number of random crops of an image in a step of training.
        grid: crops in each direction, evenly from edge to edge, where nothing trains; 0 for the whole image alone.
        flip: probability that all views of an image are mirrored in training.
        interpolation: filter of the resize, Pillow's for what is stored; mean and std are those of `squash`.
    """

    gives_views = True

    def __init__(
        self, image_size: int, *, stored_size: int = 512, crops: int = 3, grid: int = 2, flip: float = 0.5,
        interpolation: Literal["bicubic", "bilinear"] = "bicubic", mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(stored_size, flip=flip, interpolation=interpolation, mean=mean, std=std)
        ranges = {"stored_size": (stored_size, image_size, 4096), "crops": (crops, 0, 64), "grid": (grid, 0, 8)}
        for name, (value, low, high) in ranges.items():
            if not low <= value <= high:
                raise ConfigError(f"processor.{name}: {value} is out of range. Give {low} to {high}.")
        self.view_size, self.crops, self.grid = image_size, crops, grid

    def section(self) -> dict[str, Any]:
        own = {"name": "views", "stored_size": self.image_size, "crops": self.crops, "grid": self.grid}
        return super().section() | own

    @property
    def key(self) -> str:
        return f"aspect kept 1, {super().key}"

    def decode(self, source: Path | bytes | Image.Image, name: str | None = None) -> torch.Tensor:
        """Returns the image (3, S, S), uint8, as it is stored; arguments and errors as for `upright`."""
        image = upright(source, name)
        scale = self.image_size / max(image.size)
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        pixels = _pattern(self.image_size).copy()
        pixels[: size[1], : size[0]] = np.array(image.resize(size, Image.Resampling[self.interpolation.upper()]))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def flips(self, rows: torch.Tensor, *, num_rows: int | None, seed: int, fold: int, epoch: int) -> torch.Tensor:
        """Returns float64 (B, 1 + 2 crops): whether to flip an image, 0 or 1, and where its crops lie, in [0, 1)."""
        assert num_rows is not None  # streamed rows are for pre-training, which takes no views
        places = draws((seed, fold, epoch, _CROPS), num_rows * 2 * self.crops).reshape(num_rows, -1)[rows.numpy()]
        flips = super().flips(rows, num_rows=num_rows, seed=seed, fold=fold, epoch=epoch)
        return torch.cat([flips[:, None].double(), torch.from_numpy(places)], dim=1)

    def normalise(self, images: torch.Tensor, flips: torch.Tensor | None = None) -> torch.Tensor:
        """Returns float32 views (B, V, 3, s, s) of images (B, 3, S, S) as `decode` gives them, on their device.

        `flips`, as the method of that name gives them, are for training: V is then crops + 1, else grid ** 2 + 1.
        """
        rest = torch.from_numpy(_pattern(self.image_size)).permute(2, 0, 1).to(images.device)
        is_rest = (images == rest).all(dim=1)  # (B, S, S)
        heights, widths = (self.image_size - is_rest.all(dim=d).sum(dim=1) for d in (2, 1))
        sizes = zip(heights.tolist(), widths.tolist(), strict=True)
        chosen = [None] * len(images) if flips is None else flips.tolist()
        each = zip(images, sizes, chosen, strict=True)
        return torch.cat([self._views(image[None, :, :h, :w].float() / 255, own) for image, (h, w), own in each])

    def from_floats(self, images: torch.Tensor) -> torch.Tensor:
        """Returns views (N, V, 3, s, s), for evaluation, of floats (N, 3, H, W) from 0 to 1; gradients pass."""
        return self._views(self._resized(images, self.image_size))

    def _views(self, images: torch.Tensor, drawn: Sequence[float] | None = None) -> torch.Tensor:
        """Returns normalised views (N, V, 3, s, s) of floats (N, 3, h, w), the whole image last."""
        (height, width), size = images.shape[2:], self.view_size
        side = min(size, height, width)
        if drawn is None:
            steps = [i / (self.grid - 1) if self.grid > 1 else 0.5 for i in range(self.grid)]
            corners = [(round(y * (height - side)), round(x * (width - side))) for y in steps for x in steps]
        else:
            room = (height - side + 1, width - side + 1)
            corners = [(int(y * room[0]), int(x * room[1])) for y, x in zip(drawn[1::2], drawn[2::2], strict=True)]
        views = [self._resized(images[:, :, y : y + side, x : x + side], size) for y, x in corners]
        mean, std = (value.to(images.device) for value in (self.mean, self.std))
        whole = (self._resized(images, size) - mean) / std
        rest_y, rest_x = (size - length for length in whole.shape[2:])  # of the square, to be of the mean colour
        whole = functional.pad(whole, (rest_x // 2, rest_x - rest_x // 2, rest_y // 2, rest_y - rest_y // 2))
        out = torch.stack([*((view - mean) / std for view in views), whole], dim=1)
        return out.flip(-1) if drawn is not None and drawn[0] else out

    def _resized(self, images: torch.Tensor, longer: int) -> torch.Tensor:
        """Returns images (N, 3, h, w) with their longer side as long as that."""
        scale = longer / max(images.shape[2:])
        size = tuple(max(round(side * scale), 1) for side in images.shape[2:])
        if size == images.shape[2:]:
            return images
        return functional.interpolate(images, size, mode=self.interpolation, antialias=True).clamp(0, 1)


@functools.lru_cache(maxsize=2)
def _pattern(size: int) -> np.ndarray:
    """Returns noise (S, S, 3), uint8: a row or column of a picture that equals one of its own is not to be expected."""
    return np.random.RandomState(0).randint(0, 256, (size, size, 3), dtype=np.uint8)


def over_views(model: nn.Module, images: torch.Tensor | tuple[torch.Tensor, ...], prompts: Any) -> torch.Tensor:
    """Returns what a model gives for images (B, 3, s, s), or the mean over views (B, V, 3, s, s), one after another."""
    if isinstance(images, tuple) or images.ndim == 4:  # a tuple: what a tower gave for images
        return model(images, prompts)
    return torch.stack([model(view, prompts) for view in images.unbind(1)]).mean(dim=0)
