"""Views of an image: where they lie, that the aspect is kept, and that training, scoring and caches see the same."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image
from small_models import PROMPT, build
from toy import write_config

import ipiqa
from ipiqa import registry
from ipiqa.config.loading import load_config
from ipiqa.explain.explanation import heat_maps
from ipiqa.export.onnx import export_onnx
from ipiqa.models.bundle import ModelSpec, write_bundle
from ipiqa.processors.views import ViewsProcessor, over_views
from ipiqa.scoring.loading import load_models
from ipiqa.scoring.model_scorer import ModelScorer
from ipiqa.training.cross_validation import run
from ipiqa.training.pretraining import pretrain

PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1 / 255, 1 / 255, 1 / 255]}  # views in the units of the pixels
SETTINGS = {"name": "views", "stored_size": 48, "crops": 2, "grid": 2}


def picture(width: int, height: int) -> Image.Image:
    """Returns an image whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, rows * 0 + 9], axis=2).astype(np.uint8))


def views(image: Image.Image, flips: torch.Tensor | None = None, **settings: Any) -> torch.Tensor:
    processor = ViewsProcessor(16, **PLAIN, stored_size=48, **settings)
    return processor.normalise(processor.decode(image)[None], flips)[0]


@pytest.mark.parametrize(("width", "height"), [(48, 48), (48, 24), (24, 48)])
def test_crops_lie_on_a_grid_from_edge_to_edge(width: int, height: int) -> None:
    found = views(picture(width, height), grid=3)
    assert found.shape == (10, 3, 16, 16)
    corners = [(y, x) for y in (0, (height - 16) / 2, height - 16) for x in (0, (width - 16) / 2, width - 16)]
    for view, (top, left) in zip(found, corners, strict=False):
        expected = torch.from_numpy(np.array(picture(width, height))).permute(2, 0, 1)[
            :, round(top) : round(top) + 16, round(left) : round(left) + 16
        ]
        torch.testing.assert_close(view, expected.float(), atol=1e-4, rtol=0)


def test_the_whole_image_keeps_its_aspect() -> None:
    whole = views(picture(48, 24), grid=0)[0]
    assert not whole[:, :4].any() and not whole[:, 12:].any()  # the mean colour, above and below
    assert whole[2, 4:12].sub(9).abs().max() < 1e-3
    columns = whole[0, 4:12].mean(dim=0)
    torch.testing.assert_close(columns[1:-1], torch.arange(1.0, 47, 3)[1:-1], atol=0.5, rtol=0)


def test_a_side_shorter_than_a_view_is_made_larger() -> None:
    assert views(picture(48, 12), grid=2)[:4, 2].sub(9).abs().max() < 1e-3


def test_random_crops_belong_to_the_row_and_the_epoch() -> None:
    processor = ViewsProcessor(16, stored_size=48, crops=2)
    draw = {"seed": 1, "fold": 0, "epoch": 0}
    all_rows = processor.flips(torch.arange(100), num_rows=100, **draw)
    assert all_rows.shape == (100, 5) and set(all_rows[:, 0].tolist()) == {0.0, 1.0}
    assert torch.equal(processor.flips(torch.tensor([7, 3]), num_rows=100, **draw), all_rows[[7, 3]])
    later = processor.flips(torch.arange(100), num_rows=100, **draw | {"epoch": 1})
    assert not torch.equal(later[:, 1:], all_rows[:, 1:])
    none = ViewsProcessor(16, stored_size=48, crops=0).flips(torch.arange(3), num_rows=3, **draw)
    assert none.shape == (3, 1)
    image = picture(48, 24)
    drawn = torch.tensor([[0.0, 0.0, 0.99, 0.999, 0.5]])
    first, second, _ = views(image, drawn, crops=2)
    assert (first[:2, 0, 0] - torch.tensor([32.0, 0.0])).abs().max() < 1e-3
    assert (second[:2, 0, 0] - torch.tensor([16.0, 8.0])).abs().max() < 1e-3
    drawn[0, 0] = 1
    torch.testing.assert_close(views(image, drawn, crops=2)[0], first.flip(-1))


