"""Prompt features computed once: for one evaluation, or for a whole fold where the prompt encoder is frozen."""

from __future__ import annotations

import torch
from torch import nn

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
