"""Labels beside points, placed without overlaps.

Boxes are rows (x0, y0, x1, y1) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from .text import Real


class Point(NamedTuple):
    """A point in data coordinates with its label. ``across`` and ``down`` are the ends of its
    horizontal and vertical interval, which labels avoid too."""

    x: Real
    y: Real
    text: str
    color: str = "black"
    across: tuple[Real, Real] | None = None
    down: tuple[Real, Real] | None = None


RADIUS = 4.0  # of a drawn point, in pixels at 100 dpi, as all lengths here
ANGLES = np.radians(np.arange(0, 360, 30))
REACHES = np.array([3, 10, 20, 32, 46, 62, 80, 100, 124])


def place_labels(
    axes: Axes, points: Sequence[Point], size: Real, levels: Sequence[Real] = ()
) -> Float[np.ndarray, "n 4"]:
    """Write each point's text near it, with a thin line back to it where it had to move away.

    The axes must have their final limits and position.

    Args:
        points: those with an empty text are only kept clear.
        size: of the font, in points.
        levels: heights of horizontal lines across the axes, kept clear as well.

    Returns:
        where the texts are, (x0, y0, x1, y1) in pixels, in the order of ``points`` that have one.
    """
    figure = axes.get_figure()
    assert figure is not None
    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    unit = figure.dpi / 100
    window = axes.get_window_extent(renderer)
    frame = np.array([window.x0 + 2, window.y0 + 2, window.x1 - 2, window.y1 - 2])
    centers = axes.transData.transform([(p.x, p.y) for p in points]).reshape(-1, 2)
    marks = np.hstack([centers - RADIUS * unit, centers + RADIUS * unit])
    bars = _bars(axes, points, levels, frame, unit)
    named = [i for i, p in enumerate(points) if p.text]
    options = {}
    for i in named:
        probe = axes.text(0, 0, points[i].text, fontsize=size)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        options[i] = _options(centers[i], extent.width, extent.height, unit)

    placed: dict[int, np.ndarray] = {}
    away = np.repeat(REACHES, len(ANGLES))
    for _ in range(3):  # later rounds move a label that was placed before its neighbors were
        for i in sorted(named, key=lambda i: -centers[i, 1]):
            boxes = options[i]
            others = np.array([b for j, b in placed.items() if j != i]).reshape(-1, 4)
            others = others + unit * np.array([-1, -1, 1, 1])
            sticking_out = np.maximum(0, frame[:2] - boxes[:, :2]).sum(axis=1)
            sticking_out += np.maximum(0, boxes[:, 2:] - frame[2:]).sum(axis=1)
            gaps = _gaps(boxes, centers[named])
            own = _gaps(boxes, centers[[i]])
            cost = away + 40 * sticking_out
            cost = cost + 10 * _overlaps(boxes, marks) + 10 * _overlaps(boxes, others)
            cost = cost + 0.5 * _overlaps(boxes, bars)
            # A label nearer to another point than to its own would mislead.
            cost = cost + 15 * (gaps < own).sum(axis=1)
            placed[i] = boxes[int(cost.argmin())]

    for i in named:
        _write(axes, points[i], centers[i], placed[i], size, unit)
    return np.array([placed[i] for i in named]).reshape(-1, 4)


def _bars(
    axes: Axes, points: Sequence[Point], levels: Sequence[Real], frame: np.ndarray, unit: Real
) -> Float[np.ndarray, "n 4"]:
    """Intervals and lines as thin boxes."""
    lines = [((p.x, p.down[0]), (p.x, p.down[1])) for p in points if p.down]
    lines += [((p.across[0], p.y), (p.across[1], p.y)) for p in points if p.across]
    ends = axes.transData.transform(np.array(lines, float).reshape(-1, 2)).reshape(-1, 4)
    bars = [ends + unit * np.array([-1, -1, 1, 1])]
    for level in levels:
        y = axes.transData.transform((points[0].x, level))[1]
        bars.append(np.array([[frame[0], y - unit, frame[2], y + unit]]))
    return np.vstack(bars)


def _options(
    center: Float[np.ndarray, 2], width: Real, height: Real, unit: Real
) -> Float[np.ndarray, "n 4"]:
    """Boxes around a point in all directions, at each reach, nearest first."""
    reach = (RADIUS + np.repeat(REACHES, len(ANGLES))) * unit
    angle = np.tile(ANGLES, len(REACHES))
    half = np.array([width, height]) / 2
    middle = center + np.stack([np.cos(angle), np.sin(angle)], 1) * (reach[:, None] + half)
    return np.hstack([middle - half, middle + half])


def _overlaps(
    boxes: Float[np.ndarray, "n 4"], others: Float[np.ndarray, "m 4"]
) -> Float[np.ndarray, " n"]:
    """Area of each box that others cover, summed."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.prod(np.clip(high - low, 0, None), axis=2).sum(axis=1))


def _gaps(
    boxes: Float[np.ndarray, "n 4"], points: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "n m"]:
    """Distance of each point from each box, 0 inside."""
    below = boxes[:, None, :2] - points[None]
    above = points[None] - boxes[:, None, 2:]
    return np.asarray(np.linalg.norm(np.maximum(0, np.maximum(below, above)), axis=2))


def _write(
    axes: Axes,
    point: Point,
    center: Float[np.ndarray, 2],
    box: Float[np.ndarray, 4],
    size: Real,
    unit: Real,
) -> None:
    back = axes.transData.inverted()
    x, y = back.transform((box[:2] + box[2:]) / 2)
    axes.text(
        x, y, point.text, fontsize=size, color=point.color, ha="center", va="center", zorder=5
    )  # fmt: skip
    near = np.clip(center, box[:2], box[2:])
    if np.linalg.norm(near - center) > 12 * unit:
        ends = back.transform([near, center])
        axes.plot(ends[:, 0], ends[:, 1], color="0.6", linewidth=0.5, zorder=1)
