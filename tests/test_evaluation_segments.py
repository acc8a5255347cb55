"""A run in parts: right numbers by hand, the right source of uncertainty, and columns that are not there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import edit, write_run
from scipy import stats
from test_evaluation_baselines import own_table

from ipiqa.datasets.splits import make_split
from ipiqa.errors import ConfigError
from ipiqa.evaluation.held_out import Basis, HeldOut, basis_of
from ipiqa.evaluation.results import Measured, RunResult, load_run, write_fold
from ipiqa.evaluation.summary import beside_baselines, by_segment, common_folds, compare, summarise
from ipiqa.metrics import DRAWN, measure, plain
from ipiqa.report import write_summary


def change_predictions(run_dir: Path, change) -> RunResult:
    """Writes every predictions.csv anew, as `change` (frame, fold) returns it, and reads the run."""
    for path in sorted(run_dir.glob("fold_*/predictions.csv")):
        frame = pd.read_csv(path, dtype={"group": str})
        change(frame, int(path.parent.name[-2:])).to_csv(path, index=False)
    return load_run(run_dir)


def with_makers(frame: pd.DataFrame, fold: int) -> pd.DataFrame:
    makers = np.array(["b", "a10", "a9", ""])[np.arange(len(frame)) % 4]
    return frame.assign(maker=makers, best_quality=frame["best_quality"] + (makers == "b"))


@pytest.fixture
def run(tmp_path) -> RunResult:
    return change_predictions(write_run(tmp_path / "run"), with_makers)


def test_numbers_are_those_computed_by_hand(run) -> None:
    parts = by_segment(run, "maker")
    assert parts.subsets == ("all", "maker=", "maker=a9", "maker=a10", "maker=b")
    for label in ("a9", "b"):
        frames = [fold.predictions[fold.predictions["maker"] == label] for fold in run.folds]
        errors = [float((f["best_quality"] - f["mos_quality"]).mean()) for f in frames]
        srcc = [stats.spearmanr(f["best_quality"], f["mos_quality"]).statistic for f in frames]
        lines = [stats.linregress(f["best_quality"], f["mos_quality"]) for f in frames]
        wanted = {
            "images": 30, "bias": np.mean(errors), "srcc": np.mean(srcc),
            "slope": np.mean([line.slope for line in lines]), "intercept": np.mean([line.intercept for line in lines]),
        }  # fmt: skip
        found = {metric: parts.spreads["quality", "best", f"maker={label}", metric] for metric in wanted}
        assert {metric: spread.mean for metric, spread in found.items()} == pytest.approx(wanted)
        reach = stats.t.ppf(0.975, 2) * np.std(errors, ddof=1) * math.sqrt(1 / 3 + 120 / 480)
        assert found["bias"].high - found["bias"].mean == pytest.approx(reach)
        rows = parts.frame.query(f"subset == 'maker={label}' and metric == 'srcc' and epoch == 'best'")
        assert rows[rows["target"] == "quality"]["value"].tolist() == pytest.approx(srcc)
    assert parts.spreads["quality", "best", "maker=b", "bias"].mean > 0.8 > 0.3
    assert [*parts.frame] == ["run", "fold", "seed", "target", "epoch", "subset", "metric", "value"]
    assert set(parts.frame["seed"]) == {0} and set(parts.frame["run"]) == {run.name}


def test_the_order_of_means_is_that_of_the_segments(run) -> None:
    def shift(frame, fold):
        level = frame["maker"].map({"": 0, "a9": 1, "a10": 2, "b": 3}).fillna(0)  # read back, "" is nan
        return frame.assign(last_quality=frame["mos_quality"] + 3 * level, mos_quality=frame["mos_quality"] + 2 * level)

    parts = by_segment(change_predictions(run.run_dir, shift), "maker")
    assert parts.spreads["quality", "last", "all", "order"].mean == 1
    assert ("quality", "last", "maker=b", "order") not in parts.spreads


def test_all_images_of_a_breakdown_are_the_run(run) -> None:
    stored = summarise(run).spreads["alignment", "last", "srcc"]
    for parts in (by_segment(run, "maker"), beside_baselines(run)):
        spread = parts.spreads["alignment", "last", "all", "srcc"]
        assert (spread.mean, spread.low) == pytest.approx((stored.mean, stored.low))


@pytest.mark.parametrize(
    ("by", "subsets"),
    [
        ("generator", 1 + 3),  # "sd1.5" alone would be one value: the names get another start below
        ("variant", 1 + 6),
        ("prompt_length", 1 + 3),
        ("prompt", 1 + 3),
        ("group", 1 + 36),
    ],
)
def test_columns_and_what_stands_in_for_them(run, by, subsets) -> None:
    def rename(frame, fold):
        numbers = np.arange(len(frame))
        names = [f"folder_x/maker{i % 3}_kind{i % 2}_{fold}{i}.jpg" for i in numbers]
        return frame.assign(image=names, prompt=np.array(["a b", "c d e f g h", "i j k"])[numbers % 3])

    parts = by_segment(change_predictions(run.run_dir, rename), by)
    assert len(parts.subsets) == subsets
    if by == "prompt_length":
        assert parts.subsets[1:] == ("prompt_length=2 words", "prompt_length=3 words", "prompt_length=4 to 6 words")
    if by == "variant":
        assert parts.subsets[1] == "variant=maker0_kind0"


@pytest.mark.parametrize(
    ("by", "words"),
    [
        (
            "makr",
            "is no column of the predictions in {}. Did you mean 'maker'? There are: prompt, group, maker, image_id, ",
        ),
        ("best_quality", "is no column of the predictions in {}."),
        ("generator", "has 1 value in {}. Give a column with 2 to 100."),
        ("image_id", "has 360 values in {}. Give a column with 2 to 100."),
    ],
)
def test_a_column_that_cannot_be_used(run, by, words) -> None:
    run = change_predictions(run.run_dir, lambda frame, fold: frame.assign(image_id=frame["image"]))
    with pytest.raises(ConfigError) as caught:
        by_segment(run, by)
    assert f"--by: {by!r} {words.format(run.run_dir)}" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_scores_do_not_count(run) -> None:
    def remove(frame, fold):
        frame.loc[frame.index < 20, "mos_quality"] = np.nan
        return frame

    parts = by_segment(change_predictions(run.run_dir, remove), "maker")
    assert [parts.spreads[t, "best", "all", "images"].mean for t in ("quality", "alignment")] == [100, 120]
    frames = [fold.predictions[20:] for fold in load_run(run.run_dir).folds]
    srcc = [stats.spearmanr(f["best_quality"], f["mos_quality"]).statistic for f in frames]
    assert parts.spreads["quality", "best", "all", "srcc"].mean == pytest.approx(np.mean(srcc))
    twin = summarise(load_run(run.run_dir))
    assert common_folds(twin.run, twin.run, "quality") == ([0, 1, 2], "")
    assert compare(twin, twin, [("quality", "best", "srcc")], [0, 1, 2])[0].difference == 0


def test_segments_and_baselines_are_written_with_a_fold(tmp_path) -> None:
    table = own_table(targets=2)
    object.__setattr__(table, "segments", table.segments | {"group": tuple("xy" * 60)})
    for fold in range(2):
        split = make_split(table, kind="holdout", seed=0, fold=fold, num_folds=2)
        predictions = table.scores[split.val] + 1 / 3
        best = Measured(3, measure(predictions, table.scores[split.val], table.target_names))
        write_fold(
            tmp_path / f"fold_0{fold}", table, split, {"best": best}, {"best": predictions}, dataset="d", epochs=None,
            num_folds=2, settings={},
        )  # fmt: skip
    run = load_run(tmp_path)
    frame = run.folds[0].predictions
    assert [*frame][:7] == ["image", "prompt", "group", "mos_t0", "mos_t1", "best_t0", "best_t1"]
    assert frame["generator"].tolist() == [name.split("_")[0] for name in frame["image"]]
    assert set(frame["segment_group"]) == {"x", "y"} and frame["group"].tolist() == frame["prompt"].tolist()
    beside = beside_baselines(run)
    stored = [fold.scores.baselines["generator"]["t1"]["srcc"] for fold in run.folds]
    assert beside.spreads["t1", "generator", "all", "srcc"].mean == pytest.approx(np.mean(stored))
    assert beside.spreads["t1", "best", "all", "srcc"].mean == pytest.approx(1)
    write_summary(tmp_path, by="generator")
    text = (tmp_path / "breakdown.csv").read_text()
    assert "no picture" not in text and ",generator,all,srcc_within," in text and ",generator=g3,bias," in text


# What the uncertainty is taken from


@pytest.mark.parametrize(
    ("kind", "folds", "shared", "basis"),
    [
        ("reference", 3, False, Basis.OVERLAPPING),
        ("holdout", 3, False, Basis.OVERLAPPING),
        ("kfold", 3, False, Basis.DISJOINT),
        ("file", 3, False, Basis.DISJOINT),  # as the held-out images show
        ("image_random", 3, False, Basis.PROMPTS),
        ("reference", 1, False, Basis.PROMPTS),
        ("all", 1, False, Basis.PROMPTS),
        ("official", 3, True, Basis.PROMPTS),  # the same images in every fold
    ],
)
def test_the_basis_of_each_kind(tmp_path, kind, folds, shared, basis) -> None:
    run_dir = write_run(tmp_path / "run", kind=kind, folds=range(folds), num_folds=folds)
    if shared:
        for fold in range(1, folds):
            text = (run_dir / "fold_00/predictions.csv").read_text()
            (run_dir / f"fold_0{fold}/predictions.csv").write_text(text)
    assert basis_of(load_run(run_dir)) is basis
    overlap = 120 / 480 if basis is Basis.OVERLAPPING else 0
    assert HeldOut(load_run(run_dir)).overlap == overlap
    for path in run_dir.glob("fold_*/predictions.csv"):
        path.unlink()
    assert basis_of(load_run(run_dir)) is (Basis.DISJOINT if kind == "kfold" else Basis.OVERLAPPING)


def test_one_fold_is_judged_by_its_prompts(tmp_path) -> None:
    """Errors that all images of a prompt share make it less sure than errors of their own."""
    spreads = []
    for shared in (False, True):

        def change(frame, fold, shared=shared):
            rng = np.random.default_rng(0)
            error = rng.normal(size=12)[np.arange(120) // 10] if shared else rng.normal(size=120)
            return frame.assign(best_quality=frame["mos_quality"] + error)

        run = change_predictions(write_run(tmp_path / f"{shared}", folds=(0,), num_folds=1), change)
        held_out = HeldOut(run)
        parts = held_out.parts("quality", "best")
        spreads.append(held_out.spread("bias", parts, {0: plain(DRAWN["bias"], parts[0, 0])}))
    assert all(s.n == 1 and math.isnan(s.std) and s.low < s.mean < s.high and s.note is None for s in spreads)
    assert spreads[1].high - spreads[1].low > 1.5 * (spreads[0].high - spreads[0].low)


def test_paired_draws_are_of_the_same_prompts(tmp_path) -> None:
    """What both runs share cancels, although the rows of one file stand in another order, under other groups."""

    def noisy(scale):
        def change(frame, fold):
            rng = np.random.default_rng(0)
            quality = frame["mos_quality"] + rng.normal(size=120) + scale * rng.normal(size=120)
            out = frame.assign(last_quality=quality, best_quality=quality)
            return out if scale < 0.1 else out.sample(frac=1, random_state=1).assign(group="z" + out["image"])

        return change

    runs = []
    for scale in (0.05, 0.15):
        run_dir = write_run(tmp_path / f"{scale}", folds=(0,), num_folds=1)
        run = change_predictions(run_dir, noisy(scale))
        frame = run.folds[0].predictions
        metrics = measure(frame[["best_quality"]].to_numpy(), frame[["mos_quality"]].to_numpy(), ["quality"])
        edit(run_dir, 0, lambda s, m=metrics: s["best"]["metrics"].update(m))
        runs.append(summarise(load_run(run_dir)))
    test = compare(*runs, [("quality", "best", "srcc")], [0])[0]
    spread = runs[0].spreads["quality", "best", "srcc"]
    assert test.high - test.low < 0.4 * (spread.high - spread.low)


def test_baselines_have_no_interval_where_folds_do_not_tell(tmp_path) -> None:
    found = {"generator": {"quality": {"srcc": 0.5, "plcc": None}}}
    for kind in ("image_random", "kfold"):
        run_dir = write_run(tmp_path / kind, kind=kind)
        for fold in range(3):
            edit(run_dir, fold, lambda s: s.update(baselines=found))
        spreads = beside_baselines(load_run(run_dir)).spreads
        spread = spreads["quality", "generator", "all", "srcc"]
        assert spread.mean == 0.5 and math.isnan(spread.low) is (kind == "image_random")
        assert math.isnan(spreads["quality", "generator", "all", "plcc"].mean)
        assert math.isnan(spreads["alignment", "generator", "all", "srcc"].mean)


def test_prompts_within_a_group_are_told_apart_as_the_model_reads_them(tmp_path) -> None:
    def change(frame, fold):
        texts = np.array(["A cat", "a  CAT", "a dog"])[np.arange(len(frame)) % 3]
        return frame.assign(prompt=texts, group="one")

    run = change_predictions(write_run(tmp_path / "run", folds=(0,), num_folds=1), change)
    images = HeldOut(run).parts("quality", "best")[0, 0]
    assert len(set(images.prompts)) == 2 and set(images.clusters) == {0}
    assert math.isfinite(plain(DRAWN["srcc_within"], images))
    assert math.isnan(summarise(run).spreads["quality", "best", "srcc"].low)  # one group: nothing to draw
