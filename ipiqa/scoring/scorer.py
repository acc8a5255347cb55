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
BATCH_SIZE = 32


def load(
    what: str | Path, device: str = "auto", amp: Literal["none", "bf16", "fp16"] = "none", *,
    folds: Sequence[int] | None = None,
) -> Scorer:  # fmt: skip
    """Returns the scorer that a bundle, a checkpoint or a run folder holds; no other file is needed.

    Args:
        what: a bundle or fold folder, a checkpoint such as best.pt, or a run folder, of which each score is the mean
            over its folds' best epochs.
        device: "auto" takes a GPU where there is one; "cpu", "cuda", "cuda:1", ...
        amp: precision; "bf16" is faster and changes scores a little.
        folds: which folds of a run folder; None for all.

    Raises:
        DataError: a file is missing or damaged, or does not say which model it belongs to.
        ConfigError: the device is not there.
    """
    specs, models = [], []
    for path in _checkpoints(what, folds):
        checkpoint = read_checkpoint(path, "ipiqa.load")
        if checkpoint.spec is None:
            raise DataError(
                f"ipiqa.load: '{path}' does not say which model it belongs to. Build that from its config: "
                f"ipiqa.build_model(CONFIG, 'run.checkpoint={path}')."
            )
        if not checkpoint.spec.targets:
            raise DataError(f"ipiqa.load: '{path}' was pre-trained and scores nothing. Train it on scores first.")
        model = checkpoint.spec.build()
        load_exactly(model, checkpoint.tensors, f"ipiqa.load: '{path}'", checkpoint.may_miss)
        specs.append(checkpoint.spec)
        models.append(model)
        problems = [] if checkpoint.spec.targets == specs[0].targets else ["its targets are others"]
        if problems := problems + checkpoint.spec.differences(specs[0]):
            raise DataError(f"ipiqa.load: '{path}': not of the first fold's model: {problems[0]}. Load it alone.")
    return Scorer(models, specs[0], device=device, amp=amp)


def _checkpoints(what: str | Path, folds: Sequence[int] | None) -> list[Path]:
    """Returns the checkpoint files, or the one bundle, that a path stands for."""
    path = Path(file_path(str(what), "ipiqa.load"))
    where, is_folder = f"ipiqa.load: '{path}'", os.path.isdir(path)  # noqa: PTH112 (is_dir raises for a long path)
    is_run = is_folder and not (path / CONFIG).is_file() and not (path / "best.pt").is_file()
    files = sorted(path.glob("fold_*/best.pt")) if is_run else []
    found = {int(number): file for file in files if (number := file.parent.name[5:]).isdecimal()}
    if not is_run:
        if folds is not None:
            raise ConfigError(f"ipiqa.load: folds: '{path}' is not a run folder. Leave folds out.")
        return [path / "best.pt"] if is_folder and not (path / CONFIG).is_file() else [path]
    if not found:
        raise DataError(f"{where} holds neither a bundle nor a best.pt of any fold. Give one that does.")
    missing = [fold for fold in folds or () if fold not in found]
    if missing or (folds is not None and not folds):
        raise DataError(f"{where} has no best.pt of fold {missing or 'none'}. There are: {', '.join(map(str, found))}.")
    return [file for fold, file in found.items() if folds is None or fold in folds]


