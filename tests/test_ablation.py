"""A grid of runs: what its file may say, which points are run, and what the command ends with."""

from __future__ import annotations

import csv
import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, refused
from test_training_jobs import torchrun
from toy import write_config

from ipiqa.ablation import check_folders, load_grid, rows_of, run_points
from ipiqa.cli import main
from ipiqa.cli.arguments import parse_shard
from ipiqa.config.loading import Config
from ipiqa.engine.stop import Interrupted, StopSignals
from ipiqa.errors import DataError
from ipiqa.training import run_folder

GRIDS = sorted((REPOSITORY / "ipiqa" / "projects").glob("*/ablation.yaml"))
TWO_BY_TWO = "grid:\n  task.loss: [mse, l1]\n  model.head.name: [mlp, linear]\n"
NAMES = ["loss=mse, name=mlp", "loss=mse, name=linear", "loss=l1, name=mlp", "loss=l1, name=linear"]
FOLDERS = ["loss_mse_name_mlp", "loss_mse_name_linear", "loss_l1_name_mlp", "loss_l1_name_linear"]
RESULTS = ("scores.json", "predictions.csv", "metrics.jsonl", "split.json")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config that all grids here are changes of."""
    return write_config(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def write(toy: Path, tmp_path: Path):
    """Writes a grid file beside nothing else; its points are put in <tmp_path>/out."""

    def write_grid(text: str) -> Path:
        path = tmp_path / "grid.yaml"
        path.write_text(f"config: {toy}\noutput_dir: {tmp_path}/out\nnum_folds: 2\n{text}", encoding="utf-8")
        return path

    return write_grid


@pytest.fixture(scope="module")
def finished(toy: Path) -> Path:
    """The output folder of a two by two grid that ran to its end."""
    path = toy.parent / "grid.yaml"
    path.write_text(f"config: toy.yaml\noutput_dir: {toy.parent}/whole\n{TWO_BY_TWO}")
    run_points(load_grid(path, "run.max_epochs=1").points)
    return toy.parent / "whole"


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished points, where `write` puts its grid's."""
    return Path(shutil.copytree(finished, tmp_path / "out"))


def ablate(grid: Path, *arguments: str) -> int:
    return main(["ablate", "--grid", str(grid), *arguments])


def times(folder: Path) -> dict[str, int]:
    """Returns when each file of each point was written."""
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob("*/**/*") if p.is_file()}


# ------------------------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.parent.name)
def test_every_shipped_grid_loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    grid = load_grid(path)
    assert str(grid.output_dir) == f"output/{path.parent.name}/ablation"
    assert grid.points[0].changes == () and len(grid.points) >= 7
    assert len({point.config.run.num_folds for point in grid.points}) == 1


def test_the_grids_are_there() -> None:
    assert [path.parent.name for path in GRIDS] == ["agiqa3k", "demo"]


def test_points_of_a_grid_in_order(write) -> None:
    grid = load_grid(write(TWO_BY_TWO))
    assert [point.name for point in grid.points] == NAMES
    assert [point.run_dir for point in grid.points] == [grid.output_dir / folder for folder in FOLDERS]
    found = [(p.config.task["loss"], p.config.model["head"]["name"], p.config.run.num_folds) for p in grid.points]
    assert found == [("mse", "mlp", 2), ("mse", "linear", 2), ("l1", "mlp", 2), ("l1", "linear", 2)]


def test_each_row_takes_each_combination(write) -> None:
    rows = "rows:\n  - name: whole\n  - name: Without [QA]\n    set: {model.prompt_encoder.train_embeddings: false}\n"
    grid = load_grid(write(rows + "grid: {run.learning_rate: [1e-3, 1e-4]}\n"), "run.seed=7", "run.num_folds=3")
    names = ["whole, learning_rate=0.001", "whole, learning_rate=0.0001"]
    assert [p.name for p in grid.points[:2]] == names and grid.points[
        3
    ].run_dir.name == "without_qa_learning_rate_0.0001"
    assert [p.config.run.learning_rate for p in grid.points] == [1e-3, 1e-4] * 2
    assert [p.config.model["prompt_encoder"]["train_embeddings"] for p in grid.points] == [None] * 2 + [False] * 2
    assert all((p.config.run.seed, p.config.run.num_folds) == (7, 3) for p in grid.points)
    assert grid.points[2].changes == ("model.prompt_encoder.train_embeddings=false", "run.learning_rate=0.001")


