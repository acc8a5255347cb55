"""Image2Prompt: the image's feature is to be the frozen feature of its own prompt."""

from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ipiqa.datasets.table import AnnotationTable
from ipiqa.errors import ConfigError
from ipiqa.metrics import retrieval
from ipiqa.registry import register


@register("task", "image2prompt")
class ImageToPrompt:
    """Pre-training of the image tower on pictures and their prompts (paper, section 3.1).

    The loss "cosine" (paper) draws each image to its own prompt alone; "contrastive", which has a temperature, also
    away from the other prompts of the batch of its process.
    """

    has_scores = False

    def __init__(self, *, loss: Literal["cosine", "contrastive"] = "cosine", temperature: float = 0.07) -> None:
        if not temperature > 0:
            raise ConfigError(f"task.temperature: {temperature!r} is not above 0. CLIP began with 0.07.")
        self.name, self.temperature = loss, temperature

    def loss(self, image_features: torch.Tensor, prompt_features: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss of pooled image features (B, D) and those of their own prompts, without gradient."""
        images = functional.normalize(image_features.float(), dim=1)
        prompts = functional.normalize(prompt_features.float(), dim=1)
        if self.name == "cosine":
            return (1 - (images * prompts).sum(dim=1)).mean()
        # Images of one prompt are all right answers for it: the target is shared out among them.
        same = (prompts[:, None] == prompts[None]).all(dim=2).float()  # (B, B)
        return functional.cross_entropy(images @ prompts.T / self.temperature, same / same.sum(dim=1, keepdim=True))

    def step(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.loss(*model(batch["images"], batch["tokens"]))

    def outputs(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns image features and prompt features side by side, (B, 2 D)."""
        return torch.cat([feature.float() for feature in model(batch["images"], batch["tokens"])], dim=1)

    def measure(
        self, outputs: np.ndarray, table: AnnotationTable | None, rows: np.ndarray
    ) -> tuple[dict[str, Any], float]:
        images, prompts = np.split(outputs, 2, axis=1)  # (N, D) each
        metrics = retrieval(images, prompts)
        value = metrics["recall_at_1"] + metrics["recall_at_5"] + metrics["mean_cosine"]
        return metrics | {"num_images": len(images), "num_prompts": len(np.unique(prompts, axis=0))}, value
