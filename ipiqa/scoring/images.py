"""Images in the forms that users have them -> what a model sees: float32 (B, 3, S, S), normalised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from ipiqa.errors import DataError
from ipiqa.processors.image import SquashProcessor, upright
from ipiqa.registry import file_path

OneImage = str | Path | bytes | Image.Image | torch.Tensor
Images = OneImage | Sequence[OneImage]  # a tensor (N, 3, H, W) is N images


def listed(images: Images) -> list[OneImage]:
    """Returns images one by one."""
    if isinstance(images, torch.Tensor):
        return [images] if images.ndim != 4 else list(images)
    return [images] if isinstance(images, (str, Path, bytes, Image.Image)) else list(images)


def prepare(image: OneImage, processor: SquashProcessor) -> torch.Tensor:
    """Returns an image (3, S, S): uint8 as decoded, or float32 and normalised where it came as floats from 0 to 1.

    `image` is a path, the content of a file, a PIL image, or a tensor (3, H, W). DataError where it cannot be used.
    """
    if isinstance(image, torch.Tensor) and _is_image(image) and image.is_floating_point():
        return normalise_floats(image.float().cpu()[None], processor)[0]
    return processor.decode(_source(image))


def picture(image: OneImage) -> Image.Image:
    """Returns an image in RGB, upright and in its own size; DataError where it cannot be used."""
    return upright(_source(as_bytes(image)))


def _is_image(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 3 and tensor.shape[0] == 3 and tensor.numel() > 0


def _source(image: OneImage) -> Path | bytes | Image.Image:
    """Returns what Pillow can open; DataError for what is no image."""
    shown = type(image).__name__
    if isinstance(image, (str, Path)):
        return Path(file_path(str(image), "images"))
    if isinstance(image, torch.Tensor):
        if _is_image(image) and image.dtype == torch.uint8:
            return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        shown = f"a tensor of {(*image.shape, image.dtype)}"
    elif isinstance(image, Image.Image) and image.mode == "F":  # of any range
        shown = "an image of mode F"
    elif isinstance(image, (bytes, Image.Image)):
        return image
    right = "a path, a PIL image of 8 or 16 bits, or a tensor (3, H, W), uint8 or float from 0 to 1"
    raise DataError(f"images: {shown} cannot be scored. Give {right}.")


def normalise_floats(images: torch.Tensor, processor: SquashProcessor) -> torch.Tensor:
    """Returns what the model sees of floats (N, 3, H, W) from 0 to 1, on their device; gradients pass."""
    _check_range(images)
    return processor.from_floats(images)


def as_bytes(image: OneImage) -> OneImage:
    """Returns an image, a tensor of floats from 0 to 1 as uint8, rounded as they would be in a PNG of them."""
    if not isinstance(image, torch.Tensor) or not image.is_floating_point():
        return image
    _check_range(image)
    return (image * 255).round().to(torch.uint8)


def _check_range(images: torch.Tensor) -> None:
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise DataError("images: a tensor has values outside 0 to 1, or that are not finite. Give uint8 or 0 to 1.")


def batch_of(prepared: Sequence[torch.Tensor], processor: SquashProcessor, device: torch.device) -> torch.Tensor:
    """Returns what the model sees, float32 (B, 3, S, S) on a device, of images as `prepare` returns them."""
    if all(image.dtype == torch.uint8 for image in prepared):
        return processor.normalise(torch.stack(list(prepared)).to(device, non_blocking=True))
    done = [processor.normalise(image[None])[0] if image.dtype == torch.uint8 else image for image in prepared]
    return torch.stack(done).to(device)
