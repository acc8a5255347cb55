"""Any image model of timm as a tower: convolutional or transformer, with what it was trained on known by its name."""

from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ipiqa.errors import ConfigError, DataError, did_you_mean
from ipiqa.models.clip_weights import load_exactly
from ipiqa.models.towers import transformers
from ipiqa.models.towers.image_tower import WHERE, ImageFeatures, ImageTower
from ipiqa.models.weights import Tensors, one_line, read_tensors, renamed
from ipiqa.registry import FilePath, register

HUB = "hf-hub:"  # what the name of a repository with weights begins with


@register("image_encoder", "timm")
class TimmTower(ImageTower):
    """A model of timm without its classifier. Its token map is what `forward_features` returns.

    With `pool_layers`, the pooled feature is made of the maps of these layers, one part each. `mean` is the mean of
    each channel. `gram` is the upper triangle of the products of all pairs of channels, averaged over the map (Gatys,
    Ecker and Bethge 2016, section 2), each as the root of its magnitude with its sign, so that a few strong pairs do
    not outweigh all others: what textures an image has, wherever they are.
    """

    file_names: ClassVar = {"": "tower."}

    def __init__(
        self, image_size: int, *, architecture: str, weights: FilePath | None = None,
        pool_layers: list[str] | None = None, statistics: Literal["mean", "gram"] = "mean",
        freeze: Literal["none", "all"] = "none", lora_rank: int | None = None, lora_alpha: float = 16.0,
    ) -> None:  # fmt: skip
        """Builds the tower; ConfigError where timm has none of that name or it does not take this image size.

        Args:
            image_size: side of the square input in pixels.
            architecture: name timm knows, without a tag, such as "convnext_atto".
            weights: file with timm's tensor names; a tag such as "in1k", or "hf-hub:OWNER/NAME" with weights of this
                architecture, which timm downloads; None draws them at random. DataError where they cannot be used.
            pool_layers: names of modules whose output is a map, such as ["blocks.4"]; None for timm's own pool.
            statistics: what is taken of each of these, in the order that they are computed in.
            freeze: "all" keeps the tower as it is, BatchNorm statistics included.
            lora_rank: of a transformer, as for the image encoder `clip`, like `lora_alpha`.
        """
        super().__init__()
        self._section = {
            "name": "timm",
            "architecture": architecture,
            "pool_layers": pool_layers,
            "statistics": statistics,
        }
        self._layers, self._statistics = pool_layers or [], statistics
        self.mean, self.std = self.normalisation(architecture)
        self.tower = _create(architecture, weights)
        if weights is not None and not _is_published(architecture, weights):
            tags = ", ".join(_tags(architecture)) or "there is none"
            hint = f"Give a file, {HUB}OWNER/NAME, or a tag of timm's: {tags}."
            self.load_tensors(read_tensors(weights, f"{WHERE}.weights", hint=hint), weights)
        for layer in self._layers:
            if not layer or layer not in dict(self.tower.named_modules()):
                near = did_you_mean(layer, [name for name, _ in self.tower.named_modules() if name])
                raise ConfigError(f"{WHERE}.pool_layers: {architecture!r} has no module {layer!r}.{near}")
        try:
            if hasattr(self.tower, "set_input_size"):  # positions are resized, those of a file too
                self.tower.set_input_size(img_size=image_size)
            with torch.inference_mode():
                token_map, parts = self.eval()._features(torch.zeros(1, 3, image_size, image_size))
        except (RuntimeError, AssertionError, ValueError, TypeError) as error:
            native = self.tower.pretrained_cfg["input_size"][-1]
            problem = f"{architecture!r} cannot be used at {image_size} px ({one_line(error)})"
            raise ConfigError(f"{WHERE}.architecture: {problem}. Take a multiple of its patch, or {native}.") from None
        self.channels, self.grid = token_map.shape[1], (token_map.shape[2], token_map.shape[3])
        self._parts = tuple(part.shape[1] for part in parts)
        self.embed_dim = sum(self._parts)
        self.train()
        if freeze == "all":
            self.freeze()
        transformers.adapted(self, lora_rank, lora_alpha, WHERE)
        self._depths = _depths(self.tower)
        self.num_layers = max(self._depths.values(), default=0) + 1

    @staticmethod
    def normalisation(architecture: str) -> tuple[list[float], list[float]]:
        """Returns mean and std of the images that timm's weights of an architecture were trained on."""
        config = _published(architecture)
        return list(config.mean), list(config.std)

    def load_tensors(self, tensors: Tensors | None, weights: str | None) -> None:
        """Takes timm's tensors, the classifier's left out."""
        classifiers = self.tower.pretrained_cfg.get("classifier") or ()
        classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
        heads = tuple(f"{name}." for name in classifiers)
        own = {name: value for name, value in (tensors or {}).items() if not name.startswith(heads)}
        load_exactly(self, renamed(own, self.file_names), f"{WHERE}.weights: '{weights}'")

    def encode(self, images: torch.Tensor) -> ImageFeatures:
        """Returns the token map (B, C, h, w) and the pooled feature (B, D) of normalised images (B, 3, S, S)."""
        token_map, parts = self._features(images)
        return token_map, torch.cat(parts, dim=1)

    @property
    def grad_checkpointing(self) -> bool:
        """Whether the forward pass of each block is repeated instead of kept."""
        return any(getattr(module, "grad_checkpointing", False) for module in self.tower.modules())

    @grad_checkpointing.setter
    def grad_checkpointing(self, enable: bool) -> None:
        if enable and not self.frozen and any(isinstance(m, nn.BatchNorm2d) for m in self.tower.modules()):
            problem = "this tower has BatchNorm, whose statistics would move twice a step"
            raise ConfigError(f"run.grad_checkpointing: {problem}. Set it to false, or model.image_encoder.freeze=all.")
        self.tower.set_grad_checkpointing(enable)

    def depth(self, name: str) -> int:
        return self._depths.get(name.removeprefix("tower."), 0)

    def _features(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Returns the token map (B, C, h, w) and the parts (B, D_i) of the pooled feature."""
        kept: list[torch.Tensor] = []  # by hooks for one pass: what stays would be copied and saved with the tower
        modules = [self.tower.get_submodule(name) for name in self._layers]
        hooks = [m.register_forward_hook(lambda module, inputs, output: kept.append(output)) for m in modules]
        try:
            features = self.tower.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
        if not self._layers:
            return self._as_map(features), [self.tower.forward_head(features, pre_logits=True)]
        pool = _gram if self._statistics == "gram" else lambda token_map: token_map.mean(dim=(2, 3))
        return self._as_map(features), [pool(self._as_map(output)) for output in kept]

    def _as_map(self, features: torch.Tensor) -> torch.Tensor:
        """Returns what a layer computed as a map (B, C, h, w); ValueError where it is none."""
        if features.ndim == 4:
            is_last = getattr(self.tower, "output_fmt", "NCHW") == "NHWC"
            return features.permute(0, 3, 1, 2) if is_last else features
        if features.ndim != 3:
            raise ValueError(f"a layer gives {features.ndim - 1} dimensions an image, where a map has 3")
        tokens = features[:, getattr(self.tower, "num_prefix_tokens", 0) :]
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise ValueError(f"{tokens.shape[1]} tokens make no square map")
        return tokens.transpose(1, 2).unflatten(2, (side, side))


def _gram(token_map: torch.Tensor) -> torch.Tensor:
    flat = token_map.flatten(2)
    channels = flat.shape[1]
    rows, columns = torch.triu_indices(channels, channels, device=flat.device)
    products = (flat @ flat.transpose(1, 2) / flat.shape[2]).flatten(1).index_select(1, rows * channels + columns)
    return products.sign() * (products.abs() + 1e-12).sqrt()  # the root of 0 has no gradient


def _published(architecture: str) -> Any:
    """Returns what timm knows of the weights it has for an architecture; ConfigError where it has no such."""
    import timm

    # a name such as hf-hub:owner/model would be downloaded, by whoever opens a checkpoint that names it
    if architecture not in timm.list_models():
        near = did_you_mean(architecture, timm.list_models())
        problem = f"timm knows no {architecture!r}"
        raise ConfigError(f"{WHERE}.architecture: {problem}.{near} List: timm.list_models(). A tag goes to weights.")
    return timm.get_pretrained_cfg(architecture)


def _tags(architecture: str) -> list[str]:
    import timm

    names = (name.partition(".") for name in timm.list_pretrained(f"{architecture}.*"))
    return [tag for name, _, tag in names if name == architecture]


def _is_published(architecture: str, weights: str) -> bool:
    return weights.startswith(HUB) or weights in _tags(architecture)


def _create(architecture: str, weights: str | None) -> Any:
    """Returns timm's model without classifier, with the weights where timm downloads them."""
    import timm

    if weights is None or not _is_published(architecture, weights):
        return timm.create_model(architecture, pretrained=False, num_classes=0)
    try:
        if weights.startswith(HUB):
            overlay = {"hf_hub_id": weights.removeprefix(HUB)}
            return timm.create_model(architecture, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        return timm.create_model(f"{architecture}.{weights}", pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client has many of its own for a network that does not answer
        problem = f"timm could not load {weights!r} of {architecture} ({one_line(error)})"
        remedy = "Without a network, download the file and give its path."
        raise DataError(f"{WHERE}.weights: {problem}. {remedy}") from None


def _depths(tower: Any) -> dict[str, int]:
    """Returns parameter name -> number of layers before it, by timm's own grouping; empty where it has none."""
    from timm.models import group_parameters

    if not hasattr(tower, "group_matcher"):
        return {}
    depths: dict[str, int] = group_parameters(tower, tower.group_matcher(coarse=False), reverse=True)
    return depths
