"""Runs whose frozen image tower is asked once: the same numbers as without, for all folds and runs."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from processes import run_together
from small_models import RESNET, TEXT, build
from toy import write_config

from ipiqa.config.loading import load_config
from ipiqa.datasets.image_cache import DecodedImages
from ipiqa.engine.stop import Interrupted
from ipiqa.models.towers.clip_image import ImageEncoder
from ipiqa.models.weights import write_tensors
from ipiqa.processors.image import SquashProcessor
from ipiqa.tasks.quality_regression import QualityRegression
from ipiqa.training.cross_validation import run

FROZEN = {"image_encoder": RESNET | {"freeze": "all"}, "prompt_encoder": TEXT | {"freeze": "all"}}
HEAD = {"head": {"name": "mlp", "dropout": 0.1}}
MODELS: dict[str, dict[str, Any]] = {
    "ipiqa": FROZEN | HEAD | {"fusion": {"name": "cross_attention"}}, "clip_cosine": FROZEN, "clip_levels": FROZEN,
    "linear_probe": {"image_encoder": RESNET}, "kernel_ridge": {"image_encoder": RESNET},
    "image_only": {"image_encoder": FROZEN["image_encoder"]} | HEAD,
}  # fmt: skip


@pytest.fixture
def cfg(tmp_path: Path) -> Path:
    """A config whose image tower, a file of weights, is the same in all folds; see `model_config`."""
    encoder: Any = build(size=32)[0].image_encoder
    write_tensors(tmp_path / "tower.safetensors", encoder.clip_tensors())
    return write_config(tmp_path)


def model_config(cfg: Path, name: str) -> Path:
    """Returns a config of one of MODELS, beside another config."""
    path, content = cfg.with_name(f"{name}.yaml"), yaml.safe_load(cfg.read_text())
    content["model"] = {"name": name} | MODELS[name]
    content["model"]["image_encoder"] = MODELS[name]["image_encoder"] | {
        "weights": str(cfg.with_name("tower.safetensors"))
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images in each call of a tower, as they come."""
    calls, encode = [], ImageEncoder.encode

    def counted(self: ImageEncoder, images: torch.Tensor) -> Any:
        calls.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(ImageEncoder, "encode", counted)
    return calls


