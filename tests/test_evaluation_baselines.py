"""What needs no picture: the figures of the published tables, and nothing read that a model could not have read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ipiqa.datasets.databases.published import Agiqa1k, Agiqa3k
from ipiqa.datasets.splits import Split, make_split
from ipiqa.datasets.table import AnnotationTable, Target
from ipiqa.evaluation.baselines import measure_baselines, no_pixel


def with_segments(table: AnnotationTable) -> AnnotationTable:
    """Gives a table the segments that the names of AGIQA tell, as databases do that define them."""
    fields = [name.split("_") for name in table.names]
    segments = {"generator": tuple(f[0] for f in fields), "variant": tuple("_".join(f[:2]) for f in fields)}
    object.__setattr__(table, "segments", segments)
    return table


def own_table(num_prompts: int = 30, targets: int = 1) -> AnnotationTable:
    """A table of made-up scores: the sum of an effect of the generator (4) and one of the prompt."""
    rng = np.random.default_rng(0)
    generator, prompt = np.tile(np.arange(4), num_prompts), np.repeat(np.arange(num_prompts), 4)
    effects = rng.normal(size=(4, targets))[generator] + rng.normal(size=(num_prompts, targets))[prompt]
    names, prompts = (f"g{g}_x_{p}.png" for g, p in zip(generator, prompt, strict=True)), [f"word {p}" for p in prompt]
    named = tuple(Target(f"t{t}") for t in range(targets))
    return with_segments(AnnotationTable(tuple(names), tuple(prompts), effects, named, tuple(prompts), Path()))


def split_of(table: AnnotationTable, kind: str = "holdout") -> Split:
    return make_split(table, kind=kind, seed=0, fold=0, num_folds=1, val_fraction=0.1)


def mean_of_folds(table: AnnotationTable, metric: str) -> dict[str, list[float]]:
    splits = [make_split(table, kind="reference", seed=42, fold=fold, num_folds=10) for fold in range(10)]
    every = [measure_baselines(table, split) for split in splits]
    return {
        name: [float(np.mean([one[name][target][metric] for one in every])) for target in table.target_names]
        for name in every[0]
    }


def test_real_agiqa_3k_without_a_pixel(shared: Path) -> None:
    """Computed before, by other code: means of ten reference folds, for quality and alignment."""
    table = with_segments(Agiqa3k(annotations=str(shared / "data/agiqa3k/data.csv"), images="x").load())
    srcc, plcc, within = (mean_of_folds(table, metric) for metric in ("srcc", "plcc", "srcc_within"))
    assert srcc["generator"] == pytest.approx([0.618, 0.576], abs=6e-4)
    assert plcc["generator"] == pytest.approx([0.756, 0.784], abs=6e-4)
    assert srcc["variant"] == pytest.approx([0.719, 0.593], abs=6e-4)
    assert plcc["variant"] == pytest.approx([0.804, 0.791], abs=6e-4)
    assert srcc["other targets"] == pytest.approx([0.737, 0.737], abs=6e-4)
    assert plcc["other targets"] == pytest.approx([0.811, 0.811], abs=6e-4)
    assert within["generator"] == pytest.approx([0.64, 0.61], abs=6e-3)
    assert within["variant"] == pytest.approx([0.74, 0.63], abs=6e-3)
    assert within["prompt length"] == [0, 0] and max(srcc["prompt length"]) < 0.11
    assert "prompt" not in srcc  # no held-out prompt is in training


def test_real_agiqa_1k_without_a_pixel(shared: Path) -> None:
    path = shared / "data/agiqa1k/AIGC_MOS_Zscore.xlsx"
    table = with_segments(Agiqa1k(annotations=str(path), images="x").load())
    assert mean_of_folds(table, "srcc")["generator"] == pytest.approx([0.723], abs=6e-4)


def test_means_are_those_of_the_training_part() -> None:
    table = own_table()
    split = split_of(table)
    frame = pd.DataFrame({"generator": table.segments["generator"], "score": table.scores[:, 0]})
    means = frame.iloc[split.train].groupby("generator")["score"].mean()
    expected = means[frame["generator"].iloc[split.val]].to_numpy()
    np.testing.assert_allclose(no_pixel(table, split, ["generator"])[:, 0], expected)


@pytest.mark.parametrize("by", [["generator"], ["prompt"], ["generator", "prompt"], ["prompt length"]])
def test_no_held_out_score_is_read(by) -> None:
    """Nor one of the part that chooses the epoch."""
    table = own_table(targets=2)
    split = split_of(table, "image_random")
    before = no_pixel(table, split, by)
    table.scores[split.val] = 99
    table.scores[split.selection] = 99
    np.testing.assert_array_equal(no_pixel(table, split, by), before)


def test_effects_that_add_up_are_found_where_prompts_leak() -> None:
    table = own_table()
    split = split_of(table, "image_random")
    assert {len(split.train), len(split.val)} == {86, 24}
    known = np.isin(np.array(table.prompts)[split.val], np.array(table.prompts)[split.train])
    exact = no_pixel(table, split, ["generator", "prompt"])[known]
    np.testing.assert_allclose(exact, table.scores[split.val][known], atol=1e-3)
    found = measure_baselines(table, split)
    assert [*found] == ["generator", "prompt", "generator + prompt", "prompt length"]  # variant parts images alike
    assert found["generator + prompt"]["t0"]["srcc"] > 0.95 > found["generator"]["t0"]["srcc"]


def test_a_new_level_counts_as_average() -> None:
    table = own_table()
    split = split_of(table)
    mean = table.scores[split.train].mean()
    np.testing.assert_allclose(no_pixel(table, split, ["prompt"]), mean)
    new = tuple("new" if row in set(split.val[:3]) else g for row, g in enumerate(table.segments["generator"]))
    object.__setattr__(table, "segments", {"generator": new})
    np.testing.assert_allclose(no_pixel(table, split, ["generator"])[:3], mean)


def test_the_other_targets_are_weighed_by_the_training_part() -> None:
    table = own_table(targets=3)
    table.scores[:, 0] = 2 * table.scores[:, 1] - table.scores[:, 2] + 5
    split = split_of(table)
    np.testing.assert_allclose(no_pixel(table, split, ["other targets"])[:, 0], table.scores[split.val, 0])
    assert measure_baselines(table, split)["other targets"]["t0"]["srcc"] == pytest.approx(1)


def test_missing_scores_are_left_out() -> None:
    table, whole = own_table(targets=2), own_table(targets=2)
    split = split_of(table)
    gone = split.train[:5]
    table.scores[gone, 0] = np.nan
    kept = Split(np.setdiff1d(split.train, gone), split.selection, split.val, "holdout", 0, 0, "")
    for by in (["generator"], ["prompt length"]):
        np.testing.assert_allclose(no_pixel(table, split, by)[:, 0], no_pixel(whole, kept, by)[:, 0])
        np.testing.assert_allclose(no_pixel(table, split, by)[:, 1], no_pixel(whole, split, by)[:, 1])
    table.scores[split.val[:2], 1] = np.nan
    assert np.isfinite(no_pixel(table, split, ["other targets"])).all()
    found = measure_baselines(table, split)
    assert all(np.isfinite(found[name]["t1"]["plcc"]) for name in ("generator", "other targets"))
    table.scores[:, 0] = np.nan
    assert np.isnan(no_pixel(table, split, ["generator"])[:, 0]).all()
    assert np.isnan(measure_baselines(table, split)["generator"]["t0"]["srcc"])


def test_without_segments_or_training_there_is_less() -> None:
    table = own_table()
    split = split_of(table)
    object.__setattr__(table, "segments", {"id": table.names, "one": ("x",) * len(table)})  # they tell nothing apart
    assert [*measure_baselines(table, split)] == ["prompt length"]
    nothing = np.array([], dtype=np.int64)
    assert measure_baselines(table, Split(nothing, nothing, split.val, "all", 0, 0, "")) == {}
