"""CLIP's text tower: prompts -> prompt features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from ipiqa.errors import ConfigError, DataError
from ipiqa.models.image_encoder import architecture_settings, clip_tensors, load_exactly
from ipiqa.models.tokens import CONTEXT_LENGTH, tokenize
from ipiqa.models.weights import Tensors, read_tensors
from ipiqa.registry import register

WHERE = "model.prompt_encoder"
VOCABULARY = 49408  # CLIP's byte-pair tokens; the end token is the last of them

Freeze = Literal["reference", "all", "none"]
QAToken = Literal["embeddings", "token", "none"]
QAPosition = Literal["prefix", "suffix"]


@dataclass(frozen=True)
class TextSizes:
    """Sizes of CLIP's text transformer."""

    width: int
    layers: int
    heads: int
    embed_dim: int  # length of the prompt feature

    @classmethod
    def of_tensors(cls, tensors: Tensors) -> TextSizes:
        """Returns the sizes of the tower whose tensors these are, named as in OpenAI's release."""
        width, embed_dim = tensors["text_projection"].shape
        layers = len({n.split(".")[2] for n in tensors if n.startswith("transformer.resblocks.")})
        return cls(width, layers, width // 64, embed_dim)

    @classmethod
    def of_architecture(cls, name: str) -> TextSizes:
        """Returns the sizes open_clip gives an architecture."""
        settings = architecture_settings(name, WHERE)
        text = settings["text_cfg"]
        if not all(key in text for key in ("width", "layers", "heads")):
            raise ConfigError(f"{WHERE}.architecture: {name!r} has no CLIP text tower. Take 'RN50-quickgelu'.")
        return cls(text["width"], text["layers"], text["heads"], settings["embed_dim"])


class PromptEncoder(nn.Module):
    """CLIP's text transformer, read at the end token.

    Two things are exact and always on. The mask is causal, so nothing behind the end token can reach it: every batch is
    cut to its longest prompt. And each distinct prompt is encoded once: AGIQA-3k has 300 prompts for 2,982 images.
    """

    def __init__(self, sizes: TextSizes, *, freeze: Freeze, qa_token: QAToken, qa_position: QAPosition) -> None:
        super().__init__()
        from open_clip.transformer import LayerNorm, QuickGELU, Transformer

        self.embed_dim = sizes.embed_dim
        self.qa_position = qa_position
        self.token_embedding = nn.Embedding(VOCABULARY, sizes.width)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT_LENGTH, sizes.width))
        self.transformer = Transformer(
            sizes.width, sizes.layers, sizes.heads, act_layer=QuickGELU, norm_layer=LayerNorm
        )
        self.ln_final = LayerNorm(sizes.width)
        self.text_projection = nn.Parameter(torch.empty(sizes.width, sizes.embed_dim))
        self.qa_embedding = nn.Parameter(torch.empty(sizes.width)) if qa_token == "token" else None
        self._initialise(sizes)
        self._freeze(freeze, qa_token)
        self._features: dict[bytes, torch.Tensor] = {}  # of a frozen encoder, by the prompt's tokens

    def _initialise(self, sizes: TextSizes) -> None:
        """Draws the weights as CLIP does (Radford et al. 2021, released code)."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=sizes.width**-0.5)
        if self.qa_embedding is not None:
            nn.init.normal_(self.qa_embedding, std=0.02)
        for block in self.transformer.resblocks:
            residual_std = sizes.width**-0.5 * (2 * sizes.layers) ** -0.5
            nn.init.normal_(block.attn.in_proj_weight, std=sizes.width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * sizes.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)

    def _freeze(self, freeze: Freeze, qa_token: QAToken) -> None:
        """`freeze` speaks of the tower, `qa_token` alone of the token embeddings.

        # reference: `freeze_text: True` leaves positions and projection trainable, a slip that the published numbers
        # contain; `qa_token: True` trains all token embeddings and puts no [QA] token in the prompt.
        """
        self.token_embedding.requires_grad_(qa_token == "embeddings")
        if freeze != "none":
            self.transformer.requires_grad_(False)
            self.ln_final.requires_grad_(False)
        if freeze == "all":
            self.positional_embedding.requires_grad_(False)
            self.text_projection.requires_grad_(False)

    @property
    def is_frozen(self) -> bool:
        """Whether no parameter trains, so that every prompt has one feature for good."""
        return not any(p.requires_grad for p in self.parameters())

    def forward(self, prompts: Sequence[str] | torch.Tensor) -> torch.Tensor:
        """Returns prompt features (B, D), not normalised.

        Args:
            prompts: texts, or their tokens (B, 77).
        """
        tokens = prompts if isinstance(prompts, torch.Tensor) else tokenize(prompts)
        distinct, place = torch.unique(tokens, dim=0, return_inverse=True)
        features = self._remembered(distinct) if self.is_frozen else self._encode(distinct)
        return features[place.to(features.device)]

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns features (P, D) of tokens (P, 77)."""
        end = tokens.argmax(dim=-1)
        tokens, end = tokens[:, : int(end.max()) + 1], end  # (P, L)
        device = self.positional_embedding.device
        tokens, end = tokens.to(device), end.to(device)
        if self.qa_embedding is None:
            x = self.token_embedding(tokens)
        else:
            x, end = self._with_qa(tokens, end)
        length = x.shape[1]
        x = x + self.positional_embedding[:length]  # (P, L, W)
        mask = torch.full((length, length), float("-inf"), device=device).triu_(1)
        x = self.transformer(x, attn_mask=mask)
        x = self.ln_final(x[torch.arange(len(x), device=device), end])  # (P, W)
        return x @ self.text_projection.to(x.dtype)

    def _with_qa(self, tokens: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns embeddings (P, L + 1, W) with the [QA] token beside the prompt, and where the end token stands now.

        A prompt that fills the context loses its last word.
        """
        assert self.qa_embedding is not None
        if tokens.shape[1] == CONTEXT_LENGTH:
            full = end == CONTEXT_LENGTH - 1
            tokens = tokens.clone()
            tokens[full, CONTEXT_LENGTH - 2] = tokens[full, CONTEXT_LENGTH - 1]
            tokens, end = tokens[:, :-1], end.clamp(max=CONTEXT_LENGTH - 2)
        at = torch.ones_like(end) if self.qa_position == "prefix" else end  # behind the start or before the end token
        column = torch.arange(tokens.shape[1] + 1, device=tokens.device)
        source = (column - (column > at[:, None]).long()).clamp(max=tokens.shape[1] - 1)  # (P, L + 1)
        x = self.token_embedding(tokens.gather(1, source))
        is_qa = (column == at[:, None]).unsqueeze(-1)
        return torch.where(is_qa, self.qa_embedding.to(x.dtype), x), end + 1

    def _remembered(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns features of a frozen encoder, each computed once in fp32 and kept."""
        keys = [row.tobytes() for row in tokens.cpu().numpy()]
        new = [i for i, key in enumerate(keys) if key not in self._features]
        if new:
            with torch.no_grad(), torch.autocast(self.positional_embedding.device.type, enabled=False):
                for i, feature in zip(new, self._encode(tokens[new]), strict=True):
                    self._features[keys[i]] = feature
        return torch.stack([self._features[key] for key in keys])

    def _apply(self, *args: object, **kwargs: object) -> PromptEncoder:
        """Forgets the features when the encoder moves to another device or type."""
        self._features = {}
        return super()._apply(*args, **kwargs)  # type: ignore[arg-type]

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        """Forgets the features when other weights come."""
        self._features = {}
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]

    def load_clip(self, tensors: Tensors, where: str) -> None:
        """Takes the text tower out of a whole CLIP.

        Raises:
            DataError: the tensors are of other sizes or some are missing.
        """
        prefixes = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
        own = {name: value for name, value in tensors.items() if name.startswith(prefixes)}
        load_exactly(self, own, where, may_miss=("qa_embedding",))

    def clip_tensors(self) -> Tensors:
        """Returns the tensors under the names of OpenAI's release; a [QA] token has none and stays behind."""
        return {name: value for name, value in self.state_dict().items() if name != "qa_embedding"}