def test_ambiguous_keys_are_spelt_out_and_text_stays_text(write) -> None:
    text = "grid:\n  model.head.name: [linear]\n  model.fusion.name: [concatenation]\n  dataset.images: ['1', 'a: b']\n"
    points = load_grid(write(text)).points
    assert points[0].name == 'model.head.name=linear, model.fusion.name=concatenation, images="1"'
    assert [point.config.dataset["images"] for point in points] == ["1", "a: b"]


def test_the_output_folder_can_be_changed_for_all(write, tmp_path: Path) -> None:
    grid = load_grid(write(TWO_BY_TWO), f"run.output_dir={tmp_path}/elsewhere")
    assert grid.output_dir == tmp_path / "elsewhere"
    assert grid.points[3].run_dir == tmp_path / "elsewhere" / FOLDERS[3]


ROWS = "rows: [{name: a}, {name: b, set: {task.loss: l1}}]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "rows and grid make 0 points. Give rows or lists of values, for 1 to 1000."),
        ("rows: []", "rows and grid make 0 points."),
        ("grid: {task.loss: []}", "rows and grid make 0 points."),
        ("gird: {task.loss: [mse]}", "grid.gird: no such setting. Did you mean 'grid'? It takes: config, output_dir"),
        ("rows: [whole]", "grid.rows: ['whole'] is not a list (a mapping each) or null."),
        ("rows: [{name: a}, {nmae: b}]", "grid.rows.2.nmae: no such setting. Did you mean 'name'?"),
        ("rows: [{name: 224}]", "grid.rows.1.name: 224 is not text."),
        ("rows: [{name: a, set: {run.output_dir: x}}]", "run.output_dir cannot differ between points. Set it for all"),
        ("grid: {run.device: [cpu]}", "run.device cannot differ between points. Set it for all, at the end"),
        ("grid: {task.loss: mse}", "grid.grid: {'task.loss': 'mse'} is not a mapping (a list each) or null."),
        (ROWS + "grid: {task.loss: [mse, huber]}", "row 'b': task.loss is set by the grid as well"),
        ("rows: [{name: a}, {name: a}]", "'a' and 'a' have the same name. Give each point its own."),
        ("rows: [{name: a b}, {name: A_b, set: {task.loss: l1}}]", "'a b' and 'A_b' have the same folder"),
        ("rows: [{name: a}, {name: b, set: {task.loss: mse}}]", "'a' and 'b' have the same settings"),
        ("rows: [{name: '...'}]", "row '...': no folder can be named so"),
        ("rows: [{name: a}, {name: b, set: {task.los: l1}}]", "row 'b': task.los: no such setting. Did you mean"),
        ("rows: [{name: a, set: {model.name: image_only, model.fusion.heads: 4}}]", "row 'a': model.fusion"),
        ("grid: {task.loss: [mse]}\ngrid: {task.loss: [l1]}", "line 5: invalid YAML: duplicate key 'grid'."),
        ("grid: {a.b: [1, 2, 3, 4], c: [1, 2, 3, 4, 5, 6, 7, 8], d: [" + "1, " * 32 + "]}", "make 1024 points."),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_line(text: str, words: str, write) -> None:
    message = refused(lambda: load_grid(write(text)))
    assert words in message
    assert "grid.yaml" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "' does not exist. A grid has config"),
        (b"- a", "holds no mapping of settings. A grid has config, output_dir"),
        (b"output_dir: x", "grid.config: missing. Give a path."),
        (b"config: no.yaml\noutput_dir: x", "no.yaml' is not a file. Give a config, relative to this file."),
    ],
)
def test_a_file_that_is_no_grid(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "grid.yaml").write_bytes(content)
    assert words in refused(lambda: load_grid(tmp_path / "grid.yaml"))


