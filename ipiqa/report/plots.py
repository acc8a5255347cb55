"""Where everything stands in a chart; templates/macros.html.j2 draws it as inline SVG, a few kilobytes each."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 42
PANEL, LETTER = 260, 7  # width of one of several panels, and of a letter of the names beside them
MAX_POINTS = 20_000  # of one scatter chart; more would only make the file heavy

Values = Sequence[float] | np.ndarray
Line = tuple[str, Values, Values]  # style, x, y


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
    title: str, x_label: str, y_label: str, lines: Sequence[Line], *, points: Any = ((), ()), marks: Any = ((), ())
) -> dict[str, Any] | None:
    """Returns what the template draws, in the coordinates of its SVG, or None where there is nothing to draw.

    `points`, (x, y), are a cloud below the lines, `marks` larger dots on top; what is not finite is left out. `title`
    is for readers that cannot see the chart. Styles are classes of the style sheet: fold, mean, fit or equal.
    """
    cloud, dots, paths = _finite(*points), _finite(*marks), [(style, _finite(x, y)) for style, x, y in lines]
    every = np.concatenate([cloud, dots, *(path for _, path in paths)], axis=1)
    if not every.size:
        return None
    low, high = np.array([_range(values) for values in every]).T[..., None]  # (2, 1): x, y
    corner, size = np.array([[LEFT], [HEIGHT - BOTTOM]]), np.array([[WIDTH - RIGHT - LEFT], [TOP + BOTTOM - HEIGHT]])

    def place(values: np.ndarray) -> list[tuple[float, float]]:
        places = corner + size * (values - low) / (high - low)
        return [(round(x, 1), round(y, 1)) for x, y in places.T.tolist()]

    def axis(which: int) -> list[tuple[float, str]]:
        return [(place(np.full((2, 1), at))[0][which], f"{at:g}") for at in ticks(*low[which], *high[which])]

    number = cloud.shape[1]
    drawn = place(cloud[:, :: max(1, -(-number // MAX_POINTS))])
    return {
        "title": title, "x_label": x_label, "y_label": y_label, "x_ticks": axis(0), "y_ticks": axis(1),
        # One path for all points: a stroke of no length with round ends is a dot, at a dozen bytes each.
        "cloud": "".join(f"M{x} {y}h0" for x, y in drawn), "marks": place(dots),
        "dot": 5 if number <= 300 else 3.5 if number <= 3000 else 2.5,
        "lines": [(style, place(path)) for style, path in paths if path.size],
    }  # fmt: skip


def forest(rows: Sequence[tuple[str, Sequence[tuple[float, float, float] | None]]], titles: Sequence[str]) -> Any:
    """Returns what ablation.svg.j2 draws: a panel for each title, and in it a mean with its interval for each row.

    Each row has a name and, for each panel, (mean, low, high) or None; an interval may be nan. Panels share no axis.
    """
    panels = []
    for i, title in enumerate(titles):
        values = [own[i] for _, own in rows]
        known = [end for value in values if value for end in value if math.isfinite(end)]
        low, high = _range(np.array(known)) if known else (0.0, 1.0)

        def place(value: float, low: float = low, high: float = high) -> float | None:
            return round(PANEL * (value - low) / (high - low), 1) if math.isfinite(value) else None

        dots = [None if value is None or math.isnan(value[0]) else [place(end) for end in value] for value in values]
        axis = [(place(at), f"{at:g}") for at in ticks(low, high, 4)]
        panels.append({"title": title, "axis": axis, "dots": dots})
    names = [name for name, _ in rows]
    left = 30 + LETTER * max(map(len, names), default=0)
    return {"names": names, "panels": panels, "left": left, "width": PANEL}


def _finite(x: Values, y: Values) -> np.ndarray:
    both = np.array([x, y], dtype=np.float64)
    return both[:, np.isfinite(both).all(axis=0)]


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    pad = 0.04 * (high - low)
    if not pad > 1e-9 * max(abs(low), abs(high)):  # one value, or all but one
        pad = 0.05 * abs(high) or 1.0
    return low - pad, high + pad
