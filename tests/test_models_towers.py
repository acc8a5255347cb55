"""Towers beyond CLIP's RN50, fusions and baselines: tiny architectures with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from conftest import refused
from safetensors.torch import save_file
from small_models import add_architectures
from torch import nn
from toy import write_config

from ipiqa import registry
from ipiqa.build import make_model
from ipiqa.config.loading import load_config
from ipiqa.errors import DataError
from ipiqa.models.clip_weights import OPENAI_MARKS
from ipiqa.models.ipiqa import parameter_depth
from ipiqa.models.towers import open_clip_towers
from ipiqa.models.towers.clip_image import clip_image_encoder
from ipiqa.models.towers.clip_text import clip_prompt_encoder
from ipiqa.models.towers.open_clip_towers import OpenClipImageEncoder, OpenClipPromptEncoder
from ipiqa.processors.image import CLIP_MEAN
from ipiqa.training.cross_validation import run

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
ARCHITECTURES = {
    "tiny-vit-quickgelu": {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": {**TEXT, "context_length": 77},
    },
    "tiny-vit": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
        "text_cfg": TEXT,
    },
    "tiny-rn-quickgelu": {
        "embed_dim": 8,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {**TEXT, "context_length": 77},
    },
    "tiny-convnext": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "timm_model_name": "convnext_atto", "timm_model_pretrained": False},
        "text_cfg": TEXT,
    },
    # SigLIP's form: a tower of timm with attention pooling, a text tower without causal mask read at its last token.
    "tiny-sigmoid": {
        "embed_dim": 192,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
}


@pytest.fixture(autouse=True, scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> None:
    add_architectures(tmp_path_factory.mktemp("architectures"), ARCHITECTURES)


def build(section: dict[str, Any], image_size: int = 32) -> nn.Module:
    torch.manual_seed(0)
    context = {"image_size": image_size, "num_targets": 2}
    return registry.build("model", registry.resolve("model", section, "model"), "model", context)


def whole(architecture: str, **changes: Any) -> dict[str, Any]:
    text = {"name": "clip", "architecture": architecture, "freeze": "all", "qa_token": "none"}
    section = {
        "name": "ipiqa",
        "image_encoder": {"name": "clip", "architecture": architecture},
        "prompt_encoder": text,
        "fusion": "cross_attention",
        "head": {"name": "mlp", "dropout": 0.0},
    }
    return section | changes


@pytest.mark.parametrize(
    ("architecture", "image_size", "side", "channels"),
    [
        ("tiny-vit-quickgelu", 32, 4, 64),
        ("tiny-vit", 64, 8, 64),
        ("tiny-rn-quickgelu", 64, 2, 256),
        ("tiny-sigmoid", 32, 2, 192),
        ("tiny-sigmoid", 224, 14, 192),
    ],
)
def test_every_kind_of_tower_gives_a_map_of_tokens_and_trains(
    architecture: str, image_size: int, side: int, channels: int
) -> None:
    model = build(whole(architecture), image_size)
    images = torch.randn(2, 3, image_size, image_size)
    token_map, pooled = model.image_encoder(images)
    assert token_map.shape == (2, channels, side, side) and pooled.shape == (
        2,
        ARCHITECTURES[architecture]["embed_dim"],
    )
    tokens = model.prompt_encoder.tokenize(["a red circle", "two trees"])
    assert tokens.shape[1] == ARCHITECTURES[architecture]["text_cfg"]["context_length"]
    assert torch.equal(model(images, ["a red circle", "two trees"]), model(images, tokens))
    model(images, tokens).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == [] and not any(p.requires_grad for p in model.prompt_encoder.parameters())


def test_a_token_of_the_map_stands_where_its_patch_was() -> None:
    tower = OpenClipImageEncoder(32, "tiny-vit", None, "none").eval()
    tower.visual.transformer = nn.Identity()  # or every token would see every patch
    images = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        plain = tower(images)[0]
        images[0, :, 8:16, 24:32] = 5.0
        changed = (tower(images)[0] - plain).abs().sum(dim=1)[0] > 1e-4
    assert changed.nonzero().tolist() == [[1, 3]]


def test_features_are_those_of_open_clip() -> None:
    torch.manual_seed(0)
    theirs = open_clip.create_model("tiny-vit").eval()
    tensors = dict(theirs.state_dict())
    images, texts = torch.randn(2, 3, 32, 32), ["a red circle", "two trees"]
    image_encoder = OpenClipImageEncoder(32, "tiny-vit", tensors, "x").eval()
    prompt_encoder = OpenClipPromptEncoder("tiny-vit", tensors, "x", freeze=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(image_encoder(images)[1], theirs.encode_image(images))
        tokens = prompt_encoder.tokenize(texts)
        torch.testing.assert_close(prompt_encoder(texts), theirs.encode_text(tokens))


def test_weights_of_a_file_fit_another_image_size_and_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "vit.safetensors"
    save_file({n: t.contiguous() for n, t in open_clip.create_model("tiny-vit-quickgelu").state_dict().items()}, path)
    section = whole("tiny-vit-quickgelu")
    section["image_encoder"] |= {"weights": str(path)}
    section["prompt_encoder"] |= {"weights": str(path)}
    small, large = build(section, 32), build(section, 64)
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    assert torch.equal(small.image_encoder.state_dict()[name], large.image_encoder.state_dict()[name])
    assert large.image_encoder.grid == (8, 8)
    save_file(small.image_encoder.clip_tensors(), tmp_path / "again.safetensors")
    section["image_encoder"] |= {"weights": str(tmp_path / "again.safetensors")}
    again = build(section, 32).image_encoder.state_dict()
    assert all(torch.equal(again[n], value) for n, value in small.image_encoder.state_dict().items())


def test_image_size_is_a_multiple_of_what_the_tower_says() -> None:
    assert build(whole("tiny-vit"), 40).image_encoder.grid == (5, 5)
    for architecture, size, stride in [("tiny-vit", 36, 8), ("tiny-rn-quickgelu", 40, 32), ("tiny-sigmoid", 40, 16)]:
        message = refused(lambda a=architecture, s=size: build(whole(a), s))
        assert message.startswith(f"image_size: {size} is not a multiple of {stride} pixels")


def test_a_tower_is_fed_the_mean_and_std_it_was_trained_with(tmp_path: Path) -> None:
    cfg = write_config(tmp_path)
    siglip = ["model.image_encoder={name: clip, architecture: ViT-B-16-SigLIP}"]
    assert load_config(cfg).processor["mean"] == CLIP_MEAN
    assert load_config(cfg, *siglip).processor["std"] == [0.5, 0.5, 0.5]
    resnet = ["model.image_encoder={name: torchvision_resnet, weights: IMAGENET1K_V2}"]
    assert load_config(cfg, *resnet).processor["mean"] == [0.485, 0.456, 0.406]
    message = refused(lambda: load_config(cfg, *resnet, f"processor.mean={CLIP_MEAN}"))
    assert message.startswith("processor.mean: [0.48145466") and message.endswith("processor.mean=null to take that.")
    assert load_config(cfg, "processor.mean=[0.4, 0.4, 0.4]").processor["mean"] == [0.4, 0.4, 0.4]  # nothing is trained


@pytest.mark.parametrize(
    ("name", "weights", "near"),
    [("ViT-B-32", "openai", "ViT-B-32-quickgelu"), ("tiny-vit", "openai.safetensors", "tiny-vit-quickgelu")],
)
def test_weights_made_with_another_activation_are_refused(name: str, weights: str, near: str, tmp_path: Path) -> None:
    if weights != "openai":
        tensors = dict(open_clip.create_model("tiny-vit-quickgelu").state_dict())
        weights = str(tmp_path / weights)
        save_file(tensors | {mark: torch.ones(1) for mark in OPENAI_MARKS}, weights)
    for part, build_part in (("image", clip_image_encoder), ("prompt", clip_prompt_encoder)):
        context = (32,) if part == "image" else ()
        message = refused(lambda b=build_part, c=context: b(*c, architecture=name, weights=weights))
        assert f"'{name}' computes GELU" in message and message.endswith(f"Take architecture={near}.")


TOWERS: list[dict[str, Any]] = [
    {"name": "clip", "architecture": "tiny-rn-quickgelu"},
    {"name": "clip", "architecture": "tiny-vit-quickgelu"},
    {"name": "clip", "architecture": "tiny-sigmoid"},
    {"name": "torchvision_resnet", "depth": 18},
]


@pytest.mark.parametrize("tower", TOWERS, ids=lambda tower: str(tower.get("architecture", "torchvision")))
def test_every_tower_decays_by_layer_and_repeats_its_forward_pass(tower: dict[str, Any]) -> None:
    def gradients(repeat: bool) -> dict[str, torch.Tensor]:
        model = build({"name": "image_only", "image_encoder": tower, "head": {"name": "linear", "dropout": 0.0}}, 64)
        model.image_encoder.grad_checkpointing = repeat
        model(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2)), [""] * 4).square().sum().backward()
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None} | buffers

    plain, repeated = gradients(False), gradients(True)
    for name, value in plain.items():
        torch.testing.assert_close(repeated[name], value, msg=name)
    model = build({"name": "image_only", "image_encoder": tower, "head": "linear"}, 64)
    depth, encoder = parameter_depth(model), model.image_encoder
    depths = {depth(name) for name, _ in model.named_parameters()}
    assert depths == set(range(encoder.num_layers + 1)) and encoder.num_layers >= 2
    assert depth("head.out_proj.weight") == encoder.num_layers


def test_a_forward_pass_is_repeated_where_it_is_asked_for() -> None:
    for tower in TOWERS:
        model = build({"name": "image_only", "image_encoder": tower, "head": "linear"}, 64)
        model.image_encoder.grad_checkpointing = True
        calls: list[int] = []
        ends = ("layer4.0.conv1", "blocks.0.norm1", "resblocks.0.ln_1")
        block = next(module for name, module in model.named_modules() if name.endswith(ends))
        block.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(torch.randn(2, 3, 64, 64), ["", ""]).sum().backward()
        assert len(calls) == 2, tower


def test_settings_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self, num_targets: int) -> None:
            super().__init__()

    registry.register("model", "without_tower")(Plain)
    try:
        config = load_config(write_config(tmp_path), "model={name: without_tower}", "run.grad_checkpointing=true")
        assert refused(lambda: make_model(config, 2)).startswith("run.grad_checkpointing: this image encoder")
    finally:
        del registry._PARTS["model"]["without_tower"]


def test_what_does_not_go_together_is_refused() -> None:
    with_qa = whole("tiny-vit", prompt_encoder={"name": "clip", "architecture": "tiny-vit"})
    assert "Set freeze: all (or none) and qa_token: none" in refused(lambda: build(with_qa))
    message = refused(lambda: build(whole("tiny-convnext")))  # its tokens are no patches
    assert message.startswith("model.image_encoder.architecture: 'tiny-convnext' cannot be used at 32 px (")


def test_a_tokenizer_that_cannot_be_had_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(architecture: str) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(open_clip, "get_tokenizer", fail)
    open_clip_towers.tokenizer_of.cache_clear()
    encoder = OpenClipPromptEncoder("tiny-sigmoid", None, "none", freeze=True)
    with pytest.raises(DataError, match=r"the tokenizer of 'tiny-sigmoid' could not be loaded \(no network at all\)"):
        encoder.tokenize(["a"])
    open_clip_towers.tokenizer_of.cache_clear()


# --- fusions and baselines -------------------------------------------------------------------------------------------


def test_the_cosine_is_the_last_feature_of_its_fusion() -> None:
    model = build(whole("tiny-rn-quickgelu", fusion="cross_attention_cosine")).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        token_map, image_feature = model.image_encoder(images)
        prompt_feature = model.prompt_encoder(["a", "b"])
        joint = model.fusion(token_map, image_feature, prompt_feature)
    assert joint.shape == (2, 17)
    expected = 10 * nn.functional.cosine_similarity(image_feature, prompt_feature)
    torch.testing.assert_close(joint[:, -1], expected)
    torch.testing.assert_close(joint[:, :8], image_feature)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        again = model.fusion(*(feature.bfloat16() for feature in (token_map, image_feature, prompt_feature)))
    rounded = (feature.bfloat16().float() for feature in (image_feature, prompt_feature))
    torch.testing.assert_close(again[:, -1], 10 * nn.functional.cosine_similarity(*rounded))


def test_image_only_fusion_does_not_read_the_prompt() -> None:
    section = whole("tiny-rn-quickgelu", fusion="image_only")
    section["prompt_encoder"] = {"name": "clip", "architecture": "tiny-rn-quickgelu"}
    model = build(section).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images, ["a", "b"]), model(images, ["c", "d"]))
    assert not any(p.requires_grad for p in model.prompt_encoder.parameters())  # or several processes would wait


def baseline(name: str, **settings: Any) -> dict[str, Any]:
    tower = {"name": "clip", "architecture": "tiny-rn-quickgelu"}
    section = {"name": name, "image_encoder": tower, "prompt_encoder": whole("tiny-rn-quickgelu")["prompt_encoder"]}
    return section | settings


def test_clip_cosine_is_the_cosine() -> None:
    model = build(baseline("clip_cosine")).eval()
    images = torch.randn(3, 3, 32, 32)
    scores = model(images, ["a", "b", "b"])
    features = model.image_encoder(images)[1], model.prompt_encoder(["a", "b", "b"])
    torch.testing.assert_close(scores, nn.functional.cosine_similarity(*features)[:, None].expand(3, 2))


def test_clip_antonyms_prefers_the_image_that_is_nearer_to_good() -> None:
    model = build(baseline("clip_antonyms")).eval()
    images = torch.randn(8, 3, 32, 32)
    scores = model(images, ["any"] * 8)
    assert ((scores > 0) & (scores < 1)).all()
    unit = [nn.functional.normalize(t, dim=1) for t in (model.image_encoder(images)[1], model.prompt_encoder(
        ["Good photo.", "Bad photo."]))]  # fmt: skip
    ahead = (unit[0] @ unit[1].T) @ torch.tensor([1.0, -1.0])
    assert torch.equal(scores[:, 0].argsort(), ahead.argsort())
    swapped = build(baseline("clip_antonyms", good="Bad photo.", bad="Good photo.")).eval()
    swapped.load_state_dict(model.state_dict())
    torch.testing.assert_close(swapped(images, ["any"] * 8), 1 - scores, atol=1e-5, rtol=0)
    assert "are no antonyms" in refused(lambda: build(baseline("clip_antonyms", good="x", bad="x")))


@pytest.mark.parametrize("name", ["clip_cosine", "clip_antonyms", "linear_probe"])
def test_a_baseline_in_bf16_computes_its_score_in_fp32(name: str) -> None:
    section = baseline(name)
    if name == "linear_probe":
        del section["prompt_encoder"]
    model, images = build(section).eval(), torch.randn(2, 3, 32, 32)
    image_feature, pair = torch.randn(2000, 8), torch.randn(2, 8)
    model.image_encoder.forward = lambda images: (images, image_feature.bfloat16())
    if name != "linear_probe":
        rows = pair if name == "clip_antonyms" else pair[:1].expand(2000, -1)
        model.prompt_encoder.forward = lambda prompts: rows.bfloat16()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = model(images, ["a"] * 2000)
        torch.testing.assert_close(scores, model(images, ["a"] * 2000))


def test_only_the_line_or_the_probe_trains() -> None:
    tower = {"name": "clip", "architecture": "tiny-rn-quickgelu"}
    sections = [baseline("clip_cosine"), baseline("clip_antonyms"), {"name": "linear_probe", "image_encoder": tower}]
    for section, expected in zip(sections, ["slope", "slope", "head.weight"], strict=True):
        model = build(section).train()
        before = {n: t.clone() for n, t in model.state_dict().items()}
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        (model(torch.randn(4, 3, 32, 32), ["a"] * 4) - 1).square().sum().backward()
        optimizer.step()
        moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
        assert expected in moved and not any(n.startswith(("image_encoder", "prompt_encoder")) for n in moved)


def test_a_zero_shot_model_is_evaluated_without_training_and_others_are_not(tmp_path: Path) -> None:
    cfg = write_config(tmp_path)
    zero_shot = ["model.name=clip_cosine", "run.evaluate=true", f"run.output_dir={tmp_path}/zero", "run.num_folds=1"]
    scores = json.loads((run(load_config(cfg, *zero_shot)) / "fold_00/scores.json").read_text())
    assert scores["epochs"] is None and "srcc" in scores["best"]["metrics"]["alignment"]
    assert "nothing to evaluate" in refused(lambda: load_config(cfg, "run.evaluate=true"))


def test_torchvision_resnet(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(1)
    theirs = resnet18().eval()
    path = tmp_path / "resnet18.pt"
    torch.save(theirs.state_dict(), path)
    tower = {"name": "torchvision_resnet", "depth": 18, "weights": str(path)}
    model = build({"name": "image_only", "image_encoder": tower, "head": "linear"}, 64).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        token_map, pooled = model.image_encoder(images)
        theirs.fc = nn.Identity()
        torch.testing.assert_close(pooled, theirs(images), rtol=1e-4, atol=1e-5)
    assert token_map.shape == (2, 512, 2, 2) and model(images, ["", ""]).shape == (2, 2)
    for weights, message in [
        ("nothing.pt", "does not exist. Give a file, or a tag"),
        (str(path), "have another shape"),
    ]:
        wrong = tower | {"weights": weights, "depth": 34 if weights == "nothing.pt" else 50}
        with pytest.raises(DataError, match="|".join([message, "tensors are missing"])):
            build({"name": "image_only", "image_encoder": wrong, "head": "linear"}, 64)
    tensors = {name: value.contiguous() for name, value in model.image_encoder.clip_tensors().items()}
    save_file(tensors, tmp_path / "tower.safetensors")  # as a pre-training writes it
    again = build({"name": "image_only", "image_encoder": tower | {"weights": str(tmp_path / "tower.safetensors")},
                   "head": "linear"}, 64).eval()  # fmt: skip
    assert torch.equal(again.image_encoder(images)[1], pooled)
