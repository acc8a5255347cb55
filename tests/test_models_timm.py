"""Towers by timm's names, and ridge regression on their features: tiny architectures with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import refused
from safetensors.torch import save_file
from toy import write_config

import ipiqa
from ipiqa import registry
from ipiqa.config.loading import load_config
from ipiqa.errors import DataError
from ipiqa.models.bundle import own_section
from ipiqa.models.ipiqa import parameter_depth
from ipiqa.models.kernel_ridge import KernelRidge
from ipiqa.models.towers.timm_tower import TimmTower
from ipiqa.training.cross_validation import run

LAYERS = {"pool_layers": ["layer1", "layer2"], "statistics": "gram"}


def images(size: int = 32, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def build(section: dict[str, Any], size: int = 32) -> torch.nn.Module:
    torch.manual_seed(0)
    context = {"image_size": size, "num_targets": 2}
    return registry.build("model", registry.resolve("model", section, "model"), "model", context)


@pytest.mark.parametrize(
    ("architecture", "size", "channels", "side"),
    [
        ("test_resnet", 64, 96, 2),
        ("test_vit", 64, 64, 4),
        ("test_convnext", 64, 64, 2),
        ("test_efficientnet", 64, 256, 2),
        ("swin_tiny_patch4_window7_224", 224, 768, 7),  # keeps channels last
    ],
)
def test_features_are_those_of_timm_laid_out_as_a_map(architecture: str, size: int, channels: int, side: int) -> None:
    torch.manual_seed(0)
    tower = TimmTower(size, architecture=architecture).eval()
    with torch.no_grad():
        token_map, pooled = tower(images(size))
        torch.testing.assert_close(pooled, tower.tower(images(size)))
    assert token_map.shape == (2, channels, side, side) == (2, tower.channels, *tower.grid)
    assert pooled.shape == (2, tower.embed_dim) and tower.parts == (tower.embed_dim,)
    depths = [tower.depth(f"tower.{name}") for name, _ in tower.tower.named_parameters()]
    assert min(depths) == 0 and max(depths) < tower.num_layers and len(set(depths)) > 2


def test_a_token_of_the_map_stands_where_its_patch_was() -> None:
    tower = TimmTower(64, architecture="test_vit").eval()
    tower.tower.blocks = torch.nn.Sequential()  # or every token would see every patch
    changed = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        plain = tower(changed)[0]
        changed[0, :, 16:32, 48:64] = 5.0
        difference = (tower(changed)[0] - plain).abs().sum(dim=1)[0] > 1e-4
    assert difference.nonzero().tolist() == [[1, 3]]


def test_layers_give_the_mean_or_the_products_of_their_channels() -> None:
    torch.manual_seed(0)
    tower = TimmTower(64, architecture="test_resnet", pool_layers=["layer1", "layer2"]).eval()
    gram = TimmTower(64, architecture="test_resnet", **LAYERS).eval()
    gram.load_state_dict(tower.state_dict())
    with torch.no_grad():
        x = tower.tower.maxpool(tower.tower.act1(tower.tower.bn1(tower.tower.conv1(images(64)))))
        first = tower.tower.layer1(x)
        second = tower.tower.layer2(first)
        means, products = tower(images(64))[1], gram(images(64))[1]
    torch.testing.assert_close(means, torch.cat([first.mean((2, 3)), second.mean((2, 3))], dim=1))
    channels = first.shape[1], second.shape[1]
    assert gram.parts == tuple(c * (c + 1) // 2 for c in channels) and tower.parts == channels
    by_hand = (first[0, 0] * first[0, 1]).mean()  # the second of the upper triangle
    torch.testing.assert_close(products[0, 1], by_hand.sign() * by_hand.abs().sqrt())
    message = refused(lambda: TimmTower(64, architecture="test_resnet", pool_layers=["layer9"]))
    assert message.startswith("model.image_encoder.pool_layers: 'test_resnet' has no module 'layer9'. Did you mean")


def test_weights_come_from_a_file_without_its_classifier_and_are_rebuilt_without_it(tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = timm.create_model("test_vit", num_classes=5).eval()
    save_file(theirs.state_dict(), tmp_path / "vit.safetensors")
    section = {"name": "timm", "architecture": "test_vit", "weights": str(tmp_path / "vit.safetensors")}
    model = build({"name": "image_only", "image_encoder": section, "head": "linear"}, 160).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model.image_encoder(images(160))[1],
            theirs.forward_head(theirs.forward_features(images(160)), pre_logits=True),
        )
    assert TimmTower(64, architecture="test_vit", weights=section["weights"]).grid == (4, 4)  # positions resized
    own = own_section(model, {"name": "image_only", "image_encoder": section, "head": {"name": "linear"}})
    assert own["image_encoder"]["weights"] is None
    again = build(own, 160)
    again.load_state_dict(model.state_dict())
    missing = "does not exist. Give a file, hf-hub:OWNER/NAME, or a tag of timm's: r160_in1k."
    with pytest.raises(DataError, match=missing):
        TimmTower(64, architecture="test_vit", weights="nothing.pt")


@pytest.mark.parametrize(
    ("architecture", "size", "message"),
    [
        ("test_vti", 64, "timm knows no 'test_vti'. Did you mean 'test_vit'?"),
        ("hf-hub:someone/else", 64, "timm knows no 'hf-hub:someone/else'."),
        ("test_vit", 72, "'test_vit' cannot be used at 72 px"),
    ],
)
def test_what_timm_does_not_have_is_one_line(architecture: str, size: int, message: str) -> None:
    assert message in refused(lambda: TimmTower(size, architecture=architecture))


def test_mean_and_std_are_those_of_the_weights(tmp_path: Path) -> None:
    tower = ["model.name=image_only", "model.image_encoder={name: timm, architecture: tf_efficientnet_lite0}"]
    assert load_config(write_config(tmp_path), *tower).processor["mean"] == [0.5, 0.5, 0.5]


def test_layers_decay_freeze_and_repeat_their_forward_pass() -> None:
    def gradients(repeat: bool) -> dict[str, torch.Tensor]:
        tower = {"name": "timm", "architecture": "test_vit"}
        model = build({"name": "image_only", "image_encoder": tower, "head": {"name": "linear", "dropout": 0.0}}, 64)
        model.image_encoder.grad_checkpointing = repeat
        assert model.image_encoder.grad_checkpointing is repeat
        model(images(64), ["", ""]).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, repeated = gradients(False), gradients(True)
    assert plain.keys() == repeated.keys()
    for name, value in plain.items():
        torch.testing.assert_close(repeated[name], value)
    frozen = TimmTower(64, architecture="test_resnet", freeze="all").train()
    assert not frozen.tower.training and not any(p.requires_grad for p in frozen.parameters())
    frozen.grad_checkpointing = True
    message = refused(lambda: setattr(TimmTower(64, architecture="test_resnet"), "grad_checkpointing", True))
    assert message.startswith("run.grad_checkpointing: this tower has BatchNorm")
    depth = parameter_depth(build({"name": "image_only", "image_encoder": {"name": "timm", "architecture": "test_vit"},
                                   "head": "linear"}, 64))  # fmt: skip
    assert depth("image_encoder.tower.patch_embed.proj.weight") == 0
    assert depth("image_encoder.tower.blocks.1.mlp.fc1.weight") < depth("head.out_proj.weight")


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
def test_kernel_ridge_is_the_solution_by_the_book(kernel: str) -> None:
    tower = {"name": "timm", "architecture": "test_resnet", **LAYERS}
    model = build({"name": "kernel_ridge", "image_encoder": tower, "kernel": kernel, "penalty": 0.1, "most_images": 20})
    assert isinstance(model, KernelRidge)
    seen, asked = images(count=12), images(count=15)[12:]
    scores = torch.stack([torch.arange(12.0), torch.arange(12.0) ** 2], dim=1)
    known = torch.ones(12, 2, dtype=torch.bool)
    known[3, 1] = False
    model.train()
    model.observe(seen[:5], scores[:5], known[:5])
    model.observe(seen[5:], scores[5:].masked_fill(~known[5:], 0.0), known[5:])
    with torch.no_grad():
        predicted = model.eval()(asked, [""] * 3).double().numpy()
        x = model.image_encoder(seen)[1].double().numpy()
        new = model.image_encoder(asked)[1].double().numpy()

    def alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        split = model.image_encoder.parts[0]
        total = np.zeros((len(a), len(b)))
        for part in (slice(0, split), slice(split, None)):
            p, q = a[:, part], b[:, part]
            if kernel == "gaussian":
                total += np.exp(-((p[:, None] - q[None]) ** 2).mean(axis=2) / 2)
            else:
                total += p @ q.T / p.shape[1]
        return total / 2

    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-6
    x, new = (np.clip((f - mean) / deviation, -5, 5) for f in (x, new))
    for target in range(2):
        rows = np.flatnonzero(known[:, target].numpy())
        y = scores[rows, target].double().numpy()
        inverse = np.linalg.inv(alike(x[rows], x[rows]) + 0.1 * np.eye(len(rows)))
        constant = inverse.sum(axis=0) @ y / inverse.sum()
        wanted = constant + alike(new, x[rows]) @ inverse @ (y - constant)
        np.testing.assert_allclose(predicted[:, target], wanted, rtol=1e-3, atol=1e-3)
    with pytest.raises(DataError, match="model.most_images: 20 is less than"):
        model.observe(seen, scores)
    assert "penalty 0, most_images 20" in refused(
        lambda: build({"name": "kernel_ridge", "image_encoder": tower, "penalty": 0, "most_images": 20})
    )


def test_kernel_ridge_trains_as_a_run_and_scores_without_any_file(tmp_path: Path) -> None:
    model = {
        "name": "kernel_ridge",
        "most_images": 64,
        "image_encoder": {"name": "timm", "architecture": "test_resnet"},
    }
    changes = [f"model={json.dumps(model)}", "run.max_epochs=1", "run.batch_size=1", "run.num_folds=1"]
    folder = run(load_config(write_config(tmp_path), *changes))
    metrics = json.loads((folder / "fold_00/scores.json").read_text())["best"]["metrics"]
    assert metrics["quality"]["srcc"] > 0.5  # brightness is quality: a random tower sees it
    scorer = ipiqa.load(folder / "fold_00/best.pt")
    names = sorted((tmp_path / "images").iterdir())[:3]
    again = {row["image"]: float(row["best_quality"]) for row in _rows(folder / "fold_00/predictions.csv")}
    scores = scorer.score(names, [""] * 3)
    for name, score in zip(names, scores, strict=True):
        if name.name in again:
            assert score[0] == pytest.approx(again[name.name], abs=1e-3)
    assert np.isfinite(scores).all()


def _rows(path: Path) -> list[dict[str, str]]:
    import csv

    with path.open() as file:
        return list(csv.DictReader(file))
