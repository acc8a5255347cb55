"""The towers of every other CLIP that open_clip knows: vision transformers, SigLIP, texts without CLIP's own tower."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ipiqa.errors import ConfigError, DataError
from ipiqa.models.clip_weights import architecture_settings, load_exactly, normalisation
from ipiqa.models.pooling import resize_positions
from ipiqa.models.towers.image_tower import WHERE, ImageTower, check_size
from ipiqa.models.towers.prompt_features import PromptFeatures
from ipiqa.models.weights import Tensors
from ipiqa.prompts import read_as_text


class OpenClipImageEncoder(ImageTower):
    """A vision transformer of open_clip, its patch tokens laid out as the map they came from."""

    def __init__(
        self, image_size: int, architecture: str, tensors: Tensors | None, weights: str, *, freeze: bool = False
    ) -> None:
        """Builds the tower.

        Args:
            image_size: side of the square input in pixels.
            architecture: name open_clip knows.
            tensors: of a whole CLIP; None keeps the random values.
            weights: where they come from, for messages.
            freeze: whether the tower stays as it is.
        """
        super().__init__()
        self.architecture = architecture
        self.mean, self.std = normalisation(architecture, weights)
        self.visual = _build(architecture, WHERE, image_size).visual
        patches: Any = getattr(self.visual, "conv1", None) or getattr(self._trunk, "patch_embed", None)
        patch = getattr(patches, "kernel_size", None) or getattr(patches, "patch_size", None) or (1,)
        check_size(image_size, patch[0], architecture)
        self.visual.output_tokens = True  # beside the pooled feature; timm's towers give theirs otherwise
        if tensors is not None:
            self._load(tensors, f"{WHERE}.weights: '{weights}'")
        if freeze:
            self.freeze()
        with torch.inference_mode():
            tokens, pooled = self.eval()._tokens(torch.zeros(1, 3, image_size, image_size))
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise ConfigError(
                f"{WHERE}.architecture: {architecture!r} gives {tokens.shape[1]} tokens at {image_size} px, "
                "which make no square map. Take a ViT-* or ViT-*-SigLIP, or another image_size."
            )
        self.grid, self.channels = (side, side), tokens.shape[2]
        self.embed_dim = self.num_features = pooled.shape[1]
        blocks: Any = self._trunk.blocks if self._trunk is not None else self.visual.transformer.resblocks
        self.num_layers = len(blocks) + 1
        self._repeats = False
        self.train()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the token map (B, C, h, w) and the pooled feature (B, D).

        Args:
            images: (B, 3, S, S), normalised.
        """
        tokens, pooled = self._tokens(images)
        return tokens.transpose(1, 2).unflatten(2, self.grid), pooled

    @property
    def grad_checkpointing(self) -> bool:
        """Whether the forward pass of each block is repeated instead of kept."""
        return self._repeats

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        self._repeats = enable
        self.visual.set_grad_checkpointing(enable)

    @property
    def _trunk(self) -> Any:
        """The tower of timm, as SigLIP has it; None where it is open_clip's own."""
        return getattr(self.visual, "trunk", None)

    def depth(self, name: str) -> int:
        block = re.search(r"\bblocks\.(\d+)|\bresblocks\.(\d+)", name)
        if block is not None:
            return int(block[1] or block[2]) + 1
        return 0 if re.search(r"conv1|embed|cls_token|reg_token|ln_pre|norm_pre", name) else self.num_layers

    def section(self) -> dict[str, Any]:
        """Returns the section that builds this tower without any file."""
        return {"name": "clip", "architecture": self.architecture, "freeze": "all" if self.frozen else "none"}

    def _tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns patch tokens (B, N, C) and the pooled feature (B, D)."""
        visual, trunk = self.visual, self._trunk
        if trunk is not None:
            features = trunk.forward_features(images)
            return features[:, trunk.num_prefix_tokens :], visual.head(trunk.forward_head(features))
        pooled, tokens = visual(images)
        return tokens, pooled

    def _load(self, tensors: Tensors, where: str) -> None:
        own = {n.removeprefix("visual."): v for n, v in tensors.items() if n.startswith("visual.")}
        if not own:
            raise DataError(f"{where}: holds no image tower. Its tensors must be named visual.*, as open_clip does.")
        name = "positional_embedding"
        if name in own and hasattr(self.visual, "grid_size"):
            own[name] = resize_positions(own[name].float(), tuple(self.visual.grid_size))
        load_exactly(self.visual, own, where)

    def clip_tensors(self) -> Tensors:
        """Returns the tensors under open_clip's names."""
        return {f"visual.{name}": value for name, value in self.visual.state_dict().items()}


