"""Charts as inline SVG: no plotting library, a few kilobytes each, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 42
MAX_POINTS = 20_000  # of one scatter chart; more would only make the file heavy


@dataclass(frozen=True)
class Line:
    """A line of a chart; `style` is a class of the style sheet: fold, mean, fit or equal."""

    x: Sequence[float]
    y: Sequence[float]
    style: str


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
    return [round(i * step, 12) for i in range(first, last + 1)]


def chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    points: tuple[np.ndarray, np.ndarray] | None = None,
    marks: tuple[Sequence[float], Sequence[float]] | None = None,
) -> str:
    """Returns an SVG element with lines, a cloud of points and larger marks; what is not finite is left out.

    Args:
        title: what the chart shows, for readers that cannot see it.
        x_label, y_label: of the axes.
        lines: drawn in order over the points.
        points: (x, y) of a cloud.
        marks: (x, y) of dots drawn on top.
    """
    cloud = _finite(*points) if points is not None else np.empty((2, 0))
    dots = _finite(*marks) if marks is not None else np.empty((2, 0))
    paths = [(_finite(line.x, line.y), line.style) for line in lines]
    every = np.concatenate([cloud, dots, *(path for path, _ in paths)], axis=1)
    if not every.shape[1]:
        return f'<p class="empty">{escape(title)}: nothing to draw.</p>'
    (x_low, x_high), (y_low, y_high) = (_range(values) for values in every)

    def place_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / (x_high - x_low)

    def place_y(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_low) / (y_high - y_low)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts += _axes(x_label, y_label, (x_low, x_high), (y_low, y_high), place_x, place_y)
    if cloud.shape[1]:
        stride = -(-cloud.shape[1] // MAX_POINTS)
        # One path for all points: a stroke of no length with round ends is a dot, at a dozen bytes each.
        path = "".join(f"M{place_x(x):.1f} {place_y(y):.1f}h0" for x, y in cloud[:, ::stride].T)
        size = 5 if cloud.shape[1] <= 300 else 3.5 if cloud.shape[1] <= 3000 else 2.5
        parts.append(f'<path class="cloud" stroke-width="{size}" d="{path}"/>')
    for path_points, style in paths:
        corners = " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in path_points.T)
        if path_points.shape[1] == 1:  # a line of one epoch would not be seen
            x, y = path_points[:, 0]
            parts.append(f'<circle class="{style} single" cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3"/>')
        elif corners:
            parts.append(f'<polyline class="{style}" points="{corners}"/>')
    parts += [f'<circle class="mark" cx="{place_x(x):.1f}" cy="{place_y(y):.1f}" r="3.5"/>' for x, y in dots.T]
    return "".join([*parts, "</svg>"])


def _finite(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> np.ndarray:
    both = np.array([x, y], dtype=np.float64)
    return both[:, np.isfinite(both).all(axis=0)]


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = 0.04 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad


def _axes(
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for y in ticks(*y_range):
        at = place_y(y)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in ticks(*x_range):
        at = place_x(x)
        parts.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>')
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="axis" x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    turned = f"translate(13 {middle}) rotate(-90)"
    parts.append(f'<text class="axis" transform="{turned}" text-anchor="middle">{escape(y_label)}</text>')
    return parts
