"""Stand-ins for OpenAI's RN50.pt: its tensor names, shapes and dtypes, with seeded values."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class Sizes:
    """Sizes of a CLIP with a ResNet image tower."""

    embed_dim: int
    resolution: int
    blocks: tuple[int, ...]
    width: int
    text_width: int
    text_layers: int
    context: int = 77
    vocabulary: int = 49408


FULL = Sizes(embed_dim=1024, resolution=224, blocks=(3, 4, 6, 3), width=64, text_width=512, text_layers=12)
TINY = Sizes(embed_dim=64, resolution=64, blocks=(1, 1, 1, 1), width=8, text_width=64, text_layers=2)

MEAN_AND_STD = {"embedding": (0, 0.02), "small": (0, 0.05), "near one": (1, 0.1), "residual": (0.4, 0.05)}
Entry = tuple[str, tuple[int, ...], str]  # name, shape, distribution (see `draw`)


def _norm(prefix: str, channels: int, weight: str = "near one") -> Iterator[Entry]:
    yield f"{prefix}.weight", (channels,), weight
    yield f"{prefix}.bias", (channels,), "small"
    yield f"{prefix}.running_mean", (channels,), "small"
    yield f"{prefix}.running_var", (channels,), "variance"
    yield f"{prefix}.num_batches_tracked", (), "count"


def _linear(prefix: str, outputs: int, inputs: int, separator: str = ".") -> Iterator[Entry]:
    yield f"{prefix}{separator}weight", (outputs, inputs), "linear"
    yield f"{prefix}{separator}bias", (outputs,), "small"


def _image_tower(sizes: Sizes) -> Iterator[Entry]:
    width, channels = sizes.width, 32 * sizes.width
    stem = [3, width // 2, width // 2, width]
    for i in (1, 2, 3):
        yield f"visual.conv{i}.weight", (stem[i], stem[i - 1], 3, 3), "convolution"
        yield from _norm(f"visual.bn{i}", stem[i])
    inputs = width
    for stage, count in enumerate(sizes.blocks):
        planes = width * 2**stage
        for block in range(count):
            prefix = f"visual.layer{stage + 1}.{block}"
            yield f"{prefix}.conv1.weight", (planes, inputs, 1, 1), "convolution"
            yield from _norm(f"{prefix}.bn1", planes)
            yield f"{prefix}.conv2.weight", (planes, planes, 3, 3), "convolution"
            yield from _norm(f"{prefix}.bn2", planes)
            yield f"{prefix}.conv3.weight", (4 * planes, planes, 1, 1), "convolution"
            yield from _norm(f"{prefix}.bn3", 4 * planes, "residual")
            if block == 0:
                yield f"{prefix}.downsample.0.weight", (4 * planes, inputs, 1, 1), "convolution"
                yield from _norm(f"{prefix}.downsample.1", 4 * planes)
            inputs = 4 * planes
    yield "visual.attnpool.positional_embedding", ((sizes.resolution // 32) ** 2 + 1, channels), "embedding"
    for name, outputs in (("k", channels), ("q", channels), ("v", channels), ("c", sizes.embed_dim)):
        yield from _linear(f"visual.attnpool.{name}_proj", outputs, channels)


def _text_tower(sizes: Sizes) -> Iterator[Entry]:
    width = sizes.text_width
    yield "token_embedding.weight", (sizes.vocabulary, width), "embedding"
    yield "positional_embedding", (sizes.context, width), "embedding"
    for layer in range(sizes.text_layers):
        prefix = f"transformer.resblocks.{layer}"
        yield from _linear(f"{prefix}.attn.in_proj", 3 * width, width, separator="_")
        yield from _linear(f"{prefix}.attn.out_proj", width, width)
        yield from _linear(f"{prefix}.mlp.c_fc", 4 * width, width)
        yield from _linear(f"{prefix}.mlp.c_proj", width, 4 * width)
        for norm in ("ln_1", "ln_2"):
            yield f"{prefix}.{norm}.weight", (width,), "near one"
            yield f"{prefix}.{norm}.bias", (width,), "small"
    yield "ln_final.weight", (width,), "near one"
    yield "ln_final.bias", (width,), "small"
    yield "text_projection", (width, sizes.embed_dim), "linear"
    yield "logit_scale", (), "scale"


def draw(name: str, shape: tuple[int, ...], distribution: str, seed: int) -> torch.Tensor:
    """Returns the float32 values of one tensor, a function of its name and the seed alone."""
    if distribution == "count":
        return torch.tensor(0)
    if distribution == "scale":
        return torch.tensor(4.6052)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(int(digest[:12], 16)))
    if distribution == "convolution":
        return noise * (2.0 / (shape[1] * shape[2] * shape[3])) ** 0.5
    if distribution == "linear":
        return noise * shape[-1] ** -0.5
    if distribution == "variance":
        return torch.exp(0.2 * noise)
    mean, std = MEAN_AND_STD[distribution]
    return mean + std * noise


_FLOAT32 = (
    "token_embedding.weight", "positional_embedding", "logit_scale", "visual.attnpool.positional_embedding",
)  # fmt: skip


def _is_half(name: str) -> bool:
    """Returns whether the released file holds a tensor in half precision: matrices and kernels, and their biases."""
    return name not in _FLOAT32 and not any(part in name for part in (".bn", "ln_", "downsample.1"))


def state_dict(sizes: Sizes = FULL, seed: int = 0) -> dict[str, torch.Tensor]:
    """Returns tensors by the names of the released file, in its dtypes."""
    tensors = {}
    for name, shape, distribution in (*_image_tower(sizes), *_text_tower(sizes)):
        tensor = draw(name, shape, distribution, seed)
        tensors[name] = tensor.half() if _is_half(name) and tensor.is_floating_point() else tensor
    return tensors


class _Node(nn.Module):
    """A module that only holds tensors and other nodes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def write_archive(path: Path, sizes: Sizes = FULL, seed: int = 0) -> None:
    """Writes a TorchScript archive of the released form: the tensors, and three sizes beside them."""
    root = _Node()
    lengths = {
        "input_resolution": sizes.resolution, "context_length": sizes.context, "vocab_size": sizes.vocabulary,
    }  # fmt: skip
    for name, tensor in (state_dict(sizes, seed) | {n: torch.tensor(v) for n, v in lengths.items()}).items():
        *parents, leaf = name.split(".")
        node: nn.Module = root
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, _Node())
            node = node.get_submodule(parent)
        if tensor.is_floating_point() and not leaf.startswith("running_"):
            node.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            node.register_buffer(leaf, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; the released file is written in it all the same
        torch.jit.script(root.eval()).save(str(path))
