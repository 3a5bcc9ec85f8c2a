"""Figures of a confirmation with a small plot for each encoder: GenEval by number of steps,
GenEval through training, and how far average and instantaneous velocity part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from encbench.records import TrainedEncoder

from . import text
from .confirm_load import Confirmation, Group
from .figures import (
    BLUE,
    GRAY,
    GREEN,
    INK,
    ORANGE,
    PALE,
    VERMILION,
    WIDTH,
    Drawing,
    PlotStyle,
    add_axes,
    canvas,
    finish,
    key,
)
from .text import Real

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EACH = 1.15  # inches, the height of a small plot
ABOVE, BELOW = 0.3, 0.36  # for its name, and for the lowest row's ticks and label
Line = tuple[list[float], list[float]]


def _columns(count: int) -> int:
    return 3 if count in (1, 2, 3, 5, 6) else 4


def _height(count: int) -> float:
    return 0.3 + -(-count // _columns(count)) * (EACH + ABOVE) + BELOW


def _plots(
    figure: Figure, c: Confirmation, rows: Sequence[TrainedEncoder], across: str, down: str
) -> list[Axes]:
    """One small plot for each encoder, named; scales are shown on the outer ones only."""
    names = text.short_names({row.spec: row.name for row in rows}, 22)
    columns = _columns(len(rows))
    width = (WIDTH - 0.55) / columns
    made = []
    for i, row in enumerate(rows):
        top = 0.3 + ABOVE - 0.08 + (i // columns) * (EACH + ABOVE)
        axes = add_axes(figure, 0.5 + (i % columns) * width, top, width - 0.14, EACH)
        color = VERMILION if row.control else BLUE if row is c.winner else INK
        rank = f"{row.predicted_rank}  " if row.predicted_rank else ""
        axes.set_title(rank + names[row.spec], color=color, fontsize=7, pad=3)
        lowest = i + columns >= len(rows)
        axes.tick_params(labelsize=6.5, labelleft=i % columns == 0, labelbottom=lowest)
        if lowest:
            axes.set_xlabel(across, fontsize=7)
        if i % columns == 0:
            axes.set_ylabel(down, fontsize=7)
        axes.grid()
        made.append(axes)
    return made


def _keys(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(
        handles=handles, loc="upper left", ncols=len(handles), handlelength=1.8, borderaxespad=0,
        bbox_to_anchor=(0.0, 1 - 0.06 / figure.get_size_inches()[1]), columnspacing=1.3,
        handletextpad=0.5,
    )  # fmt: skip


def _top(values: Sequence[Real]) -> float:
    return max([float(v) for v in values if text.is_number(v)] + [0.02]) * 1.08


def _others(axes: Axes, lines: Sequence[tuple[TrainedEncoder, Line]], row: TrainedEncoder) -> None:
    """The trained encoders but this one, faint behind it."""
    for other, (xs, ys) in lines:
        if other is not row and not other.control:
            axes.plot(xs, ys, color=PALE, linewidth=0.6, zorder=1)


OTHERS = PlotStyle(PALE, "", "")


# ------------------------------------------------------------------------------------ steps


def draw_steps(c: Confirmation) -> Drawing | str:
    """GenEval over the number of sampling steps, seen and held-out combinations."""
    rows = [row for row in c.rows if any(c.entry(row, s) for s in c.steps)]
    if not rows or len(c.steps) < 2:
        return "It takes scores at two numbers of steps to see how they depend on it."
    tier = c.primary.tier
    held = next((g for g in c.groups if g[0] == tier and g[1] != c.primary.combos), None)
    lines = [(row, _by_steps(c, row, c.primary.group)[0]) for row in rows]
    tops = [v for row in rows for s in c.steps for v in (c.entry(row, s) or {}).values()
            if text.is_number(v) and v <= 1]  # fmt: skip
    with canvas(_height(len(rows))) as figure:
        plots = _plots(figure, c, rows, "sampling steps", "GenEval")
        for axes, row in zip(plots, rows, strict=True):
            _others(axes, lines, row)
            if held:
                (xs, ys), _, _ = _by_steps(c, row, held)
                axes.plot(xs, ys, color=ORANGE, linewidth=1.1, linestyle="--", marker="o",
                          markersize=2)  # fmt: skip
            (xs, ys), low, high = _by_steps(c, row, c.primary.group)
            axes.fill_between(xs, low, high, color=BLUE, alpha=0.2, linewidth=0)
            axes.plot(xs, ys, color=BLUE, linewidth=1.6, marker="o", markersize=3)
            parent: Any = row.parent.get(c.verdict.primary) or {}
            if text.is_number(parent.get("value")):
                axes.plot(
                    [c.primary.steps],
                    [parent["value"]],
                    marker="s",
                    color=INK,
                    markersize=3.5,
                    markerfacecolor="white",
                    linestyle="none",
                    zorder=5,
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(c.steps, [str(s) for s in c.steps])
            axes.set_xlim(c.steps[0] / 1.25, c.steps[-1] * 1.25)
            axes.set_ylim(0, _top(tops))
        handles = [key("seen combinations", PlotStyle(BLUE, "o", BLUE, 3), linestyle="-")]
        if held:
            handles.append(key("held out", PlotStyle(ORANGE, "o", ORANGE, 2), linestyle="--"))
        if any(row.parent.get(c.verdict.primary) for row in rows):
            handles.append(key("parent, plain flow matching", PlotStyle(INK, "s", "white", 3.5)))
        handles.append(key("other encoders", OTHERS))
        _keys(figure, handles)
        return finish(
            figure,
            "confirm-steps",
            "GenEval by number of steps",
            f"Tier {text.clean_text(tier)} of the prompts, the same noise for every encoder. "
            "Bands: "
            "95 % intervals over prompts and seeds. The parent is the checkpoint at the switch "
            "from flow matching to MeanFlow, sampled as plain flow matching: what MeanFlow "
            "training started from. Held-out combinations of shape and color were in no training "
            "image.",
            f"Small line plots of GenEval over {text.listing(map(str, c.steps), 9)} steps: "
            + "; ".join(
                f"{c.name(row.spec)} {text.number(ys[0])} to {text.number(ys[-1])}"
                for row, (_, ys) in lines
                if ys
            )
            + ".",
        )


def _by_steps(
    c: Confirmation, row: TrainedEncoder, group: Group
) -> tuple[Line, list[float], list[float]]:
    """Steps and scores, and the ends of the intervals (the score where one is missing)."""
    found = [(s, c.entry(row, s, group)) for s in c.steps]
    there = [(float(s), e) for s, e in found if e]
    values = [float(e["value"]) for _, e in there]
    low, high = (
        [
            float(e[end]) if text.is_number(e.get(end)) else v
            for (_, e), v in zip(there, values, strict=True)
        ]
        for end in ("low", "high")
    )
    return ([s for s, _ in there], values), low, high


# --------------------------------------------------------------------------------- training


def draw_training(c: Confirmation) -> Drawing | str:
    """GenEval through training, the switch from flow matching to MeanFlow marked."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    found = [(row, _points(row.curve, "step")) for row in c.rows]
    drawn = [(row, line) for row, line in found if line[0]]
    if not drawn:
        return "No training was scored on its way."
    rows = [row for row, _ in drawn]
    switch = _switch(c, rows)
    last = max(line[0][-1] for _, line in drawn)
    with canvas(_height(len(rows))) as figure:
        plots = _plots(figure, c, rows, "training step", f"GenEval, {c.primary.steps} steps")
        for axes, (row, (xs, ys)) in zip(plots, drawn, strict=True):
            _others(axes, drawn, row)
            if switch is not None:
                axes.axvline(switch, color=GRAY, linewidth=0.9, linestyle=":", zorder=1)
            before = [i for i, x in enumerate(xs) if switch is not None and x <= switch]
            axes.plot(xs, ys, color=BLUE, linewidth=1.2, zorder=2)
            for places, color in (
                (before, ORANGE),
                ([i for i in range(len(xs)) if i not in before], BLUE),
            ):
                axes.plot([xs[i] for i in places], [ys[i] for i in places], color=color,
                          marker="o", markersize=3.2, linestyle="none", zorder=3)  # fmt: skip
            if before:
                axes.plot([xs[i] for i in before], [ys[i] for i in before], color=ORANGE,
                          linewidth=1.4, zorder=3)  # fmt: skip
            axes.set_xlim(0, last * 1.05)
            axes.set_ylim(0, _top([y for _, line in drawn for y in line[1]]))
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text.quantity(x)))
        _keys(
            figure,
            [
                key("flow matching", PlotStyle(ORANGE, "o", ORANGE, 3.2), linestyle="-"),
                key("MeanFlow", PlotStyle(BLUE, "o", BLUE, 3.2), linestyle="-"),
                *(
                    [key("switch", PlotStyle(GRAY, "", ""), linestyle=":")]
                    if switch is not None
                    else []
                ),
                key("other encoders", OTHERS),
            ],
        )
        return finish(
            figure,
            "confirm-training",
            "GenEval through training",
            f"The mean over seeds at {c.primary.steps} steps, tier "
            f"{text.clean_text(c.primary.tier)}; on "
            "the way fewer images a prompt than in the end, so single points are noisy. Until the "
            "switch the network learns the instantaneous velocity and is sampled as plain flow "
            "matching; after it, the average one.",
            "Small line plots of GenEval over training steps: "
            + "; ".join(
                f"{c.name(row.spec)} {text.number(ys[0])} to {text.number(ys[-1])}"
                for row, (_, ys) in drawn
            )
            + ".",
        )


