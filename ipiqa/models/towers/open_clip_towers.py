"""The towers of every other CLIP that open_clip knows: vision transformers, SigLIP, texts without CLIP's own tower."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch

from ipiqa import prompts as clip_prompts
from ipiqa.errors import ConfigError, DataError
from ipiqa.models.clip_weights import architecture_settings, load_exactly
from ipiqa.models.towers import transformers
from ipiqa.models.towers.image_tower import WHERE, ImageFeatures, ImageTower, check_size
from ipiqa.models.towers.prompt_features import PromptFeatures
from ipiqa.models.weights import Tensors, one_line


class OpenClipImageEncoder(ImageTower):
    """A vision transformer of open_clip, its patch tokens laid out as the map they came from."""

    file_names: ClassVar = {"visual.": "visual."}

    def __init__(
        self, image_size: int, architecture: str, tensors: Tensors | None, weights: str, *, freeze: bool = False
    ) -> None:
        """Builds the tower with the tensors of a whole CLIP, which come from `weights`; None for random values."""
        super().__init__()
        self._section = {"name": "clip", "architecture": architecture}
        with _building(architecture, WHERE, image_size) as model:
            self.visual = model.visual
            patches = getattr(self.visual, "conv1", None) or getattr(self._trunk, "patch_embed", None)
            patch = getattr(patches, "kernel_size", None) or getattr(patches, "patch_size", None) or (1,)
            check_size(image_size, patch[0], architecture)
            self.visual.output_tokens = True  # beside the pooled feature; timm's towers give theirs otherwise
            with torch.inference_mode():
                tokens, pooled = self.eval()._tokens(torch.zeros(1, 3, image_size, image_size))
            side = round(tokens.shape[1] ** 0.5)
            if side * side != tokens.shape[1]:
                raise ValueError(f"{tokens.shape[1]} tokens make no square map")
        self.grid, self.channels, self.embed_dim = (side, side), tokens.shape[2], pooled.shape[1]
        self.num_layers = transformers.count_layers(self)
        self.load_tensors(tensors, weights)
        self.train()
        if freeze:
            self.freeze()

    def encode(self, images: torch.Tensor) -> ImageFeatures:
        """Returns the token map (B, C, h, w) and the pooled feature (B, D) of normalised images (B, 3, S, S)."""
        tokens, pooled = self._tokens(images)
        return tokens.transpose(1, 2).unflatten(2, self.grid), pooled

    @property
    def grad_checkpointing(self) -> bool:
        """Whether the forward pass of each block is repeated instead of kept."""
        return bool((self._trunk or self.visual.transformer).grad_checkpointing)

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        self.visual.set_grad_checkpointing(enable)

    @property
    def _trunk(self) -> Any:
        """The tower of timm, as SigLIP has it; None where it is open_clip's own."""
        return getattr(self.visual, "trunk", None)

    def depth(self, name: str) -> int:
        return transformers.depth(name, self.num_layers)

    def _tokens(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns patch tokens (B, N, C) and the pooled feature (B, D)."""
        visual, trunk = self.visual, self._trunk
        if trunk is not None:
            features = trunk.forward_features(images)
            return features[:, trunk.num_prefix_tokens :], visual.head(trunk.forward_head(features))
        pooled, tokens = visual(images)
        return tokens, pooled


class OpenClipPromptEncoder(PromptFeatures):
    """A text tower of open_clip, with its own tokenizer."""

    def __init__(self, architecture: str, tensors: Tensors | None, weights: str, *, freeze: bool) -> None:
        """Builds the tower; arguments as for `OpenClipImageEncoder`."""
        super().__init__()
        self._section = {"name": "clip", "architecture": architecture, "freeze": "all" if freeze else "none"}
        where = "model.prompt_encoder"
        self.architecture = architecture
        self.embed_dim = architecture_settings(architecture, where)["embed_dim"]
        with _building(architecture, where) as model:
            self.text = model.text
        if tensors is not None:
            from open_clip.model import convert_to_custom_text_state_dict

            own = convert_to_custom_text_state_dict(tensors)
            own = {name: value for name, value in own.items() if name.startswith("text.")}
            load_exactly(self, own, f"{where}.weights: '{weights}'", may_miss=("text.attn_mask",))
        self.text.requires_grad_(not freeze)

    def tokenize(self, prompts: Sequence[str]) -> torch.Tensor:
        """Returns tokens (B, context) by the architecture's own tokenizer; DataError where it cannot be downloaded."""
        return tokenizer_of(self.architecture)(prompts)

    def _encode(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.text(tokens.to(next(self.parameters()).device))


def is_clip_text(architecture: str, where: str) -> bool:
    """Returns whether the text tower of an architecture is CLIP's own, for which we have a faster one."""
    settings = architecture_settings(architecture, where)
    is_plain = not settings.get("custom_text") and "hf_model_name" not in settings["text_cfg"]
    return is_plain and bool(settings.get("quick_gelu"))


@contextlib.contextmanager
def _building(architecture: str, where: str, image_size: int | None = None) -> Iterator[Any]:
    """Yields an open_clip model with random values; what goes wrong with it in the block becomes a ConfigError."""
    import open_clip

    native = architecture_settings(architecture, where)["vision_cfg"].get("image_size", 224)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # open_clip warns there of random values, which are replaced
    try:
        model: Any = open_clip.create_model(
            architecture, pretrained=None, force_custom_text=True, force_image_size=image_size, load_weights=False
        )
        if image_size not in (None, native) and (trunk := getattr(model.visual, "trunk", None)) is not None:
            trunk.set_input_size(img_size=image_size)
        yield model
    except (RuntimeError, AssertionError, AttributeError, ValueError) as error:
        problem = f"cannot be used{f' at {image_size} px' if image_size else ''} ({one_line(error)})"
        remedy = f"Take a ViT-* or ViT-*-SigLIP, or its own image_size, {native}."
        raise ConfigError(f"{where}.architecture: {architecture!r} {problem}. {remedy}") from None
    finally:
        root.setLevel(level)


@functools.cache
def tokenizer_of(architecture: str) -> Callable[[Sequence[str]], torch.Tensor]:
    """Returns the tokenizer of an architecture, of CLIP for "auto"; DataError where it cannot be downloaded."""
    if architecture == "auto" or is_clip_text(architecture, "model.prompt_encoder"):
        return clip_prompts.tokenize
    import open_clip

    try:
        tokenizer = clip_prompts.read_as_text(open_clip.get_tokenizer(architecture))
    except Exception as error:  # the hub's client and transformers, which may not be installed, have many of their own
        problem = f"the tokenizer of {architecture!r} could not be loaded ({one_line(error)})"
        remedy = "It is downloaded once; SigLIP's also needs: pip install transformers sentencepiece."
        raise DataError(f"model.prompt_encoder.architecture: {problem}. {remedy}") from None
    return lambda prompts: tokenizer(list(prompts)).long()
