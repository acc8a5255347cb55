"""Intervals and tests keep their level on simulated databases, for every kind of split (docs/statistics.md)."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from conftest import REPOSITORY


@pytest.fixture(scope="module")
def coverage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_benchmark", REPOSITORY / "benchmarks" / "coverage.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


CASES = [("reference", 10), ("reference", 3), ("holdout", 5), ("kfold", 5), ("kfold", 10), ("image_random", 10)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "folds"), [*CASES, ("holdout", 1)])
def test_intervals_hold_what_they_promise(coverage, kind, folds) -> None:
    """92 to 97 % and 3 to 7 %, and beyond that what chance does in 400 databases (two standard errors)."""
    found = coverage.simulate(coverage.SETTINGS[0], kind, folds, 400)
    chosen = coverage.CHOSEN[kind] if folds > 1 else "prompts"
    for (_, method), rates in found.items():
        if method == chosen:
            assert 0.92 - 0.02 <= rates.coverage <= 0.97 + 0.02
            assert 0.03 - 0.02 <= rates.false_alarms <= 0.07 + 0.025
    if folds > 1 and kind != "kfold":
        plain = found["new database", "plain t"]
        assert plain.coverage < 0.93 and plain.false_alarms > 0.05  # draws share images, which it does not know


@pytest.mark.slow
def test_nadeau_bengio_is_too_cautious_for_disjoint_folds(coverage) -> None:
    found = coverage.simulate(coverage.SETTINGS[0], "kfold", 10, 300)
    corrected, plain = (found["new database", method] for method in ("Nadeau-Bengio", "plain t"))
    assert corrected.coverage > plain.coverage + 0.02 and corrected.false_alarms < 0.03
