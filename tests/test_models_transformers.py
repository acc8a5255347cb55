"""Every tower says how deep its parameters lie."""

from __future__ import annotations

import json
from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from ipiqa import registry
from ipiqa.engine.optim import parameter_groups
from ipiqa.models.ipiqa import is_head, parameter_depth
from ipiqa.models.towers import transformers

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
    folder = tmp_path_factory.mktemp("architectures")
    for name, settings in ARCHITECTURES.items():
        (folder / f"{name}.json").write_text(json.dumps(settings))
    open_clip.add_model_config(folder)


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