def _load(encoder: PromptEncoder, tensors: Tensors | None, weights: str | None) -> PromptEncoder:
    if tensors is not None:
        encoder.load_clip(tensors, f"{WHERE}.weights: '{weights}'")
    return encoder


@register("prompt_encoder", "clip")
def clip_prompt_encoder(
    *,
    architecture: str = "auto",
    weights: str | None = None,
    sha256: str | None = None,
    freeze: Freeze = "reference",
    qa_token: QAToken = "embeddings",
    qa_position: QAPosition = "prefix",
) -> PromptEncoder:
    """Returns the text tower of a published CLIP.

    Args:
        architecture: name open_clip knows; "auto" reads the sizes from the weights.
        weights: file with OpenAI's tensor names, or a pretrained tag of open_clip; None draws them at random.
        sha256: what the hash of the weights file must be.
        freeze: "reference" freezes transformer and final norm, as the published numbers were made; "all" freezes
            positions and projection too; "none" trains the tower.
        qa_token: "embeddings" trains the token embeddings (reference); "token" puts one learned [QA] token beside the
            prompt (paper, section 3.2); "none" does neither.
        qa_position: where the [QA] token stands: behind the start token or before the end token.
    """
    tensors = clip_tensors(architecture, weights, sha256, WHERE)
    if tensors is None and architecture == "auto":
        raise ConfigError(
            f"{WHERE}: neither weights nor architecture is given. Set one, e.g. architecture=RN50-quickgelu."
        )
    if tensors is not None and "text_projection" not in tensors:
        raise DataError(
            f"{WHERE}.weights: '{weights}' holds no CLIP text tower. It needs OpenAI's tensor names, as in RN50.pt."
        )
    sizes = TextSizes.of_architecture(architecture) if tensors is None else TextSizes.of_tensors(tensors)
    encoder = PromptEncoder(sizes, freeze=freeze, qa_token=qa_token, qa_position=qa_position)
    return _load(encoder, tensors, weights)


@register("prompt_encoder", "clip_text")
def clip_text(
    *,
    width: int,
    layers: int,
    heads: int,
    embed_dim: int,
    weights: str | None = None,
    freeze: Freeze = "none",
    qa_token: QAToken = "embeddings",
    qa_position: QAPosition = "prefix",
) -> PromptEncoder:
    """Returns a text tower of CLIP's kind in the sizes given: small ones train in minutes.

    Args:
        width: of the transformer.
        layers: of the transformer.
        heads: of its attention; divides `width`.
        embed_dim: length of the prompt feature.
        weights: file with OpenAI's tensor names, or None for random values.
        freeze: as for `clip`.
        qa_token: as for `clip`.
        qa_position: as for `clip`.
    """
    if heads < 1 or width % heads:
        raise ConfigError(f"{WHERE}.heads: {heads} does not divide the width of {width}.")
    sizes = TextSizes(width, layers, heads, embed_dim)
    encoder = PromptEncoder(sizes, freeze=freeze, qa_token=qa_token, qa_position=qa_position)
    tensors = None if weights is None else read_tensors(weights, f"{WHERE}.weights")
    return _load(encoder, tensors, weights)