class Scorer:
    """One model, or the mean of several of one kind.

    Attributes:
        targets: what the T scores of an image mean, in order.
        needs_prompt: whether the scores depend on prompts.
        image_size: side of what the model sees, in pixels; images of any size are resized to it.
        trained_on: what the (first) model was trained on.
    """

    def __init__(
        self, models: Sequence[nn.Module], spec: ModelSpec, *, device: str = "auto", amp: str = "none"
    ) -> None:
        """Takes built models and what they are; `load` explains device and amp."""
        if amp not in ("none", "bf16", "fp16"):
            raise ConfigError(f"amp: {amp!r} is no precision. Take none, bf16 or fp16.")
        try:
            name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
            self._device = torch.device(name)
            self._models = [model.eval().to(self._device) for model in models]
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device: {device!r} cannot be used ({printable(error)[:80]}). Take auto.") from None
        self._spec, self._amp = spec, amp
        self._processor = spec.build_processor()
        self._tokenize = tokenizer_of(spec.model.get("prompt_encoder"))
        self._prompts = [PromptCache.of(model) for model in self._models]  # the weights stay as they are from here on
        self.targets: tuple[Target, ...] = spec.targets
        self.needs_prompt = any(getattr(model, "reads_prompt", True) for model in self._models)
        self.image_size: int = spec.image_size
        self.trained_on: Training = spec.training

    def __call__(self, images: OneImage | Sequence[OneImage], prompts: str | Sequence[str] | None = None) -> np.ndarray:
        """The same as `score`."""
        return self.score(images, prompts)

    @torch.inference_mode()
    def score(self, images: OneImage | Sequence[OneImage], prompts: str | Sequence[str] | None = None) -> np.ndarray:
        """Returns (N, T) float32 scores in units of the MOS trained on, whatever images they are scored among.

        Args:
            images: one or N: paths, PIL images, or tensors (3, H, W) or (N, 3, H, W), uint8 or float from 0 to 1.
            prompts: N texts, or one for all images; None where `needs_prompt` is false.

        Raises:
            DataError: an image cannot be used, or there are not as many prompts as images.
        """
        listed = _listed(images)
        texts = self._texts(prompts, len(listed))
        out = [torch.zeros(0, len(self.targets))]
        for start in range(0, len(listed), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            inputs = torch.stack([self._input(image) for image in listed[part]]).to(self._device)
            with autocast(self._device, self._amp):
                scores = [self._of_model(number, inputs, texts[part]).float() for number in range(len(self._models))]
            out.append(torch.stack(scores).mean(dim=0).cpu())
        return torch.cat(out).numpy()

    def _of_model(self, number: int, inputs: torch.Tensor, texts: list[str]) -> torch.Tensor:
        tokens, prompts = self._tokenize(texts), self._prompts[number]
        scores: torch.Tensor = self._models[number](inputs, tokens if prompts is None else prompts(tokens))
        return scores

    def _texts(self, prompts: str | Sequence[str] | None, count: int) -> list[str]:
        if prompts is None and self.needs_prompt:
            raise DataError("prompts: missing, and the scores depend on them. Give one text per image.")
        texts = [prompts or ""] * count if prompts is None or isinstance(prompts, str) else list(prompts)
        if len(texts) != count:
            raise DataError(f"prompts: {len(texts)} for {count} images. Give one text per image, or one for all.")
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise DataError(f"prompts: {printable(wrong[0])[:60]} is not text. Give one text per image.")
        return texts

    def _input(self, image: OneImage) -> torch.Tensor:
        """Returns what the model sees of an image: float32 (3, S, S), normalised."""
        if isinstance(image, (str, Path)):
            return self._processor.normalise(self._processor.decode(Path(file_path(str(image), "images")))[None])[0]
        if isinstance(image, torch.Tensor) and image.dtype == torch.uint8:
            image = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        if isinstance(image, Image.Image):
            if image.mode == "F":
                raise DataError("images: one has floating-point pixels of unknown range. Give 8 or 16 bits.")
            return self._processor.normalise(self._processor.decode(image)[None])[0]
        image = image.float().cpu()
        if not bool(((image >= 0) & (image <= 1)).all()):
            raise DataError("images: a tensor has values outside 0 to 1, or that are not finite. Give uint8 or 0 to 1.")
        if image.shape[1:] != (self.image_size,) * 2:
            size, mode = (self.image_size,) * 2, self._processor.interpolation
            image = functional.interpolate(image[None], size, mode=mode, antialias=True)[0].clamp(0, 1)
        return (image - self._processor.mean) / self._processor.std


def _listed(images: OneImage | Sequence[OneImage]) -> list[OneImage]:
    """Returns images one by one, each a path, a PIL image or a tensor (3, H, W) of at least one pixel."""
    if isinstance(images, torch.Tensor):
        listed: list[OneImage] = list(images) if images.ndim == 4 else [images]
    else:
        listed = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    for image in listed:
        if isinstance(image, torch.Tensor):
            is_number = image.dtype == torch.uint8 or image.is_floating_point()
            if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0 or not is_number:
                shape = (*image.shape, image.dtype)
                raise DataError(f"images: a tensor of {shape} is no image. Give (3, H, W), uint8 or float from 0 to 1.")
        elif not isinstance(image, (str, Path, Image.Image)):
            raise DataError(f"images: {type(image).__name__} is no image. Give a path, a PIL image or a tensor.")
    return listed
