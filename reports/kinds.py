"""Figures of the two probes that ask what a prompt says: by kind, by attribute, by stage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from encbench.records import Ranked

from . import text
from .figures import (
    BLUE,
    GRAY,
    GREEN,
    INK,
    ORANGE,
    SKY,
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

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (
    "color-swapped", "count-swapped", "order-swapped", "color-replaced", "count-replaced",
    "relation-replaced",
)  # fmt: skip
ATTRIBUTES = ("objects", "colors", "count", "relation", "binding")
STAGED = (
    ("retrieval", "scaled@2"), ("ablation", "calibrated"), ("minimal-pairs", "scaled"),
    ("decodability", "tokens"),
)  # fmt: skip
POOLED, TOKENS = PlotStyle(ORANGE, "o", "white", 4), PlotStyle(BLUE, "s", BLUE, 4)

Series = Sequence[tuple[str, str, PlotStyle]]  # panel, score, mark


def draw_minimal_pairs(run: Run) -> Drawing | str:
    """How often a paraphrase is nearer than a swap, a panel for each kind."""
    series = [(kind, f"accuracy/{kind}", PlotStyle(BLUE, "o", BLUE, 4)) for kind in KINDS]
    return _panels(
        run,
        "minimal-pairs",
        series,
        0.5,
        "minimal-pairs",
        "Minimal pairs by kind",
        "How often a paraphrase of a prompt is nearer to it than the same wording of another "
        "meaning, with 95 % intervals. The line at .5 is chance, and what a bag of words has "
        "where things are exchanged, since the words are the same.",
        "No encoder has minimal pairs.",
    )


def draw_decodability(run: Run) -> Drawing | str:
    """What a linear read-out recovers, a panel for each attribute, pooled against tokens."""
    series = [
        (attribute, f"{attribute}/{view}", look)
        for attribute in ATTRIBUTES
        for view, look in (("pooled", POOLED), ("tokens", TOKENS))
    ]
    return _panels(
        run,
        "decodability",
        series,
        0.0,
        "decodability",
        "What a linear read-out recovers",
        "0 is what is most frequent, 1 everything, with 95 % intervals: from the pooled vector, "
        "and from the tokens. Binding is which color goes with which object.",
        "No encoder was read out.",
        [key("from the pooled vector", POOLED), key("from the tokens", TOKENS)],
    )


def _panels(
    run: Run,
    probe: str,
    series: Series,
    chance: float,
    name: str,
    title: str,
    caption: str,
    nothing: str,
    handles: Sequence[Any] = (),
) -> Drawing | str:
    """Encoders down, a panel for each kind across, dots with their intervals."""
    rows = [
        row
        for row in run.plotted
        if any(run.score(row.spec, probe, score) for _, score, _ in series)
    ]
    if not rows:
        return nothing
    names = text.short_names({row.spec: row.name for row in rows}, 26)
    panels = list(dict.fromkeys(panel for panel, _, _ in series))
    left, height = 0.2 + name_width(names.values()), 0.17 * len(rows)
    width = (WIDTH - left - 0.1) / len(panels)
    with canvas(height + 0.95) as figure:
        for place, panel in enumerate(panels):
            axes = add_axes(figure, left + place * width, 0.55, width - 0.12, height)
            axes.set_title(panel.replace("-", "\n"), fontsize=7, pad=3)
            mine = [(score, look) for at, score, look in series if at == panel]
            for y, row in enumerate(rows):
                for number, (score, look) in enumerate(mine):
                    entry = run.score(row.spec, probe, score)
                    if not entry:
                        continue
                    at = y + 0.24 * (number - (len(mine) - 1) / 2)
                    color = VERMILION if row.control else look.color
                    axes.plot([entry["low"], entry["high"]], [at, at], color=color, linewidth=1.1)
                    axes.plot(
                        [entry["value"]], [at], marker=look.marker, color=color, linestyle="none",
                        markerfacecolor="white" if look.fill == "white" else color,
                        markersize=look.size,
                    )  # fmt: skip
            axes.axvline(chance, color=GRAY, linewidth=0.7, linestyle=":")
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.set_xlim(min(-0.3, axes.get_xlim()[0]) if chance == 0 else -0.03, 1.05)
            axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
            axes.tick_params(labelsize=6.5)
            axes.grid(axis="x")
            _names(axes, rows, names, shown=place == 0)
        if handles:
            _legend(figure, handles)
        return finish(
            figure, name, title, caption,
            f"Dots with intervals for {len(rows)} encoders in {len(panels)} panels: "
            + ", ".join(panels) + ".",
        )  # fmt: skip


def _names(axes: Any, rows: Sequence[Ranked], names: dict[str, str], *, shown: bool) -> None:
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_yticks(range(len(rows)), [names[row.spec] if shown else "" for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(VERMILION if row.control else INK)


def _legend(figure: Figure, handles: Sequence[Any]) -> None:
    figure.legend(
        handles=handles, loc="upper left", ncols=len(handles), handlelength=1.6, borderaxespad=0,
        bbox_to_anchor=(0.0, 1 - 0.06 / figure.get_size_inches()[1]), columnspacing=1.3,
        handletextpad=0.5,
    )  # fmt: skip


# --------------------------------------------------------------------------------- stages


def stage_share(stage: str) -> float | None:
    """How far a stage of training is: 1 for 'final', .03 for '3pct'; None for anything else."""
    if stage == "final":
        return 1.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)pct", stage)
    return float(found[1]) / 100 if found else None


def trained(run: Run) -> dict[str, list[tuple[float, Ranked]]]:
    """Encoders that are there at several stages, by their spec without the step: (share of the
    training, row), earliest first."""
    found: dict[str, list[tuple[float, Ranked]]] = {}
    for row in run.candidates:
        done = stage_share(row.stage)
        if done is not None:
            base = re.sub(r"[?&]step=[^&]*", "", row.spec)
            found.setdefault(base, []).append((done, row))
    return {
        base: sorted(rows, key=lambda pair: pair[0])
        for base, rows in found.items()
        if len(rows) > 1
    }


def draw_stages(run: Run) -> Drawing | str:
    """Each probe's score over the stage of training, a line an encoder."""
    lines = trained(run)
    probes = [
        (probe, score)
        for probe, score in STAGED
        if any(run.score(row.spec, probe, score) for rows in lines.values() for _, row in rows)
    ]
    if not lines or not probes:
        return "No encoder is there at several stages of its training."
    looks = [
        PlotStyle(c, m, c, 4) for c, m in zip((BLUE, GREEN, ORANGE, SKY, INK), "osD^v", strict=True)
    ]
    width = (WIDTH - 0.4) / len(probes)
    with canvas(2.2) as figure:
        handles = []
        for place, (probe, score) in enumerate(probes):
            axes = add_axes(figure, 0.35 + place * width, 0.55, width - 0.25, 1.3)
            axes.set_title(f"{probe}\n{score}", fontsize=7, pad=3)
            for number, (base, rows) in enumerate(lines.items()):
                look = looks[number % len(looks)]
                points = [(x, run.score(row.spec, probe, score)) for x, row in rows]
                there = [(x, entry) for x, entry in points if entry]
                for x, entry in there:
                    axes.plot([x, x], [entry["low"], entry["high"]], color=look.color, linewidth=1)
                axes.plot(
                    [x for x, _ in there], [entry["value"] for _, entry in there],
                    color=look.color, marker=look.marker, markersize=look.size, linewidth=1.1,
                )  # fmt: skip
                if place == 0:
                    name = text.clean_text(base.partition(":")[2] or base)
                    handles.append(key(text.shorten(name, 24), look, linestyle="-", linewidth=1.1))
            axes.set_xscale("log")
            axes.set_xticks([0.03, 0.2, 1], ["3 %", "20 %", "100 %"])
            axes.tick_params(labelsize=6.5)
            axes.grid()
        _legend(figure, handles)
        return finish(
            figure,
            "stages",
            "Finished against early versions",
            "Score over the share of the training that is done, with 95 % intervals: what a probe "
            "rewards that grows with training, and what is there from the start.",
            f"Line plots of {len(probes)} scores over the stage of training of {len(lines)} "
            "encoders.",
        )


FIGURES = (draw_minimal_pairs, draw_decodability, draw_stages)
