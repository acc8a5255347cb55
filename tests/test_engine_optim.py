"""Parameter groups and learning-rate schedules."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ipiqa.engine.optim import Schedule, make_adamw, parameter_groups
from ipiqa.models.ipiqa import is_head, parameter_depth
from ipiqa.models.towers.image_tower import ResNetTower

RESNET: Any = SimpleNamespace(image_encoder=SimpleNamespace(depth=ResNetTower.depth, num_layers=5))


def named(*names: str) -> list[tuple[str, nn.Parameter]]:
    return [(n, nn.Parameter(torch.ones(2, 2) if n.endswith("weight") else torch.ones(2))) for n in names]


def test_one_dimensional_tensors_never_decay_and_the_head_learns_faster() -> None:
    parameters = named(
        "head.dense.weight", "head.dense.bias", "image_encoder.tower.conv1.weight", "fusion.pool.q_proj.weight"
    )
    parameters[2][1].requires_grad_(False)
    groups = parameter_groups(
        parameters, weight_decay=0.1, head_scale=10.0, layer_decay=1.0, is_head=is_head, depth=parameter_depth(RESNET)
    )
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        id(parameters[0][1]): (10.0, 0.1),
        id(parameters[1][1]): (10.0, 0.0),
        id(parameters[3][1]): (1.0, 0.1),
    }
    optimizer = make_adamw(groups, learning_rate=1e-5, beta2=0.98)
    assert {g["lr"] for g in optimizer.param_groups} == {1e-4, 1e-5}
    assert optimizer.defaults["betas"] == (0.9, 0.98)


def test_layer_decay_slows_the_early_stages() -> None:
    parameters = named(
        "image_encoder.tower.conv1.weight", "image_encoder.tower.layer4.0.conv1.weight", "head.dense.weight"
    )
    groups = parameter_groups(
        parameters, weight_decay=0.0, head_scale=2.0, layer_decay=0.5, is_head=is_head, depth=parameter_depth(RESNET)
    )
    assert sorted(g["lr_scale"] for g in groups) == [0.5**5, 0.5, 2.0]


def schedule(kind: str, **changes: float) -> Schedule:
    settings = {"learning_rate": 1.0, "max_epochs": 10, "steps_per_epoch": 4, "min_learning_rate": 0.1, "decay": 0.5}
    return Schedule(kind=kind, **{**settings, **changes})  # type: ignore[arg-type]


def test_constant_rate_ignores_every_other_setting() -> None:
    assert {
        schedule("constant_lr", warmup_steps=5, warmup_learning_rate=0).at(e, s) for e in range(10) for s in range(4)
    } == {1.0}


@pytest.mark.parametrize(
    "kind", ["linear_warmup_cosine_lr", "linear_warmup_step_lr", "linear_warmup_cosine_lr_step-wise"]
)
def test_warm_up_climbs_linearly_and_goes_on_over_epochs(kind: str) -> None:
    warm = schedule(kind, warmup_steps=6, warmup_learning_rate=0.4)
    assert [warm.at(i // 4, i % 4) for i in range(6)] == pytest.approx([0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    assert schedule(kind, warmup_steps=6).at(0, 3) == 1.0  # -1 starts at the learning rate itself


def test_cosine_by_epoch_is_flat_within_an_epoch_and_by_step_it_is_not() -> None:
    by_epoch, by_step = schedule("linear_warmup_cosine_lr"), schedule("linear_warmup_cosine_lr_step-wise")
    assert by_epoch.at(5, 0) == by_epoch.at(5, 3) == pytest.approx(0.1 + 0.9 / 2)
    assert by_step.at(5, 0) == pytest.approx(0.1 + 0.9 / 2)
    assert by_step.at(5, 3) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 23 / 40)))


def test_step_schedule_multiplies_each_epoch_and_keeps_the_minimum() -> None:
    assert [schedule("linear_warmup_step_lr").at(e, 0) for e in range(5)] == [1.0, 0.5, 0.25, 0.125, 0.1]


def test_groups_keep_their_scale_under_the_schedule() -> None:
    groups = [
        {"params": [nn.Parameter(torch.ones(1))], "lr_scale": 10.0},
        {"params": [nn.Parameter(torch.ones(1))], "lr_scale": 1.0},
    ]
    optimizer = make_adamw(groups, learning_rate=1.0, beta2=0.999)
    assert schedule("linear_warmup_step_lr")(optimizer, 2, 0) == 0.25
    assert [g["lr"] for g in optimizer.param_groups] == [2.5, 0.25]
