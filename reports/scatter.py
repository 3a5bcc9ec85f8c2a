"""Figures with one point for each encoder: predicted against actual, score against cost, one
probe against another."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from encbench.records import UNKNOWN, Ranked, TrainedEncoder

from . import published, text
from .confirmation import Confirmation
from .figures import (
    BLUE,
    CONTROL,
    DARK,
    GRAY,
    INK,
    LEVEL,
    PRINTED,
    SHUFFLE,
    WIDTH,
    Drawing,
    PlotStyle,
    ReportFigure,
    add_axes,
    canvas,
    draw_point,
    finish,
    ink,
    interval_ends,
    legend,
    ranked_keys,
    ranked_style,
    set_limits,
    spread,
)
from .labels import Point, place_labels
from .load import Entry, Run, shuffled_spec
from .svg import hover
from .text import Real

KEY = 1.9  # inches for the key of numbered points
MARKERS = "o^svP"  # by stage of training


@dataclass(frozen=True)
class Marks:
    """The style and label of each encoder's point: its name or, if there are many, a number (a
    letter for a control) that a key explains."""

    names: Mapping[str, str]
    labels: Mapping[str, str]
    styles: Mapping[str, PlotStyle]
    colors: Mapping[str, str]
    numbered: bool

    @property
    def margin(self) -> float:
        """Inches to leave free on the right for the key."""
        return KEY if self.numbered else 0.0

    def draw(
        self, axes: Axes, row: Any, x: Real, y: Real, *facts: str, across: Entry | None = None,
        down: Entry | None = None,
    ) -> Point:  # fmt: skip
        """Draw one encoder with its intervals, and say what its label must know. The facts are
        shown on hover, under its name."""
        words = hover(row.name, *facts)
        draw_point(axes, self.styles[row.spec], x, y, across=across, down=down, words=words)
        ends = (interval_ends(across), interval_ends(down))
        return Point(x, y, self.labels.get(row.spec, ""), ink(row), *ends)

    def draw_key(self, figure: Figure, top: Real) -> None:
        """Label and name of each encoder, beside the plot."""
        width, height = figure.get_size_inches()
        step = min(0.165, (height - top - 0.1) / len(self.labels))
        for i, (spec, label) in enumerate(self.labels.items() if self.numbered else ()):
            y = 1 - (top + step * (i + 0.5)) / height
            style: dict[str, Any] = {"fontsize": 6.5, "va": "center", "color": self.colors[spec]}
            figure.text((width - KEY + 0.26) / width, y, label, ha="right", **style)
            figure.text((width - KEY + 0.34) / width, y, self.names[spec], **style)


def choose_marks(
    rows: Sequence[Any], style: Callable[[Any], PlotStyle], numbers: Mapping[str, str], crowd: int
) -> Marks:
    """Marks of encoders and controls, numbered where there are more than ``crowd`` encoders.
    An encoder's own shuffle has no label."""
    numbered = sum(not row.control for row in rows) > crowd
    named = [row for row in rows if shuffled_spec(row.spec) is None]
    names = text.short_names({row.spec: row.name for row in named}, 26)
    letters = iter(string.ascii_lowercase)
    labels = {row.spec: next(letters, "") if row.control else numbers[row.spec] for row in named}
    styles = {row.spec: style(row) for row in rows}
    colors = {r.spec: BLUE if styles[r.spec].color == BLUE else ink(r) for r in named}
    return Marks(names, labels if numbered else names, styles, colors, numbered)


def ranked_marks(run: Run, rows: Sequence[Ranked]) -> Marks:
    numbers = {row.spec: str(i) for i, row in enumerate(run.candidates, 1)}
    return choose_marks(rows, lambda row: ranked_style(run, row), numbers, crowd=8)


def trained_marks(c: Confirmation, rows: Sequence[TrainedEncoder]) -> Marks:
    numbers = {row.spec: str(row.predicted_rank or "") for row in c.rows}
    return choose_marks(rows, lambda row: trained_style(c, row), numbers, crowd=4)


def trained_style(c: Confirmation, row: TrainedEncoder) -> PlotStyle:
    """The predicted first in blue; the marker says the stage of training."""
    if row.control:
        return CONTROL
    return PlotStyle(
        BLUE if row is c.winner else DARK, MARKERS[c.stages.index(row.stage) % len(MARKERS)]
    )


