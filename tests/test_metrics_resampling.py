"""Metrics of drawn prompts: the numbers of a sample in which images really stand several times, and errors that fit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from ipiqa.metrics import CHOSEN, DRAWN, METRICS, Images, Resampled, measure, plain
from ipiqa.metrics.resampling import DRAWS, MAX_CLUSTERS, clusters_of, draw, resampled


def sample(num_prompts: int = 12, ties: bool = False) -> Images:
    rng = np.random.default_rng(3)
    prompts = np.repeat(np.arange(num_prompts), 5)
    mos = rng.normal(size=len(prompts)) + rng.normal(size=num_prompts)[prompts]
    predictions = 0.5 * mos + rng.normal(size=len(prompts))
    mos, predictions = (np.round(2 * v) for v in (mos, predictions)) if ties else (mos, predictions)
    return Images(predictions, mos, prompts, segments=np.tile(np.arange(5), num_prompts), clusters=prompts)


def repeated(images: Images, times: np.ndarray) -> Images:
    """Returns the images as often as their prompt was drawn, each time under a number of its own."""
    copies = [np.flatnonzero(images.prompts == prompt) for prompt, n in enumerate(times) for _ in range(int(n))]
    rows = np.concatenate(copies)
    prompts = np.repeat(np.arange(len(copies)), [len(copy) for copy in copies])
    return Images(images.predictions[rows], images.mos[rows], prompts, images.segments[rows], prompts)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("metric", sorted(set(DRAWN) - {"plcc_fitted"}))
def test_a_draw_is_a_sample_with_repetitions(metric, ties) -> None:
    images, draws = sample(ties=ties), draw(12)[:20]
    drawn = resampled(DRAWN[metric], images, draws)
    for value, times in zip(drawn, draws, strict=True):
        expected = repeated(images, times)
        assert value == pytest.approx(plain(DRAWN[metric], expected), abs=1e-12)
        if metric in METRICS:
            reported = measure(expected.predictions[:, None], expected.mos[:, None], ["q"], fitted=False)["q"]
            assert value == pytest.approx(reported[metric], abs=1e-12)


def test_plain_metrics_are_those_of_a_report() -> None:
    images = sample(40)
    reported = measure(images.predictions[:, None], images.mos[:, None], ["quality"])["quality"]
    for metric in ("srcc", "plcc", "krcc", "rmse", "plcc_fitted"):
        assert plain(DRAWN[metric], images) == pytest.approx(reported[metric], abs=1e-12)
    line = stats.linregress(images.predictions, images.mos)
    assert plain(DRAWN["slope"], images) == pytest.approx(line.slope)
    assert plain(DRAWN["intercept"], images) == pytest.approx(line.intercept)
    assert plain(DRAWN["bias"], images) == pytest.approx(np.mean(images.predictions - images.mos))
    means = [[v[images.segments == s].mean() for s in range(5)] for v in (images.predictions, images.mos)]
    assert plain(DRAWN["order"], images) == pytest.approx(stats.spearmanr(*means).statistic)


def test_the_error_of_a_mean_is_that_of_its_prompts() -> None:
    """Copies of an image within its prompt bring nothing; as prompts of their own they would halve the error."""
    rng = np.random.default_rng(5)
    errors = rng.normal(size=200)
    one = Images(errors, np.zeros(200), np.arange(200), clusters=np.arange(200))
    four = Images(
        np.repeat(errors, 4), np.zeros(800), np.repeat(np.arange(200), 4), clusters=np.repeat(np.arange(200), 4)
    )
    found = [Resampled(resampled(DRAWN["bias"], images, draw(200)), 199).error for images in (one, four)]
    assert found[0] == pytest.approx(stats.sem(errors), rel=0.05) and found[1] == pytest.approx(found[0])


@pytest.mark.parametrize("metric", sorted(DRAWN))
def test_undefined_is_nan(metric) -> None:
    images = sample()
    broken = images._replace(predictions=np.where(np.arange(60) == 7, math.nan, images.predictions))
    assert math.isnan(plain(DRAWN[metric], broken)) and np.isnan(resampled(DRAWN[metric], broken, draw(12))).all()
    nothing = Images(*(np.zeros(0, kind) for kind in (float, float, int)))
    assert math.isnan(plain(DRAWN[metric], nothing))
    constant = plain(DRAWN[metric], images._replace(predictions=np.full(60, 0.1)))
    assert math.isnan(constant) is (metric not in ("rmse", "bias", "srcc_within", "pair_accuracy", *CHOSEN))


def test_an_error_needs_two_prompts_and_draws_that_are_defined() -> None:
    values = np.random.default_rng(0).normal(size=100)
    assert Resampled(values, 0).error != Resampled(values, 0).error
    assert math.isnan(Resampled(np.where(np.arange(100) < 11, math.nan, values), 5).error)
    few = Resampled(np.where(np.arange(100) < 10, math.nan, values), 5)
    assert few.error == pytest.approx(values[10:].std(ddof=1))


def test_draws_are_always_the_same_and_clusters_few() -> None:
    draws = draw(7)
    assert draws.shape == (DRAWS, 7) and (draws.sum(axis=1) == 7).all() and (draw(7) == draws).all()
    assert clusters_of(["b", "a", "b"]) == {"a": 0, "b": 1}
    many = clusters_of(f"{i:05d}" for i in range(2 * MAX_CLUSTERS))
    numbers = np.bincount([*many.values()])
    assert (numbers == 2).all() and len(numbers) == MAX_CLUSTERS and many["00000"] != 0  # mixed: neighbours are alike


def test_a_large_sample_is_drawn_in_chunks(monkeypatch) -> None:
    images, draws = sample(), draw(12)
    whole = resampled(DRAWN["srcc"], images, draws)
    monkeypatch.setattr("ipiqa.metrics.resampling._MAX_CELLS", 600)
    np.testing.assert_array_equal(resampled(DRAWN["srcc"], images, draws), whole)
