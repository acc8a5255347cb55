"""The workbench: what contestants predict, and what the command leaves."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from scipy import stats
from small_models import add_architectures
from toy import write_config
from webdriver import browser

import ipiqa
from ipiqa import cli, registry
from ipiqa.bench import contestants as bench_scores
from ipiqa.bench.contestants import Database, Scores, matched
from ipiqa.datasets.splits import Split
from ipiqa.datasets.table import Target
from ipiqa.errors import DataError
from ipiqa.evaluation.results import load_run
from ipiqa.report.leaderboard import reported
from ipiqa.scorers import FACTS

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    "quick_gelu": True,
}
NOISY = "<b>noisy|one</b>"  # the heading of a column of scores


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config, a table of scores beside it, and a run of two folds on all its images."""
    cfg = write_config(tmp_path_factory.mktemp("toy"))
    data = pd.read_csv(cfg.parent / "data.csv")
    draws = np.random.default_rng(0)
    noise = draws.normal(0, 1, (2, len(data)))
    columns = {"file": data["name"], "worse": -data["mos_quality"] - 0.3 * noise[0], NOISY: noise[1]}
    pd.DataFrame(columns).to_csv(cfg.parent / "scores.csv", index=False)
    return cfg


@pytest.fixture(scope="module")
def done(toy: Path) -> Path:
    """The folder that a bench of all kinds of contestants left."""
    out, scores = toy.parent / "bench", toy.parent / "scores.csv"
    names = ["no-pixel", f"table:{scores}", "train run.max_epochs=1", "train model.name=image_only run.max_epochs=1"]
    assert bench(toy, *names, "--out", str(out)) == 0
    return out


def bench(cfg: Path, *scorers: str) -> int:
    return cli.main(["bench", "--databases", str(cfg), "--scorers", *scorers])


def rows(out: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in out.glob("rows/*/*.json")]
    return {row["contestant"]: row for row in found}


def on_scale(
    scores: np.ndarray, mos: np.ndarray, one: Split, curve: bench_scores.Curve = "linear", *, says_direction: bool
) -> np.ndarray:
    known = Scores(scores[:, None], [0], says_direction=says_direction)
    return bench_scores.on_scale(known, mos[:, None], one, curve)[:, 0]


def split(train: list[int], val: list[int]) -> Split:
    parts = (np.array(part, dtype=np.int64) for part in (train, [], val))
    return Split(*parts, kind="holdout", seed=0, fold=0, sha256="")


# ------------------------------------------------------------------------------------------------- scores on a scale


@pytest.mark.parametrize("curve", ["linear", "logistic"])
def test_direction_and_scale_are_read_off_the_training_part_alone(curve: bench_scores.Curve) -> None:
    draws = np.random.default_rng(1)
    scores = draws.normal(0, 1, 60)
    mos = 3 - 2 * np.tanh(scores)  # falls on the training part
    mos[40:] = 3 + scores[40:]  # and rises where it is held out
    one = split([*range(40)], [*range(40, 60)])
    predictions = on_scale(scores, mos, one, curve, says_direction=True)
    assert stats.spearmanr(predictions, scores[40:]).statistic == pytest.approx(-1)
    assert stats.spearmanr(predictions, mos[40:]).statistic == pytest.approx(-1)
    other = mos.copy()
    other[40:] = draws.normal(0, 9, 20)
    assert np.array_equal(predictions, on_scale(scores, other, one, curve, says_direction=True))
    assert np.abs(predictions - (3 - 2 * np.tanh(scores[40:]))).max() < (0.8 if curve == "linear" else 0.01)


def test_missing_scores_of_the_training_part_do_not_count() -> None:
    scores, mos = np.arange(8.0), np.array([0, 2, np.nan, 6, 8, 10, 0, 0])
    assert on_scale(scores, mos, split([0, 1, 2, 3, 4, 5], [6, 7]), says_direction=True) == pytest.approx([12, 14])