def trained_keys(c: Confirmation, rows: Sequence[TrainedEncoder]) -> dict[str, PlotStyle]:
    """The marks that occur, explained."""
    keys = {"predicted first": PlotStyle(BLUE, "o")} if c.winner in rows else {}
    others = [row for row in rows if not row.control]
    if len(c.stages) > 1:
        for stage, marker in zip(c.stages, MARKERS * len(c.stages), strict=False):
            keys[f"stage {text.clean_text(stage)}"] = PlotStyle(DARK, marker)
    elif len(others) > 1:
        keys["other encoders"] = PlotStyle(DARK, "o")
    return keys | ({"controls": CONTROL} if len(others) < len(rows) else {})


# -------------------------------------------------------------------------------------- cost


class CostPanel(NamedTuple):
    """A cost of encoders: the axis's label, whether it is logarithmic, and who costs what."""

    label: str
    log: bool
    points: list[tuple[Any, float]]


def draw_costs(
    marks: Marks,
    panels: Sequence[CostPanel],
    score: Callable[[Any], Entry | None],
    level: Entry | None,
    across: str,
    keys: Mapping[str, PlotStyle],
    caption: str,
    alt: str,
) -> Drawing:
    """Scores against costs, a panel for each, with a control's score as a level."""
    columns = 1 if marks.numbered or len(panels) == 1 else 2
    width = (WIDTH - 0.65 - marks.margin - (columns - 1) * 0.45) / columns
    ends = spread([*(score(row) for panel in panels for row, _ in panel.points), level])
    with canvas(0.4 + -(-len(panels) // columns) * 3.1) as figure:
        for i, (label, log, costs) in enumerate(panels):
            left, top = 0.6 + (i % columns) * (width + 0.45), 0.38 + (i // columns) * 3.1
            axes = add_axes(figure, left, top, width, 2.6)
            if level:
                words = hover(
                    *[key for key in keys if keys[key] is LEVEL], text.format_score(level)
                )
                axes.axhline(level.value, **LEVEL.options, **words)
            xs = [x for _, x in costs]
            _set_cost_axis(axes, xs, log=log)
            set_limits(axes, "y", ends)
            points = []
            for row, x in costs:
                entry = score(row) or UNKNOWN
                facts = (f"{across} {text.format_score(entry)}", f"{text.quantity(x)} {label}")
                points.append(marks.draw(axes, row, x, entry.value, *facts, down=entry))
            axes.grid()
            axes.set_xlabel(label)
            axes.set_ylabel(across if i % columns == 0 else "")
            place_labels(axes, points, 7, [level.value] if level else [])
        marks.draw_key(figure, 0.38)
        legend(figure, keys)
        return finish(figure, caption, alt)


def _set_cost_axis(axes: Axes, xs: Sequence[Real], *, log: bool) -> None:
    if log:
        axes.set_xscale("log")
        span = max(xs) / min(xs)
        stretch = max(span**0.15, 1.9)
        axes.set_xlim(min(xs) / stretch, max(xs) * stretch)
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if span > 30 else (1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        set_limits(axes, "x", [*xs, min(xs) * 0.95, max(xs) * 1.05])
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text.quantity(x)))


def draw_cost(run: Run) -> Drawing | str:
    """Score against memory and against speed."""
    panels = []
    for name, label in (
        ("memory_bytes", "bytes of weights"), ("prompts_per_second", "prompts per second")
    ):  # fmt: skip
        costs = [(row, run.cost(row.spec).get(name)) for row in run.candidates]
        known = [
            (r, float(x))
            for r, x in costs
            if text.is_number(x) and x > 0 and text.is_number(r.value)
        ]
        if known:
            panels.append(CostPanel(f"{label}, log scale", True, known))
    if not panels:
        return "Neither the memory nor the speed of any candidate is known."
    scores = [row for row in run.controls if text.is_number(row.value)]
    best = max(scores, key=lambda row: row.value, default=None)
    keys = ranked_keys(run, controls=False)
    if best:
        keys[f"best control: {text.shorten(text.clean_text(best.name), 24)}"] = LEVEL
    marks = ranked_marks(run, run.candidates)
    sizes = {
        row.spec: text.quantity(run.cost(row.spec).get("parameters")) for row in run.candidates
    }
    return draw_costs(
        marks, panels, lambda row: row.score, best.score if best else None, run.score_name, keys,
        "Score by the primary rule against the memory of the weights that encode text, and against "
        "the speed measured in this run, which depends on the machine and on how long the texts "
        "are. Vertical lines are 95 % intervals. Controls cost next to nothing; the best of them "
        "is the dashed line.",
        "Scatter plots of score against cost: "
        + "; ".join(
            f"{marks.names[row.spec]} {text.number(row.value)}, {sizes[row.spec]} parameters"
            for row in run.candidates
        )
        + ".",
    )  # fmt: skip


def draw_trained_cost(c: Confirmation) -> Drawing | str:
    """The trained models' score against the encoder's parameters and seconds of training."""
    rows = [row for row in c.candidates if c.entry(row)]
    sizes = [(row, float(row.parameters)) for row in rows if row.parameters > 0]
    times = [(row, x) for row in rows if (x := c.mean_seconds(row)) is not None]
    panels = [
        CostPanel("parameters of the encoder, log scale", True, sizes),
        CostPanel("seconds of training, mean over seeds", False, times),
    ]
    panels = [panel for panel in panels if panel.points]
    if not panels:
        return "Neither the parameters nor the training time of any scored encoder are known."
    level = c.entry(c.constant) if c.constant else None
    keys = trained_keys(c, rows) | ({"constant control": LEVEL} if level else {})
    marks = trained_marks(c, rows)
    return draw_costs(
        marks, panels, c.entry, level, c.axis_title, keys,
        f"{c.metric} of the trained models at {c.primary.steps} steps against the weights that "
        "encode text, and against the time of one training. Budgets are equal in steps and images, "
        "so times differ only with the width of the features and with whatever else the machine "
        "did. Vertical lines are 95 % intervals.",
        f"Scatter plots of {c.metric} against cost: "
        + "; ".join(
            f"{marks.names[row.spec]} {text.number(c.value(row))}, "
            f"{text.quantity(row.parameters or None)} parameters"
            for row in rows
        )
        + ".",
    )  # fmt: skip


# ------------------------------------------------------------- one probe against the other


def draw_published_plane(run: Run) -> Drawing | str:
    """Discriminability against disentanglement as the paper defines both, with its points."""
    by = text.clean_text(run.reencoder)
    other = f" (images re-encoded by {by})" if by and "dino" not in by.lower() else ""
    (_, *across), (_, *down) = published.SCORES
    titles = ("discriminability: mean cosine of re-encoded images", "disentanglement: mean cosine")
    return _plane(
        run,
        PlaneAxis(titles[0], " score ".join(across), lambda row: run.score(row.spec, *across)),
        PlaneAxis(titles[1], " score ".join(down), lambda row: run.score(row.spec, *down)),
        f"Both scores as the paper defines them{other}, with 95 % intervals. Gray "
        f"squares are the values printed there, {published.LABEL}: other data, and settings that "
        "the paper does not tell, so distances between gray and colored points mean little. High "
        "is not good by itself on the vertical axis: an encoder that ignores its prompt gets 1.",
        [(p.discriminability, p.disentanglement, p.name) for p in published.TABLE],
    )


def draw_calibrated_plane(run: Run) -> Drawing | str:
    """The primary score and the ablation, each on the scale that makes encoders comparable."""
    return _plane(
        run,
        PlaneAxis(
            run.score_name,
            "primary score",
            lambda row: row.score if text.is_number(row.value) else None,
        ),
        PlaneAxis(
            "calibrated disentanglement",
            "ablation score calibrated",
            lambda row: run.score(row.spec, "ablation", "calibrated"),
        ),
        "Horizontal: the primary score. Vertical: the cosine with the shortened prompt above the "
        "cosine of random pairs (0: no better than a random pair, 1: unchanged). Lines are 95 % "
        "intervals.",
    )


class PlaneAxis(NamedTuple):
    """An axis of a plane: its title, the score's name, and an encoder's score."""

    title: str
    name: str
    score: Callable[[Ranked], Entry | None]


def _plane(
    run: Run,
    x: PlaneAxis,
    y: PlaneAxis,
    caption: str,
    paper: Sequence[tuple[Real, Real, str]] = (),
) -> Drawing | str:
    order = run.prediction.order
    both = [(row, a, b) for row in order if (a := x.score(row)) and (b := y.score(row))]
    if not both:
        missing = [axis.name for axis in (x, y) if not any(map(axis.score, order))]
        return f"No encoder here has both scores; missing: {text.listing(missing) or 'one each'}."
    if paper:  # a control near 0 would press everything else into one line at the top
        bottom = min([p[1] for p in paper] + [b.value for r, _, b in both if not r.control])
        below = [(r, b) for r, _, b in both if b.value < bottom - (1 - bottom)]
        both = [point for point in both if point[0] not in [r for r, _ in below]]
        if below:
            least = [
                f"{r.name} {text.number(b.value)}" for r, b in below if not shuffled_spec(r.spec)
            ]
            least += ["shuffles"] if any(shuffled_spec(r.spec) for r, _ in below) else []
            caption += f" Below the plot: {text.clean_text(text.listing(least, 6))}."
    marks = ranked_marks(run, [row for row, _, _ in both])
    height = 4.2 if marks.numbered else 3.6
    with canvas(height + 0.85) as figure:
        axes = add_axes(figure, 0.65, 0.38, WIDTH - 0.75 - marks.margin, height)
        points = [
            marks.draw(
                axes, row, a.value, b.value, f"horizontal {text.format_score(a)}",
                f"vertical {text.format_score(b)}", across=a, down=b,
            )
            for row, a, b in both
        ]  # fmt: skip
        for px, py, label in paper:
            words = hover(label, published.LABEL, f"{text.number(px)}, {text.number(py)}")
            draw_point(axes, PRINTED, px, py, words=words)
            points.append(Point(px, py, label, GRAY))
        set_limits(axes, "x", [*spread(a for _, a, _ in both), *(p[0] for p in paper)])
        set_limits(axes, "y", [*spread(b for _, _, b in both), *(p[1] for p in paper)])
        axes.grid()
        axes.set_xlabel(x.title)
        axes.set_ylabel(y.title)
        place_labels(axes, points, 7)
        marks.draw_key(figure, 0.38)
        keys = ranked_keys(run)
        keys |= {"shuffles": SHUFFLE} if any(shuffled_spec(r.spec) for r, _, _ in both) else {}
        legend(figure, keys | ({published.LABEL: PRINTED} if paper else {}))
        values = "; ".join(
            f"{marks.names[r.spec]} {text.number(a.value)}, {text.number(b.value)}"
            for r, a, b in both
            if r.spec in marks.names
        )
        alt = f"Scatter plot of {x.title} against {y.title}: {values}."
        return finish(figure, caption, alt)


# -------------------------------------------------------------- predicted against actual


def draw_predicted(c: Confirmation) -> Drawing | str:
    """Predicted against actual scores, a panel for each number of sampling steps."""
    rows = [row for row in c.rows if text.is_number(row.predicted.value)]
    panels = [steps for steps in c.steps if any(c.entry(row, steps) for row in rows)]
    if not panels:
        return "No encoder has both a predicted and an actual score."
    rows = [row for row in rows if any(c.entry(row, steps) for steps in panels)]
    marks = trained_marks(c, rows)
    columns = min(2, len(panels))
    each, gap = 2.35, 0.62
    width = (WIDTH - 0.65 - marks.margin - (columns - 1) * 0.3) / columns
    ends = spread(c.entry(row, steps) for row in rows for steps in panels)
    with canvas(0.55 + -(-len(panels) // columns) * (each + gap)) as figure:
        for i, steps in enumerate(panels):
            left, top = 0.55 + (i % columns) * (width + 0.3), 0.55 + (i // columns) * (each + gap)
            axes = add_axes(figure, left, top, width, each)
            points = [
                marks.draw(
                    axes, row, row.predicted.value, entry.value,
                    f"predicted {text.format_score(row.predicted)}",
                    f"{c.metric}, trained {text.format_score(entry)}", across=row.predicted,
                    down=entry,
                )
                for row in rows
                if (entry := c.entry(row, steps))
            ]  # fmt: skip
            set_limits(axes, "x", spread(row.predicted for row in rows))
            set_limits(axes, "y", ends)
            axes.grid()
            bold = "bold" if steps == c.primary.steps else "normal"
            axes.set_title(text.count_noun(steps, "step"), fontweight=bold, pad=4)
            _note(axes, _agreement(c, steps), each)
            axes.tick_params(labelleft=i % columns == 0)
            axes.set_ylabel(f"{c.metric}, trained" if i % columns == 0 else "")
            axes.set_xlabel("predicted score" if i + columns >= len(panels) else "")
            place_labels(axes, points, 7 if marks.numbered else 6.5)
        marks.draw_key(figure, 0.55)
        legend(figure, trained_keys(c, rows))
        values = "; ".join(
            f"{marks.names[row.spec]} predicted {text.number(row.predicted.value)}, "
            f"got {text.number(c.value(row))}"
            for row in rows
        )
        return finish(
            figure,
            f"Horizontal: the primary score, written down before training. Vertical: {c.metric} of "
            f"the trained models, {c.group_name}. Lines are 95 % intervals: the prediction's "
            "across, over prompts and seeds down. The first question's verdicts are about "
            f"{c.primary.steps} steps; the other panels are exploratory. Controls are drawn, but "
            "never enter the rank correlation, which is taken within stages of training."
            + (" Numbers are predicted ranks." if marks.numbered else ""),
            f"Scatter plots of predicted against actual scores at "
            f"{text.listing(map(str, panels), 9)} steps; at {c.primary.steps} steps: {values}.",
        )


def _agreement(c: Confirmation, steps: int) -> str:
    """'rank correlation 0.80', from the verdict or, in other panels, the exploratory table."""
    value: Any = None
    if steps == c.primary.steps:
        value = c.verdict.rule.statistic.value
    elif predictor := c.predictor("primary rule", steps):
        value = predictor.statistic
    return f"rank correlation {text.number(value, 2)}" if text.is_number(value) else ""


def _note(axes: Axes, note: str, height: Real) -> None:
    """Small gray words above the right end of axes of this height in inches."""
    axes.text(
        1, 1 + 4 / 72 / height, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=7,
        color=GRAY,
    )  # fmt: skip


def draw_paper(c: Confirmation) -> Drawing | str:
    """The published evidence alone: both probes against GenEval at four steps."""
    rows = [row for row in published.TABLE if row.geneval is not None]
    scores = [float(row.geneval or 0) for row in rows]
    width = (WIDTH - 0.65 - 0.45) / 2
    with canvas(2.75) as figure:
        for i, (name, _, _) in enumerate(published.SCORES):
            xs = [float(getattr(row, name)) for row in rows]
            axes = add_axes(figure, 0.55 + i * (width + 0.45), 0.25, width, 2.0)
            for x, y, row in zip(xs, scores, rows, strict=True):
                words = hover(row.name, f"{name} {text.number(x)}", f"GenEval {text.number(y, 2)}")
                draw_point(axes, PRINTED, x, y, words=words)
            room = 0.25 * (max(xs) - min(xs))
            axes.set_xlim(min(xs) - room, max(xs) + room)
            axes.set_ylim(0.35, 1.0)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.grid()
            axes.set_xlabel(f"{name}, as published")
            axes.set_ylabel("" if i else "GenEval, 4 steps")
            correlation = float(np.corrcoef(xs, scores)[0, 1])
            _note(axes, f"Pearson {text.number(correlation, 2)}, n = {len(rows)}", 2.0)
            points = zip(xs, scores, rows, strict=True)
            place_labels(axes, [Point(x, y, row.name, INK) for x, y, row in points], 7)
        values = "; ".join(
            f"{row.name} {text.number(row.discriminability)}, {text.number(row.disentanglement)}, "
            f"GenEval {text.number(row.geneval, 2)}"
            for row in rows
        )
        return finish(
            figure,
            f"EMF (arXiv 2604.18168): the {len(rows)} encoders of its Tables 1 and 2 whose "
            "4-step GenEval after MeanFlow training it prints. Nothing of this run is in this "
            "figure. The models differ in backbone and training data as well as in their "
            f"encoder, and n = {len(rows)}, so neither correlation shows what a text encoder "
            "does.",
            f"Scatter plots of the published points (discriminability, disentanglement, GenEval): "
            f"{values}.",
        )


COST = ReportFigure("Score and cost", "Score against cost", draw_cost, probes=("diagnostics",))
PUBLISHED_PLANE = ReportFigure(
    "Two probes",
    "Discriminability against disentanglement, as published",
    draw_published_plane,
    probes=("retrieval", "ablation"),
)
CALIBRATED_PLANE = ReportFigure(
    "Two probes",
    "The primary score against disentanglement, calibrated",
    draw_calibrated_plane,
    probes=("ablation",),
)
PREDICTED = ReportFigure(
    "Predicted and actual", "Predicted against actual", draw_predicted, needs="confirmation"
)
TRAINED_COST = ReportFigure(
    "Actual score and cost",
    "What came out against what it cost",
    draw_trained_cost,
    needs="confirmation",
)
PAPER = ReportFigure(
    "The published evidence", "The paper's own points", draw_paper, needs="confirmation"
)