def _switch(c: Confirmation, rows: Sequence[TrainedEncoder]) -> float | None:
    """The last step of flow matching: as planned, else the last one that was scored."""
    train: dict[str, Any] = c.verdict.plan.get("train") or {}
    share, steps = train.get("flow_matching"), train.get("steps")
    if text.is_number(share) and text.is_number(steps):
        return float(round(share * steps))
    known = [
        float(point["step"])
        for row in rows
        for point in row.curve
        if point.get("stage") == "flow-matching" and text.is_number(point.get("step"))
    ]
    return max(known, default=None)


def _points(series: Sequence[Any], across: str) -> Line:
    """A series' numbers in order, points without them left out."""
    there = sorted(
        (float(point[across]), float(point["value"]))
        for point in series
        if text.is_number(point.get(across)) and text.is_number(point.get("value"))
    )
    return [x for x, _ in there], [y for _, y in there]


# -------------------------------------------------------------------------------------- gap


def draw_gap(c: Confirmation) -> Drawing | str:
    """How far average and instantaneous velocity part, over t."""
    found = [(row, _points(row.gap, "t")) for row in c.rows]
    drawn = [(row, line) for row, line in found if line[0]]
    if not drawn:
        return "No training recorded how far average and instantaneous velocity part."
    rows = [row for row, _ in drawn]
    with canvas(_height(len(rows))) as figure:
        plots = _plots(figure, c, rows, "t (0 data, 1 noise)", "|u − v| / |v|")
        for axes, (row, (xs, ys)) in zip(plots, drawn, strict=True):
            _others(axes, drawn, row)
            axes.plot(xs, ys, color=GREEN, linewidth=1.6, marker="o", markersize=2.5)
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_ylim(0, _top([y for _, line in drawn for y in line[1]]))
        _keys(
            figure,
            [
                key("this encoder", PlotStyle(GREEN, "o", GREEN, 2.5), linestyle="-"),
                key("other encoders", OTHERS),
            ],
        )
        return finish(
            figure,
            "confirm-gap",
            "Average against instantaneous velocity",
            "How far the average velocity u over an interval lies from the instantaneous v at its "
            "noisy end, relative to v, by t: the mean over the last quarter of training and over "
            "seeds. Where the two part, many small steps and one large one lead to different "
            "places, and few-step sampling has something to learn. It is a quantity to look at, "
            "not a verdict.",
            "Small line plots of |u − v| / |v| over t, at the largest t: "
            + "; ".join(f"{c.name(row.spec)} {text.number(ys[-1], 2)}" for row, (_, ys) in drawn)
            + ".",
        )


CURVES = (draw_steps, draw_training, draw_gap)
