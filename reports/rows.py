"""Figures with one line for each encoder: the ranking, scores of a probe, ways to shorten a
prompt, and ranks by layer and pooling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.patches import Rectangle

from encbench.types import ProbeSpec

from . import text
from .curves import curve_of, curve_values, rows_with_series
from .figures import (
    BLUE,
    GRAY,
    GREEN,
    INK,
    ORANGE,
    SHUFFLE,
    VERMILION,
    WIDTH,
    Drawing,
    PlotStyle,
    ReportFigure,
    add_axes,
    canvas,
    draw_point,
    finish,
    ink,
    label_rows,
    legend,
    name_width,
    ranked_keys,
    ranked_style,
)
from .load import Run
from .svg import hover
from .text import Real

MOST_PANELS = 6
PANEL_STYLES = (
    PlotStyle(ORANGE, "o", "white", 4), PlotStyle(BLUE, "s", size=4),
    PlotStyle(GREEN, "D", "white", 4), PlotStyle(INK, "^", size=4),
)  # fmt: skip


# --------------------------------------------------------------------------- the ranking


def draw_ranking(run: Run) -> Drawing | str:
    """Scores with their intervals, one line an encoder; an encoder's own shuffle on its line."""
    shuffles = {row.spec: run.own_shuffle(row.spec) for row in run.candidates}
    beside = {shuffle.spec for shuffle in shuffles.values() if shuffle}
    rows = [r for r in run.prediction.order if r.spec not in beside and text.is_number(r.value)]
    if not rows:
        return "Nothing was ranked."
    names = text.short_names({r.spec: r.name for r in rows}, 36)
    height = 0.2 * len(rows)
    with canvas(height + 1.1) as figure:
        left = 0.85 + name_width(names.values())
        width = WIDTH - left - 1.45
        axes = add_axes(figure, left, 0.52, width, height)
        inch = 1 / width

        def write(x: Real, y: Real, words: str, side: str, size: Real, color: str) -> None:
            place = axes.get_yaxis_transform()  # x in widths of the axes, y in rows
            axes.text(
                x, y, words, transform=place, va="center", ha=side, fontsize=size, color=color
            )

        for y, row in enumerate(rows):
            if shuffle := shuffles.get(row.spec):
                words = hover(f"own shuffle of {row.name}", text.format_score(shuffle.score))
                draw_point(
                    axes, SHUFFLE, shuffle.value, y, across=shuffle.score, width=1.4, words=words
                )
            words = hover(
                row.name, f"{run.score_name} {text.format_score(row.score)}", ranks_of(row)
            )
            draw_point(
                axes, ranked_style(run, row), row.value, y, across=row.score, width=1.4, words=words
            )
            color = ink(row)
            write(1 + 0.1 * inch, y, text.format_score(row.score), "left", 7, color)
            write(-0.72 * inch, y, names[row.spec], "right", 8, color)
            if not row.control:
                ranks = text.format_ranks(row.rank_low, row.rank_high)
                write(-0.58 * inch, y, text.count(row.rank), "center", 8, color)
                write(-0.22 * inch, y, ranks, "center", 7, color)
        write(1 + 0.1 * inch, -1, "score and interval", "left", 6.5, GRAY)
        write(-0.58 * inch, -1, "rank", "center", 6.5, GRAY)
        write(-0.22 * inch, -1, "95 %", "center", 6.5, GRAY)
        label_rows(axes, rows, {})
        axes.grid(axis="x")
        if axes.get_xlim()[0] < 0 < axes.get_xlim()[1]:
            axes.axvline(0, color=GRAY, linewidth=0.6, zorder=1)
        axes.text(
            1, -0.32 / height, score_title(run), transform=axes.transAxes, ha="right", va="top",
            fontsize=7,
        )  # fmt: skip
        legend(figure, ranked_keys(run) | ({"own shuffle": SHUFFLE} if beside else {}))
        return finish(
            figure,
            "Dots are scores by the primary rule, lines their 95 % bootstrap intervals. Numbers "
            "beside names are ranks among candidates; controls have none."
            + (" The pale diamond on a line is that encoder's own shuffle." if beside else ""),
            "Dot plot of scores with 95 % intervals, best first: "
            + "; ".join(f"{names[r.spec]} {text.number(r.value)}" for r in rows)
            + ".",
        )


def ranks_of(row: Any) -> str:
    """'rank 2, 95 % interval 1 to 3'."""
    if row.control:
        return "control, without a rank"
    ranks = text.format_ranks(row.rank_low, row.rank_high)
    return f"rank {text.count(row.rank)}, 95 % interval {ranks}"


def score_title(run: Run) -> str:
    """The primary score as the label of an axis."""
    probe, score = run.primary
    words = run.probes[probe].display.scores.get(score) if probe in run.probes else ""
    return f"{score}   ({words})" if words else f"{probe}: {score}"


# -------------------------------------------------------------------- scores of any probe


