"""The ranges of the settings of `split` and `run`, and what does not go together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from conftest import refused

from ipiqa.config.settings import RANGES, Range, RunConfig, SplitConfig

SECTIONS = {"run": RunConfig(output_dir="output/x"), "split": SplitConfig()}


def changed(key: str, value: float) -> RunConfig | SplitConfig:
    section, name = key.split(".")
    return dataclasses.replace(SECTIONS[section], **{name: value})  # type: ignore[arg-type, return-value]


def test_every_number_has_a_range() -> None:
    """A setting added later without a range is found here."""
    numbers = [
        f"{section}.{field.name}"
        for section, settings in SECTIONS.items()
        for field in dataclasses.fields(settings)  # type: ignore[arg-type]
        if field.type in ("int", "float", "int | None", "float | None")
    ]
    assert sorted(numbers) == sorted(RANGES)


@pytest.mark.parametrize("key", RANGES)
def test_numbers_out_of_range_are_refused_and_the_ends_are_not(key: str) -> None:
    low, high, without_low, without_high = RANGES[key]
    inside = [low] * (not without_low) + ([high] if high is not None and not without_high else [])
    outside = [low if without_low else low - 1, math.nan, math.inf, -math.inf]
    outside += [10**10 if high is None else high if without_high else high + 1][high is None :]
    for value in inside:
        changed(key, value).check()
    for value in outside:
        assert refused(changed(key, value).check) == f"{key}: {value!r} is out of range. Give a number {RANGES[key]}."


def test_ranges_in_words() -> None:
    ranges = [Range(1, 9), Range(0), Range(0, without_low=True), Range(0, 1, without_low=True)]
    ranges += [Range(0, 1, without_high=True), Range(0, 1, without_low=True, without_high=True)]
    assert [str(r) for r in ranges] == [
        "from 1 to 9", "0 or more", "above 0", "above 0 and at most 1", "at least 0 and below 1", "above 0 and below 1",
    ]  # fmt: skip


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
    RunConfig(**{"output_dir": "output/x", **settings}).check()


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
    assert refused(RunConfig(**{"output_dir": "output/x", **settings}).check).startswith(message)
