from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from ipiqa.config.settings import RunConfig, SplitConfig
from ipiqa.errors import ConfigError


def run(**settings: Any) -> RunConfig:
    return RunConfig(output_dir="output/x", **settings)


INF, NAN = float("inf"), float("nan")
OUT_OF_RANGE = [
    *((name, value, "Give a number 1 or more.")
      for name in ("num_folds", "max_epochs", "batch_size", "eval_batch_size", "accumulate_steps", "eval_every",
                   "save_every", "log_every")
      for value in (0, -1)),
    *((name, value, "Give a number 0 or more.")
      for name in ("learning_rate", "head_learning_rate_scale", "weight_decay", "warmup_steps", "min_learning_rate")
      for value in (-1, INF, NAN)),
    ("num_workers", -1, "Give a number from 0 to 256."),
    ("num_workers", 10**8, "Give a number from 0 to 256."),
    ("warmup_learning_rate", NAN, "Give a number 0 or more, or below 0 to start at learning_rate."),
    ("warmup_learning_rate", -INF, "Give a number 0 or more, or below 0 to start at learning_rate."),
    *(("layer_decay", value, "Give a number above 0 and at most 1.") for value in (0.0, 1.1, NAN)),
    *(("learning_rate_decay", value, "Give a number above 0 and at most 1, or null.") for value in (0.0, 1.1, NAN)),
    *(("clip_grad_norm", value, "Give a number above 0, or null.") for value in (0.0, -1.0, INF)),
    *((name, value, "Give a number at least 0 and below 1.")
      for name in ("beta2", "val_fraction") for value in (-0.1, 1.0, NAN)),
    *(("seed", value, "Give a number from 0 to 4294967295.") for value in (-1, 2**32)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "expected"), OUT_OF_RANGE)
def test_number_out_of_range(name: str, value: float, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(**{name: value}).check()
    assert str(caught.value) == f"run.{name}: {value!r} is out of range. {expected}"


@pytest.mark.parametrize(
    ("name", "value"), [("train_fraction", 0.0), ("train_fraction", 1.0), ("seed", -1), ("seed", 2**32)]
)
def test_split_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        SplitConfig(**{name: value}).check()  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"split.{name}: {value!r} is out of range. Give a number ")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"learning_rate": 0.0, "head_learning_rate_scale": 0.0, "num_workers": 0, "val_fraction": 0.0, "beta2": 0.0},
        {"layer_decay": 1.0, "learning_rate_decay": 1.0, "warmup_learning_rate": -1.0, "seed": 2**32 - 1},
        {"min_learning_rate": 0.1, "learning_rate": 0.01},  # constant_lr does not read it
        {"schedule": "linear_warmup_cosine_lr", "min_learning_rate": 0.1, "learning_rate": 0.1},
        {"schedule": "linear_warmup_step_lr", "learning_rate_decay": 0.9},
        {"evaluate": True, "checkpoint": "best.pt"},
    ],
)
def test_the_ends_of_the_ranges_are_in_them(settings: dict[str, Any]) -> None:
    run(**settings).check()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"schedule": "linear_warmup_step_lr"},
            "run.learning_rate_decay: missing. linear_warmup_step_lr needs the factor",
        ),
        (
            {"schedule": "linear_warmup_cosine_lr", "min_learning_rate": 0.1, "learning_rate": 0.01},
            "run.min_learning_rate: 0.1 is above run.learning_rate, 0.01. Give at most that.",
        ),
        ({"output_dir": " "}, "run.output_dir: empty. Give a path."),
        ({"checkpoint": ""}, "run.checkpoint: empty. Give a path or null."),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig(**{"output_dir": "output/x", **settings}).check()
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_every_number_has_a_range() -> None:
    """A setting added later without a check of its range is found here."""
    for settings in (SplitConfig(), run()):
        for field in dataclasses.fields(settings):
            if field.type in ("int", "float", "int | None", "float | None"):
                with pytest.raises(ConfigError, match=f"{field.name}: nan is out of range"):
                    dataclasses.replace(settings, **{field.name: NAN}).check()
