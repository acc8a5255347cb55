"""The noise ceiling: against what simulated raters come to, and the values known of the real table."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ipiqa.datasets.databases.published import Agiqa3k
from ipiqa.metrics.ceiling import noise_ceiling


def test_it_is_what_the_truth_reaches_against_simulated_raters() -> None:
    draws = np.random.default_rng(1)
    truth = draws.uniform(1, 5, 4000)
    groups = [str(row // 10) for row in range(4000)]
    ratings = truth[:, None] + draws.normal(0, 1.5, (4000, 9))
    mos, std = ratings.mean(axis=1), ratings.std(axis=1, ddof=1)
    ceiling = noise_ceiling(mos, std, 9, groups)
    assert ceiling is not None
    rows = np.arange(4000).reshape(400, 10)
    within = np.mean([stats.spearmanr(truth[r], mos[r]).statistic for r in rows])
    assert ceiling.srcc == pytest.approx(stats.spearmanr(truth, mos).statistic, abs=0.01)
    assert ceiling.plcc == pytest.approx(stats.pearsonr(truth, mos).statistic, abs=0.01)
    assert ceiling.within == pytest.approx(within, abs=0.015)


def test_the_known_values_of_the_real_agiqa_3k(shared: Path) -> None:
    table = Agiqa3k(annotations=str(shared / "data/agiqa3k/data.csv"), images="x").load()
    assert table.rater_std is not None and table.num_raters is not None
    known = [(0.986, 0.964), (0.976, 0.933)]
    for t, (srcc, within) in enumerate(known):
        ceiling = noise_ceiling(table.scores[:, t], table.rater_std[:, t], table.num_raters[:, t], table.groups)
        assert ceiling is not None
        assert (ceiling.srcc, ceiling.within) == (pytest.approx(srcc, abs=0.001), pytest.approx(within, abs=0.002))


def test_what_is_not_known_is_left_out() -> None:
    mos, std = np.arange(6.0), np.full(6, 0.5)
    whole = noise_ceiling(mos, std, 4.0)
    lacking = noise_ceiling(np.append(mos, [np.nan, 3]), np.append(std, [0.5, np.nan]), 4.0)
    assert whole == lacking or (whole is not None and lacking is not None and whole.srcc == lacking.srcc)
    assert whole is not None and math.isnan(whole.within) and whole.plcc == math.sqrt(1 - 0.0625 / mos.var())
    assert noise_ceiling(mos, np.full(6, np.nan), 4.0) is None
    assert noise_ceiling(np.ones(6), std, 4.0) is None
    assert noise_ceiling(mos[:2], std[:2], 4.0) is None


def test_raters_without_disagreement_and_with_nothing_else() -> None:
    mos = np.arange(9.0)
    exact, lost = noise_ceiling(mos, np.zeros(9), 5.0, ["a", "b", "c"] * 3), noise_ceiling(mos, np.full(9, 99.0), 1.0)
    assert exact is not None and (exact.srcc, exact.plcc, exact.within) == (
        pytest.approx(1), pytest.approx(1), pytest.approx(1),
    )  # fmt: skip
    assert lost is not None and lost.plcc == 0
