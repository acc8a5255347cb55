"""Attention and gradients as maps, and the numbers of words that are left out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import NASTY, PROMPT, TARGETS, TEXT, build, make_scorer, noise
from torch import nn

from ipiqa.errors import DataError
from ipiqa.explain import explain
from ipiqa.explain.picture import notes, overlay
from ipiqa.models.bundle import Training
from ipiqa.models.pooling import AttentionPool
from ipiqa.scoring.images import OneImage
from ipiqa.scoring.model_scorer import ModelScorer
from ipiqa.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def scorer() -> ModelScorer:
    return make_scorer()


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return noise()


# --------------------------------------------------------------------------------------------------------------- maps


def test_the_attention_of_a_pool_is_that_of_plain_multi_head_attention() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(channels=32, query_dim=12, embed_dim=8, heads=4, num_positions=7)
    token_map, query = torch.randn(3, 32, 2, 3), torch.randn(3, 12)
    tokens = token_map.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + pool.positional_embedding
    q = pool.q_proj(query).view(3, 4, 1, 8)
    k = pool.k_proj(tokens).view(3, 7, 4, 8).permute(0, 2, 3, 1)
    expected = (q @ k / 8**0.5).softmax(dim=-1)[:, :, 0]
    found = pool.attention(token_map, query)
    torch.testing.assert_close(found, expected)
    mixed = torch.einsum("bhn,bnc->bhc", found, tokens)
    values = torch.einsum("bhc,hdc->bhd", mixed, pool.v_proj.weight.view(4, 8, 32)).flatten(1) + pool.v_proj.bias
    torch.testing.assert_close(pool(token_map, query), pool.c_proj(values))


def test_attention_maps_are_the_mean_over_folds_and_heads(scorer: ModelScorer, image: Image.Image) -> None:
    maps = explain(scorer, image, PROMPT).maps
    assert [(m.kind, m.target, m.weights.shape) for m in maps] == [
        ("prompt attention", "", (2, 2)), ("image attention", "", (2, 2)),
    ]  # fmt: skip
    pixels = scorer.processor.normalise(scorer.prepare(image)[None])
    for heat in maps:
        weights = []
        for model in scorer.models:
            token_map, _ = model.image_encoder(pixels)
            if heat.kind == "image attention":
                weights.append(model.image_encoder.pool.attention(token_map))
            else:
                weights.append(model.fusion.pool.attention(token_map, model.encode_prompts([PROMPT])))
        mean = torch.cat(weights).mean(dim=(0, 1)).numpy()
        np.testing.assert_allclose(heat.weights.flatten(), mean[1:] / mean[1:].sum(), rtol=1e-4)
        assert heat.mean_token == pytest.approx(mean[0], rel=1e-4) and heat.weights.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "parts", "kinds"),
    [
        ("ipiqa", {"fusion": "concatenation"}, ["image attention", "gradient", "gradient"]),
        ("ipiqa", {"fusion": "image_only"}, ["image attention", "gradient", "gradient"]),
        ("ipiqa", {"fusion": "cross_attention_cosine"}, ["prompt attention", "image attention"]),
        ("image_only", {}, ["image attention", "gradient", "gradient"]),
        ("clip_cosine", {}, ["image attention", "gradient", "gradient"]),
        ("clip_antonyms", {}, ["image attention", "gradient", "gradient"]),
        ("linear_probe", {}, ["image attention", "gradient", "gradient"]),
        (
            "ipiqa",
            {"image_encoder": {"name": "torchvision_resnet", "depth": 18}, "prompt_encoder": TEXT | {"embed_dim": 512}},
            ["prompt attention", "gradient", "gradient"],
        ),
    ],
)
def test_every_model_has_maps_and_words_that_are_scores(
    name: str, parts: dict[str, Any], kinds: list[str], image: Image.Image
) -> None:
    scorer = make_scorer(name, **parts)
    found = explain(scorer, image, PROMPT)
    assert [heat.kind for heat in found.maps] == kinds
    for heat in found.maps:
        assert heat.weights.shape == (2, 2) and heat.weights.dtype == np.float32
        assert heat.weights.min() > 0 and heat.weights.sum() == pytest.approx(1, abs=1e-6)
    close = 1e-5 if "torchvision" in str(parts) else 1e-6  # many channels of random features add up
    np.testing.assert_allclose(found.scores, scorer.score_folds(image, PROMPT)[:, 0], atol=close)
    words = PROMPT.split() if scorer.needs_prompt else []
    assert found.words.words == tuple(words) and found.words.num_read == len(words)
    for i in range(len(words)):
        without = scorer.score_folds(image, " ".join(words[:i] + words[i + 1 :]))[:, 0]
        np.testing.assert_allclose(found.words.differences[:, i], found.scores - without, atol=close)
    if scorer.needs_prompt:
        assert np.abs(found.words.differences).min() > 0
    else:
        assert explain(scorer, image).words.differences.shape == (2, 0, 2)


class Corners(nn.Module):
    """Scores that rise with pixels of known places: the first with the top left, the second with two corners."""

    reads_prompt = False

    def forward(self, images: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        first, last = images[:, 0, :8, :8].sum(dim=(1, 2)), images[:, 1, 8:16, -8:].sum(dim=(1, 2))
        return torch.stack([first, 3 * first - last], dim=1)


def test_a_gradient_map_shows_the_pixels_that_count(image: Image.Image) -> None:
    spec = build("image_only")[1]
    found = explain(ModelScorer([Corners()], [spec], device="cpu"), image)
    first, second = (heat.weights for heat in found.maps)
    expected = np.zeros((8, 8), np.float32)
    expected[0, 0] = 1
    np.testing.assert_allclose(first, expected, atol=1e-6)
    expected[0, 0], expected[1, 7] = 0.75, 0.25  # row 1, last column
    np.testing.assert_allclose(second, expected, atol=1e-6)
    assert [heat.target for heat in found.maps] == ["quality", "alignment"]


def test_a_score_that_no_pixel_moves_has_an_even_map(image: Image.Image) -> None:
    class Constant(Corners):
        def forward(self, images: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
            return super().forward(images, prompts) * 0

    found = explain(ModelScorer([Constant()], [build("image_only")[1]], device="cpu"), image)
    np.testing.assert_allclose(found.maps[0].weights, 1 / 64)
    assert np.isfinite(np.asarray(overlay(image, found.maps[0].weights), float)).all()


# -------------------------------------------------------------------------------------------------------------- words


class CountsWords(Scorer):
    """Somebody's scorer: the number of words, and of letters."""

    targets, needs_prompt, image_size, trained_on = TARGETS, True, 1, Training()

    def prepare(self, image: OneImage) -> int:
        return 1

    def outputs(self, prepared: Sequence[int], prompts: Sequence[str]) -> np.ndarray:
        assert len(prepared) == len(prompts)
        return np.array([[[len(text.split()), len(text)] for text in prompts]], np.float32)