def draw_scores(run: Run, probe: ProbeSpec) -> Drawing | str:
    """A probe's scores with their intervals: encoders down, a panel for each score or group of
    scores across, as the probe's own display says."""
    display = probe.display
    panels: Mapping[str, Sequence[str]] = display.panels or {
        name: [name] for name in shown_scores(run, probe)[:MOST_PANELS]
    }
    names = [name for group in panels.values() for name in group]
    rows = [r for r in run.rows if any(run.score(r.spec, probe.name, name) for name in names)]
    if not rows:
        return f"No encoder has scores of {text.clean_text(probe.name)}."
    short = text.short_names({row.spec: row.name for row in rows}, 26)
    left, height = 0.2 + name_width(short.values()), 0.17 * len(rows)
    width = (WIDTH - left - 0.1) / len(panels)
    most = max(map(len, panels.values()))
    endings = {name: name.removeprefix(f"{panel}/") for panel in panels for name in panels[panel]}
    marks = dict.fromkeys(endings.values())
    looks = PANEL_STYLES if most > 1 else (PlotStyle(BLUE, "o", size=4),)
    styles = dict(zip(marks, looks * len(marks), strict=False))
    with canvas(height + 0.95) as figure:
        for place, (panel, group) in enumerate(panels.items()):
            axes = add_axes(figure, left + place * width, 0.55, width - 0.12, height)
            axes.set_title(text.clean_text(panel).replace("-", "\n", 1), fontsize=7, pad=3)
            for y, row in enumerate(rows):
                for number, name in enumerate(group):
                    if entry := run.score(row.spec, probe.name, name):
                        style = styles[endings[name]]
                        if row.control:
                            fill = "white" if style.fill else ""
                            style = PlotStyle(VERMILION, style.marker, fill, style.size)
                        at = y + 0.24 * (number - (len(group) - 1) / 2)
                        words = hover(row.name, f"{name} {text.format_score(entry)}")
                        draw_point(
                            axes, style, entry.value, at, across=entry, width=1.1, words=words
                        )
            _finish_panel(axes, display.chance)
            label_rows(axes, rows, short if place == 0 else {})
        legend(figure, styles if most > 1 else {})
        caption = display.caption or (
            f"Dots are scores, lines their 95 % intervals; {probe.direction} is better."
        )
        return finish(
            figure,
            caption,
            f"Dots with intervals for {len(rows)} encoders in {len(panels)} panels: "
            + ", ".join(map(text.clean_text, panels))
            + ".",
            title=f"{text.clean_text(probe.name)}: {text.clean_text(probe.title)}",
        )


def shown_scores(run: Run, probe: ProbeSpec) -> list[str]:
    """Names of the scores that a probe's table shows: the main one first, then those that its
    display names, or all where it names none."""
    records = [run.record(row.spec, probe.name) for row in run.prediction.order]
    names = {name: None for record in records if record for name in record.scores}
    wanted = (probe.main_metric, *(probe.display.scores or names))
    return [name for name in dict.fromkeys(wanted) if name in names]


def _finish_panel(axes: Any, chance: float | None) -> None:
    """Limits, ticks and the line of chance: for shares all from 0 to 1, else as they fall."""
    if chance is not None:
        axes.axvline(chance, color=GRAY, linewidth=0.7, linestyle=":")
    low, high = axes.get_xlim()
    if low >= -1 and high <= 1.1:
        axes.set_xlim(min(-0.03 if chance else -0.3, low), 1.05)
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    else:
        axes.locator_params(axis="x", nbins=3)
    axes.tick_params(labelsize=6.5)
    axes.grid(axis="x")


# ------------------------------------------------------------------ ways to shorten a prompt

PLACES = {
    ("words", "start"): PlotStyle(ORANGE, "<", size=5),
    ("words", "end"): PlotStyle(GREEN, ">", size=5),
    ("words", "anywhere"): PlotStyle(BLUE, "o", size=4),
    ("sentences", "anywhere"): PlotStyle(INK, "s", "none", size=4.5),
    ("sentences", "start"): PlotStyle(ORANGE, "<", "white", size=5),
    ("sentences", "end"): PlotStyle(GREEN, ">", "white", size=5),
}


def draw_places(run: Run) -> Drawing | str:
    """Scores by the place and the unit (words or sentences) of the removed half of the prompt."""
    values: dict[tuple[str, str, str], float] = {}
    pairs = rows_with_series(run, "ablation", "curves", list)
    for row, curves in pairs:
        for way in PLACES:
            if curve := curve_of(curves, *way):
                shares = [abs(share - 0.5) for share in curve["shares"]]
                if min(shares) < 0.15:
                    half = shares.index(min(shares))
                    values[row.spec, *way] = curve_values(curve, "calibrated")[half]
    ways = [way for way in PLACES if any(key[1:] == way for key in values)]
    if not pairs:
        return ""
    if len(ways) < 2:
        return "Prompts were shortened in one way only, so ways cannot be compared."
    rows = [row for row, _ in pairs if any(key[0] == row.spec for key in values)]
    names = text.short_names({row.spec: row.name for row in rows}, 34)
    height, left = 0.2 * len(rows), 0.2 + name_width(names.values())
    keys = {
        f"{unit}, {'from the ' * (at != 'anywhere')}{at}": PLACES[unit, at] for unit, at in ways
    }
    with canvas(height + 0.85) as figure:
        axes = add_axes(figure, left, 0.36, WIDTH - left - 0.1, height)
        for y, row in enumerate(rows):
            for label, way in zip(keys, ways, strict=True):
                if (value := values.get((row.spec, *way))) is not None:
                    words = hover(row.name, f"{label}: {text.number(value)}")
                    draw_point(axes, PLACES[way], value, y, words=words)
        label_rows(axes, rows, names)
        axes.grid()
        axes.set_xlabel("calibrated similarity with half of the prompt removed")
        legend(figure, keys)
        return finish(
            figure,
            "Calibrated similarity with half of the prompt removed: words or whole sentences, "
            "anywhere, from the start or from the end. Marks far apart show an encoder that reads "
            "one part of the prompt more than another, or does not read its end at all.",
            f"Dot plot of calibrated similarity for {len(rows)} encoders under: "
            + "; ".join(keys)
            + ".",
        )


