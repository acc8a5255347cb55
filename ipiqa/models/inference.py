"""Rewrites of a trained model that compute the same scores in less time, for models that do not train any more."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ipiqa.models.towers.transformers import merged


def for_inference(model: nn.Module) -> nn.Module:
    """Changes a model for good and returns it: evaluation mode, nothing trains, BatchNorm and LoRA folded, fp32 head.

    A BatchNorm that follows a convolution is, once its statistics stand still, part of that convolution's weights: the
    scores are the same up to the rounding of fp32.
    """
    merged(model.requires_grad_(False).eval())
    for parent in model.modules():
        children = dict(parent.named_children())
        follower = dict(zip(children, [*children][1:], strict=False)) if isinstance(parent, nn.Sequential) else {}
        for name, conv in children.items():
            # two layers of a Sequential, or what ResNets call conv1 and bn1
            norm_name = follower.get(name) or (name.replace("conv", "bn") if name.startswith("conv") else "")
            norm = children.get(norm_name)
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.track_running_stats:
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                setattr(parent, norm_name, nn.Identity())
    if isinstance(head := getattr(model, "head", None), nn.Module):
        model.head = InFP32(head)
    return model.requires_grad_(False)


class InFP32(nn.Module):
    """A head whose every layer is computed in fp32: bf16 would give images that differ a little the same score."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: torch.Tensor) -> Any:
        """Returns what the head does, for features (B, F) of any precision."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())