def test_words_of_any_scorer_are_counted_right() -> None:
    long = "ab c " * 100
    found = explain(CountsWords(), "any.png", long)
    assert found.words.num_read == len(found.words.words) == 200 and found.maps == ()
    assert (found.words.differences[0, :, 0] == 1).all() and found.scores.tolist() == [[200, 500]]
    words = explain(CountsWords(), "any.png", "abc de f").words
    assert words.words == ("abc", "de", "f") and words.differences[0, :, 1].tolist() == [4, 3, 2]


def test_case_and_white_space_change_nothing(scorer: ModelScorer, image: Image.Image) -> None:
    one, other = explain(scorer, image, PROMPT), explain(scorer, image, f"  {PROMPT.upper()}\n".replace(" ", "  "))
    np.testing.assert_allclose(one.words.differences, other.words.differences, atol=1e-6)
    for a, b in zip(one.maps, other.maps, strict=True):
        np.testing.assert_allclose(a.weights, b.weights, atol=1e-7)


def test_words_beyond_the_context_are_not_read(scorer: ModelScorer, image: Image.Image) -> None:
    words = [f"{'red' if i % 2 else 'blue'}" for i in range(90)]
    found = explain(scorer, image, " ".join(words))
    assert found.words.num_read == 75 and len(found.words.words) == 90
    assert (found.words.differences[:, 75:] == 0).all()
    without = [" ".join(words[:i] + words[i + 1 :]) for i in (0, 74, 75, 89)]
    direct = scorer.score_folds(image, " ".join(words)) - scorer.score_folds([image] * 4, without)
    np.testing.assert_allclose(found.words.differences[:, [0, 74, 75, 89]], direct, atol=1e-6)
    assert notes(found)[2].startswith("The last 15 words are beyond")


def test_a_single_word_is_not_left_out(scorer: ModelScorer, image: Image.Image) -> None:
    found = explain(scorer, image, "circle")
    assert found.words.words == () and notes(found)[0].startswith("No word was left out")
    np.testing.assert_allclose(found.scores, scorer.score_folds(image, "circle")[:, 0], atol=1e-6)
    with pytest.raises(DataError, match="prompts: missing"):
        explain(scorer, image)


def test_the_scorer_stays_as_it_is_and_serves_threads(image: Image.Image) -> None:
    scorer = make_scorer()
    before = scorer.score_folds(image, PROMPT)
    prompts = [PROMPT, "a b c", *NASTY, "two words"] * 2
    alone = [explain(scorer, image, prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda prompt: explain(scorer, image, prompt), prompts))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one.words.differences, other.words.differences, atol=1e-6)
        np.testing.assert_allclose(one.maps[0].weights, other.maps[0].weights, atol=1e-6)
    assert np.array_equal(scorer.score_folds(image, PROMPT), before)
    assert all(p.grad is None and not p.requires_grad for model in scorer.models for p in model.parameters())
