"""The report of a run: reading it back, refusing what does not belong together, tables, page, comparison."""

from __future__ import annotations

import csv
import html.parser
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ipiqa.engine.checkpoint import write_json
from ipiqa.errors import DataError
from ipiqa.metrics import aggregate, measure
from ipiqa.report import compare_runs, console_table, load_run, summarise, write_summary
from ipiqa.report.residuals import group_residuals, image_residuals

HOSTILE = '<script>alert(1)</script> & "<img src=x onerror=alert(2)>" a|b'


def write_run(
    run_dir: Path,
    *,
    folds=(0, 1, 2),
    num_folds=3,
    targets=("quality", "alignment"),
    kind="reference",
    seed=42,
    selection="reported part",
    epochs: int | None = 12,
    noise=0.3,
    num_images=120,
    prompts=None,
) -> Path:
    """Writes a run folder as training leaves it; `epochs` None is a run that evaluated checkpoints."""
    run_dir.mkdir(parents=True, exist_ok=True)
    run = f"  num_folds: {num_folds}\n  val_fraction: {0.1 if selection == 'validation part' else 0.0}\n"
    (run_dir / "config.yaml").write_text(
        f"image_size: 512\nmodel: {{name: ipiqa}}\nrun:\n  output_dir: {run_dir}\n{run}"
    )
    (run_dir / "command.txt").write_text("train_agiqa3k.py --cfg-path ipiqa/projects/agiqa3k/ipiqa.yaml\n")
    write_json(run_dir / "environment.json", {"ipiqa": "0.1.0", "python": "3.11.7", "gpus": [], "num_processes": 1})
    for fold in folds:
        folder = run_dir / f"fold_{fold:02d}"
        folder.mkdir()
        rng = np.random.default_rng([seed, fold])
        mos = np.clip(rng.normal(2.5, 0.9, size=(num_images, len(targets))), 0, 5)
        error = np.random.default_rng([fold, int(1000 * noise)]).normal(size=mos.shape)

        def at(epoch, mos=mos, error=error):
            return 5 / (1 + np.exp(-(mos - 2.5) * 0.9)) + (noise + 2 / (epoch + 1)) * error

        numbers = range(1, epochs + 1) if epochs else ()
        lines = []
        for epoch in numbers:
            metrics = measure(at(epoch), mos, targets, fitted=False)
            row = {"epoch": epoch, "step": 74 * epoch, "loss": 0.2 + 1 / epoch + 0.02 * fold, "learning_rate": 1e-5}
            lines.append(json.dumps(row | {"metrics": metrics, "value": aggregate(metrics)}))
        if epochs:
            (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
        moments = {"best": max(1, epochs - 2 + fold % 3), "last": epochs} if epochs else {"best": None}
        found = {m: at(e or 12) for m, e in moments.items()}
        scores = {
            "format": 1,
            "fold": fold,
            "split": {
                "kind": kind, "seed": seed, "sha256": f"{seed}{fold}".rjust(64, "a"),
                "num_train": 480, "num_selection": 48 * (selection != "reported part"), "num_val": num_images,
            },
            "selection": selection,
            "targets": list(targets),
            "dataset": {"name": "agiqa_3k", "sha256": "d" * 64, "num_images": 600},
            "epochs": epochs,
            **{m: {"epoch": e, "metrics": measure(found[m], mos, targets)} for m, e in moments.items()},
        }  # fmt: skip
        write_json(folder / "scores.json", scores)
        with (folder / "predictions.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "prompt", "group", *(f"{p}_{t}" for p in ("mos", *found) for t in targets)])
            for i in range(num_images):
                group = f"{fold}{i // 10:02d}"
                prompt = (prompts or ["a statue of a man, oil painting", "two red circles above a blue square"])[i % 2]
                values = [v for block in (mos, *found.values()) for v in block[i].tolist()]
                writer.writerow([f"sd1.5_normal_{fold}{i:03d}.jpg", prompt, group, *values])
    return run_dir


def edit(run_dir: Path, fold: int, change) -> None:
    path = run_dir / f"fold_{fold:02d}" / "scores.json"
    scores = json.loads(path.read_text())
    change(scores)
    write_json(path, scores)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return write_run(tmp_path / "agiqa3k" / "ipiqa")


class _Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data


def page(run_dir: Path) -> _Page:
    write_summary(run_dir)
    return _Page((run_dir / "report.html").read_text(encoding="utf-8"))


# Reading


def test_reads_what_was_written(run_dir) -> None:
    run = load_run(run_dir)
    assert (run.name, run.targets, run.moments) == ("agiqa3k/ipiqa", ("quality", "alignment"), ("best", "last"))
    assert [fold.number for fold in run.folds] == [0, 1, 2] and run.missing == () and run.num_folds == 3
    assert run.folds[1].moments["best"].epoch == 11 and run.folds[1].moments["last"].epoch == 12
    part = run.folds[0].predictions
    assert part is not None and part.mos.shape == (120, 2)
    again = measure(part.found["best"], part.mos, run.targets)
    assert again["alignment"]["srcc"] == run.folds[0].moments["best"].metrics["alignment"]["srcc"]
    assert len(run.folds[0].curve) == 12


def test_means_are_those_of_the_folds(run_dir) -> None:
    summary = summarise(load_run(run_dir))
    scores = [json.loads((run_dir / f"fold_0{k}" / "scores.json").read_text()) for k in range(3)]
    values = [s["last"]["metrics"]["alignment"]["krcc"] for s in scores]
    spread = summary.spreads["alignment"]["last"]["krcc"]
    assert spread.mean == pytest.approx(np.mean(values)) and spread.std == pytest.approx(np.std(values, ddof=1))


def test_missing_and_unfinished_folds_are_told(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", folds=(0, 3), num_folds=10)
    (run_dir / "fold_05").mkdir()
    run = load_run(run_dir)
    assert run.missing == (1, 2, 4, 5, 6, 7, 8, 9)
    assert "2 of 10, missing: 1, 2, 4 to 9" in console_table(summarise(run))
    assert "2 of 10, missing: 1, 2, 4 to 9" in page(run_dir).text


def test_folder_without_folds(tmp_path) -> None:
    with pytest.raises(DataError, match=r"holds no finished fold \(fold_\*/scores.json\). Give the output folder"):
        load_run(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load_run(tmp_path / "nowhere")


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
    ],
)
def test_mixed_runs_are_refused(run_dir, change, words) -> None:
    edit(run_dir, 2, change)
    with pytest.raises(DataError, match=words):
        load_run(run_dir)
    with pytest.raises(DataError, match="the folds are of different runs"):
        write_summary(run_dir)
    assert not (run_dir / "summary.json").exists()


def test_mixed_targets_are_refused(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", folds=(0,))
    shutil.copytree(write_run(tmp_path / "other", folds=(1,), targets=("quality",)) / "fold_01", run_dir / "fold_01")
    with pytest.raises(DataError, match="targets: quality, alignment in fold 0, quality in fold 1"):
        load_run(run_dir)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("scores.json", "{", "cannot be read as json"),
        ("scores.json", "[]", r"not the scores of a fold \(TypeError"),
        ("scores.json", '{"format": 1}', r"not the scores of a fold \(KeyError: 'fold'\)"),
        ("scores.json", '{"format": 2}', "format 2, this version reads up to 1. Update ipiqa."),
        (
            "predictions.csv",
            "image,prompt\na,b\n",
            r"not the predictions of a fold \(no column 'best_quality'\)|no column",
        ),
        ("predictions.csv", None, None),
        ("metrics.jsonl", '{"epoch": 1, "loss": 0.5}\n{"epo', None),
    ],
)
def test_damaged_files(run_dir, file, content, words) -> None:
    path = run_dir / "fold_01" / file
    path.unlink()
    if content is not None:
        path.write_text(content)
    if words is None:
        assert page(run_dir).text  # what a report can do without
    else:
        with pytest.raises(DataError, match=words) as caught:
            load_run(run_dir)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_renamed_fold_is_refused(run_dir) -> None:
    (run_dir / "fold_02").rename(run_dir / "fold_04")
    with pytest.raises(DataError, match=r"holds fold 2. Was the folder renamed\? It belongs in fold_02"):
        load_run(run_dir)


@pytest.mark.parametrize("text", ["", "- a\n", "run: 3\n", "run: {num_folds: many}\n", "a: [\n", "\x00"])
def test_report_does_without_the_config(run_dir, text) -> None:
    (run_dir / "config.yaml").write_text(text)
    run = load_run(run_dir)
    assert run.num_folds is None and run.missing == ()


# Tables


@pytest.mark.parametrize("targets", [("quality", "alignment"), ("mos",), ("a_rather_long_target_name", "b")])
@pytest.mark.parametrize("epochs", [12, None])
@pytest.mark.parametrize("kind", ["reference", "image_random"])
def test_console_table_fits_a_terminal(tmp_path, targets, epochs, kind) -> None:
    run_dir = write_run(tmp_path / "run", targets=targets, epochs=epochs, kind=kind)
    text = console_table(summarise(load_run(run_dir)))
    assert max(map(len, text.splitlines())) <= 100
    assert all(target in text for target in targets)
    assert text.count("± std") == len(targets)


def test_console_table_names_split_and_selection(tmp_path, run_dir) -> None:
    def table(name, **settings):
        return " ".join(console_table(summarise(load_run(write_run(tmp_path / name, **settings)))).split())

    text = " ".join(console_table(summarise(load_run(run_dir))).split())
    assert "split reference, seed 42: repeated prompt-disjoint draws" in text
    assert "best epoch on the reported part (optimistic: the reported images also choose the epoch)" in text
    assert "agiqa_3k, 600 images, 120 held out per fold" in text
    assert "best epoch on a validation part of 10 % of the training groups" in table("a", selection="validation part")
    leaks = "prompts leak between parts: do not compare with prompt-disjoint results"
    assert leaks in table("b", kind="image_random") and leaks not in text
    assert "held out exactly once" in table("c", kind="kfold")
    assert "exact share of the groups" in table("d", kind="holdout")
    assert "not trained here" in table("e", epochs=None)


def test_console_table_shows_the_numbers(run_dir) -> None:
    lines = console_table(summarise(load_run(run_dir))).splitlines()
    row = next(line for line in lines if line.startswith("1 ")).split()
    best = load_run(run_dir).folds[1].moments["best"]
    assert row[:3] == ["1", "120", "11"] and row[3] == f"{best.metrics['quality']['srcc']:.4f}"


def test_undefined_metrics_are_explained(run_dir) -> None:
    metrics = measure(np.ones((9, 2)), np.random.default_rng(0).normal(size=(9, 2)), ("quality", "alignment"))
    edit(run_dir, 1, lambda s: s["last"].update(metrics=metrics))
    summary = write_summary(run_dir)
    text = console_table(summary)
    note = "fold 1, epoch 12, quality: correlations are undefined: all 9 predictions are the same (1)"
    assert note in text and "nan" in text
    assert math.isnan(summary.spreads["quality"]["last"]["srcc"].mean)
    assert note in _Page((run_dir / "report.html").read_text()).text
    saved = json.loads((run_dir / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert saved["targets"]["quality"]["last"]["srcc"]["mean"] is None and note in saved["notes"]


def test_many_notes_are_cut_short(run_dir) -> None:
    def change(scores):
        scores["last"]["metrics"]["quality"]["notes"] = [f"reason {i}" for i in range(30)]

    edit(run_dir, 0, change)
    text = console_table(summarise(load_run(run_dir)))
    assert "reason 7" in text and "reason 8" not in text and "and 22 more like these, see summary.json" in text


def test_single_fold_has_no_spread(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", folds=(0,), num_folds=1)
    assert "± std" not in console_table(summarise(load_run(run_dir)))
    assert "One fold: there is no spread to tell." in page(run_dir).text
    assert "nan" not in (run_dir / "summary.md").read_text() + (run_dir / "summary.tex").read_text()


def test_all_files_are_written_whole(run_dir) -> None:
    summary = write_summary(run_dir)
    files = {path.name for path in run_dir.iterdir() if path.name.startswith(("summary", "report"))}
    assert files == {"summary.json", "summary.csv", "summary.md", "summary.tex", "report.html"}
    assert not list(run_dir.glob(".*"))
    saved = json.loads((run_dir / "summary.json").read_text())
    assert saved["targets"]["quality"]["best"]["srcc"]["mean"] == summary.spreads["quality"]["best"]["srcc"].mean
    assert saved["finished_folds"] == [0, 1, 2] and saved["split_kind"] == "reference"
    rows = list(csv.DictReader((run_dir / "summary.csv").open()))
    assert len(rows) == 2 * 2 * (3 + 5)
    mean = next(r for r in rows if (r["target"], r["checkpoint"], r["row"]) == ("quality", "last", "mean"))
    assert float(mean["plcc"]) == summary.spreads["quality"]["last"]["plcc"].mean
    before = {name: (run_dir / name).read_bytes() for name in files}
    write_summary(run_dir)
    assert before == {name: (run_dir / name).read_bytes() for name in files}


def test_markdown_and_latex(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", targets=("mos_quality", "a|b"))
    write_summary(run_dir)
    markdown = (run_dir / "summary.md").read_text()
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert cells == {8, 15} and r"a\|b" in markdown
    latex = (run_dir / "summary.tex").read_text()
    assert r"\toprule" in latex and r"\bottomrule" in latex and r"mos\_quality" in latex
    assert re.search(r"\$0\.\d{4} \\pm 0\.\d{4}\$", latex)
    assert all(line.count("&") == 6 for line in latex.splitlines() if line.endswith(r"\\"))
    if shutil.which("pdflatex"):
        text = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{latex}\end{{document}}"
        (tmp_path / "t.tex").write_text(text)
        subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True)


# Page


def test_page_holds_every_part_and_loads_nothing(run_dir) -> None:
    found = page(run_dir)
    for heading in (
        "Results",
        "Folds",
        "Learning curves",
        "Predicted and rated",
        "Largest errors: quality",
        "Configuration",
    ):
        assert heading in found.text
    assert found.tags.count("svg") == 3 + 2
    assert "script" not in found.tags and "link" not in found.tags and "img" not in found.tags
    names = {name for name, _ in found.attributes}
    assert not names & {"src", "href", "srcset"} and not any(name.startswith("on") for name in names)
    text = (run_dir / "report.html").read_text()
    assert "http://" not in text and "https://" not in text and "url(" not in text and "@import" not in text
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert len(text) < 300_000


def test_everything_from_the_data_is_escaped(tmp_path) -> None:
    run_dir = write_run(tmp_path / "<b>run</b>", targets=(HOSTILE,), prompts=[HOSTILE, HOSTILE])
    (run_dir / "config.yaml").write_text(f"name: '{HOSTILE}'")
    (run_dir / "command.txt").write_text(HOSTILE)
    write_json(run_dir / "environment.json", {HOSTILE: HOSTILE, "list": [HOSTILE]})

    def change(scores):
        scores["dataset"]["name"] = scores["split"]["kind"] = scores["split"]["sha256"] = HOSTILE
        scores["best"]["metrics"][HOSTILE]["notes"] = [HOSTILE]

    for fold in range(3):
        edit(run_dir, fold, change)
    found = page(run_dir)
    assert not {"script", "img", "b"} & set(found.tags) - {"b"}
    assert "script" not in found.tags and "img" not in found.tags
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert found.text.count(HOSTILE) > 20
    assert "<script" not in (run_dir / "report.html").read_text()


@pytest.mark.parametrize(
    "settings", [{"epochs": None}, {"folds": (0,), "num_folds": 1}, {"epochs": 1}, {"num_images": 3}]
)
def test_unusual_runs_have_a_page(tmp_path, settings) -> None:
    settings = {"epochs": 3, **settings}
    found = page(write_run(tmp_path / "run", **settings))
    assert ("Learning curves" in found.text) is (settings["epochs"] is not None)
    assert "Predicted and rated" in found.text
    assert ("checkpoint" in found.text) is (settings["epochs"] is None)


def test_curve_with_gaps_and_nan(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", epochs=4)
    path = run_dir / "fold_00" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[0]["metrics"], rows[0]["value"]  # not evaluated in this epoch
    rows[1]["metrics"]["quality"]["srcc"] = None
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert page(run_dir).tags.count("polyline") > 8


def test_residuals_average_an_image_over_folds(tmp_path) -> None:
    run_dir = write_run(tmp_path / "run", folds=(0, 1))
    header = "image,prompt,group,mos_quality,mos_alignment,best_quality,best_alignment,last_quality,last_alignment\n"
    rows = ["a.jpg,p,g,1,1,2,1,0,0\nb.jpg,p,g,3,3,2,3,0,0\n", "a.jpg,p,g,1,1,4,1,0,0\na.jpg,p,g,2,1,2,1,0,0\n"]
    for fold, text in enumerate(rows):
        (run_dir / f"fold_0{fold}" / "predictions.csv").write_text(header + text)
    images = image_residuals(load_run(run_dir), "quality", "best")
    assert [(r.image, r.mos, r.prediction, r.residual) for r in images] == [
        ("a.jpg", 1, 3, 2), ("a.jpg", 2, 2, 0), ("b.jpg", 3, 2, -1),
    ]  # fmt: skip
    (group,) = group_residuals(images)
    assert (group.num_images, group.mean, group.mean_absolute) == (3, pytest.approx(1 / 3), 1)


# Comparison


def test_compare_finds_the_better_run(tmp_path) -> None:
    a = load_run(write_run(tmp_path / "a", folds=range(8), num_folds=8, noise=0.2, epochs=3))
    b = load_run(write_run(tmp_path / "b", folds=range(10), num_folds=10, noise=2.0, epochs=3))
    text = compare_runs(a, b)
    assert "8 common folds: 0 to 7" in text and "Nadeau & Bengio" in text
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| quality")]
    assert len(rows) == 10 and all(row[-1] == "A better" for row in rows)
    rmse = next(row for row in rows if row[2] == "RMSE")
    assert rmse[5].startswith("-") and float(rmse[7].lstrip("< ")) < 0.05
    assert "B better" in compare_runs(b, a) and "A better" not in compare_runs(b, a)
    same = compare_runs(a, a)
    assert not re.search("[AB] better", same) and "all 8 differences are zero" in same


def test_compare_tells_different_selection(tmp_path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", selection="validation part")
    text = compare_runs(load_run(a), load_run(b))
    assert "chosen differently: A on the reported part, B on the validation part" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 7}, "3 of 3 folds were measured on different parts"),
        ({"targets": ("mos",)}, "no common target, quality, alignment against mos"),
        ({"folds": (3, 4), "num_folds": 5}, "no common fold, 0 to 2 against 3, 4"),
    ],
)
def test_compare_refuses(tmp_path, run_dir, settings, words) -> None:
    with pytest.raises(DataError, match=words):
        compare_runs(load_run(run_dir), load_run(write_run(tmp_path / "other", **settings)))


def test_compare_refuses_another_dataset(tmp_path, run_dir) -> None:
    other = write_run(tmp_path / "other")
    for fold in range(3):
        edit(other, fold, lambda s: s["dataset"].update(sha256="e" * 64))
    with pytest.raises(DataError, match="the annotation tables differ"):
        compare_runs(load_run(run_dir), load_run(other))
