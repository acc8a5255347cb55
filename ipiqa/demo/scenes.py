"""Rendered scenes for the demo: what a prompt asks for, what a simulated generator draws, and how far the two agree."""

import dataclasses
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

COLOURS = {
    "red": (215, 40, 40), "green": (40, 160, 60), "blue": (45, 80, 215), "yellow": (240, 205, 40),
    "purple": (150, 50, 180),
}  # fmt: skip
BACKGROUNDS = {
    "plain": (224, 220, 212), "night scene": (22, 24, 52), "pencil sketch": (226, 226, 222), "mosaic": (200, 190, 170),
}  # fmt: skip

# The parts of a prompt and what each may be: first those of a thing, then those of the whole scene.
THING = {"count": ("one", "two", "three"), "colour": tuple(COLOURS), "shape": ("circle", "square", "triangle", "cross")}
WHOLE = {"relation": ("above", "below", "left of", "right of"), "style": tuple(BACKGROUNDS)}
PARTS = THING | WHOLE

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

    def __str__(self) -> str:
        plural = "" if self.count == "one" else "es" if self.shape == "cross" else "s"
        return f"{self.count} {self.colour} {self.shape}{plural}"


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
        return f"{self.first} {self.relation} {self.second}, {self.style}"


def draw_scene(rng: np.random.Generator) -> Scene:
    """Returns a random scene; its two things differ in colour or shape, but may share one of them.

    So two things of one colour are not a sign of an error, which could be seen without the prompt.
    """

    def draw_thing() -> Thing:
        return Thing(*(str(rng.choice(choices)) for choices in THING.values()))

    first = second = draw_thing()
    while (first.colour, first.shape) == (second.colour, second.shape):
        second = draw_thing()
    return Scene(first, second, *(str(rng.choice(choices)) for choices in WHOLE.values()))


def alignment(asked: Scene, drawn: Scene) -> float:
    """Returns which part of a prompt is really there, 0 to 1, by the weights of `CHECKLIST`."""
    score = CHECKLIST["style"] * (asked.style == drawn.style)
    for wanted, found in ((asked.first, drawn.first), (asked.second, drawn.second)):
        if found is not None:
            score += sum(CHECKLIST[p] * (getattr(wanted, p) == getattr(found, p)) for p in ("colour", "shape", "count"))
    if None not in (drawn.first, drawn.second):
        score += CHECKLIST["relation"] * (asked.relation == drawn.relation)
    return score


def _change(whole: Any, part: str, rng: np.random.Generator) -> Any:
    """Returns a thing or a scene with one part replaced by another at random."""
    others = [choice for choice in PARTS[part] if choice != getattr(whole, part)]
    return dataclasses.replace(whole, **{part: str(rng.choice(others))})


def with_errors(scene: Scene, error_rate: float, rng: np.random.Generator) -> Scene:
    """Returns what a generator draws that gets each part of the prompt wrong with probability `error_rate`."""

    def wrong(whole: Any, parts: dict[str, tuple[str, ...]]) -> Any:
        for part in parts:
            whole = _change(whole, part, rng) if rng.random() < error_rate else whole
        return whole

    things = (scene.first, scene.second)
    first, second = (None if rng.random() < error_rate * MISSING_RATE else wrong(thing, THING) for thing in things)
    return wrong(Scene(first, second, scene.relation, scene.style), WHOLE)


def near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """Returns the scene with one part changed, for a prompt that is almost right."""
    part = str(rng.choice(list(PARTS)))
    if part in WHOLE:
        return _change(scene, part, rng)
    side = "first" if rng.random() < 0.5 else "second"
    changed: dict[str, Any] = {side: _change(getattr(scene, side), part, rng)}
    return dataclasses.replace(scene, **changed)


def render(scene: Scene, size: int, rng: np.random.Generator) -> Image.Image:
    """Returns a picture of the scene, RGB, size x size pixels; places and sizes vary a little."""
    large = size * 3  # drawn large and reduced, for smooth edges
    image = Image.new("RGB", (large, large), _tint(BACKGROUNDS[scene.style], 6, rng))
    draw = ImageDraw.Draw(image)
    if scene.style == "night scene":
        for _ in range(14):
            x, y = rng.uniform(0, large, 2)
            draw.ellipse([x, y, x + large / 50, y + large / 50], fill=(250, 250, 220))
    beside = scene.relation in ("left of", "right of")
    centres = [(0.27, 0.5), (0.73, 0.5)] if beside else [(0.5, 0.27), (0.5, 0.73)]
    if scene.relation in ("right of", "below"):
        centres.reverse()
    for thing, centre in zip((scene.first, scene.second), centres, strict=True):
        if thing is not None:
            _draw_thing(draw, thing, centre, beside, scene.style == "pencil sketch", large, rng)
    image = image.resize((size, size), Image.Resampling.BOX)
    if scene.style == "mosaic":
        tiles = image.resize((size // 4, size // 4), Image.Resampling.BOX)
        image = Image.blend(image, tiles.resize((size, size), Image.Resampling.NEAREST), 0.75)
    return image


def _tint(colour: tuple[int, ...], spread: int, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(np.clip(colour + rng.integers(-spread, spread + 1, 3), 0, 255).tolist())


def _draw_thing(
    draw: ImageDraw.ImageDraw, thing: Thing, centre: tuple[float, float], upright: bool, is_sketch: bool, large: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    number = THING["count"].index(thing.count) + 1
    radius = large * rng.uniform(0.115, 0.145)
    for i in range(number):
        offset = (i - (number - 1) / 2) * 0.31
        x = (centre[0] + (0 if upright else offset) + rng.uniform(-0.015, 0.015)) * large
        y = (centre[1] + (offset if upright else 0) + rng.uniform(-0.015, 0.015)) * large
        colour = _tint(COLOURS[thing.colour], 12, rng)
        # a sketch has the outline only, in the colour asked for
        look = {"outline": colour, "fill": None, "width": max(large // 40, 2)} if is_sketch else {"fill": colour}
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
        half = [(-t, -r), (t, -r), (t, -t), (r, -t), (r, t), (t, t)]
        draw.polygon([(x + sign * dx, y + sign * dy) for sign in (1, -1) for dx, dy in half], **look)


# The words for each distortion, and for how strong it is.
DISTORTIONS = {"blur": "blurry", "noise": "noisy", "jpeg": "blocky", "colour": "faded", "ringing": "rippled"}
LEVELS = ("hardly", "slightly", "quite", "very", "extremely")
FADED = (150, 130, 90)


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
        pixels = pixels + rng.normal(0, 60 * strength, (size // 2, size // 2, 3)).repeat(2, axis=0).repeat(2, axis=1)
    elif kind == "colour":  # towards one brownish tone, as an old print fades
        pixels = pixels + 0.75 * strength * (np.array(FADED) - pixels)
    else:  # an ideal band-pass: every edge echoes in ripples
        frequency = np.abs(np.fft.fftfreq(size))
        low = np.maximum(frequency[:, None], frequency) < 0.14
        ripples = pixels - np.fft.ifft2(np.fft.fft2(pixels, axes=(0, 1)) * low[:, :, None], axes=(0, 1)).real
        pixels = pixels + 2.5 * strength * np.roll(ripples, size // 20, axis=(0, 1))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
