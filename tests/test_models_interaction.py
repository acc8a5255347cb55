"""Fusions that compare image and prompt: what they compute, what trains, in fp32 whatever autocast says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_models import NASTY, PARTS, PROMPT, RESNET, TEXT, build, make_scorer, noise
from torch.nn import functional

from ipiqa import registry
from ipiqa.engine import predict
from ipiqa.errors import ConfigError
from ipiqa.explain.explanation import heat_maps
from ipiqa.prompts import tokenize
from ipiqa.scoring.model_scorer import ModelScorer

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


def test_each_word_counts_as_much_as_its_nearest_patch() -> None:
    model, _ = build(size=96, fusion={"name": "token_similarity", "poolings": 3})
    joint, _, prompt = features(model, images := torch.randn(2, 3, 96, 96), PROMPTS)
    token_map, fusion = model.image_encoder(images)[0], model.fusion
    assert fusion.num_features == joint.shape[1] == 2 * 8 + 3
    for row, number in enumerate((3, 6)):  # of words
        words = prompt[row, 1 : 1 + number]
        assert not prompt[row, 1 + number :].any()
        nearest = []
        for word in words:
            cosines = [
                functional.cosine_similarity(fusion.word_proj(word), fusion.patch_proj(token_map[row, :, y, x]), dim=0)
                for y in range(3) for x in range(3)
            ]  # fmt: skip
            nearest.append(torch.stack(cosines).max())
        weights = torch.stack([fusion.word_weight(word) for word in words]).softmax(dim=0)  # (W, 3)
        torch.testing.assert_close(joint[row, 16:], 10 * (weights * torch.stack(nearest)[:, None]).sum(dim=0))
    model.zero_grad()
    joint.sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in fusion.named_parameters() if n.startswith(("word", "patch")))


def test_patches_start_where_clips_own_pool_puts_them() -> None:
    torch.manual_seed(0)
    section = registry.resolve("model", {"name": "ipiqa"} | PARTS | {"fusion": "token_similarity"}, "model")
    model: Any = registry.build("model", section, "model", {"image_size": 64, "num_targets": 1})
    pool, tokens = model.image_encoder.pool, torch.randn(5, 128)
    torch.testing.assert_close(model.fusion.patch_proj(tokens), pool.c_proj(pool.v_proj(tokens)))


@pytest.mark.parametrize("qa_token", ["none", "suffix"])
def test_words_are_the_same_in_any_company_and_in_a_scorer(qa_token: str) -> None:
    parts = {"prompt_encoder": {**TEXT, "qa_token": qa_token}, "fusion": "token_similarity"}
    model, spec = build(**parts)
    images, prompts = torch.rand(3, 3, 64, 64), ["", PROMPT, NASTY[2]]
    scores = model(images, prompts)
    assert scores.isfinite().all()
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(model(images[row : row + 1], [prompt])[0], scores[row], rtol=1e-4, atol=1e-5)
    inputs = spec.build_processor().normalise((images * 255).to(torch.uint8))
    rebuilt = spec.build().eval()
    rebuilt.load_state_dict(model.state_dict())
    expected = model(inputs[1:], prompts[1:]).detach().numpy()
    found = ModelScorer([rebuilt], [spec], device="cpu").score((images * 255).to(torch.uint8)[1:], prompts[1:])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_prompt_still_asks_the_map_in_an_explanation() -> None:
    scorer = make_scorer(fusion="token_similarity")
    kinds = [heat_map.kind for heat_map in heat_maps(scorer, scorer.prepare(noise()), PROMPT)]
    assert kinds == ["prompt attention", "image attention"]


def test_a_prompt_cache_counts_the_words_it_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(fusion="token_similarity")[0].prompt_encoder
    monkeypatch.setattr(predict, "MOST_KEPT", 2 * 77)
    cache = predict.PromptCache(encoder)
    for prompts in (["a"], ["b"], ["c"]):
        torch.testing.assert_close(cache(tokenize(prompts)), encoder(prompts))
    assert len(cache._features) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fusion": {"name": "token_similarity", "poolings": 0}}, r"model\.fusion\.poolings: 0 is out of range"),
        (
            {
                "fusion": "token_similarity",
                "prompt_encoder": {"name": "clip", "architecture": "ViT-B-32", "freeze": "all"},
            },
            r"model\.fusion\.name: 'token_similarity' needs the features of words",
        ),
    ],
)
def test_similarities_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(**settings)
