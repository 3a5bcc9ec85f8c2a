"""Figures with one point an encoder: score against cost, one probe against the other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encbench.records import Ranked

from . import published, text
from .figures import (
    FADED,
    GRAY,
    INK,
    PRINTED,
    VERMILION,
    WIDTH,
    Drawing,
    PlotStyle,
    add_axes,
    canvas,
    finish,
    key,
    legend,
    plot_style,
)
from .labels import Point, place_labels
from .load import Run, shuffled_spec
from .text import Real

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CROWD = 8  # more candidates than this are numbered, with a key beside the plot
KEY = 2.0  # inches for that key
DASHES = (0, (4, 3))


class Labels:
    """What stands beside each encoder's point: its name, or its place where there are many."""

    def __init__(self, run: Run) -> None:
        self.numbered = len(run.candidates) > CROWD
        width = 27 if self.numbered else 28
        self.names = text.short_names({r.spec: r.name for r in run.prediction.order}, width)
        self.numbers = {row.spec: str(i) for i, row in enumerate(run.candidates, 1)}

    def of(self, row: Ranked) -> str:
        if shuffled_spec(row.spec) is not None:
            return ""
        return self.numbers.get(row.spec, "") if self._numbers(row) else self.names[row.spec]

    def _numbers(self, row: Ranked) -> bool:
        return self.numbered and not row.control

    @property
    def margin(self) -> float:
        """Inches to leave free on the right for the key."""
        return KEY if self.numbered else 0.0

    def draw_key(self, figure: Figure, top: Real) -> None:
        """Number and name of each candidate, beside the plot."""
        if not self.numbered:
            return
        width, height = figure.get_size_inches()
        step = min(0.165, (height - top - 0.1) / len(self.numbers))
        for i, (spec, number) in enumerate(self.numbers.items()):
            y = 1 - (top + step * (i + 0.5)) / height
            style: dict[str, Any] = {"fontsize": 6.5, "va": "center"}
            figure.text((width - KEY + 0.3) / width, y, number, ha="right", **style)
            figure.text((width - KEY + 0.38) / width, y, self.names[spec], **style)


