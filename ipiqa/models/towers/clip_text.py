"""CLIP's text tower: prompts -> prompt features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import nn

from ipiqa.errors import ConfigError, DataError
from ipiqa.models.clip_weights import architecture_settings, clip_tensors, load_exactly
from ipiqa.models.towers import transformers
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
    """Sizes of CLIP's text transformer; ConfigError where no tower has them."""

    width: int
    layers: int
    heads: int
    embed_dim: int  # length of the prompt feature

    def __post_init__(self) -> None:
        sizes = (self.width, self.layers, self.heads, self.embed_dim)
        if min(sizes) < 1 or self.layers > 256 or max(sizes) > 2**13 or self.width % self.heads:
            problem = ", ".join(f"{name} {value}" for name, value in asdict(self).items())
            right = "1 to 256 layers, 1 to 8192 of the others and heads that divide the width"
            raise ConfigError(f"{WHERE}: {problem} make no tower. Give {right}.")

    @classmethod
    def of_tensors(cls, tensors: Tensors, weights: str | None) -> TextSizes:
        """Returns the sizes of the tower in the file `weights`; DataError where that has none, named as OpenAI does."""
        if "text_projection" not in tensors:
            problem = f"'{weights}' holds no CLIP text tower. It needs OpenAI's tensor names, as in RN50.pt"
            raise DataError(f"{WHERE}.weights: {problem}.")
        width, embed_dim = (*tensors["text_projection"].shape, 0, 0)[:2]
        layers = len({n.split(".")[2] for n in tensors if n.startswith("transformer.resblocks.") and n.count(".") > 2})
        return cls(width, layers, max(width // 64, 1), embed_dim)

    @classmethod
    def of_architecture(cls, name: str) -> TextSizes:
        """Returns the sizes open_clip gives an architecture."""
        settings = architecture_settings(name, WHERE)
        width, layers, heads = (settings["text_cfg"][size] for size in ("width", "layers", "heads"))
        return cls(width, layers, heads, settings["embed_dim"])


class PromptEncoder(PromptFeatures):
    """CLIP's text transformer, read at the end token.

    The mask is causal, so nothing behind the end token can reach it: prompts are cut to the longest beside them, on the
    CPU in groups of like length. That is exact and always on.
    """

    def __init__(
        self, sizes: TextSizes, tensors: Tensors | None = None, weights: str | None = None, *, freeze: Freeze,
        qa_token: QAToken = "none", train_embeddings: bool | None = None,
    ) -> None:  # fmt: skip
        """Builds the tower with tensors of a whole CLIP, which come from `weights`; None draws them as CLIP does."""
        from open_clip.transformer import LayerNorm, QuickGELU, Transformer

        train_embeddings = freeze != "all" if train_embeddings is None else train_embeddings
        trained = {"freeze": freeze, "qa_token": qa_token, "train_embeddings": train_embeddings}
        super().__init__()
        self._section = {"name": "clip_text", **asdict(sizes), **trained}
        self.embed_dim, self.qa_token = sizes.embed_dim, qa_token
        self.any_length = qa_token == "none"  # a [QA] token needs to know whether the prompt fills the context
        self.token_embedding = nn.Embedding(VOCABULARY, sizes.width)
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT_LENGTH, sizes.width))
        self.transformer = Transformer(
            sizes.width, sizes.layers, sizes.heads, act_layer=QuickGELU, norm_layer=LayerNorm, batch_first=False
        )
        self.ln_final = LayerNorm(sizes.width)
        self.text_projection = nn.Parameter(torch.empty(sizes.width, sizes.embed_dim))
        self.qa_embedding = nn.Parameter(torch.empty(sizes.width)) if qa_token != "none" else None
        self._initialise(sizes)
        # reference: `freeze_text: True` leaves positions and projection trainable, a slip that the published numbers
        # contain; `qa_token: True` trains all token embeddings and puts no [QA] token in the prompt.
        self.token_embedding.requires_grad_(train_embeddings)
        self.transformer.requires_grad_(freeze == "none")
        self.ln_final.requires_grad_(freeze == "none")
        self.positional_embedding.requires_grad_(freeze != "all")
        self.text_projection.requires_grad_(freeze != "all")
        if tensors is not None:
            prefixes = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
            own = {name: value for name, value in tensors.items() if name.startswith(prefixes)}
            load_exactly(self, own, f"{WHERE}.weights: '{weights}'", may_miss=("qa_embedding",))

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

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns features (P, D) of tokens (P, 77); a GPU would rather have them all at once than little padding."""
        length = tokens.argmax(dim=-1) + 1
        if torch.compiler.is_compiling():  # one shape for all prompts
            return self._encode_together(tokens, length)
        num_groups = min(len(tokens) // GROUP, 4)
        if num_groups < 2 or self.positional_embedding.device.type != "cpu":
            return self._encode_together(tokens[:, : int(length.max())], length)
        order = length.argsort(stable=True)
        parts = [(tokens[rows], length[rows]) for rows in order.tensor_split(num_groups)]
        groups = [self._encode_together(part[:, : int(ends.max())], ends) for part, ends in parts]
        return torch.cat(groups)[order.argsort()]

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
        rows = torch.arange(len(x), device=device)
        if self.gives_words:
            return self._with_words(self.ln_final(x) @ self.text_projection.to(x.dtype), rows, end)
        x = self.ln_final(x[rows, end])  # (P, W)
        return x @ self.text_projection.to(x.dtype)

    @staticmethod
    def _with_words(tokens: torch.Tensor, rows: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Returns (P, 77, D) of projected tokens (P, L, D): that at the end, the words, and zeros for the rest."""
        place = torch.arange(tokens.shape[1], device=tokens.device)[None, 1:, None]
        words = tokens[:, 1:] * (place < end[:, None, None])
        features = torch.cat([tokens[rows, end][:, None], words], dim=1)
        return nn.functional.pad(features, (0, 0, 0, CONTEXT_LENGTH - features.shape[1]))

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