def test_without_a_training_part_only_unknown_directions_are_turned() -> None:
    scores, mos = np.array([1.0, 2, 3, 4]), np.array([9.0, 7, np.nan, 1])
    everything = split([], [0, 1, 2, 3])
    assert on_scale(scores, mos, everything, says_direction=False).tolist() == [-1, -2, -3, -4]
    assert on_scale(scores, mos, everything, says_direction=True).tolist() == [1, 2, 3, 4]


def database(*targets: Target) -> Database:
    table = type("Table", (), {"targets": targets})()
    return Database("here", "", None, table)  # type: ignore[arg-type]


def test_targets_are_matched_by_name_and_meaning() -> None:
    quality, fit = Target("quality", meaning="perceptual quality: how good"), Target("fit", meaning="Alignment: how")
    found = matched([Target("alignment", meaning="alignment: of text"), quality], database(quality, fit), trained=True)
    assert found == {0: 1, 1: 0}
    assert matched([Target("fit")], database(quality, fit), trained=True) == {1: 0}
    assert matched([Target("brisque")], database(quality, fit), trained=False) == {0: 0, 1: 0}
    for outputs, trained in (([Target("appeal")], True), ([Target("a"), Target("b")], False)):
        with pytest.raises(DataError, match="but here has quality, fit. Targets are matched by name and meaning"):
            matched(outputs, database(quality, fit), trained=trained)


def test_the_six_real_peers_come_out_at_their_known_figures(shared: Path, tmp_path: Path) -> None:
    real = shared / "data" / "avt_ai_images"
    cfg = "ipiqa/projects/avt_ai_images/bench.yaml"
    given = f"{cfg} dataset.annotations={real}/ratings.csv dataset.images={tmp_path}/none"
    arguments = ["--scorers", f"table:{real}/iqa_metrics.csv", "--protocol", "all", "--out", str(tmp_path / "out")]
    assert cli.main(["bench", "--databases", given, *arguments]) == 0
    found = {name: row["targets"]["quality"]["srcc"]["mean"] for name, row in rows(tmp_path / "out").items()}
    known = {"brisque": 0.506, "maniqa": 0.487, "niqe": 0.420, "musiq": 0.352, "ilniqe": 0.351, "dbcnn": 0.275}
    assert found == pytest.approx(known, abs=0.001)
    row = rows(tmp_path / "out")["brisque"]
    assert row["flags"] == ["direction as seen on the reported images"] and row["facts"]["folds"] == "1"
    assert "rmse" not in load_run(tmp_path / "out" / "avt_ai_images" / "brisque").first.best.metrics["quality"]
    assert "as they are, for want of a training part" in row["facts"]["weights"]


# ------------------------------------------------------------------------------------------------------- the command


def test_every_kind_of_contestant_leaves_a_run_folder_and_a_row(done: Path, toy: Path) -> None:
    found = rows(done)
    kinds = {name: row["kind"] for name, row in found.items()}
    assert kinds == {
        "mean of generator": "no picture", "prompt length": "no picture", "other targets": "no picture",
        "worse": "table of scores", NOISY: "table of scores",
        "ipiqa run.max_epochs=1": "trained here", "image_only run.max_epochs=1": "trained here",
    }  # fmt: skip
    for name, row in found.items():
        run = load_run(done / row["file"].removesuffix(".json"))
        assert len(run.folds) == 2 and (run.run_dir / "report.html").is_file(), name
        assert row["split_sha256"] == {str(fold.number): fold.scores.split.sha256 for fold in run.folds}
        checkpoint = "last" if run.trained else "best"
        for target in run.targets:
            frames = [f.predictions for f in run.folds if f.predictions is not None]
            pairs = [(frame[f"{checkpoint}_{target}"], frame[f"mos_{target}"]) for frame in frames]
            if name == "prompt length":  # the same for all images
                assert row["targets"][target]["srcc"]["mean"] is None
                continue
            expected = np.mean([stats.spearmanr(*pair).statistic for pair in pairs])
            assert row["targets"][target]["srcc"]["mean"] == pytest.approx(expected, abs=1e-6), name
    assert found["worse"]["targets"]["quality"]["srcc"]["mean"] > 0.9  # lower was better, as training shows
    assert {row["first"] for row in found.values()} == {"mean of generator"}
    test = found["worse"]["targets"]["quality"]["srcc_minus_first"]
    difference = test["difference"]
    page = (done / "leaderboard.md").read_text()
    assert f"{difference:+.3f} {test['mark']}".strip() + f" ({test['low']:+.3f} to {test['high']:+.3f})" in page
    first = found["mean of generator"]["targets"]["quality"]["srcc"]["mean"]
    assert difference == pytest.approx(found["worse"]["targets"]["quality"]["srcc"]["mean"] - first)


