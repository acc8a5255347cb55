"""What all prompt encoders have in common: each prompt is encoded once, and remembered while the weights stay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from ipiqa import prompts as clip_prompts

MOST_REMEMBERED = 65536  # features: where prompts are counted in millions, memory stays bounded


class PromptFeatures(nn.Module):
    """Prompts -> features, with two things that are exact and always on.

    Each distinct prompt of a batch is encoded once: AGIQA-3k has 300 prompts for 2,982 images. And as long as the
    weights stay, which is for a whole evaluation, or for a whole run when all of them are frozen, features once
    computed are kept.

    Attributes:
        embed_dim: length D of a feature.
    """

    embed_dim: int

    def __init__(self) -> None:
        super().__init__()
        self._features: dict[bytes, torch.Tensor] = {}  # by the prompt's tokens, as long as the weights stay
        self._features_of: object = None  # the state of the weights, and the precision, that they were computed with

    @abstractmethod
    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns features (P, D) of tokens (P, context)."""

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """Returns what `forward` takes in place of prompts: tokens (B, context)."""
        return clip_prompts.tokenize(prompts)

    @property
    def is_frozen(self) -> bool:
        """Whether no parameter trains, so that every prompt has one feature for good."""
        return not any(p.requires_grad for p in self.parameters())

    def forward(self, prompts: Sequence[str] | torch.Tensor) -> torch.Tensor:
        """Returns prompt features (B, D), not normalised.

        Args:
            prompts: texts, or their tokens (B, context).
        """
        tokens = prompts if isinstance(prompts, torch.Tensor) else self.tokenize(prompts)
        distinct, place = torch.unique(tokens, dim=0, return_inverse=True)
        if self.is_frozen or not torch.is_grad_enabled():
            features = self._remembered(distinct)
        else:
            self._features = {}  # what is computed with gradients is about to change
            features = self._encode(distinct)
        return features[place.to(features.device)]

    def train(self, mode: bool = True) -> PromptFeatures:
        """Forgets the features of an evaluation when it is over."""
        if not self.is_frozen:
            self._features = {}
        return super().train(mode)

    def _remembered(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns features (P, D) of tokens (P, context), each computed once while the weights stay.

        Those of a frozen encoder are computed in fp32, whatever the precision around them.
        """
        device = next(self.parameters()).device.type
        in_fp32 = self.is_frozen or not torch.is_autocast_enabled(device)
        # A change in place counts up a tensor's version; only fused optimizers make one without, see forward and train.
        versions = [0 if p.is_inference() else p._version for p in self.parameters()]
        computed_with = (versions, None if in_fp32 else torch.get_autocast_dtype(device))
        if computed_with != self._features_of:
            self._features, self._features_of = {}, computed_with
        keys = [row.tobytes() for row in tokens.cpu().numpy()]
        known = {key: self._features[key] for key in keys if key in self._features}
        new = [i for i, key in enumerate(keys) if key not in known]
        if new:
            with torch.no_grad(), torch.autocast(device, enabled=not in_fp32):
                known |= zip([keys[i] for i in new], self._encode(tokens[new]), strict=True)
            if len(self._features) + len(new) > MOST_REMEMBERED:
                self._features = {}
            self._features |= known
        return torch.stack([known[key] for key in keys])

    def _apply(self, *args: object, **kwargs: object) -> PromptFeatures:
        """Forgets the features when the encoder moves to another device or type."""
        self._features = {}
        return super()._apply(*args, **kwargs)  # type: ignore[arg-type]

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        """Forgets the features when other weights come."""
        self._features = {}
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]
