"""Parameter groups and learning-rate schedules."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    weight_decay: float,
    head_scale: float,
    layer_decay: float,
    is_head: Callable[[str], bool],
    depth: Callable[[str], int],
) -> list[dict]:
    """Returns optimizer groups of the named parameters that train; each has `lr_scale`, a factor on the learning rate.

    Args:
        weight_decay: of matrices and kernels; 1-d tensors (norms, biases) never decay.
        head_scale: factor on the head's learning rate; 10 in the reference.
        layer_decay: factor per layer between a parameter and the deepest one; 1 for none.
        depth: name -> number of layers before a parameter.
    """
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    deepest = max((depth(name) for name, _ in trained), default=0)
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in trained:
        scale = layer_decay ** (deepest - depth(name)) * (head_scale if is_head(name) else 1.0)
        decay = 0.0 if parameter.ndim <= 1 else weight_decay
        group = groups.setdefault((scale, decay), {"params": [], "lr_scale": scale, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def make_adamw(groups: list[dict], *, learning_rate: float, beta2: float) -> torch.optim.AdamW:
    """Returns AdamW over the groups, in the fused form, which runs one kernel over all tensors of a group."""
    for group in groups:
        group["lr"] = learning_rate * group["lr_scale"]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, beta2), fused=True)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate of every step, under the reference code's names.

    * constant_lr: `learning_rate` throughout.
    * linear_warmup_cosine_lr: half a cosine from `learning_rate` to `min_learning_rate`, a new value each epoch.
    * linear_warmup_step_lr: `learning_rate * decay ** epoch`, never under `min_learning_rate`.
    * linear_warmup_cosine_lr_step-wise: half a cosine over steps, from the end of the warm-up to the last step.

    All but the first climb linearly from `warmup_learning_rate` over the first `warmup_steps` steps.
    """

    kind: str
    learning_rate: float
    max_epochs: int
    steps_per_epoch: int
    warmup_learning_rate: float = -1.0  # negative: warm up from learning_rate, that is, not at all
    warmup_steps: int = 0
    min_learning_rate: float = 0.0
    decay: float | None = None

    def at(self, epoch: int, step: int) -> float:
        """Returns the learning rate of a step, both counted from 0."""
        if self.kind == "constant_lr":
            return self.learning_rate
        done = epoch * self.steps_per_epoch + step
        if done < self.warmup_steps:
            start = self.learning_rate if self.warmup_learning_rate < 0 else self.warmup_learning_rate
            return start + (self.learning_rate - start) * done / self.warmup_steps
        if self.kind == "linear_warmup_step_lr":
            assert self.decay is not None
            return max(self.min_learning_rate, self.learning_rate * self.decay**epoch)
        part = epoch / self.max_epochs
        if self.kind == "linear_warmup_cosine_lr_step-wise":
            part = (done - self.warmup_steps) / max(self.max_epochs * self.steps_per_epoch - self.warmup_steps, 1)
        height = self.learning_rate - self.min_learning_rate
        return self.min_learning_rate + height * 0.5 * (1 + math.cos(math.pi * part))

    def __call__(self, optimizer: torch.optim.Optimizer, epoch: int, step: int) -> float:
        """Sets the learning rate of every group for a step and returns it unscaled."""
        rate = self.at(epoch, step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        return rate