def test_a_change_for_all_that_makes_two_points_one_is_refused(write) -> None:
    assert "'a' and 'b' have the same settings" in refused(lambda: load_grid(write(ROWS), "task.loss=huber"))


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/2/3", "1/0"])
def test_a_shard_that_is_none(text: str) -> None:
    assert refused(lambda: parse_shard(text)).startswith(f"--shard: '{text}' is no share of the points. Write I/N")


def test_shards_are_parts_of_the_whole(write, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in ("1/3", "2/3", "3/3"):
        assert ablate(write(TWO_BY_TWO), "--dry-run", "--shard", shard) == 0
    assert re.findall(r"^ +(\d)  ", capsys.readouterr().out, re.MULTILINE) == ["1", "4", "2", "3"]


# ----------------------------------------------------------------------------------------------------------------- runs


def test_the_table_has_the_means_of_the_folds(write, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(done)
    assert len([name for name in before if name.endswith("scores.json")]) == 8
    assert ablate(write(TWO_BY_TWO), "run.max_epochs=1") == 0
    assert times(done) == before  # nothing was trained, not even looked at
    shown, log = capsys.readouterr()
    assert [f"row '{name}' is finished, skipped" for name in NAMES] == log.splitlines()
    assert (done / "ablation.md").read_text() in shown and "not finished" not in shown
    assert {path.name for path in done.iterdir()} == {
        *FOLDERS,
        *(f"ablation.{x}" for x in ("md", "csv", "tex", "json", "svg")),
    }
    with (done / "ablation.csv").open(newline="") as file:
        lines = {(row["row"], row["checkpoint"], row["target"]): row for row in csv.DictReader(file)}
    assert len(lines) == 4 * 2 * 2
    for name, folder in zip(NAMES, FOLDERS, strict=True):
        scores = [json.loads((done / folder / f"fold_0{k}/scores.json").read_text())["last"] for k in (0, 1)]
        for metric in ("srcc", "plcc"):
            values = [fold["metrics"]["alignment"][metric] for fold in scores]
            row = lines[name, "last", "alignment"]
            assert float(row[f"{metric}_mean"]) == pytest.approx(sum(values) / 2, abs=1e-12)
            assert float(row[f"{metric}_std"]) == pytest.approx(statistics.stdev(values), abs=1e-12)
            if metric == "srcc":
                assert f"{sum(values) / 2:.4f}"[:5] in shown


def test_only_what_is_missing_is_run_and_begun_points_go_on(write, done: Path) -> None:
    shutil.rmtree(done / FOLDERS[1] / "fold_01")
    shutil.rmtree(done / FOLDERS[2])
    grid = load_grid(write(TWO_BY_TWO), "run.max_epochs=1")
    assert [point.state for point in grid.points] == ["finished", "1 of 2 folds", "not begun", "finished"]
    before = times(done)
    run_points(grid.points[1::2])
    new = {name for name, when in times(done).items() if before.get(name) != when}
    assert not any(name.startswith((FOLDERS[0], FOLDERS[2], FOLDERS[3], f"{FOLDERS[1]}/fold_00")) for name in new)
    assert f"{FOLDERS[1]}/fold_01/scores.json" in new and f"{FOLDERS[1]}/report.html" in new
    assert [row.run is None for row in rows_of(grid.points, {})] == [False, False, True, False]
    fewer = rows_of(load_grid(write(TWO_BY_TWO), "run.max_epochs=1", "run.num_folds=1").points, {})[0].run
    assert fewer is not None and [fold.number for fold in fewer.folds] == [0] and not fewer.missing


def test_a_stopped_grid_goes_on_to_the_same_results(
    write, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, steps = write(TWO_BY_TWO), iter(range(100))
    with monkeypatch.context() as patched:
        patched.setattr(StopSignals, "requested", lambda _: next(steps) == 10)  # asked three times in each fold
        assert ablate(grid, "run.max_epochs=1") == 143
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ipiqa: stopped fold 1 after ") and last.endswith("; go on with the same command")
    assert load_grid(grid, "run.max_epochs=1").points[1].state == "1 of 2 folds"
    assert ablate(grid, "run.max_epochs=1", "--shard", "2/4") == 0
    assert f"{NAMES[2]}: not finished (not begun)" in capsys.readouterr().out
    for fold in ("fold_00", "fold_01"):
        for name in RESULTS:
            here, there = (folder / FOLDERS[1] / fold / name for folder in (tmp_path / "out", finished))
            assert here.read_text() == there.read_text(), (fold, name)


def test_interrupted_passes_through(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopSignals, "requested", lambda self: True)
    with pytest.raises(Interrupted, match="fold 0 after epoch"):
        run_points(load_grid(write(TWO_BY_TWO)).points)


def test_a_dry_run_tells_and_does_nothing(write, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(done / FOLDERS[3] / "fold_01")
    before = times(done)
    assert ablate(write(TWO_BY_TWO), "--dry-run", "--shard", "2/2", "--options", "run.max_epochs=1") == 0
    lines = capsys.readouterr().out.splitlines()
    states = ["finished"] * 3 + ["1 of 2 folds"]
    assert lines[::3] == [f"{i}  {n}: {s}" for i, n, s in zip(("  -", "  2", "  -", "  4"), NAMES, states, strict=True)]
    assert lines[4:6] == ["     task.loss=mse model.head.name=linear", f"     {done / FOLDERS[1]}"]
    assert times(done) == before and not (done / "ablation.md").exists()


def test_without_a_finished_point_there_is_no_table(write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate(write(TWO_BY_TWO), "--shard", "9/9") == 0
    assert capsys.readouterr().out == f"{tmp_path}/out: no point is finished, so there is no table yet\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["", "fold_01"])  # of a finished point, of one that is begun
def test_a_point_whose_settings_have_changed_is_refused(
    part: str, write, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if part:
        shutil.rmtree(done / FOLDERS[2] / part)
    before = times(done)
    assert ablate(write(TWO_BY_TWO), "run.max_epochs=1", "run.seed=5") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"ipiqa: row '{NAMES[0]}': {done / FOLDERS[0]}: cannot be continued, this would change")
    assert "run.seed was 42, is 5. Set these back, or choose another run.output_dir." in error
    assert error.count("\n") == 1 and times(done) == before and not (done / "ablation.md").exists()
    check_folders(load_grid(write(TWO_BY_TWO), "run.max_epochs=1").points)


def test_a_failing_row_is_reported_and_the_others_run(
    write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "rows: [{name: a, set: {task.loss: l1}}, {name: b, set: {model.image_encoder.weights: no.pt}}, {name: c}]\n"
    claimed = run_folder.claimed

    def fail(config: Config, *arguments: Any, **settings: Any) -> Any:
        if config.task["loss"] == "l1":
            raise DataError("what is wrong. What would be right.")
        return claimed(config, *arguments, **settings)

    monkeypatch.setattr(run_folder, "claimed", fail)
    assert ablate(write(rows), "run.max_epochs=1", "run.num_folds=1") == 2
    out, err = capsys.readouterr()
    missing = "model.image_encoder.weights: 'no.pt' does not exist."
    assert "b: not finished (failed: model." in out and "Table:" in out
    assert err.splitlines()[0].startswith(f"row 'b' failed: {missing}")  # before the first is trained
    last = err.splitlines()[-2:]
    assert last[0].startswith(f"ipiqa: row 'b': {missing}")
    assert last[1] == "ipiqa: row 'a': what is wrong. What would be right."
    assert [(tmp_path / "out" / name / "fold_00/scores.json").is_file() for name in "abc"] == [False, False, True]
    state = {row["name"]: row["state"] for row in json.loads((tmp_path / "out/ablation.json").read_text())["rows"]}
    assert state["c"] == "finished" and state["a"].startswith("failed: what is wrong.")


@pytest.mark.slow
def test_two_processes_run_two_points(write, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import sys\nfrom ipiqa.cli import main\nsys.exit(main(sys.argv[1:]))\n")
    changes = ["run.max_epochs=1", "run.num_folds=1", "run.batch_size=4"]
    status, out, error = torchrun(program, "ablate", "--grid", str(write(ROWS)), *changes)
    assert status == 0, error
    assert out.count("SRCC minus that of a:") == 1  # one process speaks
    for name in "ab":
        assert json.loads((tmp_path / f"out/{name}/environment.json").read_text())["num_processes"] == 2
        assert (tmp_path / f"out/{name}/fold_00/scores.json").is_file()
