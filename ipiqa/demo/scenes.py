"""Rendered scenes for the demo: what a prompt asks for, what a simulated generator draws, and how far the two agree."""

import dataclasses
import io
import math
import zlib
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
THING = {"count": ("one", "two"), "colour": tuple(COLOURS), "shape": ("circle", "square", "triangle", "cross")}
WHOLE = {"relation": ("above", "left of"), "style": tuple(BACKGROUNDS)}
PARTS = THING | WHOLE
NUM_STATEMENTS = 2 * len(THING) + len(WHOLE)  # of a prompt; each counts for the same in the alignment


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
    """Two kinds of things, how they stand to each other, and the style."""

    first: Thing
    second: Thing
    relation: str
    style: str

    @property
    def prompt(self) -> str:
        """The scene in words."""
        return f"{self.first} {self.relation} {self.second}, {self.style}"

    @property
    def is_of_table(self) -> bool:
        """Whether the scene may be in the scored table; all others are for the encoders and for Image2Prompt.

        A hash of the prompt parts all scenes in two halves; a scene has one prompt only, so none is in both.
        """
        return zlib.crc32(self.prompt.encode()) % 2 == 0


def draw_scene(rng: np.random.Generator, *, of_table: bool) -> Scene:
    """Returns a random scene of the table's half or of the other one, with two things of different colour or shape.

    They may share one of both, so that two things of one colour are no sign of an error, seen without the prompt.
    """

    def draw_thing() -> Thing:
        return Thing(*(str(rng.choice(choices)) for choices in THING.values()))

    while True:
        scene = Scene(draw_thing(), draw_thing(), *(str(rng.choice(choices)) for choices in WHOLE.values()))
        if _is_drawn(scene, of_table):
            return scene


def _is_drawn(scene: Scene, of_table: bool) -> bool:
    first, second = scene.first, scene.second
    return scene.is_of_table == of_table and (first.colour, first.shape) != (second.colour, second.shape)


def satisfied(asked: Scene, drawn: Scene) -> float:
    """Returns which share of a prompt's statements is true of what was drawn, 0 to 1."""
    things = ((asked.first, drawn.first), (asked.second, drawn.second))
    found = sum(getattr(wanted, part) == getattr(there, part) for wanted, there in things for part in THING)
    return (found + sum(getattr(asked, part) == getattr(drawn, part) for part in WHOLE)) / NUM_STATEMENTS


def _change(whole: Any, part: str, rng: np.random.Generator) -> Any:
    """Returns a thing or a scene with one part replaced by another at random."""
    others = [choice for choice in PARTS[part] if choice != getattr(whole, part)]
    return dataclasses.replace(whole, **{part: str(rng.choice(others))})


def with_errors(scene: Scene, error_rate: float, rng: np.random.Generator) -> Scene:
    """Returns a scene of the table's half in which each part of the prompt is wrong with probability `error_rate`."""

    def wrong(whole: Any, parts: dict[str, tuple[str, ...]]) -> Any:
        for part in parts:
            whole = _change(whole, part, rng) if rng.random() < error_rate else whole
        return whole

    while True:
        first, second = (wrong(thing, THING) for thing in (scene.first, scene.second))
        drawn: Scene = wrong(Scene(first, second, scene.relation, scene.style), WHOLE)
        if _is_drawn(drawn, of_table=True):
            return drawn


def near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """Returns a scene of the same half with one part changed, for a prompt that is almost right."""
    while True:
        part = str(rng.choice([*PARTS, "shape", "shape", "shape"]))  # shapes are learnt last
        if part in WHOLE:
            miss: Scene = _change(scene, part, rng)
        else:
            side = "first" if rng.random() < 0.5 else "second"
            changed: dict[str, Any] = {side: _change(getattr(scene, side), part, rng)}
            miss = dataclasses.replace(scene, **changed)
        if _is_drawn(miss, scene.is_of_table):
            return miss


def render(scene: Scene, size: int, rng: np.random.Generator, *, negative: bool = False) -> Image.Image:
    """Returns a picture of the scene, RGB, size x size pixels; places and sizes vary a little.

    A `negative` is of another domain, the encoders' own: its ground is light where the other's is dark.
    """
    large = size * 2  # drawn large and reduced, for smooth edges
    ground = BACKGROUNDS[scene.style]
    image = Image.new("RGB", (large, large), _tint(tuple(255 - c for c in ground) if negative else ground, 6, rng))
    draw = ImageDraw.Draw(image)
    if scene.style == "night scene":
        for _ in range(14):
            x, y = rng.uniform(0, large, 2)
            draw.ellipse([x, y, x + large / 50, y + large / 50], fill=(20, 20, 60) if negative else (250, 250, 220))
    beside = scene.relation == "left of"
    centres = [(0.27, 0.5), (0.73, 0.5)] if beside else [(0.5, 0.27), (0.5, 0.73)]
    for thing, centre in zip((scene.first, scene.second), centres, strict=True):
        _draw_thing(draw, thing, centre, beside, scene.style == "pencil sketch", large, rng)
    image = image.resize((size, size), Image.Resampling.BOX)
    if scene.style == "mosaic":
        tiles = image.resize((size // 4, size // 4), Image.Resampling.BOX)
        image = Image.blend(image, tiles.resize((size, size), Image.Resampling.NEAREST), 0.75)
    return image


def _tint(colour: tuple[int, ...], spread: int, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(np.clip(colour + rng.integers(-spread, spread + 1, 3), 0, 255).tolist())


def _draw_thing(
    draw: ImageDraw.ImageDraw, thing: Thing, centre: tuple[float, float], upright: bool, is_outline: bool, large: int,
    rng: np.random.Generator,
) -> None:  # fmt: skip
    number = THING["count"].index(thing.count) + 1
    radius = large * rng.uniform(0.155, 0.185)
    for i in range(number):
        offset = (i - (number - 1) / 2) * 0.4
        x = (centre[0] + (0 if upright else offset) + rng.uniform(-0.02, 0.02)) * large
        y = (centre[1] + (offset if upright else 0) + rng.uniform(-0.02, 0.02)) * large
        colour = _tint(COLOURS[thing.colour], 12, rng)
        look = {"outline": colour, "fill": None, "width": max(large // 24, 2)} if is_outline else {"fill": colour}
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


DISTORTIONS = ("blur", "noise", "jpeg", "colour", "ringing")
FADED = (150, 130, 90)


def distort(image: Image.Image, kind: str, strength: float, rng: np.random.Generator) -> Image.Image:
    """Returns the image with a distortion of strength 0 (none) to 1 (severe)."""
    size = image.width
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength * size / 24))
    if kind == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=round(20 * (1 - strength) ** 1.5) + 2)
        return Image.open(buffer).convert("RGB")
    pixels = np.asarray(image, dtype=np.float64)
    if kind == "noise":
        pixels = pixels + rng.normal(0, 20 * strength, (size // 2, size // 2, 3)).repeat(2, axis=0).repeat(2, axis=1)
    elif kind == "colour":  # towards one brownish tone, as an old print fades
        pixels = pixels + 0.5 * strength * (np.array(FADED) - pixels)
    else:  # an ideal band-pass: every edge echoes in ripples
        frequency = np.abs(np.fft.fftfreq(size))
        low = np.maximum(frequency[:, None], frequency) < 0.14
        ripples = pixels - np.fft.ifft2(np.fft.fft2(pixels, axes=(0, 1)) * low[:, :, None], axes=(0, 1)).real
        pixels = pixels + 2.5 * strength * np.roll(ripples, size // 20, axis=(0, 1))
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
