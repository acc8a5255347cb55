"""What scores images against prompts, whoever made it: one interface for Python, commands, server and cluster."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ipiqa.datasets.table import Target
from ipiqa.errors import ConfigError, DataError, did_you_mean
from ipiqa.models.bundle import Training
from ipiqa.prompts import num_too_long
from ipiqa.scoring.images import Images, OneImage, listed

if TYPE_CHECKING:
    import pandas

logger = logging.getLogger("ipiqa")

BATCH_SIZE = 32


class Scorer(ABC):
    """Images and prompts -> scores: one model, or the mean of the F folds of one kind.

    Attributes:
        targets: what the T scores of an image mean, in order.
        needs_prompt: whether scores depend on prompts.
        image_size: side of what the model sees, in pixels; images of any size are resized to it.
        trained_on: of the first fold, as far as it is known; its images are those of all folds.
    """

    targets: tuple[Target, ...]
    needs_prompt: bool
    image_size: int
    trained_on: Training
    num_folds = 1  # F
    device = torch.device("cpu")  # that it computes on
    fits = 2**16  # images that its memory takes at once, as far as is known
    _has_warned = False

    @abstractmethod
    def prepare(self, image: OneImage) -> Any:
        """Returns an image as `outputs` takes it; threads may call this at once. DataError: it cannot be used."""

    @abstractmethod
    def outputs(self, prepared: Sequence[Any], prompts: Sequence[str]) -> np.ndarray:
        """Returns (F, B, T) float32, the scores by each of F folds, of one batch of prepared images."""

    def forget_prompts(self) -> None:  # noqa: B027 (most keep nothing)
        """Forgets what is kept of earlier prompts, so that the next scores are those of a new process to the bit."""

    def score(self, images: Images, prompts: str | Sequence[str] | None = None) -> np.ndarray:
        """Returns (N, T) float32 scores in units of the MOS trained on, whatever images they are scored among.

        Args:
            images: one or N: paths, PIL images, or tensors (3, H, W) or (N, 3, H, W), uint8 or float from 0 to 1.
            prompts: N texts, or one for all images; None where `needs_prompt` is false.

        An image that cannot be used and a prompt that is missing or empty are a DataError.
        """
        return self.score_folds(images, prompts).mean(axis=0)

    __call__ = score

    def score_folds(self, images: Images, prompts: str | Sequence[str] | None = None) -> np.ndarray:
        """Returns (F, N, T) float32: the scores by each fold, of which `score` is the mean."""
        all_images = listed(images)
        texts = self.texts(prompts, len(all_images))
        if not all_images:
            return np.zeros((self.num_folds, 0, len(self.targets)), np.float32)
        parts = [slice(start, start + BATCH_SIZE) for start in range(0, len(all_images), BATCH_SIZE)]
        outputs = [self.outputs([self.prepare(image) for image in all_images[part]], texts[part]) for part in parts]
        return np.concatenate(outputs, axis=1)

    def frame(self, images: Images, prompts: str | Sequence[str] | None = None) -> pandas.DataFrame:
        """Returns one row an image: image, prompt, and for each target the score and what `columns` adds to it.

        `<target>_percentile` is the share, 0 to 100, of the images trained on whose MOS is lower; `<target>_std` the
        standard deviation of the scores of its models, where there are several: one per fold and seed.
        """
        import pandas

        all_images = listed(images)
        texts = self.texts(prompts, len(all_images))
        names = [str(image) if isinstance(image, (str, Path)) else f"image {i}" for i, image in enumerate(all_images)]
        columns = self.columns(self.score_folds(all_images, texts))
        return pandas.DataFrame({"image": names, "prompt": texts} | columns)

    def columns(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the columns (N,) that a table has of scores (F, N, T), by name."""
        out = {}
        mean = scores.mean(axis=0)
        for i, target in enumerate(self.targets):
            out[target.name] = mean[:, i]
            if target.name in self.trained_on.quantiles:
                out[f"{target.name}_percentile"] = self.percentiles(mean[:, i], target.name)
            if len(scores) > 1:
                out[f"{target.name}_std"] = scores[:, :, i].std(axis=0, ddof=1)
        return out

    def percentiles(self, scores: np.ndarray, target: str) -> np.ndarray:
        """Returns which percentile, 0 to 100, of the MOS trained on each score (N,) is."""
        quantiles = self.trained_on.quantiles[target]
        percent = np.interp(scores, quantiles, np.linspace(0, 100, len(quantiles)))
        return percent.astype(np.float32)

    def rank(self, images: Images, prompt: str | None = None, *, by: str | None = None) -> pandas.DataFrame:
        """Returns the `frame` of several images for one prompt, best first; the index numbers them as they came.

        `by` names the target to sort by; None for the mean of all, each on the scale 0 to 1 of its MOS.
        """
        names = [target.name for target in self.targets]
        if by is not None and by not in names:
            known = f"{did_you_mean(by, names)} There are: {', '.join(names)}."
            raise ConfigError(f"by: no target is called {by!r}.{known}")
        frame = self.frame(images, prompt)
        low, span = self.scales()
        key = (frame[names].to_numpy() - low) / span  # (N, T)
        key = key.mean(axis=1) if by is None else key[:, names.index(by)]
        return frame.iloc[np.argsort(-key, kind="stable")]

    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the lowest score (T,) and the span (T,) of each target's scale, or of the MOS trained on."""
        ends = []
        for target in self.targets:
            quantiles = self.trained_on.quantiles.get(target.name) or [0.0, 1.0]
            low = quantiles[0] if target.low is None else target.low
            high = quantiles[-1] if target.high is None else target.high
            ends.append((low, (high - low) or 1.0))
        low_and_span = np.array(ends, np.float32)
        return low_and_span[:, 0], low_and_span[:, 1]

    def texts(self, prompts: str | Sequence[str] | None, count: int) -> list[str]:
        """Returns one prompt per image; DataError where one is missing or empty and scores depend on it."""
        if prompts is None and self.needs_prompt:
            raise DataError("prompts: missing, and the scores depend on them. Give one text per image.")
        texts = [prompts or ""] * count if prompts is None or isinstance(prompts, str) else list(prompts)
        if len(texts) != count:
            raise DataError(f"prompts: {len(texts)} for {count} images. Give one text per image, or one for all.")
        for row, text in enumerate(texts):
            if not isinstance(text, str) or (self.needs_prompt and not text.strip()):
                raise DataError(f"prompts: row {row}: {text!r:.60} is no prompt. Give each image a text, none empty.")
        if self.needs_prompt and not self._has_warned and (number := num_too_long(texts)):
            self._has_warned = True
            message = "prompts: %d of %d are longer than the model reads; their last words do not count"
            logger.warning(message, number, count)
        return texts
