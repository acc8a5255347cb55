"""Trained models of this framework as a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from ipiqa.engine.predict import PromptCache, autocast
from ipiqa.errors import ConfigError, DataError
from ipiqa.models.bundle import ModelSpec
from ipiqa.models.inference import for_inference
from ipiqa.models.towers import tokenizer_of
from ipiqa.models.weights import printable
from ipiqa.processors.views import over_views
from ipiqa.scoring.images import OneImage, batch_of, normalise_floats, prepare
from ipiqa.scoring.scorer import Scorer

Precision = Literal["none", "bf16", "fp16"]
_NAMES = ("none", "bf16", "fp16")


class ModelScorer(Scorer):
    """One model, or the mean of several of one kind; `models` and `spec` are theirs."""

    def __init__(
        self, models: Sequence[nn.Module], specs: Sequence[ModelSpec], *, device: str = "auto", amp: str = "none"
    ) -> None:
        """Takes built models, which it changes for good, and what they are; `ipiqa.load` explains device and amp."""
        if amp not in _NAMES:
            raise ConfigError(f"amp: {amp!r} is no precision. Take {', '.join(_NAMES[:-1])} or {_NAMES[-1]}.")
        try:
            auto = "cuda" if torch.cuda.is_available() else "cpu"
            self.device = torch.device(auto if device == "auto" else device)
            self.models = [for_inference(model).to(self.device) for model in models]
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"device: {device!r} cannot be used ({printable(error)[:80]}). Take auto.") from None
        self.amp, self.spec, self.num_folds = amp, specs[0], len(models)
        self.processor = self.spec.build_processor()
        self.tokenize = tokenizer_of(self.spec.model.get("prompt_encoder"))
        self.forget_prompts()
        self.targets = self.spec.targets
        self.needs_prompt = any(getattr(model, "reads_prompt", True) for model in self.models)
        self.image_size = self.spec.image_size
        images = sorted(set().union(*(spec.training.images for spec in specs)))
        self.trained_on = replace(self.spec.training, images=images, quantiles=_mean_quantiles(specs))

    def forget_prompts(self) -> None:
        self._caches = [PromptCache.of(model) for model in self.models]  # the weights stay as they are from here on

    def prepare(self, image: OneImage) -> torch.Tensor:
        return prepare(image, self.processor)

    @torch.no_grad()
    def outputs(self, prepared: Sequence[torch.Tensor], prompts: Sequence[str]) -> np.ndarray:
        return self._forward(batch_of(prepared, self.processor, self.device), prompts).cpu().numpy()

    def loss(
        self, images: torch.Tensor, prompts: str | Sequence[str] | None = None, *,
        reduction: Literal["mean", "none"] = "mean",
    ) -> torch.Tensor:  # fmt: skip
        """Returns how far images are from the best score, with gradients to their pixels: to be made smaller.

        It is 1 minus the score on the scale 0 to 1 of each target, its mean over targets: (N,) for `none`, or a number.

        Args:
            images: float (N, 3, H, W) or (3, H, W) from 0 to 1.
            prompts: as for `score`.
            reduction: over the images.
        """
        if not isinstance(images, torch.Tensor) or not images.is_floating_point() or images.shape[-3:-2] != (3,):
            wanted = "A loss has gradients to floats from 0 to 1 alone"
            raise DataError(f"images: no floats of shape (N, 3, H, W). {wanted}.")
        pixels = images if images.ndim == 4 else images[None]
        texts = self.texts(prompts, len(pixels))
        scores = self._forward(normalise_floats(pixels.float().to(self.device), self.processor), texts).mean(dim=0)
        low, span = (torch.from_numpy(value).to(self.device) for value in self.scales())
        losses = 1 - ((scores - low) / span).mean(dim=1)
        return losses.mean() if reduction == "mean" else losses

    def _forward(self, inputs: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Returns scores (F, B, T), fp32, of normalised images (B, 3, S, S) or their views."""
        reads = self.needs_prompt or any(self._caches)
        tokens = self.tokenize(prompts) if reads else torch.zeros(len(prompts), 1).long()
        with autocast(self.device, self.amp):
            both = zip(self.models, self._caches, strict=True)
            each = [over_views(model, inputs, cache(tokens) if cache else tokens) for model, cache in both]
            return torch.stack([scores.float() for scores in each])


def _mean_quantiles(specs: Sequence[ModelSpec]) -> dict[str, list[float]]:
    """Returns the quantiles of the MOS that every fold was trained on, their mean over the folds."""
    known = [spec.training.quantiles for spec in specs]
    names = [name for name in known[0] if all(len(k.get(name, ())) == len(known[0][name]) for k in known)]
    return {name: np.mean([k[name] for k in known], axis=0).tolist() for name in names}
