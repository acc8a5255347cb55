"""Where everything stands in a chart; templates/macros.html.j2 draws it as inline SVG, a few kilobytes each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 42
MAX_POINTS = 20_000  # of one scatter chart; more would only make the file heavy

Points = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]  # x, y


@dataclass(frozen=True)
class Line:
    """A line of a chart; `style` is a class of the style sheet: fold, mean, fit or equal."""

    x: Sequence[float]
    y: Sequence[float]
    style: str


@dataclass(frozen=True)
class Chart:
    """A chart in the coordinates of its SVG; all places are (x, y) but those of ticks, which are (place, label)."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    cloud: str  # one path for all points: a stroke of no length with round ends is a dot, at a dozen bytes each
    dot: float  # size of a point of the cloud
    lines: list[tuple[str, list[tuple[float, float]]]]  # style, corners
    marks: list[tuple[float, float]]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Returns about `count` round numbers within low and high.

    >>> ticks(0, 1), ticks(3, 17)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0])
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((power * m for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, min(last, first + 20) + 1)]


def chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    points: Points = ((), ()),
    marks: Points = ((), ()),
) -> Chart | None:
    """Returns a chart with lines, a cloud of points and larger marks, or None where there is nothing to draw.

    Args:
        title: what the chart shows, for readers that cannot see it.
        x_label, y_label: of the axes.
        lines: drawn in order over the points; what is not finite is left out everywhere.
        points: of a cloud.
        marks: of dots drawn on top.
    """
    cloud, dots = _finite(points), _finite(marks)
    paths = [(line.style, _finite((line.x, line.y))) for line in lines]
    every = np.concatenate([cloud, dots, *(path for _, path in paths)], axis=1)
    if not every.shape[1]:
        return None
    (x_low, x_high), (y_low, y_high) = (_range(values) for values in every)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def place(values: np.ndarray) -> list[tuple[float, float]]:
        x = LEFT + (right - LEFT) * (values[0] - x_low) / (x_high - x_low)
        y = bottom - (bottom - TOP) * (values[1] - y_low) / (y_high - y_low)
        return [(round(float(a), 1), round(float(b), 1)) for a, b in zip(x, y, strict=True)]

    def axis(low: float, high: float, which: int) -> list[tuple[float, str]]:
        values = ticks(low, high)
        at = np.array([[x_low] * len(values), [y_low] * len(values)])
        at[which] = values
        return [(place_[which], f"{value:g}") for place_, value in zip(place(at), values, strict=True)]

    number = cloud.shape[1]
    drawn = place(cloud[:, :: max(1, -(-number // MAX_POINTS))])
    return Chart(
        title, x_label, y_label, axis(x_low, x_high, 0), axis(y_low, y_high, 1),
        cloud="".join(f"M{x} {y}h0" for x, y in drawn), dot=5 if number <= 300 else 3.5 if number <= 3000 else 2.5,
        lines=[(style, place(path)) for style, path in paths if path.shape[1]], marks=place(dots),
    )  # fmt: skip


def _finite(points: Points) -> np.ndarray:
    both = np.array([points[0], points[1]], dtype=np.float64)
    return both[:, (np.isfinite(both)).all(axis=0)]


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = 0.04 * (high - low)
    if not pad > 1e-9 * max(abs(low), abs(high)):  # one value, or all but one
        pad = 0.05 * abs(high) or 1.0
    return low - pad, high + pad
