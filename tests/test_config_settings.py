"""The ranges of the settings of `split` and `run`, and what does not go together."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

import pytest
from conftest import refused

from ipiqa.config.settings import RunConfig, SplitConfig, check

SECTIONS: dict[str, Any] = {"run": RunConfig(output_dir="output/x"), "split": SplitConfig()}
FIELDS = {f"{name}.{field.name}": field for name, section in SECTIONS.items() for field in dataclasses.fields(section)}
RANGES: dict[str, str] = {key: field.metadata["range"] for key, field in FIELDS.items() if field.metadata}


def check_changed(key: str, value: float) -> None:
    section, name = key.split(".")
    check(**{**SECTIONS, section: dataclasses.replace(SECTIONS[section], **{name: value})})


def test_every_number_has_a_range() -> None:
    """A setting added later without a range is found here."""
    numbers = [key for key, field in FIELDS.items() if {int, float} & {field.type, *typing.get_args(field.type)}]
    assert sorted(numbers) == sorted(RANGES) and len(numbers) > 20


@pytest.mark.parametrize("key", RANGES)
def test_numbers_out_of_range_are_refused_and_the_ends_are_not(key: str) -> None:
    allowed = RANGES[key]
    low, high = map(float, allowed[1:-1].split(","))
    without_low, without_high = allowed[0] == "(", allowed[-1] == ")"
    inside = [low] * (not without_low) + [high] * (high < math.inf and not without_high)
    outside = [low if without_low else low - 1, high if without_high else high + 1, math.nan, math.inf, -math.inf]
    for value in inside:
        check_changed(key, value)
    for value in outside:
        message = refused(lambda value=value: check_changed(key, value))  # type: ignore[misc]
        assert message == f"{key}: {value!r} is out of range. Give a number in {allowed}."


@pytest.mark.parametrize(
    "settings",
    [
        {"min_learning_rate": 0.1, "learning_rate": 0.01},  # constant_lr does not read it
        {"schedule": "linear_warmup_cosine_lr", "min_learning_rate": 0.1, "learning_rate": 0.1},
        {"schedule": "linear_warmup_step_lr", "learning_rate_decay": 0.9},
        {"evaluate": True, "checkpoint": "best.pt"},
    ],
)
def test_settings_that_go_together(settings: dict[str, Any]) -> None:
    check(SplitConfig(), RunConfig(**{"output_dir": "output/x", **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "linear_warmup_step_lr"}, "run.learning_rate_decay: missing. linear_warmup_step_lr needs the"),
        (
            {"schedule": "linear_warmup_cosine_lr", "min_learning_rate": 0.1, "learning_rate": 0.01},
            "run.min_learning_rate: 0.1 is above run.learning_rate, 0.01. Give at most that.",
        ),
        ({"output_dir": " "}, "run.output_dir: empty. Give a path."),
        ({"checkpoint": ""}, "run.checkpoint: empty. Give a path or null."),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    run = RunConfig(**{"output_dir": "output/x", **settings})
    assert refused(lambda: check(SplitConfig(), run)).startswith(message)
