"""Scores of many images, on one process or several; features of prompts computed once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sized
from typing import Any

import numpy as np
import torch
from torch import nn

from ipiqa import dist
from ipiqa.engine.log import progress_bar
from ipiqa.engine.stop import Interrupted, StopSignals

Batch = dict[str, torch.Tensor]
MOST_KEPT = 65536  # features: where prompts are counted in millions, memory stays bounded


class PromptCache:
    """Tokens -> features of one prompt encoder, valid while its weights stay as they are: its owner sees to that.

    Features of a frozen encoder are computed in fp32, those of another in the precision around the call. A model with
    `fixed_prompts`, tokens (P, context), gets the features of these, (P, D), whatever it is asked for.
    """

    def __init__(self, encoder: nn.Module, fixed_prompts: torch.Tensor | None = None) -> None:
        self.encoder, self.fixed_prompts = encoder, fixed_prompts
        self.is_frozen = not any(p.requires_grad for p in encoder.parameters())
        self._features: dict[bytes, torch.Tensor] = {}  # by the prompt's tokens

    @classmethod
    def of(cls, model: nn.Module) -> PromptCache | None:
        """Returns a cache for a model that reads features of its `prompt_encoder`, None for another."""
        encoder, fixed = getattr(model, "prompt_encoder", None), getattr(model, "fixed_prompts", None)
        reads = getattr(model, "reads_prompt", False) or fixed is not None
        return cls(encoder, fixed) if reads and encoder is not None else None

    @torch.no_grad()
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns features (B, D) of tokens (B, context), without gradient."""
        tokens = tokens if self.fixed_prompts is None else self.fixed_prompts
        distinct, place = torch.unique(tokens, dim=0, return_inverse=True)
        keys = [row.tobytes() for row in distinct.cpu().numpy()]
        known = {key: self._features[key] for key in keys if key in self._features}
        if new := [i for i, key in enumerate(keys) if key not in known]:
            device = next(self.encoder.parameters()).device.type
            in_fp32 = self.is_frozen or not torch.is_autocast_enabled(device)
            with torch.autocast(device, enabled=not in_fp32):
                known |= zip([keys[i] for i in new], self.encoder(distinct[new]), strict=True)
            rows = known[keys[new[0]]].shape[:-1].numel()  # of a feature: several where there is one for each word
            if (len(self._features) + len(new)) * rows > MOST_KEPT:
                self._features = {}
            self._features |= known
        features = torch.stack([known[key] for key in keys])
        return features[place.to(features.device)]


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager[Any]:
    """Returns the precision context of `amp`: "none", "bf16" or "fp16"."""
    if amp == "none":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if amp == "bf16" else torch.float16)


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Iterable[Batch], forward: Callable[[nn.Module, Batch], torch.Tensor], *,
    device: torch.device, amp: str = "none", prompts: PromptCache | None = None, description: str = "",
    stop: StopSignals | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns (rows (N,), predictions (N, T) float32), sorted by row, the same on every process.

    Each process goes through its own share of the rows; no row is padded, repeated or dropped.

    Args:
        model: in any mode; evaluated in evaluation mode and left in the mode it was in.
        batches: dicts with "rows" (B,) and whatever `forward` reads.
        forward: (model, batch) -> predictions (B, T).
        prompts: features kept from batch to batch; None keeps them for this call alone.
        stop: asked between batches, where there is nothing to save; Interrupted where any process got a signal.
    """
    dist.broadcast_buffers(model)
    prompts = prompts or PromptCache.of(model)
    was_training = model.training
    model.eval()
    rows, predictions = [], []
    with progress_bar(description, len(batches) if isinstance(batches, Sized) else None) as bar:
        for batch in batches:
            if stop is not None and stop.signal_number is not None:
                break
            with autocast(device, amp):
                if prompts is not None and "tokens" in batch:
                    batch = batch | {"tokens": prompts(batch["tokens"])}
                output = forward(model, batch)
            rows.append(batch["rows"].numpy())
            predictions.append(output.float().cpu().numpy())
            bar.update()
    model.train(was_training)
    shares = dist.gather((rows, predictions, stop and stop.signal_number))
    signals = [share[2] for share in shares if share[2] is not None]
    if signals:
        raise Interrupted(f"in {description}", signals[0])
    all_rows, all_predictions = (np.concatenate([part for share in shares for part in share[i]]) for i in (0, 1))
    order = np.argsort(all_rows, kind="stable")
    return all_rows[order], all_predictions[order]