def results(run_dir: Path, fold: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns predictions, and the metrics of all epochs."""
    folder = run_dir / f"fold_{fold:02d}"
    frame = pd.read_csv(folder / "predictions.csv")
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = [[row["loss"], row["value"], *pd.json_normalize(row["metrics"]).iloc[0]] for row in history]
    kept = [[number for number in row if isinstance(number, float)] for row in numbers]
    return frame.filter(regex="^(best|last)_").to_numpy(), np.array(kept)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_same_numbers_with_and_without(cfg: Path, tmp_path: Path, name: str, encoded: list[int]) -> None:
    config = model_config(cfg, name)
    plain = run(load_config(config, "dataset.feature_cache=false", f"run.output_dir={tmp_path}/plain"))
    assert not list((tmp_path / "cache").glob("*.features")) and sum(encoded) > 2 * 2 * 40 - 40
    encoded.clear()
    stored = run(load_config(config, f"run.output_dir={tmp_path}/stored"))
    assert len(list((tmp_path / "cache").glob("*.features"))) == 1 and sum(encoded) == 2 * 40 + 1
    for fold in (0, 1):
        for a, b in zip(results(plain, fold), results(stored, fold), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    encoded.clear()  # a second run, in which no image is decoded either
    again = run(load_config(config, f"run.output_dir={tmp_path}/again"))
    assert encoded == []
    for fold in (0, 1):
        for a, b in zip(results(stored, fold), results(again, fold), strict=True):
            np.testing.assert_array_equal(a, b)


def test_no_image_is_decoded_where_features_are_stored(
    cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = model_config(cfg, "linear_probe")
    run(load_config(config), folds=[0])
    monkeypatch.setattr(DecodedImages, "batch", None)
    run(load_config(config), folds=[1])


def test_mixed_precision(cfg: Path, tmp_path: Path) -> None:
    config = model_config(cfg, "ipiqa")
    options = [
        ("run.amp=bf16", f"dataset.feature_cache={on}", f"run.output_dir={tmp_path}/{on}") for on in (True, False)
    ]
    both = [run(load_config(config, *given), folds=[0]) for given in options]
    predictions = [results(run_dir)[0] for run_dir in both]
    np.testing.assert_allclose(*predictions, atol=0.02)


def test_stopped_and_resumed_equals_uninterrupted(cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, plain_step, steps = model_config(cfg, "ipiqa"), QualityRegression.step, 0

    def step(self: QualityRegression, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps == 6:
            signal.raise_signal(signal.SIGTERM)
        return plain_step(self, model, batch)

    whole = run(load_config(config, f"run.output_dir={tmp_path}/whole"), folds=[0])
    parts = load_config(config, f"run.output_dir={tmp_path}/parts")
    with monkeypatch.context() as patch:
        patch.setattr(QualityRegression, "step", step)
        with pytest.raises(Interrupted):
            run(parts, folds=[0])
    run(parts, folds=[0], resume=True)
    for name in ("predictions.csv", "metrics.jsonl", "scores.json"):
        assert (whole / "fold_00" / name).read_text() == (tmp_path / "parts" / "fold_00" / name).read_text()


def test_features_that_are_not_fixed_are_not_stored(
    cfg: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run(load_config(cfg), folds=[0])  # the tower trains
    config = model_config(cfg, "linear_probe")
    trained = run(load_config(config, "dataset.cache_limit_gb=0", f"run.output_dir={tmp_path}/0"), folds=[0])
    options = ("run.evaluate=true", f"run.checkpoint={trained}")
    run(load_config(config, *options, f"run.output_dir={tmp_path}/1"), folds=[0])  # one pass anyway
    plain = SquashProcessor.flips

    class Crops(SquashProcessor):
        def flips(self, *given: Any, **more: Any) -> torch.Tensor:
            return plain(self, *given, **more)

    monkeypatch.setattr("ipiqa.build.make_processor", lambda config: Crops(config.image_size))
    with caplog.at_level(logging.INFO, logger="ipiqa"):
        run(load_config(config, f"run.output_dir={tmp_path}/2"), folds=[0])
    assert "feature cache: not used, Crops draws more than flips" in caplog.text
    assert not list((tmp_path / "cache").glob("*.features"))


def test_what_does_not_fit_is_computed_in_every_epoch(
    cfg: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, encoded: list[int]
) -> None:
    config = load_config(model_config(cfg, "ipiqa"), "dataset.cache_limit_gb=1e-6")
    with caplog.at_level(logging.WARNING, logger="ipiqa"):
        run(config, folds=[0])
    assert "more than dataset.cache_limit_gb 1e-06); the frozen image tower runs in every epoch" in caplog.text
    assert sum(encoded) == 1 + 2 * 40


def train(config: Path, output_dir: str, feature_cache: str) -> None:
    options = ("run.batch_size=4", f"run.output_dir={output_dir}", f"dataset.feature_cache={feature_cache}")
    run(load_config(config, *options), folds=[0])


@pytest.mark.slow
def test_two_processes_share_one_file(cfg: Path, tmp_path: Path) -> None:
    config = model_config(cfg, "ipiqa")
    assert run_together(2, train, config, f"{tmp_path}/stored", "true") == [0, 0]
    assert len(list((tmp_path / "cache").glob("*.features"))) == 1
    assert run_together(2, train, config, f"{tmp_path}/plain", "false") == [0, 0]
    np.testing.assert_allclose(results(tmp_path / "stored")[0], results(tmp_path / "plain")[0], atol=1e-5)
