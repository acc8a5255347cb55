"""The results of a run: written and read back, refused where they do not belong together or are damaged."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from fake_runs import edit, page, write_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipiqa.datasets.splits import make_split
from ipiqa.datasets.table import AnnotationTable, Target
from ipiqa.errors import DataError, IpiqaError
from ipiqa.evaluation.results import Measured, load_run, write_fold
from ipiqa.metrics import measure
from ipiqa.report import compare_runs, console_table, write_summary


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return write_run(tmp_path / "agiqa3k" / "ipiqa")


def test_reads_what_was_written(run_dir) -> None:
    run = load_run(run_dir)
    assert (run.name, run.targets, run.checkpoints) == ("agiqa3k/ipiqa", ("quality", "alignment"), ("best", "last"))
    assert [fold.number for fold in run.folds] == [0, 1, 2] and run.missing == () and run.num_folds == 3
    assert run.folds[1].scores.best.epoch == 11 and run.folds[1].checkpoints["last"].epoch == 12
    part = run.folds[0].predictions
    assert part is not None and len(part) == 120
    mos, best = (part[[f"{name}_{t}" for t in run.targets]].to_numpy() for name in ("mos", "best"))
    again = measure(best, mos, run.targets)
    assert again["alignment"]["srcc"] == run.folds[0].scores.best.metrics["alignment"]["srcc"]
    assert len(run.folds[0].curve) == 12


def test_folder_without_folds(tmp_path) -> None:
    with pytest.raises(DataError, match=r"holds no finished fold \(fold_\*/scores.json\). Give the output folder"):
        load_run(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match="cannot be read|is not a folder"):
        load_run(Path("a\0b"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["split"].update(seed=7), "split seed: 42 in folds 0, 1, 7 in fold 2"),
        (lambda s: s["split"].update(kind="kfold"), "split kind: reference in folds 0, 1, kfold in fold 2"),
        (
            lambda s: s["dataset"].update(sha256="e" * 64),
            r"dataset: agiqa_3k \(dddddddddddd\) in folds 0, 1, agiqa_3k \(e",
        ),
        (lambda s: s.update(selection="validation part"), "selection: reported part in folds 0, 1, validation part in"),
        (lambda s: s.update(epochs=100), "number of epochs: 12 in folds 0, 1, 100 in fold 2"),
        (lambda s: s.pop("last"), "epochs measured: best and last in folds 0, 1, best in fold 2"),
        (
            lambda s: s["settings"].update({"model.name": "image_only", "model.x": 1}),
            'model.name: "ipiqa" in folds 0, 1, "image_only" in fold 2; model.x: not set in folds 0, 1, 1 in fold 2',
        ),
    ],
)
def test_folds_of_different_runs_are_refused(run_dir, change, words) -> None:
    edit(run_dir, 2, change)
    with pytest.raises(DataError, match=words):
        load_run(run_dir)
    with pytest.raises(DataError, match="the folds are of different runs"):
        write_summary(run_dir)
    assert not (run_dir / "summary.json").exists()


def test_a_fold_copied_in_from_another_model_is_refused(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", folds=(0,))
    other = write_run(tmp_path / "other", folds=(1,), settings={"model.name": "ipiqa", "run.seed": 1})
    shutil.copytree(other / "fold_01", run_dir / "fold_01")
    with pytest.raises(DataError, match="different runs, run.seed: 0 in fold 0, 1 in fold 1; "):
        load_run(run_dir)


MANY = "[" * 100_000
FOLD, RUN = "Run the fold again, or remove its folder.", "a report does without."
DAMAGED = [
    ("fold_01/scores.json", "{", "no valid JSON (Expecting property name enclosed in double quotes", FOLD),
    ("fold_01/scores.json", "[]", "scores.json: [] is not a mapping", FOLD),
    ("fold_01/scores.json", '{"format": 1}', "scores.json: fold: is missing", FOLD),
    ("fold_01/scores.json", MANY, "recursion depth exceeded", FOLD),
    ("fold_01/metrics.jsonl", '{"epoch": 1, "loss": Infinity}', "loss: inf is not a number up to 1e+100", RUN),
    ("fold_01/scores.json", b'{"\xff": 1}', "cannot be read ('utf-8' codec", "remove it."),
    ("predictions", "image,prompt\na,b\n", "not the predictions of a fold", "Run the fold again."),
    ("predictions", "image,prompt,group\na,b,c,d\n", "more values than columns", "Run the fold again."),
    ("predictions", "image\n\xff\0\n".encode("latin-1"), "not the predictions of a fold", "Run the fold again."),
    ("fold_01/metrics.jsonl", '{"epoch": 1, "loss": 0.5}\n{"epo', "metrics.jsonl, line 2: no valid JSON", RUN),
    ("fold_01/metrics.jsonl", '{"epoch": 1, "metrics": {"quality": 3}}\n', "quality: 3 is not a mapping", RUN),
    ("environment.json", "[1]", "environment.json: [1] is not a mapping", RUN),
    ("environment.json", '{"a": ' + "[" * 50 + "]" * 50 + "}", "is nested too deep", RUN),
    ("environment.json", '{"a": ["\\ud800"]}', "surrogates not allowed", RUN),
]


@pytest.mark.parametrize(("file", "content", "problem", "advice"), DAMAGED)
def test_damaged_files_are_named_in_one_line(run_dir, file, content, problem, advice) -> None:
    path = run_dir / ("fold_01/predictions.csv" if file == "predictions" else file)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load_run(run_dir)
    message = str(caught.value)
    assert message.startswith(f"{path}") and problem in message and message.endswith(advice)
    assert "\n" not in message and len(message) < 500 + len(str(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(format=2), "format 2, this version reads up to 1. Update ipiqa."),
        (lambda s: s.update(fold=2), r"holds fold 2. Was the folder renamed\? It belongs in fold_02"),
        (lambda s: s.update(targets=["quality"] * 2), "are not distinct names"),
        (lambda s: s.update(targets=["quality", "beauty"]), r"\['beauty'\] is not measured"),
        (lambda s: s["split"].update(num_val=-1), "a part of -1 images"),
        (lambda s: s.update(num_folds=10**9), "num_folds: 1000000000 is more than 100000"),
        (lambda s: s["split"].update(num_val=True), "split.num_val: True is not a whole number"),
        (lambda s: s["best"]["metrics"]["quality"].update(srcc=10**400), r"is not a number up to 1e\+100"),
        (lambda s: s["best"]["metrics"]["quality"].update(srcc="high"), "quality.srcc: 'high' is not a number"),
        (lambda s: s["dataset"].update(name="\ud800"), "surrogates not allowed"),
    ],
)
def test_wrong_values_are_named(run_dir, change, words) -> None:
    edit(run_dir, 1, change)
    with pytest.raises(DataError, match=words) as caught:
        load_run(run_dir)
    assert str(caught.value).startswith(str(run_dir / "fold_01/scores.json"))


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "command.txt", "metrics", "predictions"])
def test_a_report_does_without(run_dir, name) -> None:
    for path in run_dir.glob(f"**/{name}*"):
        path.unlink()
    assert page(run_dir).text


def test_a_prompt_longer_than_the_csv_module_reads(run_dir) -> None:
    path = run_dir / "fold_00/predictions.csv"
    path.write_text(path.read_text().replace("a statue of a man", "a" * 200_000, 1))
    assert load_run(run_dir).folds[0].predictions["prompt"].str.len().max() > 200_000
    assert page(run_dir).text


def test_what_write_fold_writes_is_read_back(tmp_path) -> None:
    prompts = tuple(f'a "{i // 2}", b\nc' for i in range(12))
    scores = np.random.default_rng(0).normal(size=(12, 1))
    names = tuple(f"{i}.png" for i in range(12))
    table = AnnotationTable(names, prompts, scores, (Target("mos"),), prompts, tmp_path)
    split = make_split(table, kind="holdout", seed=0, fold=0, num_folds=1, val_fraction=0.2)
    predictions = scores[split.val] + 1 / 3
    best = Measured(3, measure(predictions, table.scores[split.val], ("mos",)))
    write_fold(
        tmp_path / "fold_00", table, split, {"best": best}, {"best": predictions}, dataset="d", epochs=None,
        num_folds=1, settings={"a.b": [1]}, seen_in_training=2,
    )  # fmt: skip
    fold = load_run(tmp_path).folds[0]
    assert fold.scores.settings == {"a.b": [1]} and fold.scores.seen_in_training == 2
    assert asdict(fold.scores.split)["num_selection"] == len(split.selection) > 0
    assert fold.predictions["best_mos"].to_numpy().tolist() == predictions[:, 0].tolist()
    assert fold.predictions["prompt"].tolist() == [prompts[row] for row in split.val]


# Fuzz

_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just(10**30)
    | st.just("quality"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FILES = ("fold_00/scores.json", "fold_00/metrics.jsonl", "fold_00/predictions.csv", "config.yaml", "environment.json")


@pytest.fixture(scope="module")
def small_run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("fuzz") / "run", folds=(0,), num_folds=2, num_images=6, epochs=2)


def _paths(content, path=()):
    yield path
    for key, value in content.items() if isinstance(content, dict) else ():
        yield from _paths(value, (*path, key))


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_only_our_errors_come_out_of_a_run_folder(small_run, data) -> None:
    """Any value of scores.json and metrics.jsonl exchanged, or any bytes of any file: a report, or one line."""
    name = data.draw(st.sampled_from(FILES))
    path = small_run / name
    before = path.read_bytes()
    if name.endswith((".json", ".jsonl")) and data.draw(st.booleans()):
        content = json.loads(before.splitlines()[0] if name.endswith("l") else before)
        *parents, last = data.draw(st.sampled_from(list(_paths(content))[1:]))
        place = content
        for key in parents:
            place = place[key]
        place[last] = data.draw(_json)
        path.write_text(json.dumps(content))
    else:
        start, end = sorted(data.draw(st.lists(st.integers(0, len(before)), min_size=2, max_size=2)))
        path.write_bytes(before[:start] + data.draw(st.binary(max_size=8) | st.just(b"1e999")) + before[end:])
    try:
        with contextlib.suppress(IpiqaError):
            summary = write_summary(small_run)
            console_table(summary).encode()
            compare_runs(summary.run, summary.run)
    finally:
        path.write_bytes(before)
