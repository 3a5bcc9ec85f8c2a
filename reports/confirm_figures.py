"""The figures of a confirmation: predicted against actual, cost, and the paper's own points.

Small plots of each encoder are in :mod:`encbench.reports.confirm_curves`.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from encbench.records import TrainedEncoder

from . import published, text
from .confirm_curves import CURVES
from .confirm_load import Confirmation
from .figures import (
    BLUE,
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
)
from .labels import Point, place_labels
from .text import Real

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 4  # trained encoders up to which points carry names; more are numbered, with a key
KEY = 1.75  # inches for that key
DASHES = (0, (4, 3))
MARKERS = "o^svP"  # by stage of training
DARK = "#4d4d4d"


def draw_confirm_figures(c: Confirmation) -> tuple[dict[str, Drawing], dict[str, str]]:
    """All figures by name, and for those that cannot be drawn the reason, by function."""
    drawings: dict[str, Drawing] = {}
    reasons: dict[str, str] = {}
    for draw in (draw_predicted, *CURVES, draw_confirm_cost, draw_paper):
        made = draw(c)
        if isinstance(made, Drawing):
            drawings[made.name] = made
        else:
            reasons[draw.__name__.removeprefix("draw_")] = made
    return drawings, reasons


class Marks:
    """How each encoder's point looks and what stands beside it: its name, or, where there are
    many, the rank that was predicted for it (a letter for a control)."""

    def __init__(self, c: Confirmation, rows: Sequence[TrainedEncoder]) -> None:
        self.c = c
        self.rows = tuple(rows)
        self.stages = list(dict.fromkeys(row.stage for row in c.trained))
        self.numbered = sum(not row.control for row in rows) > NAMED
        width = 24 if self.numbered else 26
        self.names = text.short_names({row.spec: row.name for row in c.rows}, width)
        letters = iter(string.ascii_lowercase)
        self.short = {
            row.spec: next(letters, "") if row.control else str(row.predicted_rank or "")
            for row in c.rows
        }

    def label(self, row: TrainedEncoder) -> str:
        return (self.short if self.numbered else self.names)[row.spec]

    def look(self, row: TrainedEncoder) -> PlotStyle:
        if row.control:
            return PlotStyle(VERMILION, "D", "white", 4.2)
        color = BLUE if row is self.c.winner else DARK
        return PlotStyle(color, MARKERS[self.stages.index(row.stage) % len(MARKERS)], color)

    @property
    def margin(self) -> float:
        """Inches to leave free on the right for the key."""
        return KEY if self.numbered else 0.0

    def draw_key(self, figure: Figure, top: Real) -> None:
        """Number or letter and name of each encoder, beside the plot."""
        if not self.numbered:
            return
        width, height = figure.get_size_inches()
        step = min(0.165, (height - top - 0.1) / len(self.rows))
        for i, row in enumerate(self.rows):
            y = 1 - (top + step * (i + 0.5)) / height
            color = VERMILION if row.control else BLUE if row is self.c.winner else INK
            style: dict[str, Any] = {"fontsize": 6.5, "va": "center", "color": color}
            figure.text((width - KEY + 0.24) / width, y, self.short[row.spec], ha="right", **style)
            figure.text((width - KEY + 0.32) / width, y, self.names[row.spec], **style)

    def legend(self, figure: Figure, more: Sequence[Any] = ()) -> None:
        trained = [row for row in self.rows if not row.control]
        handles: list[Any] = []
        if self.c.winner in trained:
            handles.append(key("predicted first", PlotStyle(BLUE, "o", BLUE)))
        if len(self.stages) > 1:
            handles += [
                key(
                    f"stage {text.clean_text(stage)}",
                    PlotStyle(DARK, MARKERS[i % len(MARKERS)], DARK),
                )
                for i, stage in enumerate(self.stages)
            ]
        elif len(trained) > 1:
            handles.append(key("other encoders", PlotStyle(DARK, "o", DARK)))
        if any(row.control for row in self.rows):
            handles.append(key("controls", PlotStyle(VERMILION, "D", "white", 4.2)))
        handles += more
        if handles:
            figure.legend(
                handles=handles, loc="upper left", ncols=len(handles), handlelength=1.6,
                bbox_to_anchor=(0.0, 1 - 0.08 / figure.get_size_inches()[1]), borderaxespad=0,
                columnspacing=1.3, handletextpad=0.5,
            )  # fmt: skip


# -------------------------------------------------------------------- predicted against actual


def draw_predicted(c: Confirmation) -> Drawing | str:
    """What was predicted against what came out, a panel for each number of sampling steps."""
    rows = [row for row in c.rows if text.is_number(row.predicted.get("value"))]
    panels = [steps for steps in c.steps if any(c.entry(row, steps) for row in rows)]
    if not panels:
        return "No encoder has both a predicted and an actual score."
    marks = Marks(c, [row for row in rows if any(c.entry(row, s) for s in panels)])
    columns = min(2, len(panels))
    each, gap = 2.35, 0.62
    width = (WIDTH - 0.65 - marks.margin - (columns - 1) * 0.3) / columns
    down = -(-len(panels) // columns)
    ends = [x for row in rows for s in panels for x in _ends(c.entry(row, s))]
    with canvas(0.55 + down * (each + gap)) as figure:
        for i, steps in enumerate(panels):
            left, top = 0.55 + (i % columns) * (width + 0.3), 0.55 + (i // columns) * (each + gap)
            axes = add_axes(figure, left, top, width, each)
            points = []
            for row in marks.rows:
                entry = c.entry(row, steps)
                if entry:
                    points.append(_cross(axes, marks, row, row.predicted, entry))
            axes.set_xlim(*_room([x for row in marks.rows for x in _ends(row.predicted)]))
            axes.set_ylim(*_room(ends))
            axes.grid()
            bold = "bold" if steps == c.primary.steps else "normal"
            axes.set_title(text.count_noun(steps, "step"), fontweight=bold, pad=4)
            told = _agreement(c, steps)
            axes.text(1, 1 + 4 / 72 / each, told, transform=axes.transAxes, ha="right",
                      va="bottom", fontsize=7, color=GRAY)  # fmt: skip
            axes.tick_params(labelleft=i % columns == 0)
            if i % columns == 0:
                axes.set_ylabel("GenEval, trained")
            if i + columns >= len(panels):
                axes.set_xlabel("predicted score")
            place_labels(axes, points, 6.5 if not marks.numbered else 7)
        marks.draw_key(figure, 0.55)
        marks.legend(figure)
        tier, combos = c.primary.group
        told = "; ".join(
            f"{marks.names[row.spec]} predicted {text.number(row.predicted.get('value'))}, "
            f"got {text.number(c.value(row))}"
            for row in marks.rows
        )
        return finish(
            figure,
            "confirm-predicted",
            "Predicted against actual",
            f"Horizontal: the primary score, written down before training. Vertical: GenEval of "
            f"the trained models, tier {text.clean_text(tier)}, {text.clean_text(combos)} "
            f"combinations. Lines are 95 % intervals: over queries across, over prompts and seeds "
            f"down. Both verdicts are about {c.primary.steps} steps; the other panels are "
            "exploratory. Controls are drawn, but never enter the rank correlation, which is "
            "taken within stages of training."
            + (" Numbers are predicted ranks." if marks.numbered else ""),
            f"Scatter plots of predicted against actual scores at "
            f"{text.listing(map(str, panels), 9)} steps; at {c.primary.steps} steps: {told}.",
        )


def _agreement(c: Confirmation, steps: int) -> str:
    """'rank correlation 0.80', from the verdict or, in other panels, the exploratory table."""
    value: Any = None
    if steps == c.primary.steps:
        value = (c.verdict.rule.get("statistic") or {}).get("value")
    elif found := c.predictor("primary rule", steps):
        value = found.statistic
    return f"rank correlation {text.number(value, 2)}" if text.is_number(value) else ""


def _ends(entry: Any) -> list[float]:
    """The numbers among a score's value and interval."""
    values = [(entry or {}).get(name) for name in ("value", "low", "high")]
    return [float(x) for x in values if text.is_number(x)]