@register("prompt_encoder", "clip")
def clip_prompt_encoder(
    *, architecture: str = "auto", weights: FilePath | None = None, sha256: str | None = None,
    freeze: Freeze = "reference", qa_token: QAToken = "none", train_embeddings: bool | None = None,
    lora_rank: int | None = None, lora_alpha: float = 16.0,
) -> PromptEncoder | OpenClipPromptEncoder:  # fmt: skip
    """Returns the text tower of a published CLIP.

    Towers that are not CLIP's own (SigLIP's, or with another activation than OpenAI's) train or do not, as a whole, and
    take no [QA] token.

    Args:
        architecture: as for the image encoder `clip`, like `weights` and `sha256`; "auto" reads the sizes off a file.
        freeze: "reference" freezes transformer and final norm, as the published numbers were made; "all" freezes
            positions and projection too; "none" trains the tower.
        qa_token: puts one learned [QA] token in the prompt (paper, section 3.2), behind the start token ("prefix") or
            before the end token ("suffix").
        train_embeddings: whether the embeddings of all tokens train, as in the reference under the name of qa_token;
            None for yes unless `freeze` is "all".
        lora_rank: as for the image encoder `clip`, like `lora_alpha`.
    """
    tensors = clip_tensors(architecture, weights, sha256, WHERE)
    is_auto = architecture == "auto"
    if not is_auto and not is_clip_text(architecture, WHERE):
        if freeze == "reference" or qa_token != "none" or (train_embeddings and freeze == "all"):
            problem = f"{architecture!r} has no text tower of OpenAI's CLIP, to which freeze: reference and [QA] belong"
            raise ConfigError(f"{WHERE}: {problem}. Set freeze: all (or none) and qa_token: none.")
        tower = OpenClipPromptEncoder(architecture, tensors, str(weights), freeze=freeze == "all")
        return transformers.adapted(tower, lora_rank, lora_alpha, WHERE)
    sizes = TextSizes.of_tensors(tensors or {}, weights) if is_auto else TextSizes.of_architecture(architecture)
    clip = PromptEncoder(sizes, tensors, weights, freeze=freeze, qa_token=qa_token, train_embeddings=train_embeddings)
    return transformers.adapted(clip, lora_rank, lora_alpha, WHERE)


@register("prompt_encoder", "clip_text")
def clip_text(
    *, width: int, layers: int, heads: int, embed_dim: int, weights: FilePath | None = None, freeze: Freeze = "none",
    qa_token: QAToken = "none", train_embeddings: bool | None = None, lora_rank: int | None = None,
    lora_alpha: float = 16.0,
) -> PromptEncoder:  # fmt: skip
    """Returns a text tower of CLIP's kind in the sizes given: small ones train in minutes.

    The width is a multiple of the number of heads, `embed_dim` the length of a feature; the rest is as for `clip`.
    """
    sizes = TextSizes(width, layers, heads, embed_dim)
    tensors = None if weights is None else read_tensors(weights, f"{WHERE}.weights")
    clip = PromptEncoder(sizes, tensors, weights, freeze=freeze, qa_token=qa_token, train_embeddings=train_embeddings)
    return transformers.adapted(clip, lora_rank, lora_alpha, WHERE)