def test_the_tables_are_in_order_and_escape_what_others_wrote(done: Path) -> None:
    text, page = ((done / f"leaderboard.{kind}").read_text() for kind in ("md", "html"))
    quality = text.partition("### quality")[2].partition("###")[0]
    cells = [line.split(" | ")[:2] for line in quality.splitlines() if line.startswith("| ")][2:]
    assert cells[0][0] == "| worse" and cells[-1] == ["| prompt length", "-"] and len(cells) == 7
    means = [float(value) for _, value in cells[:-1]]
    assert means == sorted(means, reverse=True)
    assert "<b>noisy" not in page and "&lt;b&gt;noisy|one" in page and r"\<b>noisy\|one\</b>" in text
    script = re.search("<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in page
    assert not re.search(r'(src|href)="', page)


def test_what_is_finished_is_left_alone_and_a_failure_stops_nobody(
    done: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("scores.json")}
    (out / toy.parent.name / "worse" / "fold_01" / "scores.json").unlink()
    names = ["nothing", f"table:{toy.parent}/scores.csv", "no-pixel"]
    assert bench(toy, *names, "--out", str(out)) == 2
    shown = capsys.readouterr()
    assert "row 'toy0: nothing': ipiqa.load: 'nothing' does not exist." in shown.err.replace(toy.parent.name, "toy0")
    assert "- **not finished**: nothing (failed: ipiqa.load: 'nothing' does not exist." in shown.out
    changed = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {out / toy.parent.name / "worse" / "fold_01" / "scores.json"}


def test_other_settings_or_scores_are_not_mixed_with_what_is_there(
    done: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        assert bench(toy, *arguments, "--out", str(tmp_path / "out")) == 2
        return capsys.readouterr().err

    shutil.copytree(done, tmp_path / "out")
    assert "split.seed was 1, is 2" in error("no-pixel", "--options", "split.seed=2")
    assert "scale was 'linear', is 'logistic'" in error(f"table:{toy.parent}/scores.csv", "--scale", "logistic")
    text = (toy.parent / "scores.csv").read_text()
    try:
        (toy.parent / "scores.csv").write_text(text.replace("0.1", "0.2"))
        assert "scorer.sha256 was " in error(f"table:{toy.parent}/scores.csv")
    finally:
        (toy.parent / "scores.csv").write_text(text)
    text = (toy.parent / "data.csv").read_text()
    try:
        (toy.parent / "data.csv").write_text(re.sub(r"[^,]+$", "1.5", text, count=1))
        assert "annotations was " in error("no-pixel")
    finally:
        (toy.parent / "data.csv").write_text(text)


def test_a_run_scores_another_database_once_and_says_what_it_has_seen(
    done: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = done / toy.parent.name / "ipiqa_run.max_epochs_1", tmp_path / "out"
    other = write_config(tmp_path / "other").parent
    data = pd.read_csv(other / "data.csv")
    data["mos_quality"] = data["mos_quality"].max() - data["mos_quality"]
    data.to_csv(other / "data.csv", index=False)
    databases = [str(toy), f"mirror={other}/toy.yaml"]
    arguments = ["bench", "--databases", *databases, "--scorers", str(run), "--out", str(out)]
    assert cli.main([*arguments, "--protocol", "all"]) == 0
    found = {path.parent.name: json.loads(path.read_text()) for path in out.glob("rows/*/*.json")}
    srcc = {label: row["targets"]["quality"]["srcc"]["mean"] for label, row in found.items()}
    assert srcc["mirror"] == pytest.approx(-srcc[toy.parent.name])  # a scorer says its direction: it is not turned
    assert found["mirror"]["flags"] == ["trained on 36 of the 40 held-out images"]
    assert found["mirror"]["trained_on"].startswith("agiqa_3k (table ")
    page = (out / "leaderboard.md").read_text()
    assert f"| {toy.parent.name} | mirror |" in page.partition("## Across databases")[2].replace("\\_", "_")
    kept = [*(out / "scores").glob("*.npy")]
    assert len(kept) == 1  # the images, prompts and models are the same
    scores = ipiqa.load(run).score([other / "images" / name for name in data["name"]], data["prompt"].tolist())
    assert np.array_equal(np.load(kept[0]), scores)
    shutil.rmtree(out / "mirror")
    monkeypatch.setattr("ipiqa.scoring.model_scorer.ModelScorer.outputs", None)
    assert cli.main([*arguments, "--protocol", "holdout"]) == 2  # the first database holds a run under `all`
    shutil.rmtree(out / toy.parent.name)
    assert cli.main([*arguments, "--protocol", "holdout"]) == 0


def test_of_what_is_trained_no_epoch_counts_that_reported_images_chose(done: Path, toy: Path) -> None:
    run = load_run(done / toy.parent.name / "ipiqa_run.max_epochs_1")
    frame = run.folds[0].predictions
    assert frame is not None
    changed = frame.assign(best_quality=1.0, best_alignment=2.0)
    folds = [type(fold)(fold.scores, fold.curve, changed) for fold in run.folds]
    one = reported(type(run)(**{**vars(run), "folds": tuple(folds)}))
    assert one.folds[0].predictions is not None and not one.trained
    assert one.folds[0].predictions["best_quality"].equals(frame["last_quality"])
    assert one.folds[0].scores.best == run.folds[0].scores.last


@pytest.mark.parametrize(
    ("scorer", "problem"),
    [
        ("table:none.csv", "--scorers: table:none.csv: scores: 'none.csv' does not exist."),
        ("run.max_epochs=3", "--scorers: run.max_epochs=3: a setting is no contestant."),
        ("train model.nam=x", "--scorers: train model.nam=x: model.nam: no such setting. Did you mean 'name'?"),
    ],
)
def test_what_is_named_wrongly_is_said_at_once(
    toy: Path, capsys: pytest.CaptureFixture[str], scorer: str, problem: str
) -> None:
    assert bench(toy, scorer) == 2
    assert problem in capsys.readouterr().err


def test_a_table_of_another_database_stays_out_and_one_that_lacks_an_image_fails(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "foreign.csv").write_text("image,s\nnowhere.png,1\n")
    data = pd.read_csv(toy.parent / "scores.csv")
    data.iloc[1:].to_csv(tmp_path / "short.csv", index=False)
    names = [f"table:{tmp_path}/foreign.csv", f"table:{tmp_path}/short.csv:worse"]
    assert bench(toy, *names, "--out", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert f"1 of 40 images, the first of them '{data['file'][0]}', has no row of its own" in error
    assert "foreign" not in error


# ------------------------------------------------------------------------------------------------ protocols and scorers


def test_one_config_under_every_protocol(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli.main(["protocol", "--cfg-path", str(toy), "--out", str(out), "run.max_epochs=1"]) == 0
    content = json.loads((out / "protocol.json").read_text())
    assert [row["name"] for row in content["rows"]] == ["reference", "holdout", "kfold", "image_random", "nested"]
    assert all(row["state"] == "finished" for row in content["rows"])
    text = (out / "protocol.md").read_text()
    assert "| quality SRCC" in text and "quality PLCC\\*" in text
    assert re.search(r"nested: best: best epoch on a validation part of 20 % of the training groups", text)
    assert re.search(r"image\\_random: leak: Of 16 held-out rows, 16 \(100.0 %\) share the prompt", text)
    assert "PLCC*" in (out / "protocol.tex").read_text()


def test_every_scorer_with_a_name_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(FACTS) == registry.list_registered("scorer")
    assert cli.main(["scorers"]) == 0
    shown = capsys.readouterr().out
    assert all(name.replace("_", "\\_") in shown for name in FACTS) and shown.count("not verified on the real") == 6


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A file of random weights of a tiny CLIP, as HPS publishes its own: a state dict under its name."""
    folder = tmp_path_factory.mktemp("clip")
    add_architectures(folder, {"tiny-bench": TINY})
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-bench", pretrained=None)
    torch.save({"state_dict": model.state_dict()}, folder / "tiny.pt")
    return folder / "tiny.pt", model.eval()  # type: ignore[return-value]


def test_preference_and_aesthetics_are_what_open_clip_computes(tiny_clip: tuple, tmp_path: Path) -> None:
    path, model = tiny_clip
    images, prompts = torch.rand(3, 3, 32, 32), ["a red tree", "a blue house", "a dog"]
    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        seen = model.encode_image((images - mean) / std, normalize=True)
        read = model.encode_text(open_clip.tokenize(prompts), normalize=True)
    for name in ("hpsv2", "pickscore"):
        scorer = ipiqa.load(f"{name} architecture=tiny-bench weights={path}")
        assert scorer.score(images, prompts)[:, 0] == pytest.approx((seen * read).sum(dim=1).numpy(), abs=1e-5)
    numbers, sizes, layers = (0, 2, 4, 6, 7), (8, 1024, 128, 64, 16, 1), {}
    values = seen
    for number, (a, b) in zip(numbers, itertools.pairwise(sizes), strict=True):
        layer = torch.nn.Linear(a, b)
        layers |= {f"layers.{number}.{name}": value.detach() for name, value in layer.named_parameters()}
        values = layer(values)
    torch.save(layers, tmp_path / "layers.pth")
    scorer = ipiqa.load(f"laion_aesthetics architecture=tiny-bench weights={path} layers={tmp_path}/layers.pth")
    assert not scorer.needs_prompt
    assert scorer.score(images)[:, 0] == pytest.approx(values.detach()[:, 0].numpy(), abs=1e-5)
    layers.pop("layers.7.bias")
    torch.save(layers, tmp_path / "layers.pth")
    with pytest.raises(
        DataError, match="settings.layers: '.*layers.pth' does not fit tiny-bench \\('layers.7.bias'\\)"
    ):
        ipiqa.load(f"laion_aesthetics architecture=tiny-bench weights={path} layers={tmp_path}/layers.pth")


@pytest.mark.slow
def test_the_page_sorts_and_filters_on_a_phone(done: Path) -> None:
    names = "[...document.querySelectorAll('.board')[0].tBodies[0].rows].filter(r => r.offsetParent).map(r => "
    names += "r.cells[0].innerText.split('\\n')[0])"
    with browser(390) as window:
        window.open(f"file://{done}/leaderboard.html")
        assert window.run("return document.documentElement.scrollWidth <= innerWidth")
        ranked = window.run(f"return {names}")
        assert ranked[0] == "worse" and ranked[-1] == "prompt length" and len(ranked) == 7
        window.click(".board th:nth-child(2) button")
        assert window.run(f"return {names}") == ranked  # the highest first, what is undefined last
        window.click(".board th:nth-child(2) button")
        assert window.run(f"return {names}") == [*ranked[-2::-1], ranked[-1]]
        window.click(".board th:nth-child(1) button")
        assert window.run(f"return {names}") == sorted(ranked, key=str.lower)
        window.type("input[type=search]", "other")
        assert window.run(f"return {names}") == ["other targets"]
        window.run("const f = document.querySelector('input[type=search]'); f.value = ''")
        window.click("input[value='no picture']")
        assert sorted(window.run(f"return {names}")) == sorted(n for n in ranked if "of" not in n and "th" not in n)
        assert not window.messages()
