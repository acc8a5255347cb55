"""The page of a run: everything on it, nothing loaded, everything escaped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_runs import HOSTILE, edit, page, write_run

from ipiqa.files import write_json
from ipiqa.report import load_run
from ipiqa.report.page import group_residuals, image_residuals, pooled
from ipiqa.report.tables import number


@pytest.fixture
def run_dir(tmp_path) -> Path:
    return write_run(tmp_path / "agiqa3k" / "ipiqa")


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
    (run_dir / "config.yaml").write_text(f"run: {{}}\nname: '{HOSTILE}'")
    (run_dir / "command.txt").write_text(HOSTILE)
    write_json(run_dir / "environment.json", {HOSTILE: HOSTILE, "list": [HOSTILE]})

    def change(scores):
        scores["dataset"]["name"] = scores["split"]["kind"] = scores["split"]["sha256"] = HOSTILE
        scores["best"]["metrics"][HOSTILE][HOSTILE] = 0.5
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
    images = image_residuals(pooled(load_run(run_dir), "quality", "best"))
    assert [(r.image, r.mos, r.prediction, r.residual) for r in images.itertuples()] == [
        ("a.jpg", 1, 3, 2), ("a.jpg", 2, 2, 0), ("b.jpg", 3, 2, -1),
    ]  # fmt: skip
    (group,) = group_residuals(images).itertuples()
    assert (group.num_images, group.mean, group.mean_absolute) == (3, pytest.approx(1 / 3), 1)


def test_worst_images_stand_on_the_page(run_dir) -> None:
    images = list(image_residuals(pooled(load_run(run_dir), "alignment", "best")).itertuples())
    text = "".join(page(run_dir).text.split("Largest errors: alignment")[1].splitlines())
    for image in (images[0], images[9], images[-1], images[-10]):
        cells = f"{image.image}{image.prompt}{number(image.mos)}{number(image.prediction)}{image.residual:+.3f}"
        assert cells in text
    assert images[10].image not in text.split("Groups")[0]


def test_an_empty_prediction_is_left_out(run_dir) -> None:
    path = run_dir / "fold_00" / "predictions.csv"
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    lines[1] = ",".join([*cells[:-4], "", *cells[-3:]])  # best_quality
    path.write_text("\n".join(lines))
    run = load_run(run_dir)
    assert len(image_residuals(pooled(run, "quality", "best"))) == 359
    assert len(image_residuals(pooled(run, "alignment", "best"))) == 360
    assert "No curve: 1 of 360 predictions are not finite" in page(run_dir).text