def model_of_views(**parts: Any) -> tuple[Any, ModelSpec]:
    model, spec = build(size=32, **parts)
    return model, dataclasses.replace(spec, processor=registry.resolve("processor", SETTINGS, "processor"))


def test_a_score_is_the_mean_over_views_and_bundles_keep_it(tmp_path: Path) -> None:
    model, spec = model_of_views()
    write_bundle(tmp_path, model, spec)
    image, processor = picture(100, 60), spec.build_processor()
    assert registry.resolve("processor", processor.section(), "processor") == processor.section()
    seen = processor.normalise(processor.decode(image)[None])
    assert seen.shape == (1, 5, 3, 32, 32)
    expected = torch.stack([model(seen[:, v], [PROMPT]) for v in range(5)]).mean(dim=0)
    found = ipiqa.load(tmp_path, "cpu").score(image, PROMPT)
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(over_views(model, seen[:, 0], [PROMPT]), model(seen[:, 0], [PROMPT]))


@pytest.mark.parametrize("fusion", ["cross_attention", "image_only"])
def test_floats_are_seen_as_bytes_are_and_give_gradients(fusion: str) -> None:
    model, spec = model_of_views(fusion=fusion)
    scorer = ModelScorer([model], [spec], device="cpu")
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 3, 4), (36, 48), mode="bilinear").mul(255).round()
    found = scorer.score(smooth / 255, PROMPT)
    np.testing.assert_allclose(scorer.score(smooth.to(torch.uint8), PROMPT), found, rtol=1e-3, atol=1e-4)
    pixels = (smooth / 255).requires_grad_()
    scorer.loss(pixels, PROMPT).backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


def test_a_run_with_views_is_the_same_with_a_cache_and_without(tmp_path: Path) -> None:
    cfg, predictions = write_config(tmp_path), []
    changes = ["processor={name: views, stored_size: 48, crops: 1, grid: 2}", "run.num_folds=1", "run.max_epochs=1"]
    for cached in ("true", "false"):
        out = f"run.output_dir={tmp_path}/{cached}"
        folder = run(load_config(cfg, *changes, out, f"dataset.image_cache={cached}")) / "fold_00"
        predictions.append((folder / "predictions.csv").read_text())
    assert predictions[0] == predictions[1] and len(list((tmp_path / "cache").glob("*.images"))) == 1
    rows = list(csv.DictReader(predictions[0].splitlines()))
    images = [tmp_path / "images" / row["image"] for row in rows]
    prompts = [row["prompt"] for row in rows]
    found = ipiqa.load(folder, "cpu").score(images, prompts)[:, 0]
    np.testing.assert_allclose(found, [float(row["best_quality"]) for row in rows], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stored_size: 16", "processor.stored_size: 16 is out of range. Give 32 to 4096."),
        ("crops: -1", "processor.crops: -1 is out of range. Give 0 to 64."),
        ("grid: 9", "processor.grid: 9 is out of range. Give 0 to 8."),
    ],
)
def test_views_that_cannot_be_are_refused(setting: str, message: str, tmp_path: Path) -> None:
    cfg = write_config(tmp_path)
    assert refused(lambda: run(load_config(cfg, f"processor={{name: views, {setting}}}"))) == message


def test_what_takes_one_image_refuses_views(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", *model_of_views())
    scorer = load_models(tmp_path / "bundle", "cpu")
    assert "no one map" in refused(lambda: heat_maps(scorer, scorer.prepare(picture(50, 40)), PROMPT))
    assert "several views is no one graph" in refused(lambda: export_onnx(tmp_path / "bundle", tmp_path / "model.onnx"))
    assert not (tmp_path / "model.onnx").exists()
    cfg = write_config(tmp_path / "toy")
    changes = [
        "model.name=image2prompt",
        "model.prompt_encoder.freeze=all",
        "task.name=image2prompt",
        "processor=views",
    ]
    config = load_config(cfg, *changes, "run.num_folds=10", "split.kind=holdout")
    assert "pre-training takes one view of an image" in refused(lambda: pretrain(config))