# ---------------------------------------------------------------------------- sensitivity


def draw_sensitivity(run: Run) -> Drawing | str:
    """Ranks under each layer and pooling, with the places that change marked."""
    variants = run.prediction.sensitivity
    if len(run.candidates) < 2:
        return "It takes two candidates to see whether their order depends on layer and pooling."
    if not variants:
        return (
            "Only one layer and pooling was measured for each encoder, so how far the order "
            "depends on them is unknown."
        )
    rows, rule = run.candidates, variants[0].rule
    for other in run.prediction.others:
        if other.rule.name == rule:
            rows = tuple(row for row in other.order if not row.control)
    names = text.short_names({r.spec: r.name for r in rows}, 36)
    columns: list[tuple[str, Sequence[str], set[str], set[str]]] = [
        ("as ranked", [row.spec for row in rows], set(), set())
    ]
    for v in variants:
        clear = {spec for pair in v.clear_flips for spec in pair}
        some = {spec for pair in v.flips for spec in pair} - clear
        columns.append((f"{v.layer} / {v.pooling}", v.order, clear, some))
    left, top, high = 0.2 + name_width(names.values()), 0.95, 0.22
    cell = min(0.62, (WIDTH - left - 0.7) / len(columns))
    with canvas(top + high * len(rows) + 0.1) as figure:
        axes = add_axes(figure, left, top, cell * len(columns), high * len(rows))
        for x, (label, order, clear, some) in enumerate(columns):
            for y, row in enumerate(rows):
                if row.spec in order:
                    rank = order.index(row.spec) + 1
                    words = hover(row.name, label, f"rank {rank}")
                    changed = (row.spec in clear, row.spec in some)
                    _draw_rank(axes, x, y, rank, len(rows), *changed, words)
                else:
                    axes.text(x, y, text.NOTHING, ha="center", va="center", color=GRAY)
            axes.text(
                x, -0.65, text.shorten(text.clean_text(label), 26), rotation=35, ha="left",
                va="bottom", fontsize=7, rotation_mode="anchor",
            )  # fmt: skip
        label_rows(axes, rows, names)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        return finish(
            figure,
            f"Rank of each candidate by the {f'rule {rule}' if rule else 'primary rule'} under "
            "each layer / pooling; 'as ranked' stands for the encoder's own. A solid frame: this "
            "encoder has changed places with another, and their paired interval excludes zero "
            "there; a dashed one: within the interval.",
            f"Heat map of ranks under {len(variants)} combinations of layer and pooling; the order "
            f"changes in {sum(bool(v.flips) for v in variants)} of them.",
        )


def _draw_rank(
    axes: Any, x: int, y: int, rank: int, worst: int, clear: bool, some: bool,
    words: Mapping[str, Any],
) -> None:  # fmt: skip
    """A cell of the heat map: the better the rank the bluer, framed where it has changed."""
    shade = 1 - (rank - 1) / max(worst - 1, 1)
    depth = 0.06 + 0.74 * shade
    color = (1 - depth, 1 - depth * (1 - 0x72 / 255), 1 - depth * (1 - 0xB2 / 255))
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white", **words))
    axes.text(
        x, y, str(rank), ha="center", va="center", color="white" if shade > 0.75 else INK,
        fontsize=7.5, fontweight="bold" if clear else "normal", **words,
    )  # fmt: skip
    if clear or some:
        axes.add_patch(
            Rectangle(
                (x - 0.42, y - 0.39), 0.84, 0.78, facecolor="none",
                edgecolor=VERMILION if clear else ORANGE, linewidth=1.5 if clear else 0.9,
                linestyle="-" if clear else (0, (2, 1.5)),
            )
        )  # fmt: skip


RANKING = ReportFigure("Ranking", "Ranking with 95 % intervals", draw_ranking)
PLACES_FIGURE = ReportFigure(
    "Prompt ablation", "What is removed, and where", draw_places, probes=("ablation",)
)
SENSITIVITY = ReportFigure(
    "Sensitivity to layer and pooling", "Sensitivity to layer and pooling", draw_sensitivity
)
