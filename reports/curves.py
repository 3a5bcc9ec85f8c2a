"""Figures with a small plot for each encoder, and the grid of layers and poolings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encbench.files import slug
from encbench.records import Ranked

from . import text
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
    name_width,
)
from .load import Run
from .text import Real

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Mapping[str, Any]
COLUMNS = 4


def _with_series(run: Run, probe: str, name: str, kind: type) -> list[tuple[Ranked, Any]]:
    """The encoders that have a series of this kind, in the order of the grids."""
    found = []
    for row in run.plotted:
        record = run.record(row.spec, probe)
        series = record.series.get(name) if record else None
        if series and isinstance(series, kind):
            found.append((row, series))
    return found


def _grid(figure: Figure, run: Run, rows: Sequence[Ranked], top: Real, each: Real) -> list[Axes]:
    """One small plot for each encoder, named; scales are shown on the outer ones only."""
    names = text.short_names({row.spec: row.name for row in rows}, 22)
    columns = min(COLUMNS, len(rows))
    width = (WIDTH - 0.45 - 0.05) / COLUMNS
    made = []
    for i, row in enumerate(rows):
        left, above = 0.45 + (i % columns) * width, top + 0.2 + (i // columns) * (each + 0.3)
        axes = add_axes(figure, left, above, width - 0.14, each)
        color = VERMILION if row.control else INK
        rank = f"{row.rank}  " if row.rank else ""
        axes.set_title(rank + names[row.spec], color=color, fontsize=7, pad=3)
        axes.tick_params(labelsize=6.5, labelleft=i % columns == 0)
        axes.tick_params(labelbottom=i + columns >= len(rows))
        axes.grid()
        made.append(axes)
    return made


def _grid_height(count: int, each: Real) -> float:
    return -(-count // min(COLUMNS, count)) * (each + 0.3) + 0.2


def _keys(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(
        handles=handles, loc="upper left", ncols=len(handles), handlelength=1.8, borderaxespad=0,
        bbox_to_anchor=(0.0, 1 - 0.06 / figure.get_size_inches()[1]), columnspacing=1.3,
        handletextpad=0.5,
    )  # fmt: skip


def _line(curves: Sequence[Any], unit: str, place: str) -> Curve | None:
    for curve in curves:
        if (
            isinstance(curve, Mapping)
            and (curve.get("unit"), curve.get("place")) == (unit, place)
            and curve.get("shares")
        ):
            return curve
    return None


def _values(curve: Curve, name: str) -> list[float]:
    """A column of a curve as floats, NaN where it has nothing."""
    column = list(curve.get(name) or [])
    column += [None] * (len(curve["shares"]) - len(column))
    return [float(x) if text.is_number(x) else float("nan") for x in column]


# ------------------------------------------------------------------------------- ablation


def draw_ablation(run: Run) -> Drawing | str:
    """Similarity to the shortened prompt over the share of words removed."""
    found = _with_series(run, "ablation", "curves", list)
    lines = [(row, _line(curves, "words", "anywhere")) for row, curves in found]
    drawn = [(row, line) for row, line in lines if line is not None]
    if not drawn:
        return "No encoder has ablation curves."
    each = 1.05
    with canvas(0.3 + _grid_height(len(drawn), each)) as figure:
        grid = _grid(figure, run, [row for row, _ in drawn], 0.28, each)
        for axes, (row, line) in zip(grid, drawn, strict=True):
            for other, curve in drawn:
                if other.spec != row.spec and not other.control:
                    faint = _values(curve, "calibrated")
                    axes.plot(curve["shares"], faint, color=PALE, linewidth=0.6)
            shares = line["shares"]
            band = (_values(line, "low"), _values(line, "high"))
            axes.fill_between(shares, *band, color=BLUE, alpha=0.2, linewidth=0)
            axes.plot(shares, _values(line, "baseline"), color=GRAY, linewidth=0.9, linestyle=":")
            axes.plot(shares, _values(line, "cosine"), color=BLUE, linewidth=1.1, linestyle="--")
            axes.plot(shares, _values(line, "calibrated"), color=GREEN, linewidth=1.6)
            axes.set_xlim(0, 1)
            axes.set_ylim(-0.05, 1.05)
            axes.set_xticks([0.1, 0.5, 0.9], ["10 %", "50 %", "90 %"])
            axes.set_yticks([0, 0.5, 1])
        _keys(
            figure,
            [
                key("calibrated", PlotStyle(GREEN, "", ""), linewidth=1.6),
                key("cosine, as published", PlotStyle(BLUE, "", ""), linewidth=1.1, linestyle="--"),
                key("random pairs", PlotStyle(GRAY, "", ""), linewidth=0.9, linestyle=":"),
                key("calibrated, other candidates", PlotStyle(PALE, "", ""), linewidth=0.9),
            ],
        )
        return finish(
            figure,
            "ablation",
            "Prompt ablation",
            "Similarity of a prompt to itself shortened, over the share of words removed anywhere. "
            "The published score is the dashed line (band: 95 % interval); calibrated, it is what "
            "lies above random pairs. An encoder that stays high on the right does not notice "
            "that the prompt is gone."
            + (
                " Shuffles are left out here."
                if len(run.plotted) < len(run.prediction.order)
                else ""
            ),
            "Small line plots, calibrated similarity at the largest share removed: "
            + "; ".join(
                f"{text.clean_text(row.name)} {text.number(_values(line, 'calibrated')[-1])}"
                for row, line in drawn
            )
            + ".",
        )


PLACES = (
    ("words", "start", PlotStyle(ORANGE, "<", ORANGE, 5)),
    ("words", "end", PlotStyle(GREEN, ">", GREEN, 5)),
    ("words", "anywhere", PlotStyle(BLUE, "o", BLUE, 4)),
    ("sentences", "anywhere", PlotStyle(INK, "s", "none", 4.5)),
    ("sentences", "start", PlotStyle(ORANGE, "<", "white", 5)),
    ("sentences", "end", PlotStyle(GREEN, ">", "white", 5)),
)


def draw_places(run: Run) -> Drawing | str:
    """What it matters where, and in what pieces, half of the prompt is removed."""
    found = _with_series(run, "ablation", "curves", list)
    points: list[tuple[int, float, PlotStyle, str]] = []
    rows: list[Ranked] = []
    for row, curves in found:
        here = []
        for unit, place, mark in PLACES:
            line = _line(curves, unit, place)
            if line is None:
                continue
            at = min(range(len(line["shares"])), key=lambda i: abs(line["shares"][i] - 0.5))
            if abs(line["shares"][at] - 0.5) < 0.15:
                label = f"{unit}, {place if place == 'anywhere' else 'from the ' + place}"
                here.append((len(rows), _values(line, "calibrated")[at], mark, label))
        if here:
            rows.append(row)
            points += here
    kinds = {label: mark for _, _, mark, label in points}
    if len(kinds) < 2:
        return "Prompts were shortened in one way only, so ways cannot be compared."
    names = text.short_names({row.spec: row.name for row in rows}, 34)
    height = 0.2 * len(rows)
    left = 0.2 + name_width(names.values())
    with canvas(height + 0.85) as figure:
        axes = add_axes(figure, left, 0.36, WIDTH - left - 0.1, height)
        for y, value, mark, _ in points:
            axes.plot(
                [value], [y], marker=mark.marker, color=mark.color, markerfacecolor=mark.fill,
                markersize=mark.size, linestyle="none", alpha=0.9,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [names[row.spec] for row in rows])
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_color(VERMILION if row.control else INK)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid()
        axes.set_xlabel("calibrated similarity with half of the prompt removed")
        _keys(figure, [key(label, mark) for label, mark in kinds.items()])
        return finish(
            figure,
            "ablation-places",
            "What is removed, and where",
            "Calibrated similarity with half of the prompt removed: words or whole sentences, "
            "anywhere, from the start or from the end. Marks far apart show an encoder that reads "
            "one part of the prompt more than another, or does not read its end at all.",
            f"Dot plot of calibrated similarity for {len(rows)} encoders under: "
            + "; ".join(kinds)
            + ".",
        )


# ----------------------------------------------------------------------------- similarity


def draw_similarities(run: Run) -> list[Drawing]:
    """For each probe that has them: cosines of texts that belong together, and of random ones."""
    words = {
        "retrieval": ("Captions", "captions of the same image", "random captions"),
        "ablation": ("Prompts", "a prompt and itself shortened by half", "two random prompts"),
    }
    made = []
    for probe in run.probes:
        what, own, random = words.get(probe, (probe, "own", "random"))
        found = [
            (row, series)
            for row, series in _with_series(run, probe, "similarity", dict)
            if _is_histogram(series)
        ]
        if found:
            made.append(_similarity(run, probe, what, own, random, found))
    return made


def _filled(counts: Sequence[Real]) -> tuple[int, int]:
    """Where a histogram begins and ends, empty bins at both sides left out."""
    at = [i for i, count in enumerate(counts) if count > 0]
    return (at[0], at[-1] + 1) if at else (0, len(counts))


def _is_histogram(series: Mapping[str, Any]) -> bool:
    size = len(series.get("edges") or ()) - 1
    return size > 0 and all(
        len(series.get(name) or ()) == size and all(text.is_number(x) for x in series[name])
        for name in ("own", "random")
    )


def _similarity(
    run: Run,
    probe: str,
    what: str,
    own: str,
    random: str,
    found: Sequence[tuple[Ranked, Mapping[str, Any]]],
) -> Drawing:
    from matplotlib.ticker import MaxNLocator

    edges = [float(x) for _, s in found for x in s["edges"]]
    filled = [
        float(end)
        for _, s in found
        for a, b, x, y in zip(s["edges"], s["edges"][1:], s["own"], s["random"], strict=False)
        for end in (a, b)
        if max(x, y) > 0
    ]
    low, high = min(filled or edges), max(filled or edges)
    each = 0.8
    with canvas(0.3 + _grid_height(len(found), each)) as figure:
        grid = _grid(figure, run, [row for row, _ in found], 0.28, each)
        for axes, (_, series) in zip(grid, found, strict=True):
            for name, color in (("random", GRAY), ("own", BLUE)):
                first, last = _filled(series[name])
                top = max(series[name]) or 1  # by shape: one bin of a constant dwarfs the rest
                height = [x / top for x in series[name][first:last]]
                ends = series["edges"][first : last + 1]
                axes.stairs(height, ends, fill=True, color=color, alpha=0.35)
                axes.stairs(height, ends, color=color, linewidth=0.9)
            axes.set_xlim(low - 0.02, high + 0.02)
            axes.set_ylim(0, 1.08)
            axes.set_yticks([])
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.spines["left"].set_visible(False)
        _keys(
            figure,
            [
                key(own, PlotStyle(BLUE, "s", BLUE, 5)),
                key(random, PlotStyle(GRAY, "s", PALE, 5)),
            ],
        )
        return finish(
            figure,
            f"similarity-{slug(probe)}",
            f"{what}: similarity of texts that belong together",
            f"Cosines between {own} (blue) and between {random} (gray), each scaled to its own "
            "peak. Two humps apart are what retrieval needs; where the gray one stands far from 0, "
            "raw cosines cannot be compared with another encoder's.",
            f"Histograms of cosines for {len(found)} encoders: {own} against {random}.",
        )


# ---------------------------------------------------------------------------- sensitivity


def draw_sensitivity(run: Run) -> Drawing | str:
    """Ranks under each layer and pooling, with the places that change marked."""
    from matplotlib.patches import Rectangle

    variants = run.prediction.sensitivity
    if len(run.candidates) < 2:
        return "It takes two candidates to see whether their order depends on layer and pooling."
    if not variants:
        return (
            "Only one layer and pooling was measured for each encoder, so how far the order "
            "depends on them is unknown."
        )
    rows = [r.spec for r in run.candidates]
    names = text.short_names({r.spec: r.name for r in run.candidates}, 36)
    columns: list[tuple[str, dict[str, int], set[str], set[str]]] = [
        ("as ranked", {spec: i for i, spec in enumerate(rows, 1)}, set(), set())
    ]
    for v in variants:
        label = f"{text.clean_text(v.layer)} / {text.clean_text(v.pooling)}"
        clear = {spec for pair in v.clear_flips for spec in pair}
        some = {spec for pair in v.flips for spec in pair} - clear
        columns.append((label, {s: i for i, s in enumerate(v.order, 1)}, clear, some))
    left, top = 0.2 + name_width(names.values()), 0.95
    cell, high = min(0.62, (WIDTH - left - 0.7) / len(columns)), 0.22
    with canvas(top + high * len(rows) + 0.1) as figure:
        axes = add_axes(figure, left, top, cell * len(columns), high * len(rows))
        for x, (label, places, clear, some) in enumerate(columns):
            for y, spec in enumerate(rows):
                place = places.get(spec)
                if place is None:
                    axes.text(x, y, text.NOTHING, ha="center", va="center", color=GRAY)
                    continue
                shade = 1 - (place - 1) / max(len(rows) - 1, 1)
                color = _blue(0.06 + 0.74 * shade)
                axes.add_patch(
                    Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white")
                )
                ink = "white" if shade > 0.75 else INK
                axes.text(
                    x, y, str(place), ha="center", va="center", color=ink, fontsize=7.5,
                    fontweight="bold" if spec in clear else "normal",
                )  # fmt: skip
                if spec in clear or spec in some:
                    axes.add_patch(
                        Rectangle(
                            (x - 0.42, y - 0.39), 0.84, 0.78, facecolor="none",
                            edgecolor=VERMILION if spec in clear else ORANGE,
                            linewidth=1.5 if spec in clear else 0.9,
                            linestyle="-" if spec in clear else (0, (2, 1.5)),
                        )
                    )  # fmt: skip
            axes.text(
                x, -0.65, text.shorten(label, 26), rotation=35, ha="left", va="bottom", fontsize=7,
                rotation_mode="anchor",
            )  # fmt: skip
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [names[spec] for spec in rows])
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        flipped = sum(bool(v.flips) for v in variants)
        return finish(
            figure,
            "sensitivity",
            "Sensitivity to layer and pooling",
            "Rank of each candidate by the primary rule under each layer / pooling; 'as ranked' "
            "stands for the encoder's own. A solid frame: this encoder has changed places with "
            "another, and their paired interval excludes zero there; a dashed one: within the "
            "interval.",
            f"Heat map of ranks under {len(variants)} combinations of layer and pooling; the order "
            f"changes in {flipped} of them.",
        )


def _blue(depth: Real) -> tuple[float, float, float]:
    """From white (0) to our blue (1)."""
    return (1 - depth * 1.0, 1 - depth * (1 - 0x72 / 255), 1 - depth * (1 - 0xB2 / 255))


FIGURES = (draw_ablation, draw_places, draw_sensitivity)