class OpenClipPromptEncoder(PromptFeatures):
    """A text tower of open_clip, with its own tokenizer."""

    def __init__(self, architecture: str, tensors: Tensors | None, weights: str, *, freeze: bool) -> None:
        """Builds the tower; arguments as for `OpenClipImageEncoder`."""
        super().__init__()
        where = "model.prompt_encoder"
        settings = architecture_settings(architecture, where)
        self.architecture = architecture
        self.text = _build(architecture, where).text
        self.embed_dim = settings["embed_dim"]
        if tensors is not None:
            from open_clip.model import convert_to_custom_text_state_dict

            own = convert_to_custom_text_state_dict(tensors)
            own = {n.removeprefix("text."): v for n, v in own.items() if n.startswith("text.")}
            if not own:
                raise DataError(f"{where}.weights: '{weights}' holds no text tower. Take the file of a whole CLIP.")
            load_exactly(self.text, own, f"{where}.weights: '{weights}'", may_miss=("attn_mask",))
        self.text.requires_grad_(not freeze)

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """Returns tokens (B, context) by the tokenizer that belongs to the architecture.

        Raises:
            DataError: it had to be downloaded, and could not be.
        """
        return tokenizer_of(self.architecture)(prompts)

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.text(tokens.to(next(self.parameters()).device))

    def section(self) -> dict[str, Any]:
        """Returns the section that builds this tower without any file."""
        freeze = "all" if self.is_frozen else "none"
        return {"name": "clip", "architecture": self.architecture, "freeze": freeze}

    def clip_tensors(self) -> Tensors:
        """Returns the tensors under open_clip's names."""
        return {f"text.{name}": value for name, value in self.text.state_dict().items()}


def is_clip_text(architecture: str, where: str) -> bool:
    """Returns whether the text tower of an architecture is CLIP's own, for which we have a faster one."""
    settings = architecture_settings(architecture, where)
    is_plain = not settings.get("custom_text") and "hf_model_name" not in settings["text_cfg"]
    return is_plain and bool(settings.get("quick_gelu"))


def _build(architecture: str, where: str, image_size: int | None = None) -> Any:
    """Returns the two towers of an architecture with random values.

    Raises:
        ConfigError: open_clip does not know the name, or cannot build it for this image size.
    """
    import open_clip

    settings = architecture_settings(architecture, where)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # open_clip warns there of random values, which are replaced
    try:
        model: Any = open_clip.create_model(
            architecture, pretrained=None, force_custom_text=True, force_image_size=image_size, load_weights=False
        )
        trunk = getattr(model.visual, "trunk", None)
        if image_size is not None and trunk is not None and image_size != settings["vision_cfg"].get("image_size"):
            trunk.set_input_size(img_size=image_size)
    except (RuntimeError, AssertionError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        size = "" if image_size is None else f" at {image_size} px"
        raise ConfigError(
            f"{where}.architecture: {architecture!r} cannot be built{size} ({reason}). Try its own image_size, "
            f"{settings['vision_cfg'].get('image_size', 224)}."
        ) from None
    finally:
        root.setLevel(level)
    return model


@functools.cache
def tokenizer_of(architecture: str) -> Callable[[Sequence[str]], torch.Tensor]:
    """Returns an architecture's own tokenizer: N prompts -> int64 (N, context).

    Raises:
        DataError: it must be downloaded, and could not be.
    """
    import open_clip

    try:
        tokenizer: Callable[[list[str]], torch.Tensor] = read_as_text(open_clip.get_tokenizer(architecture))
    except Exception as error:
        # The hub's client and transformers, which may not be installed, have many exceptions of their own.
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"model.prompt_encoder.architecture: the tokenizer of {architecture!r} could not be loaded ({reason}). "
            "It is downloaded once; SigLIP's also needs: pip install transformers sentencepiece."
        ) from None
    return lambda prompts: tokenizer(list(prompts)).long()
