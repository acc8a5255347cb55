"""ipiqa explain: attention and gradients as maps, words left out, the picture, the page and the command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ipiqa import cli, registry
from ipiqa.datasets.table import Target
from ipiqa.errors import DataError
from ipiqa.explain import Explanation, HeatMap, Words, explain
from ipiqa.explain.page import explanation_page
from ipiqa.explain.picture import caption, draw, fitted, notes, overlay, strengths, with_std
from ipiqa.models.bundle import ModelSpec, Training, own_section, write_bundle
from ipiqa.models.pooling import AttentionPool
from ipiqa.scoring.images import OneImage, picture
from ipiqa.scoring.model_scorer import ModelScorer
from ipiqa.scoring.scorer import Scorer

RESNET = {"name": "clip_resnet", "layers": [1, 1, 1, 1], "width": 4, "embed_dim": 8}
TEXT = {"name": "clip_text", "width": 8, "layers": 1, "heads": 1, "embed_dim": 8}
PARTS = {"image_encoder": RESNET, "prompt_encoder": TEXT, "fusion": "cross_attention", "head": "mlp"}
TARGETS = (Target("quality", 0.0, 5.0, "how good"), Target("alignment"))
PROMPT = "one red circle above two blue squares"
NASTY = [
    "a \"quoted\" <b>bold</b> & 'odd' <script>alert(1)</script> {{ prompt }}",
    "ein grüner Kreis 🐱 猫が一匹 \x1b[31m red",
    " ".join(f"word{i}" for i in range(80)),
    "x" * 3000 + " cat",
]


def build(name: str = "ipiqa", size: int = 64, seed: int = 0, **parts: Any) -> tuple[nn.Module, ModelSpec]:
    """Returns a small model with random values, and what it is."""
    torch.manual_seed(seed)
    taken = registry.keys_of("model", name)
    section = {"name": name} | {key: part for key, part in (PARTS | parts).items() if key in taken}
    section = registry.resolve("model", section, "model")
    model = registry.build("model", section, "model", {"image_size": size, "num_targets": 2}).eval()
    for parameter_name, parameter in model.named_parameters():  # as of a trained model, whose pools are not even
        if ".tower." not in parameter_name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    processor = registry.resolve("processor", "squash", "processor")
    return model, ModelSpec(model=own_section(model, section), image_size=size, processor=processor, targets=TARGETS)


def make_scorer(name: str = "ipiqa", folds: int = 2, **parts: Any) -> ModelScorer:
    models, specs = zip(*(build(name, seed=seed, **parts) for seed in range(folds)), strict=True)
    return ModelScorer(models, specs, device="cpu")


@pytest.fixture(scope="module")
def scorer() -> ModelScorer:
    return make_scorer()


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((60, 90))


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


# --------------------------------------------------------------------------------------------------- picture and page


def some(prompt: str = PROMPT, folds: int = 2) -> Explanation:
    """Returns an explanation whose numbers are known."""
    words = prompt.split()
    differences = np.zeros((folds, len(words), 2), np.float32)
    differences[:, 0, 0], differences[:, 1, 0], differences[:, 0, 1] = 0.04, -0.02, -0.005
    weights = np.array([[0.7, 0.1], [0.1, 0.1]], np.float32)
    maps = (HeatMap("prompt attention", "", weights, 0.25), HeatMap("gradient", "quality", weights.T, 0.0))
    scores = np.array([[3.0, 4.0], [3.5, 4.0]], np.float32)[:folds]
    return Explanation(prompt, TARGETS, scores, maps, Words(tuple(words), differences, len(words)))


def test_colours_stand_for_differences() -> None:
    found = strengths(some())
    np.testing.assert_allclose(found[:2], [[0.4, -1], [-0.2, 0]], atol=1e-6)  # 0.04 is little on 0 to 5; no scale: full
    assert np.abs(strengths(some("a b"))).max() == 1 and not np.isnan(strengths(some("a b", folds=1))).any()


def test_numbers_are_shown_as_they_are() -> None:
    assert (
        with_std(np.array([1.0, 2.0])) == "1.50 ± 0.71" and with_std(np.array([0.004, -0.012]), "+") == "+0.00 ± 0.01"
    )
    assert with_std(np.array([-0.25]), "+") == "-0.25"
    title, sentence = caption(HeatMap("image attention", "", np.array([[0.1, 0.2, 0.7]], np.float32), 0.125))
    assert title == "image attention" and "row 1 of 1, column 3 of 3, 70%; 12% of the attention" in sentence


def test_a_map_lies_over_the_upright_picture(tmp_path: Path, scorer: ModelScorer) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    upright = Image.fromarray(pixels).resize((120, 80), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    shown = picture(tmp_path / "turned.png")
    assert shown.size == (120, 80) and np.array_equal(np.asarray(shown), np.asarray(upright))
    one, other = explain(scorer, tmp_path / "turned.png", PROMPT), explain(scorer, upright, PROMPT)
    for a, b in zip(one.maps, other.maps, strict=True):
        np.testing.assert_array_equal(a.weights, b.weights)
    assert np.asarray(picture(torch.full((3, 8, 8), 0.999))).min() == 255
    tensor = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    for form in (tensor, tensor / 255):
        assert np.array_equal(np.asarray(picture(form)), np.asarray(upright))


def test_the_strongest_cell_is_the_reddest() -> None:
    white = Image.new("RGB", (90, 60), "white")
    weights = np.array([[0, 0, 0], [0, 0, 1]], np.float32)
    found = np.asarray(overlay(white, weights)).astype(int)
    assert (found[45, 75] == (176, 22, 50)).all() and (found[:30] == 255).all() and (found[:, :60] == 255).all()
    even = np.asarray(overlay(white, np.full((2, 3), 1 / 6, np.float32)))
    assert (even == (255, 176, 96)).all()  # half way: no cell has more than the others


@pytest.mark.parametrize("size", [(8, 8), (8000, 8), (8, 8000), (300, 200)])
def test_the_picture_holds_images_of_any_shape(size: tuple[int, int]) -> None:
    assert max(fitted(Image.new("RGB", size), 336).size) == 336
    drawn = draw(some(), Image.new("RGB", size, "navy"))
    assert drawn.width == 1104 and 300 < drawn.height < 1000
    assert (np.asarray(drawn)[-20:] == 255).all() and (np.asarray(drawn)[-60:] != 255).any()  # cropped below the text


def test_a_long_prompt_that_is_not_read_stays_short(image: Image.Image) -> None:
    found = explain(make_scorer("image_only", folds=1), image, "word " * 3000)
    assert draw(found, image).height < 1500


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("prompt", [PROMPT, *NASTY])
def test_the_page_stands_alone_and_says_all_in_words(prompt: str, image: Image.Image, scorer: ModelScorer) -> None:
    found = explain(scorer, image, prompt)
    html = explanation_page(found, image)
    page = Tags()
    page.feed(html)
    plain = Tags()
    plain.feed(explanation_page(some(), image))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} and "<script" not in html
    assert not {"script", "link", "iframe", "object", "base", "a"} & {tag for tag, _ in plain.tags}
    assert not re.search(r"url\(|@import|https?:", html.replace(prompt, ""))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 and all((a["src"] or "").startswith("data:image/jpeg;base64,") and a["alt"] for a in images)
    assert all(set(a) <= {"src", "alt"} for a in images)
    assert prompt in page.text
    for i, word in enumerate(found.words.words[: found.words.num_read]):
        assert f"{word}{with_std(found.words.differences[:, i, 1], '+')}" in page.text
    draw(found, image)


# -------------------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, image: Image.Image) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    write_bundle(folder / "model", *build())
    write_bundle(folder / "reads_none", *build("image_only"))
    image.save(folder / "cat.png")
    return folder


def test_the_command_writes_what_the_function_returns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ipiqa

    monkeypatch.chdir(folder)
    assert cli.main(["explain", "model", "cat.png", PROMPT, "--out", "new/why.png"]) == 0
    shown = capsys.readouterr().out
    found = explain(ipiqa.load("model"), "cat.png", PROMPT)
    for word, differences in zip(found.words.words, found.words.differences[0], strict=True):
        cells = [with_std(differences[i : i + 1], "+") for i in range(2)]
        assert re.search(rf"^  {word} +{re.escape(cells[0])} +{re.escape(cells[1])}$", shown, re.MULTILINE)
    with Image.open("new/why.png") as drawn, Image.open("cat.png") as image:
        assert drawn.size == draw(found, image).size
        assert Path("new/why.html").read_text(encoding="utf-8") == explanation_page(found, image)
    assert shown.endswith("Picture: new/why.png\nPage: new/why.html\n")
    assert cli.main(["explain", "reads_none", "cat.png"]) == 0
    assert "No word was left out" in capsys.readouterr().out and Path("why.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "cat.png"], "prompts: missing"),
        (["model", "cat.png", " "], "is no prompt"),
        (["model", "cat.png", "a b", "--out", "why.jpg"], "--out: 'why.jpg' is the image itself or no .png"),
        (["model", "cat.png", "a b", "--out", "./cat.png"], "--out: 'cat.png' is the image itself or no .png"),
        (["model", "dog.png", "a b"], "'dog.png' cannot be read"),
        (["nothing", "cat.png", "a b"], "nothing"),
        (["model", "cat.png", "a b", "--out", "cat.png/why.png"], "cat.png"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    before = (folder / "cat.png").read_bytes()
    assert cli.main(["explain", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert (folder / "cat.png").read_bytes() == before
