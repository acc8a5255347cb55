"""ipiqa.load: every model and tower, from any directory, from whatever training leaves."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import add_architectures
from toy import write_config

import ipiqa
from ipiqa import registry
from ipiqa.config.loading import load_config
from ipiqa.datasets.table import Target
from ipiqa.errors import ConfigError, DataError, IpiqaError
from ipiqa.models.bundle import ModelSpec, own_section, write_bundle
from ipiqa.models.inference import for_inference
from ipiqa.scoring.loading import load_models
from ipiqa.scoring.scorer import Scorer
from ipiqa.training.cross_validation import run

CLIP_RESNET = {"name": "clip_resnet", "layers": [1, 1, 1, 1], "width": 4, "embed_dim": 8}
CLIP_TEXT = {"name": "clip_text", "width": 8, "layers": 1, "heads": 1, "embed_dim": 8, "qa_token": "prefix"}
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
ENCODERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip_resnet": (CLIP_RESNET, CLIP_TEXT),
    "torchvision_resnet": ({"name": "torchvision_resnet", "depth": 18}, CLIP_TEXT | {"embed_dim": 512}),
    "clip": ({"name": "clip", "architecture": "tiny-bundle"}, {"name": "clip", "architecture": "tiny-bundle"}),
}
MODELS = [name for name in registry.list_registered("model") if name != "image2prompt"]


@pytest.fixture(autouse=True, scope="module")
def tiny_architecture(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_architectures(tmp_path_factory.mktemp("architectures"), {"tiny-bundle": TINY})


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def run_dir(cfg: Path) -> Path:
    return run(load_config(cfg))


@pytest.fixture(scope="module")
def scorer(run_dir: Path) -> Scorer:
    return ipiqa.load(run_dir / "fold_00")


def predictions(run_dir: Path, fold: int) -> tuple[list[str], list[str], np.ndarray]:
    with (run_dir / f"fold_0{fold}" / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [[float(row[f"best_{target}"]) for target in ("quality", "alignment")] for row in rows]
    return [row["image"] for row in rows], [row["prompt"] for row in rows], np.array(scores)


@pytest.mark.parametrize("encoders", ENCODERS)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_and_tower_loads_from_any_directory(
    name: str, encoders: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_encoder, prompt_encoder = ENCODERS[encoders]
    freeze = {"freeze": "all"} if encoders == "clip" else {}
    parts = {
        "image_encoder": image_encoder,
        "prompt_encoder": prompt_encoder | freeze,
        "fusion": "cross_attention",
        "head": "mlp",
    }
    taken = registry.keys_of("model", name)
    section = registry.resolve("model", {"name": name} | {k: v for k, v in parts.items() if k in taken}, "model")
    targets = (Target("quality", 0.0, 5.0), Target("alignment", 0.0, 5.0))
    model = registry.build("model", section, "model", {"image_size": 32, "num_targets": 2, "targets": targets}).eval()
    spec = ModelSpec(
        model=own_section(model, section), image_size=32,
        processor=registry.resolve("processor", "squash", "processor"), targets=targets,
    )  # fmt: skip
    torch.save({"format": 1, "model": model.state_dict(), "spec": spec.to_dict()}, tmp_path / "best.pt")
    write_bundle(tmp_path / "bundle", model, spec)
    monkeypatch.chdir("/")
    images, prompts = torch.rand(2, 3, 40, 48), ["a red circle", "two trees"]
    loaded, shared = ipiqa.load(tmp_path / "best.pt"), ipiqa.load(str(tmp_path / "bundle"))
    scores = loaded(images, prompts)
    assert scores.shape == (2, 2) and scores.dtype == np.float32
    assert np.array_equal(scores, shared(images, prompts))
    assert loaded.needs_prompt == (name in ("ipiqa", "clip_cosine", "clip_levels"))
    if not loaded.needs_prompt:
        assert np.array_equal(scores, loaded(images))


def test_the_scores_are_those_of_the_run(run_dir: Path, cfg: Path, scorer: Scorer) -> None:
    images, prompts, expected = predictions(run_dir, 0)
    paths = [cfg.parent / "images" / name for name in images]
    found = scorer.score(paths, prompts)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    whole, other = ipiqa.load(run_dir), ipiqa.load(run_dir, folds=[1])
    np.testing.assert_allclose(whole(paths, prompts), (found + other(paths, prompts)) / 2, atol=1e-6)
    assert [target.name for target in scorer.targets] == ["quality", "alignment"] and scorer.image_size == 32
    assert scorer.trained_on.dataset == "agiqa_3k" and scorer.needs_prompt


def test_a_score_does_not_depend_on_the_batch_or_the_form_of_the_image(cfg: Path, scorer: Scorer) -> None:
    paths = sorted((cfg.parent / "images").iterdir())
    prompts = [f"a tree {'very ' * (i % 9)}old" for i in range(len(paths))]
    together = scorer(paths, prompts)
    for i in (0, 7, 39):
        image = Image.open(paths[i])
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        for form in (str(paths[i]), image, pixels, pixels[None], pixels / 255):
            np.testing.assert_allclose(scorer(form, prompts[i]), together[i : i + 1], atol=1e-5)
    large = Image.open(paths[0]).resize((90, 70))
    exact = scorer(large, "a")
    near = scorer(torch.from_numpy(np.array(large)).permute(2, 0, 1) / 255, "a")
    np.testing.assert_allclose(near, exact, atol=0.02)
    assert scorer([], []).shape == (0, 2)
    np.testing.assert_array_equal(scorer(paths[:2], "a"), scorer(paths[:2], ["a", "a"]))


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (torch.rand(2, 3, 8, 8), ["a"], "prompts: 1 for 2 images"),
        (torch.rand(2, 3, 8, 8), None, "prompts: missing"),
        (torch.rand(3, 8, 8), [7], "prompts: row 0: 7 is no prompt"),
        (torch.rand(3, 3, 8, 8), ["a", "b", " \n"], r"prompts: row 2: ' .n' is no prompt"),
        (torch.rand(3, 8, 8), "", "prompts: row 0: '' is no prompt"),
        (torch.rand(3, 8, 8) * 255, "a", "outside 0 to 1"),
        (torch.full((3, 8, 8), float("nan")), "a", "not finite"),
        (torch.rand(8, 8), "a", "cannot be scored"),
        (torch.rand(4, 8, 8), "a", "cannot be scored"),
        (torch.zeros(3, 0, 8), "a", "cannot be scored"),
        ([7], "a", "int cannot be scored"),
        ("nothing.png", "a", "cannot be read"),
        (Image.new("F", (9, 9)), "a", "an image of mode F cannot be scored"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_one_line(scorer: Scorer, images: Any, prompts: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        scorer(images, prompts)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_loaded_is_refused_in_one_line(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for what, message in [
        ("nothing.pt", "does not exist"),
        ("a\0b", "is not a path: it holds a NUL byte"),
        ("x/" * 5000, "does not exist"),
        (tmp_path / "empty", "holds neither a bundle nor a best.pt"),
    ]:
        with pytest.raises(IpiqaError, match=message):
            ipiqa.load(what)
    with pytest.raises(DataError, match=r"has no best.pt of fold \[5\]. There are: 0, 1."):
        ipiqa.load(run_dir, folds=[5])
    with pytest.raises(ConfigError, match="is not a run folder"):
        ipiqa.load(run_dir / "fold_00", folds=[0])
    for changes, message in [({"device": "gpu"}, "device: 'gpu'"), ({"amp": "int8"}, "amp: 'int8'")]:
        with pytest.raises(ConfigError, match=message):
            ipiqa.load(run_dir, **changes)  # type: ignore[arg-type]


def test_folds_of_different_models_are_not_averaged(run_dir: Path, cfg: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "mixed")
    other = run(load_config(cfg, "model.head=linear", f"run.output_dir={tmp_path}/other", "run.num_folds=1"))
    shutil.copy(other / "fold_00" / "best.pt", tmp_path / "mixed" / "fold_01" / "best.pt")
    with pytest.raises(DataError, match=r"not of the first fold's model: model.head.name is 'linear', not 'mlp'"):
        ipiqa.load(tmp_path / "mixed")


def test_a_pre_trained_model_scores_nothing(tmp_path: Path) -> None:
    parts = {"image_encoder": CLIP_RESNET, "prompt_encoder": CLIP_TEXT | {"qa_token": "none", "freeze": "all"}}
    section = registry.resolve("model", {"name": "image2prompt", **parts}, "model")
    processor = registry.resolve("processor", "squash", "processor")
    spec = ModelSpec(model=section, image_size=32, processor=processor, targets=())
    write_bundle(tmp_path / "bundle", spec.build(), spec)
    with pytest.raises(DataError, match="was pre-trained and scores nothing"):
        ipiqa.load(tmp_path / "bundle")


def test_bf16_keeps_as_many_scores_apart(run_dir: Path, scorer: Scorer) -> None:
    generator = torch.Generator().manual_seed(0)
    colours, noise = (torch.rand(300, 3, *shape, generator=generator) for shape in ((4, 4), (32, 32)))
    images = 0.8 * torch.nn.functional.interpolate(colours, 32) + 0.2 * noise
    exact, near = (s(images, "a red circle") for s in (scorer, ipiqa.load(run_dir / "fold_00", amp="bf16")))
    np.testing.assert_allclose(near, exact, atol=0.05)
    for target in range(2):
        assert len(np.unique(near[:, target])) >= len(np.unique(exact[:, target])) - 3 > 290  # 3: by chance


def test_a_frame_has_percentiles_of_the_training_scores_and_the_spread_of_the_folds(run_dir: Path, cfg: Path) -> None:
    paths = sorted((cfg.parent / "images").iterdir())
    frame, folds = ipiqa.load(run_dir).frame(paths, "a red tree"), ipiqa.load(run_dir).score_folds(paths, "a red tree")
    per_target = [f"{target}{column}" for target in ("quality", "alignment") for column in ("", "_percentile", "_std")]
    assert [*frame] == ["image", "prompt", *per_target] and frame["image"][3] == str(paths[3])
    np.testing.assert_allclose(frame["alignment_std"], np.abs(folds[0] - folds[1])[:, 1] / 2**0.5, rtol=1e-4)
    with (cfg.parent / "data.csv").open() as file:
        mos = {row["name"]: float(row["mos_quality"]) for row in csv.DictReader(file)}
    scorers = [ipiqa.load(run_dir / f"fold_0{fold}") for fold in (0, 1)]
    for fold, one in enumerate(scorers):
        held_out = set(predictions(run_dir, fold)[0])
        trained = sorted(score for name, score in mos.items() if name not in held_out)
        for at in (0, 50, 100):
            value = np.quantile(trained, at / 100)
            assert one.percentiles(np.array([value]), "quality") == pytest.approx(at, abs=0.5)
            assert one.trained_on.quantiles["quality"][at] == pytest.approx(value, abs=1e-5)
    assert [*scorers[0].frame(paths[:1], "a")] == ["image", "prompt", *(c for c in per_target if "_std" not in c)]


def test_rank_puts_the_best_first(run_dir: Path, cfg: Path) -> None:
    paths = sorted((cfg.parent / "images").iterdir())
    scorer = ipiqa.load(run_dir)
    scores = scorer(paths, "a red tree")
    assert [*scorer.rank(paths, "a red tree", by="alignment").index] == [*np.argsort(-scores[:, 1])]
    low, span = scorer.scales()
    assert [*low] == [0, 0] and [*span] == [5, 5]
    assert [*scorer.rank(paths, "a red tree").index] == [*np.argsort(-scores.sum(axis=1))]
    with pytest.raises(ConfigError, match=r"no target is called 'qualty'. Did you mean 'quality'"):
        scorer.rank(paths, "a", by="qualty")


def test_a_loss_has_gradients_to_the_pixels_that_raise_the_score(run_dir: Path) -> None:
    scorer = load_models(run_dir)
    images = torch.rand(3, 3, 40, 48, generator=torch.Generator().manual_seed(0)).mul(0.8).add(0.1).requires_grad_()
    losses = scorer.loss(images, "a red tree", reduction="none")
    np.testing.assert_allclose(1 - scorer(images.detach(), "a red tree").mean(axis=1) / 5, losses.detach(), atol=1e-5)
    scorer.loss(images, "a red tree").backward()
    assert images.grad is not None and images.grad.flatten(1).abs().amax(dim=1).gt(0).all()
    step = 0.02 * images.grad / images.grad.abs().max()
    better = scorer.loss((images - step).detach().clamp(0, 1), "a red tree", reduction="none")
    assert (better < losses).all()
    with pytest.raises(DataError, match="no floats of shape"):
        scorer.loss(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "a")


def test_long_prompts_are_scored_and_counted_once(scorer: Scorer, caplog: pytest.LogCaptureFixture) -> None:
    scorer._has_warned = False
    long = ["tree " * 80, "house " * 90, "a"]
    for _ in range(2):
        assert np.isfinite(scorer(torch.rand(3, 3, 32, 32), long)).all()
    assert [r.getMessage()[:32] for r in caplog.records] == ["prompts: 2 of 3 are longer than t"[:32]]


@pytest.mark.parametrize("encoder", [CLIP_RESNET, {"name": "torchvision_resnet", "depth": 18}])
def test_batch_norm_folds_into_the_convolutions(encoder: dict[str, Any]) -> None:
    tower = registry.build("image_encoder", registry.resolve("image_encoder", encoder, ""), "", {"image_size": 64})
    with torch.no_grad():
        for norm in (module for module in tower.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
        images = torch.rand(2, 3, 64, 64)
        expected = tower.eval()(images)
        folded = for_inference(tower)(images)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in tower.modules())
    for before, after in zip(expected, folded, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * before.abs().max().item())
