"""Rendered scenes for the demo: what a prompt asks for, what a simulated generator draws, and how far the two agree."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 215),
    "yellow": (240, 205, 40),
    "purple": (150, 50, 180),
}
SHAPES = ("circle", "square", "triangle", "cross")
COUNTS = ("one", "two", "three")
RELATIONS = ("above", "below", "left of", "right of")
STYLES = ("plain", "night scene", "pencil sketch", "mosaic")

# What each part of the prompt counts for in the alignment; an object that is missing loses all its parts.
CHECKLIST = {"colour": 0.15, "shape": 0.10, "count": 0.05, "relation": 0.15, "style": 0.25}

# How often a thing is left out, for each time a part of it is wrong. An empty place is seen without the prompt, so it
# must stay rare, or alignment would be told from the image alone.
MISSING_RATE = 0.1


@dataclass(frozen=True)
class Thing:
    """Some equal objects: how many, of which colour and shape."""

    count: str
    colour: str
    shape: str

    @property
    def words(self) -> str:
        """The things in words, such as "two red circles"."""
        plural = "es" if self.shape == "cross" else "s"
        return f"{self.count} {self.colour} {self.shape}{plural if self.count != 'one' else ''}"


@dataclass(frozen=True)
class Scene:
    """Two kinds of things, how they stand to each other, and the style. `None` in a drawing: left out."""

    first: Thing | None
    second: Thing | None
    relation: str
    style: str

    @property
    def prompt(self) -> str:
        """The scene in words; only for scenes in which nothing is left out."""
        assert self.first is not None and self.second is not None
        return f"{self.first.words} {self.relation} {self.second.words}, {self.style}"


def draw_thing(rng: np.random.Generator) -> Thing:
    """Returns a random thing."""
    return Thing(str(rng.choice(COUNTS)), str(rng.choice(tuple(COLOURS))), str(rng.choice(SHAPES)))


def draw_scene(rng: np.random.Generator) -> Scene:
    """Returns a random scene; its two things differ in colour or shape, but may share one of them.

    So two things of one colour are not a sign of an error, which could be seen without the prompt.
    """
    first = second = draw_thing(rng)
    while (first.colour, first.shape) == (second.colour, second.shape):
        second = draw_thing(rng)
    return Scene(first, second, str(rng.choice(RELATIONS)), str(rng.choice(STYLES)))


def alignment(asked: Scene, drawn: Scene) -> float:
    """Returns which part of a prompt is really there, 0 to 1, by the weights of `CHECKLIST`.

    >>> rng = np.random.default_rng(0)
    >>> scene = draw_scene(rng)
    >>> round(alignment(scene, scene), 6), round(alignment(scene, dataclasses.replace(scene, relation="nowhere")), 6)
    (1.0, 0.85)
    """
    score = CHECKLIST["style"] * (asked.style == drawn.style)
    for wanted, found in ((asked.first, drawn.first), (asked.second, drawn.second)):
        if wanted is not None and found is not None:
            score += sum(CHECKLIST[p] * (getattr(wanted, p) == getattr(found, p)) for p in ("colour", "shape", "count"))
    if drawn.first is not None and drawn.second is not None:
        score += CHECKLIST["relation"] * (asked.relation == drawn.relation)
    return score


# The parts of a thing and what each may be.
PARTS = {"count": COUNTS, "colour": tuple(COLOURS), "shape": SHAPES}


def _other(choices: Sequence[str], than: str, rng: np.random.Generator) -> str:
    """Returns one of the choices at random, but not the one given."""
    return str(rng.choice([choice for choice in choices if choice != than]))


def with_errors(scene: Scene, error_rate: float, rng: np.random.Generator) -> Scene:
    """Returns what a generator draws that gets each part of the prompt wrong with probability `error_rate`."""

    def wrong(thing: Thing) -> Thing | None:
        if rng.random() < error_rate * MISSING_RATE:
            return None
        parts = {
            part: _other(choices, getattr(thing, part), rng)
            for part, choices in PARTS.items()
            if rng.random() < error_rate
        }
        return dataclasses.replace(thing, **parts)

    assert scene.first is not None and scene.second is not None
    first, second = wrong(scene.first), wrong(scene.second)
    relation, style = scene.relation, scene.style
    if rng.random() < error_rate:
        relation = _other(RELATIONS, relation, rng)
    if rng.random() < error_rate:
        style = _other(STYLES, style, rng)
    return Scene(first, second, relation, style)


def near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """Returns the scene with one part changed, for a prompt that is almost right."""
    assert scene.first is not None and scene.second is not None
    part = str(rng.choice(["count", "colour", "shape", "relation", "style"]))
    if part == "relation":
        return dataclasses.replace(scene, relation=_other(RELATIONS, scene.relation, rng))
    if part == "style":
        return dataclasses.replace(scene, style=_other(STYLES, scene.style, rng))
    is_first = rng.random() < 0.5
    thing = scene.first if is_first else scene.second
    other = dataclasses.replace(thing, **{part: _other(PARTS[part], getattr(thing, part), rng)})
    return dataclasses.replace(scene, first=other) if is_first else dataclasses.replace(scene, second=other)


def render(scene: Scene, size: int, rng: np.random.Generator) -> Image.Image:
    """Returns a picture of the scene, RGB, size x size pixels; places and sizes vary a little."""
    large = size * 3  # drawn large and reduced, for smooth edges
    background = {
        "plain": (224, 220, 212),
        "night scene": (22, 24, 52),
        "pencil sketch": (226, 226, 222),
        "mosaic": (200, 190, 170),
    }
    tint = rng.integers(-6, 7, 3)
    image = Image.new(
        "RGB", (large, large), tuple(int(c) for c in np.clip(np.array(background[scene.style]) + tint, 0, 255))
    )
    draw = ImageDraw.Draw(image)
    if scene.style == "night scene":
        for _ in range(14):
            x, y = rng.uniform(0, large, 2)
            draw.ellipse([x, y, x + large / 50, y + large / 50], fill=(250, 250, 220))
    centres = {"above": ((0.5, 0.27), (0.5, 0.73)), "left of": ((0.27, 0.5), (0.73, 0.5))}
    centres |= {"below": centres["above"][::-1], "right of": centres["left of"][::-1]}
    upright = scene.relation in ("left of", "right of")
    for thing, centre in zip((scene.first, scene.second), centres[scene.relation], strict=True):
        if thing is not None:
            _draw_thing(draw, thing, centre, upright, scene.style, large, rng)
    image = image.resize((size, size), Image.Resampling.BOX)
    if scene.style == "mosaic":
        tiles = image.resize((size // 4, size // 4), Image.Resampling.BOX).resize(
            (size, size), Image.Resampling.NEAREST
        )
        image = Image.blend(image, tiles, 0.75)
    return image


def _draw_thing(
    draw: ImageDraw.ImageDraw, thing: Thing, centre: tuple[float, float], upright: bool, style: str, large: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    number = COUNTS.index(thing.count) + 1
    radius = large * rng.uniform(0.115, 0.145)
    for i in range(number):
        offset = (i - (number - 1) / 2) * 0.31
        x = (centre[0] + (0 if upright else offset) + rng.uniform(-0.015, 0.015)) * large
        y = (centre[1] + (offset if upright else 0) + rng.uniform(-0.015, 0.015)) * large
        colour = tuple(int(c) for c in np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-12, 13, 3), 0, 255))
        width = max(large // 40, 2)
        # a sketch has the outline only, in the colour asked for
        look = {"outline": colour, "fill": None, "width": width} if style == "pencil sketch" else {"fill": colour}
        _draw_shape(draw, thing.shape, x, y, radius, look)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, look: dict) -> None:
    if shape == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], **look)
    elif shape == "square":
        draw.rectangle([x - 0.86 * r, y - 0.86 * r, x + 0.86 * r, y + 0.86 * r], **look)
    elif shape == "triangle":
        points = [(x + 1.15 * r * math.sin(a), y + 0.1 * r - 1.15 * r * math.cos(a)) for a in (0, 2.094, 4.189)]
        draw.polygon(points, **look)
    else:
        t = 0.36 * r
        arms = [
            (-t, -r), (t, -r), (t, -t), (r, -t), (r, t), (t, t),
            (t, r), (-t, r), (-t, t), (-r, t), (-r, -t), (-t, -t),
        ]  # fmt: skip
        draw.polygon([(x + dx, y + dy) for dx, dy in arms], **look)


# The words for each distortion, and for how strong it is.
DISTORTIONS = {"blur": "blurry", "noise": "noisy", "jpeg": "blocky", "colour": "faded", "ringing": "rippled"}
FADED = (150, 130, 90)
LEVELS = ("hardly", "slightly", "quite", "very", "extremely")


def look(kind: str, strength: float) -> str:
    """Returns a distortion in words; the kind of one that is hardly there goes unnamed.

    >>> look("blur", 0.05), look("noise", 0.5)
    ('a hardly distorted picture', 'a quite noisy picture')
    """
    level = min(int(strength * len(LEVELS)), len(LEVELS) - 1)
    return f"a {LEVELS[level]} {DISTORTIONS[kind] if level else 'distorted'} picture"


def distort(image: Image.Image, kind: str, strength: float, rng: np.random.Generator) -> Image.Image:
    """Returns the image with a distortion of strength 0 (none) to 1 (severe)."""
    size = image.width
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength * size / 24))
    if kind == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=round(90 * (1 - strength) ** 2) + 4)
        return Image.open(buffer).convert("RGB")
    pixels = np.asarray(image, dtype=np.float64)
    if kind == "noise":
        grains = rng.normal(0, 60 * strength, (size // 2, size // 2, 3))
        pixels = pixels + grains.repeat(2, axis=0).repeat(2, axis=1)
    elif kind == "colour":  # towards one brownish tone, as an old print fades
        pixels = pixels + 0.75 * strength * (np.array(FADED) - pixels)
    else:  # an ideal band-pass: every edge echoes in ripples
        frequency = np.abs(np.fft.fftfreq(size))
        low = np.maximum(frequency[:, None], frequency) < 0.14
        ripples = pixels - np.fft.ifft2(np.fft.fft2(pixels, axes=(0, 1)) * low[:, :, None], axes=(0, 1)).real
        pixels = pixels + 2.5 * strength * np.roll(ripples, size // 20, axis=(0, 1))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
