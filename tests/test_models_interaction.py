"""Fusions that compare image and prompt: what they compute, what trains, in fp32 whatever autocast says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import RESNET, TEXT, build
from torch.nn import functional

from ipiqa.errors import ConfigError

PROMPTS = ["a red circle", "two blue squares above a tree"]


def features(model: Any, images: torch.Tensor, prompts: list[str]) -> tuple[torch.Tensor, ...]:
    token_map, image = model.image_encoder(images)
    prompt = model.prompt_encoder(prompts)
    return model.fusion(token_map, image, prompt), image, prompt


def test_products_stand_behind_the_papers_features_and_sum_to_the_cosine() -> None:
    model, _ = build(fusion="product")
    model.fusion.image_proj.weight.data = model.fusion.prompt_proj.weight.data = torch.eye(8)
    images = torch.randn(2, 3, 64, 64)
    joint, image, prompt = features(model, images, PROMPTS)
    assert model.fusion.num_features == joint.shape[1] == 2 * 8 + 8
    assert torch.equal(joint[:, :8], image)
    expected = 8 * functional.cosine_similarity(image, prompt, dim=1)
    torch.testing.assert_close(joint[:, 16:].sum(dim=1), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert features(model, images, PROMPTS)[0].dtype == torch.float32


def test_products_take_towers_of_any_length_and_train() -> None:
    model, spec = build(prompt_encoder={**TEXT, "embed_dim": 6}, image_encoder=RESNET, fusion="product")
    assert model.fusion.num_features == 2 * 8 + 6
    model(torch.randn(2, 3, 64, 64), PROMPTS).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.fusion.image_proj.parameters())
    assert spec.build().state_dict().keys() == model.state_dict().keys()


def test_a_product_without_numbers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.fusion\.size: 0 is out of range\. Give 1 to 8192, or null\."):
        build(fusion={"name": "product", "size": 0})
