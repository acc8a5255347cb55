"""An explanation as one picture, and as one page that loads and runs nothing and escapes everything from the data."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from ipiqa.explain.explanation import Explanation, HeatMap
from ipiqa.report.render import render

PANEL, _SIDE = 336, 480  # longer side of an image in the picture and on the page, in pixels
_RAMP = np.array([(255, 255, 255), (255, 176, 96), (176, 22, 50)], float)  # of a map, from no weight to the most
_RAISES, _LOWERS = (28, 140, 150), (222, 110, 40)  # words
_INK, _SOFT = (32, 38, 42), (92, 102, 108)
_WIDTH, _MARGIN, _PANELS = 1104, 24, 3  # of the whole in pixels; images in a row
_LONGEST = 30  # characters of a word


def fitted(image: Image.Image, side: int) -> Image.Image:
    """Returns an image whose longer side has so many pixels."""
    width, height = (max(round(length * side / max(image.size)), 1) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def overlay(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """Returns an upright RGB image in grey under the colours of weights (h, w).

    The last colour is that of the largest weight, or of twice the mean, where no cell has so much.
    """
    level = weights / max(float(weights.max()), 2 * float(weights.mean())) * (len(_RAMP) - 1)
    colours = np.stack([np.interp(level, range(len(_RAMP)), channel) for channel in _RAMP.T], axis=-1)
    cells = Image.fromarray(colours.round().astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    grey = image.convert("L").point(lambda value: 140 + value * 115 // 255)  # light, or colours would not be seen
    return ImageChops.multiply(grey.convert("RGB"), cells)


def caption(heat: HeatMap) -> tuple[str, str]:
    """Returns the title of a map and what it shows, with its strongest cell in numbers."""
    (row, column), (height, width) = np.argwhere(heat.weights == heat.weights.max())[0] + 1, heat.weights.shape
    times = float(heat.weights.max()) * heat.weights.size
    strongest = f"Strongest: row {row} of {height}, column {column} of {width}, {times:.1f} times an even share"
    if heat.kind == "gradient":
        return f"gradient of {heat.target}", f"How much {heat.target} changes with the pixels. {strongest}."
    asks = "prompt" if heat.kind == "prompt attention" else "image itself"
    mean = f"{100 * heat.mean_token:.1f} % of the attention is on the mean of all cells"
    return heat.kind, f"Attention of the pool whose query is the {asks}. {strongest}; {mean}."


def notes(explanation: Explanation) -> list[str]:
    """Returns the sentences that a reader of an explanation needs."""
    words, num_folds = explanation.words, len(explanation.scores)
    out = ["No word was left out: the model reads no prompt, or the prompt has one word."]
    if words.num_read:
        number = "The number of a word is the score less the score without it"
        out = [f"{number}: above zero (green) it raises the score, below (orange) it lowers it."]
        out.append("A prompt without a word is another prompt: the number says how the model takes it.")
    if unread := len(words.words) - words.num_read:
        out.append(f"The last {unread} words are beyond what the model reads.")
    if num_folds > 1:
        out.append(f"Mean of {num_folds} folds ± their standard deviation.")
    if explanation.maps:
        out.append("The redder a cell, the larger its share. What it shows depends on its surroundings too.")
        out.append("A map says where a model looks, not why a score is what it is.")
    return out


def with_std(folds: np.ndarray, sign: str = "") -> str:
    """Returns the mean of numbers (F,) and, of several, their standard deviation; `sign` "+" shows that of the mean."""
    spread = f" ± {folds.std(ddof=1):.2f}" if len(folds) > 1 else ""
    return f"{round(float(folds.mean()), 2) + 0.0:{sign}.2f}{spread}"  # + 0.0: no minus before zero


def strengths(explanation: Explanation) -> np.ndarray:
    """Returns how strongly to colour each word for each target, (W, T) from -1 to 1: 1 for the largest difference.

    Where all are below a fiftieth of the target's scale, none is coloured fully.
    """
    mean = explanation.words.differences.mean(axis=0)
    least = [1e-9 if t.low is None or t.high is None else (t.high - t.low) / 50 for t in explanation.targets]
    return mean / np.maximum(np.abs(mean).max(axis=0, initial=0), least)


def _panels(explanation: Explanation, image: Image.Image, side: int) -> list[tuple[Image.Image, str, str]]:
    """Returns the image and its maps, so many pixels long, with their titles and what they show."""
    image = fitted(image, side)
    maps = [(overlay(image, heat.weights), *caption(heat)) for heat in explanation.maps]
    return [(image, "image", "as it was given"), *maps]


def _sections(explanation: Explanation) -> list[tuple[str, str, list[tuple[str, str, float]]]]:
    """Returns for each target its score and scale, its meaning, and the words read with their numbers and strengths."""
    words, out = explanation.words, []
    for i, (target, strength) in enumerate(zip(explanation.targets, strengths(explanation).T, strict=True)):
        has_scale = target.low is not None and target.high is not None
        scale = f" on a scale of {target.low:g} to {target.high:g}" if has_scale else ""
        numbers = [with_std(folds, "+") for folds in words.differences[:, : words.num_read, i].T]
        chips = list(zip(words.words, numbers, strength.tolist(), strict=False))  # the words that are read
        out.append((f"{target.name} {with_std(explanation.scores[:, i])}{scale}", target.meaning, chips))
    return out


def explanation_page(explanation: Explanation, image: Image.Image) -> str:
    """Returns the page of an explanation of an upright RGB image, as HTML text."""
    template, images = Path(__file__).parent / "templates" / "explain.html.j2", []
    for shown, title, sentence in _panels(explanation, image, _SIDE):
        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=90)
        images.append((title, sentence, f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"))
    about = {"prompt": explanation.prompt, "notes": notes(explanation)}
    return render(template, images=images, sections=_sections(explanation), **about)


def draw(explanation: Explanation, image: Image.Image) -> Image.Image:
    """Returns an explanation of an upright RGB image as a picture, as tall as it needs to be."""
    words, panels = explanation.words, _panels(explanation, image, PANEL)
    prompt = explanation.prompt.split()[: words.num_read or 80]
    most = 1000 + 600 * len(panels) + 40 * len(prompt) + len(explanation.targets) * (100 + 60 * words.num_read)
    paper = Image.new("RGB", (_WIDTH, most), "white")
    canvas = ImageDraw.Draw(paper)
    y = _write(canvas, (_MARGIN, _MARGIN), prompt, 24) + 10
    for start in range(0, len(panels), _PANELS):
        ends = []
        for i, (shown, title, sentence) in enumerate(panels[start : start + _PANELS]):
            x = _MARGIN + i * (PANEL + _MARGIN)
            paper.paste(shown, (x, round(y)))
            below = _write(canvas, (x, y + shown.height + 6), title.split(), 18)
            ends.append(_write(canvas, (x, below), sentence.split(), 15, _SOFT, right=x + PANEL))
        y = max(ends) + 6
    for score, _, chips in _sections(explanation):
        y = _write(canvas, (_MARGIN, y + 14), score.split(), 22) + 6
        y = _write(canvas, (_MARGIN, y), [word for word, *_ in chips], 18, chips=chips)
    y = _write(canvas, (_MARGIN, y + 14), " ".join(notes(explanation)).split(), 15, _SOFT)
    return paper.crop((0, 0, _WIDTH, round(y) + _MARGIN))


def _write(
    canvas: ImageDraw.ImageDraw, place: tuple[float, float], words: Sequence[str], size: int,
    colour: tuple[int, ...] = _INK, *, right: int = _WIDTH - _MARGIN, chips: Sequence[tuple[str, str, float]] = (),
) -> float:  # fmt: skip
    """Puts words in lines from a place to the right, and returns where they end below; those of chips in boxes."""
    font, small, pad = _font(size), _font(14), 7 * bool(chips)
    (left, y), x, height = place, place[0], size * 1.35 + 30 * bool(chips)
    for i, word in enumerate(words):
        text = word if len(word) <= _LONGEST else f"{word[: _LONGEST - 1]}…"
        number = chips[i][1].partition(" ")[0] if chips else ""
        width = 2 * pad + max(font.getlength(text), small.getlength(number))
        if x + width > right and x > left:
            x, y = left, y + height
        if chips:
            strength = chips[i][2]
            base = np.array(_RAISES if strength > 0 else _LOWERS)
            fill = tuple((255 - abs(strength) * 0.6 * (255 - base)).round().astype(int).tolist())
            canvas.rounded_rectangle((x, y, x + width, y + height - 8), 5, fill)
            canvas.text((x + pad, y + 27), number, colour, small)
        canvas.text((x + pad, y + 3 * bool(chips)), text, colour, font)
        x += width + (6 if chips else font.getlength(" "))
    return y + height * bool(words)


@functools.cache
def _font(size: int) -> Any:
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)  # of more scripts than Pillow's own
    except OSError:
        return ImageFont.load_default(size)
