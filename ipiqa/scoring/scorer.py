"""A trained model in one object: images and prompts in, scores out. `ipiqa.load` makes it of what training leaves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from ipiqa.datasets.table import Target
from ipiqa.engine.predict import autocast
from ipiqa.engine.prompt_cache import PromptCache
from ipiqa.errors import ConfigError, DataError
from ipiqa.models.bundle import CONFIG, ModelSpec, Training
from ipiqa.models.checkpoints import read_checkpoint
from ipiqa.models.clip_weights import load_exactly
from ipiqa.models.towers import tokenizer_of
from ipiqa.models.weights import printable
from ipiqa.registry import file_path

OneImage = str | Path | Image.Image | torch.Tensor
Precision = Literal["none", "bf16", "fp16"]
BATCH_SIZE = 32


def load(
    what: str | Path, device: str = "auto", amp: Precision = "none", *, folds: Sequence[int] | None = None
) -> Scorer:
    """Returns the scorer that a bundle, a checkpoint or a run folder holds; no other file is needed.

    Args:
        what: a bundle or fold folder, a checkpoint such as best.pt, or a run folder, of which each score is the mean
            over its folds' best epochs.
        device: "auto" takes a GPU where there is one; "cpu", "cuda", "cuda:1", ...
        amp: precision; "bf16" is faster and changes scores a little.
        folds: which folds of a run folder; None for all.

    A file that is missing, damaged or does not say which model it belongs to is a DataError, a device that is not
    there a ConfigError.
    """
    specs: list[ModelSpec] = []
    models = []
    for path in _checkpoints(what, folds):
        checkpoint, where = read_checkpoint(path, "ipiqa.load"), f"ipiqa.load: '{path}'"
        if (spec := checkpoint.spec) is None:
            how = f"ipiqa.build_model(CONFIG, 'run.checkpoint={path}')"
            raise DataError(f"{where} does not say which model it belongs to. Build that from its config: {how}.")
        if not spec.targets:
            raise DataError(f"{where} was pre-trained and scores nothing. Train it on scores first.")
        specs.append(spec)
        if problems := ["its targets are others"] * (spec.targets != specs[0].targets) + spec.differences(specs[0]):
            raise DataError(f"{where}: not of the first fold's model: {problems[0]}. Load it alone.")
        models.append(spec.build())
        load_exactly(models[-1], checkpoint.tensors, where, checkpoint.may_miss)
    return Scorer(models, specs[0], device=device, amp=amp)


def _checkpoints(what: str | Path, folds: Sequence[int] | None) -> list[Path]:
    """Returns the checkpoint files, or the one bundle, that a path stands for."""
    path = Path(file_path(str(what), "ipiqa.load"))
    is_folder = os.path.isdir(path) and not (path / CONFIG).is_file()  # noqa: PTH112 (is_dir raises for a long path)
    if not is_folder or (path / "best.pt").is_file():
        if folds is not None:
            raise ConfigError(f"ipiqa.load: folds: '{path}' is not a run folder. Leave folds out.")
        return [path / "best.pt" if is_folder else path]
    of_fold = {int(n): file for file in sorted(path.glob("fold_*/best.pt")) if (n := file.parent.name[5:]).isdecimal()}
    if not of_fold:
        raise DataError(f"ipiqa.load: '{path}' holds neither a bundle nor a best.pt of any fold. Give one that does.")
    chosen = [*of_fold] if folds is None else [*folds]
    if not chosen or not {*chosen} <= of_fold.keys():
        missing = [fold for fold in chosen if fold not in of_fold] or "none"
        raise DataError(f"ipiqa.load: '{path}' has no best.pt of fold {missing}. There are: {str([*of_fold])[1:-1]}.")
    return [file for fold, file in of_fold.items() if fold in chosen]


class Scorer:
    """One model, or the mean of several of one kind."""

    def __init__(self, models: list[nn.Module], spec: ModelSpec, *, device: str = "auto", amp: str = "none") -> None:
        """Takes built models and what they are; `load` explains device and amp."""
        if amp not in ("none", "bf16", "fp16"):
            raise ConfigError(f"amp: {amp!r} is no precision. Take none, bf16 or fp16.")
        try:
            auto = "cuda" if torch.cuda.is_available() else "cpu"
            self._device = torch.device(auto if device == "auto" else device)
            models = [model.eval().to(self._device) for model in models]
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device: {device!r} cannot be used ({printable(error)[:80]}). Take auto.") from None
        self._amp = amp
        self._processor = spec.build_processor()
        self._tokenize = tokenizer_of(spec.model.get("prompt_encoder"))
        self._models = [(model, PromptCache.of(model)) for model in models]  # the weights stay as they are from here on
        self.targets: tuple[Target, ...] = spec.targets  # what the T scores of an image mean, in order
        self.needs_prompt = any(getattr(model, "reads_prompt", True) for model in models)
        self.image_size: int = spec.image_size  # side of what the model sees; images of any size are resized to it
        self.trained_on: Training = spec.training  # of the first model

    @torch.inference_mode()
    def score(self, images: OneImage | Sequence[OneImage], prompts: str | Sequence[str] | None = None) -> np.ndarray:
        """Returns (N, T) float32 scores in units of the MOS trained on, whatever images they are scored among.

        Args:
            images: one or N: paths, PIL images, or tensors (3, H, W) or (N, 3, H, W), uint8 or float from 0 to 1.
            prompts: N texts, or one for all images; None where `needs_prompt` is false.

        An image that cannot be used and a prompt that is missing or empty are a DataError.
        """
        is_one = isinstance(images, (str, Path, Image.Image)) or (isinstance(images, torch.Tensor) and images.ndim != 4)
        listed: list[OneImage] = [images] if is_one else list(images)  # type: ignore[list-item,arg-type]
        texts = self._texts(prompts, len(listed))
        out = [torch.zeros(0, len(self.targets))]
        for start in range(0, len(listed), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            inputs = torch.stack([self._input(image) for image in listed[part]]).to(self._device)
            tokens = self._tokenize(texts[part])
            with autocast(self._device, self._amp):
                scores = [model(inputs, cache(tokens) if cache else tokens).float() for model, cache in self._models]
            out.append(torch.stack(scores).mean(dim=0).cpu())
        return torch.cat(out).numpy()

    __call__ = score

    def _texts(self, prompts: str | Sequence[str] | None, count: int) -> list[str]:
        if prompts is None and self.needs_prompt:
            raise DataError("prompts: missing, and the scores depend on them. Give one text per image.")
        texts = [prompts or ""] * count if prompts is None or isinstance(prompts, str) else list(prompts)
        if len(texts) != count:
            raise DataError(f"prompts: {len(texts)} for {count} images. Give one text per image, or one for all.")
        for row, text in enumerate(texts):
            if not isinstance(text, str) or (self.needs_prompt and not text.strip()):
                raise DataError(f"prompts: row {row}: {text!r:.60} is no prompt. Give each image a text, none empty.")
        return texts

    def _input(self, image: OneImage) -> torch.Tensor:
        """Returns what the model sees of an image: float32 (3, S, S), normalised."""
        source: Path | Image.Image | None = None
        shown = type(image).__name__
        if isinstance(image, (str, Path)):
            source = Path(file_path(str(image), "images"))
        elif isinstance(image, Image.Image):
            source, shown = image if image.mode != "F" else None, f"an image of mode {image.mode}"  # F: of any range
        elif isinstance(image, torch.Tensor):
            is_image = image.ndim == 3 and image.shape[0] == 3 and image.numel() > 0
            if is_image and image.is_floating_point():
                return self._input_of_floats(image.float().cpu())
            is_bytes, shown = is_image and image.dtype == torch.uint8, f"a tensor of {(*image.shape, image.dtype)}"
            source = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) if is_bytes else None
        if source is None:
            right = "a path, a PIL image of 8 or 16 bits, or a tensor (3, H, W), uint8 or float from 0 to 1"
            raise DataError(f"images: {shown} cannot be scored. Give {right}.")
        return self._processor.normalise(self._processor.decode(source)[None])[0]

    def _input_of_floats(self, image: torch.Tensor) -> torch.Tensor:
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise DataError("images: a tensor has values outside 0 to 1, or that are not finite. Give uint8 or 0 to 1.")
        size = (self.image_size, self.image_size)
        if image.shape[1:] != size:
            mode = self._processor.interpolation
            image = functional.interpolate(image[None], size, mode=mode, antialias=True)[0].clamp(0, 1)
        return (image - self._processor.mean) / self._processor.std