def _room(values: Sequence[Real]) -> tuple[float, float]:
    """Limits with room around the values, also where there is only one."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.1, 0.01)
    return float(low - room), float(high + room)


def _cross(axes: Axes, marks: Marks, row: TrainedEncoder, across: Any, down: Any) -> Point:
    """Draw one encoder with both intervals, and say what its label must know."""
    mark = marks.look(row)
    x, y = float(across["value"]), float(down["value"])
    left, right, low, high = (
        float(end) if text.is_number(end) else None
        for source in (across, down)
        for end in (source.get("low"), source.get("high"))
    )
    if left is not None and right is not None:
        axes.plot([left, right], [y, y], color=mark.color, linewidth=0.9, alpha=0.8)
    if low is not None and high is not None:
        axes.plot([x, x], [low, high], color=mark.color, linewidth=0.9, alpha=0.8)
    axes.plot([x], [y], marker=mark.marker, color=mark.color, markerfacecolor=mark.fill,
              markersize=mark.size, linestyle="none", zorder=4)  # fmt: skip
    color = VERMILION if row.control else INK
    return Point(x, y, marks.label(row), color, low=low, high=high, left=left, right=right)


# -------------------------------------------------------------------------------------- cost


def draw_confirm_cost(c: Confirmation) -> Drawing | str:
    """GenEval against the encoder's parameters and against seconds of training."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    panels: list[tuple[str, bool, list[tuple[TrainedEncoder, float]]]] = []
    scored = [row for row in c.trained if c.entry(row)]
    sizes = [(row, float(row.parameters)) for row in scored if row.parameters > 0]
    if sizes:
        panels.append(("parameters of the encoder, log scale", True, sizes))
    times = [(row, _mean(row.training_seconds)) for row in scored]
    known = [(row, x) for row, x in times if x is not None]
    if known:
        panels.append(("seconds of training, mean over seeds", False, known))
    if not panels:
        return "Neither the parameters nor the training time of any scored encoder are known."
    marks = Marks(c, scored)
    columns = len(panels)
    width = (WIDTH - 0.65 - marks.margin - (columns - 1) * 0.45) / columns
    level = c.entry(c.constant) if c.constant else None
    ends = [x for row in scored for x in _ends(c.entry(row))] + _ends(level)
    with canvas(3.45) as figure:
        for i, (label, log, there) in enumerate(panels):
            axes = add_axes(figure, 0.55 + i * (width + 0.45), 0.42, width, 2.5)
            if level:
                axes.axhline(level["value"], color=VERMILION, linewidth=0.9, linestyle=DASHES)
            xs = [x for _, x in there]
            if log:
                axes.set_xscale("log")
                span = max(xs) / min(xs)
                stretch = max(span**0.15, 1.9)
                axes.set_xlim(min(xs) / stretch, max(xs) * stretch)
                axes.xaxis.set_major_locator(LogLocator(subs=(1,) if span > 30 else (1, 2, 5)))
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                axes.set_xlim(*_room([*xs, min(xs) * 0.95, max(xs) * 1.05]))
                axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text.quantity(x)))
            axes.set_ylim(*_room(ends))
            points = [
                _cross(axes, marks, row, {"value": x}, c.entry(row) or {}) for row, x in there
            ]
            axes.grid()
            axes.set_xlabel(label)
            if i == 0:
                axes.set_ylabel(f"GenEval, {c.primary.steps} steps")
            place_labels(axes, points, 6.5 if not marks.numbered else 7,
                  [level["value"]] if level else [])  # fmt: skip
        marks.draw_key(figure, 0.42)
        more = []
        if level:
            look = PlotStyle(VERMILION, "", "")
            more = [key("constant control", look, linestyle=DASHES, linewidth=0.9)]
        marks.legend(figure, more)
        return finish(
            figure,
            "confirm-cost",
            "What came out against what it cost",
            f"GenEval of the trained models at {c.primary.steps} steps against the weights that "
            "encode text, and against the time of one training. Budgets are equal in steps and "
            "images, so times differ only with the width of the features and with whatever else "
            "the machine did. Vertical lines are 95 % intervals.",
            "Scatter plots of GenEval against cost: "
            + "; ".join(
                f"{marks.names[row.spec]} {text.number(c.value(row))}, "
                f"{text.quantity(row.parameters or None)} parameters"
                for row in scored
            )
            + ".",
        )


