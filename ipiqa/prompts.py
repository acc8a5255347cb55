"""CLIP's byte-pair tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

CONTEXT_LENGTH = 77


@functools.cache
def _tokenizer(context_length: int) -> Callable[[list[str]], torch.Tensor]:
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer: Any = SimpleTokenizer(context_length=context_length)
    return tokenizer


def tokenize(prompts: Sequence[str], context_length: int = CONTEXT_LENGTH) -> torch.Tensor:
    """Returns CLIP's token ids, (B, context_length) long: start, words, end, zeros.

    A prompt that is too long loses its last words and keeps the end token.

    Raises:
        TypeError: prompts is one string instead of a list of them.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list of texts, not one text")
    if not prompts:
        return torch.zeros(0, context_length, dtype=torch.long)
    return _tokenizer(context_length)(list(prompts)).long()
