"""What prompt encoders have in common: prompts in one of three forms -> features, equal prompts encoded once."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ipiqa import prompts as clip_prompts
from ipiqa.models.towers import transformers
from ipiqa.models.weights import Tensors

Prompts = Sequence[str] | torch.Tensor  # B texts, their tokens int64 (B, context), or their features float (B, D)


class PromptFeatures(nn.Module):
    """Prompts -> features of length `embed_dim`, a pure function of prompts and weights (see engine.predict)."""

    embed_dim: int
    any_length = False  # whether tokens may be cut behind the longest prompt: (B, L), 2 to context, for one feature
    gives_words = False  # a fusion sets it: features are then (B, context, D), the prompt's, its words', zeros
    _section: dict[str, Any]  # builds the encoder without any file

    def section(self) -> dict[str, Any]:
        """Returns the section that builds this encoder without any file."""
        return dict(self._section)

    def clip_tensors(self) -> Tensors:
        """Returns the tensors under the names that files of such encoders have; a [QA] token has none."""
        return {name: value for name, value in transformers.merged_tensors(self).items() if name != "qa_embedding"}

    @abstractmethod
    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns features (P, D) of tokens (P, context)."""

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """Returns what `forward` takes in place of prompts: tokens (B, context)."""
        return clip_prompts.tokenize(prompts)

    @property
    def num_layers(self) -> int:
        """Depth of everything behind the tower."""
        return transformers.count_layers(self)

    def depth(self, name: str) -> int:
        """Returns how many layers lie before one of its parameters, for run.layer_decay: 0 to num_layers."""
        return transformers.depth(name, self.num_layers)

    @property
    def is_frozen(self) -> bool:
        """Whether no parameter trains, so that every prompt has one feature for good."""
        return not any(p.requires_grad for p in self.parameters())

    def forward(self, prompts: Prompts) -> torch.Tensor:
        """Returns prompt features (B, D), not normalised; features that are given pass through.

        Each distinct prompt of a batch is encoded once: AGIQA-3k has 300 prompts for 2,982 images.
        """
        tokens = prompts if isinstance(prompts, torch.Tensor) else self.tokenize(prompts)
        if tokens.is_floating_point():
            return tokens
        if torch.compiler.is_compiling():  # shapes that depend on the prompts would break the graph
            return self._encode(tokens)
        distinct, place = torch.unique(tokens, dim=0, return_inverse=True)
        features = self._encode(distinct)
        return features[place.to(features.device)]
