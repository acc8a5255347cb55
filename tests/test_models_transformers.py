"""Every tower says how deep its parameters lie, and transformer towers train by changes of low rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import refused
from small_models import add_architectures
from torch import nn
from toy import write_config

import ipiqa
from ipiqa import registry
from ipiqa.config.loading import load_config
from ipiqa.engine import checkpoint
from ipiqa.engine.optim import parameter_groups
from ipiqa.export.folder import export_folder
from ipiqa.models.ipiqa import is_head, parameter_depth
from ipiqa.models.towers import transformers
from ipiqa.training.cross_validation import run

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "timm_pool": "map"}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "deep-vit": {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": TEXT},
    "deep-vit-quickgelu": {
        "embed_dim": 8, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT | {"context_length": 77},
    },
    "deep-timm": {
        "embed_dim": 192, "custom_text": True, "text_cfg": TEXT,
        "vision_cfg": {"image_size": 224, "timm_proj": "none", **TIMM},
    },
}  # fmt: skip
RESNET = {"name": "clip_resnet", "layers": [1, 1, 1, 1], "width": 4, "embed_dim": 8}
CLIP_TEXT = {"name": "clip_text", "width": 8, "layers": 3, "heads": 1, "embed_dim": 8}


@pytest.fixture(autouse=True, scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_architectures(tmp_path_factory.mktemp("architectures"), ARCHITECTURES)


def build(image_encoder: Any, prompt_encoder: Any = CLIP_TEXT, size: int = 32) -> nn.Module:
    torch.manual_seed(0)
    parts = {"image_encoder": image_encoder, "prompt_encoder": prompt_encoder}
    section = registry.resolve("model", {"name": "ipiqa", **parts, "fusion": "concatenation", "head": "mlp"}, "model")
    return registry.build("model", section, "model", {"image_size": size, "num_targets": 2})


def clip(architecture: str, **settings: Any) -> dict[str, Any]:
    return {"name": "clip", "architecture": architecture, **settings}


@pytest.mark.parametrize(
    ("image", "text", "size", "depths"),
    [
        (RESNET, CLIP_TEXT, 32, {
            "image_encoder.tower.conv1.weight": 5, "image_encoder.tower.layer1.0.conv1.weight": 4,
            "image_encoder.tower.layer4.0.conv1.weight": 1, "image_encoder.pool.q_proj.weight": 0,
            "prompt_encoder.token_embedding.weight": 4, "prompt_encoder.positional_embedding": 4,
            "prompt_encoder.transformer.resblocks.0.attn.in_proj_weight": 3,
            "prompt_encoder.transformer.resblocks.2.ln_1.weight": 1, "prompt_encoder.ln_final.weight": 0,
            "prompt_encoder.text_projection": 0, "head.out_proj.weight": 0,
        }),
        ({"name": "torchvision_resnet", "depth": 18}, CLIP_TEXT | {"qa_token": "prefix"}, 32, {
            "image_encoder.tower.conv1.weight": 5, "image_encoder.tower.layer1.0.conv1.weight": 4,
            "prompt_encoder.qa_embedding": 0,
        }),
        (clip("deep-vit"), clip("deep-vit", freeze="none"), 32, {
            "image_encoder.visual.conv1.weight": 4, "image_encoder.visual.class_embedding": 4,
            "image_encoder.visual.positional_embedding": 4, "image_encoder.visual.ln_pre.weight": 4,
            "image_encoder.visual.transformer.resblocks.0.mlp.c_fc.weight": 3,
            "image_encoder.visual.transformer.resblocks.2.ln_1.bias": 1,
            "image_encoder.visual.ln_post.weight": 0, "image_encoder.visual.proj": 0,
            "prompt_encoder.text.token_embedding.weight": 3,
            "prompt_encoder.text.transformer.resblocks.0.attn.in_proj_weight": 2,
            "prompt_encoder.text.transformer.resblocks.1.attn.out_proj.bias": 1,
            "prompt_encoder.text.ln_final.weight": 0, "prompt_encoder.text.text_projection": 0,
        }),
        (clip("deep-timm"), clip("deep-timm", freeze="none"), 32, {
            "image_encoder.visual.trunk.patch_embed.proj.weight": 13, "image_encoder.visual.trunk.pos_embed": 13,
            "image_encoder.visual.trunk.blocks.0.attn.qkv.weight": 12,
            "image_encoder.visual.trunk.blocks.11.mlp.fc1.weight": 1,
            "image_encoder.visual.trunk.attn_pool.latent": 0,
        }),
    ],
)  # fmt: skip
def test_the_rate_of_a_layer_is_the_decay_to_the_power_of_the_layers_behind_it(
    image: dict, text: dict, size: int, depths: dict[str, int]
) -> None:
    model = build(image, text | {"freeze": "none"}, size)
    groups = parameter_groups(
        model.named_parameters(), weight_decay=0.0, head_scale=1.0, layer_decay=0.5, is_head=is_head,
        depth=parameter_depth(model),
    )  # fmt: skip
    name_of = {id(p): name for name, p in model.named_parameters()}
    scales = {name_of[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert {name: scales[name] for name in depths} == {name: 0.5**depth for name, depth in depths.items()}


def test_names_of_the_transformers_library_have_their_depth() -> None:
    for name, depth in (
        ("text.transformer.encoder.layer.0.attention.self.query.weight", 1),
        ("text.transformer.encoder.block.3.layer.0.SelfAttention.q.weight", 4),
        ("text.transformer.embeddings.word_embeddings.weight", 0),
        ("text.proj.0.weight", 13),
    ):
        assert transformers.depth(name, 13) == depth, name


LORA = {"freeze": "all", "lora_rank": 2, "lora_alpha": 8.0}
ADAPTED = [
    ("image_encoder", clip("deep-vit"), "visual.transformer.resblocks", 3 * 4),  # blocks x (in, out, two of the MLP)
    ("image_encoder", clip("deep-timm"), "visual.trunk.blocks", 12 * 4),
    ("image_encoder", {"name": "timm", "architecture": "vit_tiny_patch16_224"}, "tower.blocks", 12 * 4),
    ("prompt_encoder", clip("deep-vit"), "text.transformer.resblocks", 2 * 4),
    ("prompt_encoder", clip("deep-vit-quickgelu", qa_token="prefix"), "transformer.resblocks", 2 * 4),
    ("prompt_encoder", CLIP_TEXT, "transformer.resblocks", 3 * 4),
]


def tower_of(kind: str, section: dict[str, Any], **settings: Any) -> Any:
    torch.manual_seed(0)
    resolved = registry.resolve(kind, section | settings, kind)
    return registry.build(kind, resolved, kind, {"image_size": 32})


def features(kind: str, tower: Any) -> torch.Tensor:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out: torch.Tensor = tower(images)[1] if kind == "image_encoder" else tower(["a red circle", "two trees"])
    return out


@pytest.mark.parametrize(("kind", "section", "blocks", "count"), ADAPTED)
def test_only_changes_of_low_rank_train_and_they_begin_at_the_tower(
    kind: str, section: dict[str, Any], blocks: str, count: int
) -> None:
    plain, tower = (tower_of(kind, section, **settings) for settings in ({"freeze": "all"}, LORA))
    assert torch.equal(features(kind, plain), features(kind, tower))
    trained = {name: p for name, p in tower.named_parameters() if p.requires_grad}
    changes = {name: p for name, p in trained.items() if name != "qa_embedding"}
    assert all(name.startswith(blocks) and name.endswith((".down", ".up")) for name in changes)
    assert len(changes) == 2 * count and {p.shape[0 if n.endswith("down") else 1] for n, p in changes.items()} == {2}
    before = {name: value.clone() for name, value in tower.state_dict().items() if name not in trained}
    optimizer = torch.optim.SGD(trained.values(), lr=1.0)
    for _ in range(2):  # the first step moves only what multiplies zero
        images = torch.randn(2, 3, 32, 32)
        out = tower(images)[1] if kind == "image_encoder" else tower(["a red circle", "two trees"])
        out[:, ::2].sum().backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in changes.values())
    state = tower.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.items())
    assert not torch.equal(features(kind, plain), features(kind, tower))


@pytest.mark.parametrize(("kind", "section", "blocks", "count"), ADAPTED)
def test_changes_are_written_into_the_weights(kind: str, section: dict[str, Any], blocks: str, count: int) -> None:
    tower = tower_of(kind, section, **LORA).eval()
    for name, parameter in tower.named_parameters():
        if name.endswith(".up"):
            nn.init.normal_(parameter, std=0.1)
    expected, tensors = features(kind, tower), tower.clip_tensors()
    again = tower_of(kind, tower.section() | {"freeze": "all"})  # of its own section, as a bundle builds it
    again.load_state_dict(tower.state_dict())
    assert torch.equal(features(kind, again.eval()), expected)
    assert transformers.merged(again) is again and not any(".down" in name for name in again.state_dict())
    assert torch.equal(features(kind, again), expected)
    plain = tower_of(kind, section, freeze="all").eval()  # what is kept for others has the tower's own names
    assert tensors.keys() == plain.clip_tensors().keys()
    ends = (".0.mlp.fc1.weight", ".0.mlp.c_fc.weight")
    changed, kept = (next(v for n, v in one.items() if n.endswith(ends)) for one in (tensors, plain.state_dict()))
    assert torch.equal(changed, next(v for n, v in again.state_dict().items() if n.endswith(ends)))
    assert not torch.equal(changed, kept)


def test_the_bundle_of_a_trained_model_scores_as_it_did(tmp_path: Path) -> None:
    cfg, rank = write_config(tmp_path), "model.{0}.freeze=all model.{0}.lora_rank=2"
    vit = "model.image_encoder={name: clip, architecture: deep-vit}"
    changes = [vit, *rank.format("image_encoder").split(), *rank.format("prompt_encoder").split(), "run.ema=0.5"]
    config = load_config(cfg, *changes, "run.layer_decay=0.9")
    folder = run(config, folds=[0]) / "fold_00"
    table = pd.read_csv(folder / "predictions.csv")
    images = [tmp_path / "images" / name for name in table["image"]]
    best = table[["best_quality", "best_alignment"]].to_numpy()
    scorer = ipiqa.load(folder, "cpu")
    assert np.allclose(scorer.score(images, table["prompt"].tolist()), best, atol=1e-4)
    assert not any("parametrizations" in name for name in scorer.models[0].state_dict())
    assert export_folder(folder, tmp_path / "shared") == 1
    assert np.allclose(ipiqa.load(tmp_path / "shared", "cpu").score(images, table["prompt"].tolist()), best, atol=1e-4)
    average, newest = (checkpoint.load(folder / "last.pt")[part] for part in ("model", "newest"))
    moved = {name for name, value in newest.items() if not torch.equal(value, average[name])}
    assert any(name.endswith(".up") for name in moved) and not any(name.endswith(".original") for name in moved)


def test_changes_of_low_rank_have_the_depth_of_their_matrix() -> None:
    for section in (clip("deep-vit"), {"name": "timm", "architecture": "vit_tiny_patch16_224"}):
        tower = tower_of("image_encoder", section, **LORA)
        names = [name for name, p in tower.named_parameters() if p.requires_grad and "blocks.0." in name]
        assert names and {tower.depth(name) for name in names} == {1} and tower.num_layers > 3


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (clip("deep-vit", lora_rank=2), "2 with freeze: none. Set freeze: all"),
        (clip("deep-vit", freeze="all", lora_rank=0), "0 with lora_alpha 16.0 is out of range. Give 1 to 64"),
        (clip("deep-vit", freeze="all", lora_rank=65), "65 with lora_alpha 16.0 is out of range. Give 1 to 64"),
        (clip("deep-vit", freeze="all", lora_rank=2, lora_alpha=0), "2 with lora_alpha 0.0 is out of range"),
        ({"name": "timm", "architecture": "convnext_atto", "freeze": "all", "lora_rank": 2}, "2 needs a transformer"),
        (clip("RN50-quickgelu", freeze="all", lora_rank=2), "2 needs a transformer, and this tower has no blocks"),
    ],
)
def test_a_rank_that_cannot_be_is_refused(section: dict[str, Any], words: str) -> None:
    message = refused(lambda: tower_of("image_encoder", section))
    assert message.startswith(f"model.image_encoder.lora_rank: {words}")
