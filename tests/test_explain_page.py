"""What ipiqa explain shows: the picture, the page and the command."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import NASTY, PROMPT, TARGETS, build, make_scorer, noise

from ipiqa import cli
from ipiqa.explain import Explanation, HeatMap, Words, explain
from ipiqa.explain.picture import caption, draw, explanation_page, fitted, overlay, strengths, with_std
from ipiqa.models.bundle import write_bundle
from ipiqa.scoring.images import picture
from ipiqa.scoring.model_scorer import ModelScorer


@pytest.fixture(scope="module")
def scorer() -> ModelScorer:
    return make_scorer()


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return noise()


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
    assert (
        title == "image attention"
        and "row 1 of 1, column 3 of 3, 2.1 times an even share; 12.5 % of the attention" in sentence
    )


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