def draw_cost(run: Run) -> Drawing | str:
    """Score against parameters and against speed."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    panels = []
    for name, label in (("parameters", "parameters"), ("prompts_per_second", "prompts per second")):
        there = []
        for row in run.candidates:
            x = run.cost(row.spec).get(name)
            if text.is_number(x) and x > 0 and text.is_number(row.value):
                there.append((row, float(x)))
        if there:
            panels.append((f"{label}, log scale", there))
    if not panels:
        return "Neither the parameters nor the speed of any candidate are known."
    labels = Labels(run)
    scored = [row for row in run.controls if text.is_number(row.value)]
    best = max(scored, key=lambda row: row.value, default=None)
    columns = 1 if labels.numbered or len(panels) == 1 else 2
    each = 2.6
    rows = math.ceil(len(panels) / columns)
    width = (WIDTH - 0.65 - labels.margin - (columns - 1) * 0.45) / columns
    ends: list[Any] = [x for _, there in panels for r, _ in there for x in (r.low, r.high, r.value)]
    ends = [x for x in [*ends, best.value if best else None] if text.is_number(x)]
    with canvas(0.4 + rows * (each + 0.55)) as figure:
        for i, (label, there) in enumerate(panels):
            left = 0.6 + (i % columns) * (width + 0.45)
            axes = add_axes(figure, left, 0.38 + (i // columns) * (each + 0.55), width, each)
            axes.set_xscale("log")
            if best:
                axes.axhline(best.value, color=VERMILION, linewidth=0.9, linestyle=DASHES)
            points = [_mark(axes, run, r, x, r.value, labels.of(r), y=_ends(r)) for r, x in there]
            xs = [x for _, x in there]
            span = max(xs) / min(xs)
            stretch = max(span**0.15, 1.9)
            axes.set_xlim(min(xs) / stretch, max(xs) * stretch)
            _limits(axes, ends, "y")
            subs = (1,) if span > 30 else (1, 2, 5)
            axes.xaxis.set_major_locator(LogLocator(subs=subs))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text.quantity(x)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.grid()
            axes.set_xlabel(label)
            if i % columns == 0:
                axes.set_ylabel(run.primary[1])
            place_labels(axes, points, 7, [best.value] if best else [])
        labels.draw_key(figure, 0.38)
        more = []
        if best:
            shown = f"best control: {text.shorten(text.clean_text(best.name), 24)}"
            more = [key(shown, PlotStyle(VERMILION, "", ""), linestyle=DASHES, linewidth=0.9)]
        order = [row for row in run.prediction.order if not row.control]
        without = dataclasses.replace(run.prediction, order=order)
        legend(figure, dataclasses.replace(run, prediction=without), 0.08, more)
        costs = [text.quantity(run.cost(row.spec).get("parameters")) for row in run.candidates]
        return finish(
            figure,
            "cost",
            "Score against cost",
            "Score by the primary rule against the number of weights that encode text, and "
            "against the speed measured in this run, which depends on the machine and on how long "
            "the texts are. Vertical lines are 95 % intervals. Controls cost next to nothing; the "
            "best of them is the dashed line.",
            "Scatter plots of score against cost: "
            + "; ".join(
                f"{labels.names[row.spec]} {text.number(row.value)}, {cost} parameters"
                for row, cost in zip(run.candidates, costs, strict=True)
            )
            + ".",
        )


def draw_published_plane(run: Run) -> Drawing | str:
    """Discriminability against disentanglement as the paper defines both, with its points."""
    by = text.clean_text(run.reencoder)
    other = f" (images re-encoded by {by})" if by and "dino" not in by.lower() else ""
    return _plane(
        run,
        "plane-published",
        "Discriminability against disentanglement, as published",
        ("retrieval", f"published@{run.k}"),
        ("ablation", "published"),
        ("discriminability: mean cosine of re-encoded images", "disentanglement: mean cosine"),
        f"Both scores as the paper defines them{other}, with 95 % intervals. Gray "
        f"squares are the values printed there, {published.LABEL}: other data, and settings that "
        "the paper does not tell, so distances between gray and colored points mean little. High "
        "is not good by itself on the vertical axis: an encoder that ignores its prompt gets 1.",
        [(p.discriminability, p.disentanglement, p.name) for p in published.TABLE],
    )


def draw_calibrated_plane(run: Run) -> Drawing | str:
    """The same two probes, each on the scale that makes encoders comparable."""
    return _plane(
        run,
        "plane-calibrated",
        "The same two probes, calibrated",
        run.primary,
        ("ablation", "calibrated"),
        (run.primary[1], "calibrated disentanglement"),
        "Horizontal: the primary score. Vertical: the cosine with the shortened prompt above the "
        "cosine of random pairs (0: no better than a random pair, 1: unchanged). Lines are 95 % "
        "intervals.",
        [],
    )


def _plane(
    run: Run,
    name: str,
    title: str,
    x: tuple[str, str],
    y: tuple[str, str],
    axis_labels: tuple[str, str],
    caption: str,
    paper: Sequence[tuple[Real, Real, str]],
) -> Drawing | str:
    found = []
    for row in run.prediction.order:
        a, b = run.score(row.spec, *x), run.score(row.spec, *y)
        if a and b:
            found.append((row, a, b))
    if not found:
        missing = [
            f"{probe} score {score}"
            for probe, score in (x, y)
            if not any(run.score(row.spec, probe, score) for row in run.prediction.order)
        ]
        return f"No encoder here has both scores; missing: {text.listing(missing) or 'one each'}."
    labels = Labels(run)
    height = 4.2 if labels.numbered else 3.6
    if paper:  # a control near 0 would press everything else into one line at the top
        bottom = min([p[1] for p in paper] + [b["value"] for r, _, b in found if not r.control])
        below = [(r, b) for r, _, b in found if b["value"] < bottom - (1 - bottom)]
        found = [f for f in found if f[0] not in [r for r, _ in below]]
        if below:
            least = [
                f"{r.name} {text.number(b['value'])}" for r, b in below if not shuffled_spec(r.spec)
            ]
            least += ["shuffles"] if any(shuffled_spec(r.spec) for r, _ in below) else []
            caption += f" Below the plot: {text.clean_text(text.listing(least, 6))}."
    with canvas(height + 0.85) as figure:
        axes = add_axes(figure, 0.65, 0.38, WIDTH - 0.75 - labels.margin, height)
        points = []
        for row, a, b in found:
            points.append(_mark(axes, run, row, a["value"], b["value"], labels.of(row), y=b, x_=a))
        for px, py, label in paper:
            axes.plot([px], [py], **_style(PRINTED))
            points.append(Point(px, py, label, GRAY))
        _limits(axes, [x for p in points for x in (p.x, p.left, p.right) if x is not None], "x")
        _limits(axes, [y for p in points for y in (p.y, p.low, p.high) if y is not None], "y")
        axes.grid()
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])
        place_labels(axes, points, 7)
        labels.draw_key(figure, 0.38)
        more = [key("shuffles", FADED)] if any(shuffled_spec(r.spec) for r, _, _ in found) else []
        if paper:
            more.append(key(published.LABEL, PRINTED))
        legend(figure, run, 0.08, more)
        values = "; ".join(
            f"{labels.names[r.spec]} {text.number(a['value'])}, {text.number(b['value'])}"
            for r, a, b in found
            if shuffled_spec(r.spec) is None
        )
        alt = f"Scatter plot of {axis_labels[0]} against {axis_labels[1]}: {values}."
        return finish(figure, name, title, caption, alt)


def _ends(row: Ranked) -> dict[str, Any]:
    return {"low": row.low, "high": row.high}


def _style(mark: PlotStyle) -> dict[str, Any]:
    return {
        "marker": mark.marker, "color": mark.color, "markerfacecolor": mark.fill,
        "markersize": mark.size, "linestyle": "none", "zorder": 4,
    }  # fmt: skip


def _mark(
    axes: Axes,
    run: Run,
    row: Ranked,
    x: Real,
    value: Real,
    label: str,
    *,
    y: Mapping[str, Any],
    x_: Mapping[str, Any] | None = None,
) -> Point:
    """Draw one encoder with its intervals, and say what its label must know.

    Args:
        y, x_: the vertical and the horizontal interval, 'low' and 'high'.
    """
    mark = plot_style(run, row)
    low, high, left, right = (
        end if text.is_number(end) else None
        for source in (y, x_ or {})
        for end in (source.get("low"), source.get("high"))
    )
    if low is not None and high is not None:
        axes.plot([x, x], [low, high], color=mark.color, linewidth=0.9, alpha=0.8)
    if left is not None and right is not None:
        axes.plot([left, right], [value, value], color=mark.color, linewidth=0.9, alpha=0.8)
    axes.plot([x], [value], **_style(mark))
    color = VERMILION if row.control else INK
    return Point(x, value, label, color, low=low, high=high, left=left, right=right)


def _limits(axes: Axes, values: Sequence[Real], axis: str) -> None:
    """Limits with room around the values, also where there is only one."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.1, 0.01)
    getattr(axes, f"set_{axis}lim")(low - room, high + room)


FIGURES = (draw_cost, draw_published_plane, draw_calibrated_plane)