def _mean(values: Sequence[Any]) -> float | None:
    known = [float(x) for x in values if text.is_number(x)]
    return sum(known) / len(known) if known else None


# ------------------------------------------------------------------------- the paper's points


def draw_paper(c: Confirmation) -> Drawing | str:
    """The published evidence, by itself: both probes against GenEval at four steps."""
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    there = [row for row in published.TABLE if row.geneval is not None]
    scores = [float(row.geneval or 0) for row in there]
    width = (WIDTH - 0.65 - 0.45) / 2
    correlations = []
    with canvas(2.75) as figure:
        for i, (name, title) in enumerate(
            (("discriminability", "discriminability"), ("disentanglement", "disentanglement"))
        ):
            xs = [float(getattr(row, name)) for row in there]
            correlations.append(float(np.corrcoef(xs, scores)[0, 1]))
            axes = add_axes(figure, 0.55 + i * (width + 0.45), 0.25, width, 2.0)
            axes.plot(xs, scores, marker=PRINTED.marker, color=PRINTED.color, linestyle="none",
                      markerfacecolor=PRINTED.fill, markersize=PRINTED.size, zorder=4)  # fmt: skip
            low, high = min(xs), max(xs)
            axes.set_xlim(low - 0.25 * (high - low), high + 0.25 * (high - low))
            axes.set_ylim(0.35, 1.0)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.grid()
            axes.set_xlabel(f"{title}, as published")
            if i == 0:
                axes.set_ylabel("GenEval, 4 steps")
            axes.text(1, 1.02, f"Pearson {text.number(correlations[-1], 2)}, n = {len(there)}",
                      transform=axes.transAxes, ha="right", fontsize=7, color=GRAY)  # fmt: skip
            points = [Point(x, y, row.name, INK) for x, y, row in zip(xs, scores, there,
                                                                      strict=True)]  # fmt: skip
            place_labels(axes, points, 7)
        told = "; ".join(
            f"{row.name} {text.number(row.discriminability)}, {text.number(row.disentanglement)}, "
            f"GenEval {text.number(row.geneval, 2)}"
            for row in there
        )
        return finish(
            figure,
            "confirm-paper",
            "The paper's own points",
            f"EMF (arXiv 2604.18168): the {len(there)} encoders of its Tables 1 and 2 whose "
            "4-step GenEval after MeanFlow training it prints. Nothing of this run is in this "
            "figure. The models differ in backbone and training data as well as in their "
            f"encoder, and n = {len(there)}, so neither correlation shows what a text encoder "
            "does.",
            f"Scatter plots of the published points (discriminability, disentanglement, GenEval): "
            f"{told}.",
        )
