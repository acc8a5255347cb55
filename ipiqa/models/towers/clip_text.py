"""CLIP's text tower: prompts -> prompt features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from ipiqa.errors import ConfigError, DataError
from ipiqa.models.clip_weights import architecture_settings, clip_tensors, load_exactly
from ipiqa.models.towers.open_clip_towers import OpenClipPromptEncoder, is_clip_text
from ipiqa.models.towers.prompt_features import PromptFeatures
from ipiqa.models.weights import Tensors, read_tensors
from ipiqa.prompts import CONTEXT_LENGTH
from ipiqa.registry import FilePath, register

WHERE = "model.prompt_encoder"
VOCABULARY = 49408  # CLIP's byte-pair tokens; the end token is the last of them
GROUP = 8  # prompts that are encoded together at least: smaller matrix products are slower than the padding they save

Freeze = Literal["reference", "all", "none"]
QAToken = Literal["none", "prefix", "suffix"]


@dataclass(frozen=True)
class TextSizes:
    """Sizes of CLIP's text transformer."""

    width: int
    layers: int
    heads: int
    embed_dim: int  # length of the prompt feature

    def __post_init__(self) -> None:
        """Raises ConfigError where no tower has these sizes."""
        if not (1 <= self.layers <= 256 and 1 <= self.width <= 2**13 and 1 <= self.embed_dim <= 2**13):
            raise ConfigError(
                f"{WHERE}: width {self.width}, layers {self.layers} and embed_dim {self.embed_dim} make no tower. "
                "Give 1 or more of each, at most 256 layers and 8192 of the others."
            )
        if self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"{WHERE}.heads: {self.heads} does not divide the width of {self.width}.")

    @classmethod
    def of_tensors(cls, tensors: Tensors) -> TextSizes:
        """Returns the sizes of the tower whose tensors these are, named as in OpenAI's release."""
        width, embed_dim = (*tensors["text_projection"].shape, 0, 0)[:2]
        layers = len({n.split(".")[2] for n in tensors if n.startswith("transformer.resblocks.") and n.count(".") > 2})
        return cls(width, layers, max(width // 64, 1), embed_dim)

    @classmethod
    def of_architecture(cls, name: str) -> TextSizes:
        """Returns the sizes open_clip gives an architecture."""
        settings = architecture_settings(name, WHERE)
        text = settings["text_cfg"]
        return cls(text["width"], text["layers"], text["heads"], settings["embed_dim"])


class PromptEncoder(PromptFeatures):
    """CLIP's text transformer, read at the end token.

    The mask is causal, so nothing behind the end token can reach it: prompts are cut to the longest beside them, on the
    CPU in groups of like length. That is exact and always on.
    """

    def __init__(
        self, sizes: TextSizes, *, freeze: Freeze, qa_token: QAToken = "none", train_embeddings: bool | None = None
    ) -> None:
        """Builds the tower with weights drawn as CLIP draws them; `clip_prompt_encoder` explains the settings."""
        super().__init__()
        from open_clip.transformer import LayerNorm, QuickGELU, Transformer

        self.embed_dim = sizes.embed_dim
        self.sizes, self.freeze, self.qa_token = sizes, freeze, qa_token
        self.train_embeddings = freeze != "all" if train_embeddings is None else train_embeddings
        self.token_embedding = nn.Embedding(VOCABULARY, sizes.width)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT_LENGTH, sizes.width))
        self.transformer = Transformer(
            sizes.width, sizes.layers, sizes.heads, act_layer=QuickGELU, norm_layer=LayerNorm, batch_first=False
        )
        self.ln_final = LayerNorm(sizes.width)
        self.text_projection = nn.Parameter(torch.empty(sizes.width, sizes.embed_dim))
        self.qa_embedding = nn.Parameter(torch.empty(sizes.width)) if qa_token != "none" else None
        self._initialise(sizes)
        self._freeze()

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

    def _freeze(self) -> None:
        # reference: `freeze_text: True` leaves positions and projection trainable, a slip that the published numbers
        # contain; `qa_token: True` trains all token embeddings and puts no [QA] token in the prompt.
        freeze = self.freeze
        self.token_embedding.requires_grad_(self.train_embeddings)
        if freeze != "none":
            self.transformer.requires_grad_(False)
            self.ln_final.requires_grad_(False)
        if freeze == "all":
            self.positional_embedding.requires_grad_(False)
            self.text_projection.requires_grad_(False)

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns features (P, D) of tokens (P, 77).

        Padding is wasted work on a CPU, where the prompts are sorted into groups of like length; a GPU would rather
        have them all at once.
        """
        length = tokens.argmax(dim=-1) + 1
        if torch.compiler.is_compiling():  # one shape for all prompts
            return self._encode_together(tokens, length)
        num_groups = min(len(tokens) // GROUP, 4) if self.positional_embedding.device.type == "cpu" else 1
        if num_groups < 2:
            return self._encode_cut(tokens, length)
        order = length.argsort(stable=True)
        groups = [self._encode_cut(tokens[part], length[part]) for part in order.tensor_split(num_groups)]
        return torch.cat(groups)[order.argsort()]

    def _encode_cut(self, tokens: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Returns features (P, D) of tokens (P, 77), cut to the longest of them."""
        return self._encode_together(tokens[:, : int(length.max())], length)

    def _encode_together(self, tokens: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        """Returns features (P, D) of tokens (P, L), L no less than the longest of the lengths (P,)."""
        device = self.positional_embedding.device
        tokens, end = tokens.to(device), (length - 1).to(device)
        if self.qa_embedding is None:
            x = self.token_embedding(tokens)
        else:
            x, end = self._with_qa(tokens, end)
        x = x + self.positional_embedding[: x.shape[1]]  # (P, L, W)
        mask = torch.full((x.shape[1],) * 2, float("-inf"), device=device).triu_(1)
        x = self.transformer(x, attn_mask=mask)
        x = self.ln_final(x[torch.arange(len(x), device=device), end])  # (P, W)
        return x @ self.text_projection.to(x.dtype)

    def _with_qa(self, tokens: torch.Tensor, end: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns embeddings (P, L + 1, W) with the [QA] token beside the prompt, and where the end token stands now.

        A prompt that fills the context loses its last word.
        """
        assert self.qa_embedding is not None
        if tokens.shape[1] == CONTEXT_LENGTH:
            last = torch.where(end == CONTEXT_LENGTH - 1, tokens[:, -1], tokens[:, -2])
            tokens, end = torch.cat([tokens[:, :-2], last[:, None]], dim=1), end.clamp(max=CONTEXT_LENGTH - 2)
        at = torch.ones_like(end) if self.qa_token == "prefix" else end  # behind the start or before the end token
        column = torch.arange(tokens.shape[1] + 1, device=tokens.device)
        source = (column - (column > at[:, None]).long()).clamp(max=tokens.shape[1] - 1)  # (P, L + 1)
        x = self.token_embedding(tokens.gather(1, source))
        is_qa = (column == at[:, None]).unsqueeze(-1)
        return torch.where(is_qa, self.qa_embedding.to(x.dtype), x), end + 1

    def load_clip(self, tensors: Tensors, where: str) -> None:
        """Takes the text tower out of a whole CLIP.

        Raises:
            DataError: the tensors are of other sizes or some are missing.
        """
        prefixes = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
        own = {name: value for name, value in tensors.items() if name.startswith(prefixes)}
        load_exactly(self, own, where, may_miss=("qa_embedding",))

    def section(self) -> dict[str, Any]:
        """Returns the section that builds this tower without any file."""
        trained = {"freeze": self.freeze, "qa_token": self.qa_token, "train_embeddings": self.train_embeddings}
        return {"name": "clip_text", **asdict(self.sizes), **trained}

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
    weights: FilePath | None = None,
    sha256: str | None = None,
    freeze: Freeze = "reference",
    qa_token: QAToken = "none",
    train_embeddings: bool | None = None,
) -> PromptEncoder | OpenClipPromptEncoder:
    """Returns the text tower of a published CLIP.

    Towers that are not CLIP's own (SigLIP's, or with another activation than OpenAI's) train or do not, as a whole, and
    take no [QA] token.

    Args:
        architecture: name open_clip knows; "auto" reads the sizes from the weights.
        weights: file with OpenAI's tensor names, or a pretrained tag of open_clip; None draws them at random.
        sha256: what the hash of the weights file must be.
        freeze: "reference" freezes transformer and final norm, as the published numbers were made; "all" freezes
            positions and projection too; "none" trains the tower.
        qa_token: puts one learned [QA] token in the prompt (paper, section 3.2), behind the start token ("prefix") or
            before the end token ("suffix").
        train_embeddings: whether the embeddings of all tokens train, as in the reference under the name of qa_token;
            None for yes unless `freeze` is "all".
    """
    tensors = clip_tensors(architecture, weights, sha256, WHERE)
    if tensors is None and architecture == "auto":
        raise ConfigError(
            f"{WHERE}: neither weights nor architecture is given. Set one, e.g. architecture=RN50-quickgelu."
        )
    if architecture != "auto" and not is_clip_text(architecture, WHERE):
        if freeze == "reference" or qa_token != "none" or (train_embeddings and freeze == "all"):
            raise ConfigError(
                f"{WHERE}: {architecture!r} has no text tower of OpenAI's CLIP, to which freeze: reference and a "
                "[QA] token belong. Set freeze: all (or none) and qa_token: none."
            )
        return OpenClipPromptEncoder(architecture, tensors, str(weights), freeze=freeze == "all")
    if tensors is not None and "text_projection" not in tensors:
        raise DataError(
            f"{WHERE}.weights: '{weights}' holds no CLIP text tower. It needs OpenAI's tensor names, as in RN50.pt."
        )
    if tensors is None or architecture != "auto":
        sizes = TextSizes.of_architecture(architecture)
    else:
        sizes = TextSizes.of_tensors(tensors)
    encoder = PromptEncoder(sizes, freeze=freeze, qa_token=qa_token, train_embeddings=train_embeddings)
    return _load(encoder, tensors, weights)


@register("prompt_encoder", "clip_text")
def clip_text(
    *,
    width: int,
    layers: int,
    heads: int,
    embed_dim: int,
    weights: FilePath | None = None,
    freeze: Freeze = "none",
    qa_token: QAToken = "none",
    train_embeddings: bool | None = None,
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
        train_embeddings: as for `clip`.
    """
    sizes = TextSizes(width, layers, heads, embed_dim)
    encoder = PromptEncoder(sizes, freeze=freeze, qa_token=qa_token, train_embeddings=train_embeddings)
    tensors = None if weights is None else read_tensors(weights, f"{WHERE}.weights")
    return _load(encoder, tensors, weights)
