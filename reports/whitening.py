"""The effect of whitening each encoder's features on the reader: scores and advice."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from encbench.records import Ranked
from encbench.types import Estimate

from . import text
from .figures import (
    BLUE,
    ORANGE,
    WIDTH,
    Drawing,
    PlotStyle,
    ReportFigure,
    add_axes,
    canvas,
    draw_point,
    finish,
    interval_ends,
    label_rows,
    legend,
    name_width,
)
from .load import Entry, Run
from .svg import hover

PROBES = ("reader", "reader-whitened")
SCORE, READABLE_ENTROPY = "everything", "readable-entropy"
STYLES = {"as it is": PlotStyle(BLUE, "o", size=4), "whitened": PlotStyle(ORANGE, "^", size=5)}


@dataclass(frozen=True)
class Change:
    """An encoder's scores as it is and whitened, and its place among the candidates: of all as
    they are, and if only its own features were whitened."""

    row: Ranked
    plain: Entry
    whitened: Entry
    place: int
    whitened_place: int

    @property
    def gain(self) -> Estimate:
        """The intervals are combined as if both scores were independent: they share their
        prompts, so this is rather too wide."""
        value = self.whitened.value - self.plain.value
        ends = [interval_ends(entry) or (math.nan, math.nan) for entry in self.entries]
        half = math.hypot(*((high - low) / 2 for low, high in ends))
        return Estimate(value, value - half, value + half)

    @property
    def entries(self) -> tuple[Entry, Entry]:
        return self.plain, self.whitened


def changes(run: Run) -> list[Change]:
    """Of each candidate that was read both ways, the best as it is first."""
    pairs = {}
    for row in run.candidates:
        plain, whitened = (run.score(row.spec, probe, SCORE) for probe in PROBES)
        if plain and whitened:
            pairs[row.spec] = (row, plain, whitened)
    values = {spec: plain.value for spec, (_, plain, _) in pairs.items()}

    def place(spec: str, value: float) -> int:
        return 1 + sum(other > value for name, other in values.items() if name != spec)

    found = [
        Change(row, plain, white, place(spec, plain.value), place(spec, white.value))
        for spec, (row, plain, white) in pairs.items()
    ]
    return sorted(found, key=lambda change: (change.place, change.row.spec))


def whitening_advice(run: Run) -> Iterator[str]:
    """The reader's first encoder as it is, the best whitened, and which would clearly gain."""
    found = changes(run)
    if len(found) < 2:
        return

    def named(change: Change) -> str:
        return run.brief.get(change.row.spec, text.clean_text(change.row.spec))

    def readable(change: Change) -> float:
        entry = run.score(change.row.spec, PROBES[0], READABLE_ENTROPY)
        return change.plain.value if entry is None else entry.value

    best = max(found, key=readable)  # as the rule reader has it, whatever this run ranks by
    white = max(found, key=lambda change: change.whitened.value)
    as_it_is = f"{named(best)} as it is ({text.number(best.plain.value)})"
    whitened = f"{named(white)} with whitened features ({text.number(white.whitened.value)}"
    if white.whitened.value > best.plain.value:
        yield (
            f"By the reader, use {as_it_is}, or {whitened}; train with --condition-scaling "
            "whitened)."
        )
    else:
        yield f"By the reader, use {as_it_is}; the best other choice would be {whitened})."
    gains = sorted((c for c in found if c.gain.low > 0), key=lambda change: -change.gain.value)
    if gains:
        listed = text.listing(
            f"{named(c)} (+{text.number(c.gain.value, 2)}, "
            + (f"from place {c.place} to {c.whitened_place})" if c.whitened_place < c.place else
               f"stays in place {c.place})")
            for c in gains
        )  # fmt: skip
        yield f"Whitened features would clearly help, by the reader: {listed}."
    losses = [c for c in found if c.gain.high < 0]
    if losses:
        yield (
            "Whitened features would clearly harm, by the reader: "
            + text.listing(f"{named(c)} ({text.number(c.gain.value, 2)})" for c in losses)
            + "."
        )


def draw_whitening(run: Run) -> Drawing | str:
    """Both scores of each candidate, joined by a line."""
    found = changes(run)
    if not found:
        return ""
    rows = [change.row for change in found]
    names = text.short_names({row.spec: row.name for row in rows}, 34)
    height, left = 0.22 * len(rows), 0.2 + name_width(names.values())
    with canvas(height + 0.85) as figure:
        axes = add_axes(figure, left, 0.36, WIDTH - left - 0.1, height)
        for y, change in enumerate(found):
            ends = [entry.value for entry in change.entries]
            axes.plot(ends, [y, y], color=ORANGE, linewidth=0.8, zorder=1)
            for (way, style), entry in zip(STYLES.items(), change.entries, strict=True):
                words = hover(change.row.name, f"{way}: {text.format_score(entry)}")
                draw_point(axes, style, entry.value, y, across=entry, width=1.1, words=words)
        label_rows(axes, rows, names)
        axes.grid(axis="x")
        axes.set_xlabel("share of prompts of which the reader gets everything right")
        legend(figure, STYLES)
        return finish(
            figure,
            "Each candidate read as it is and with features whitened by statistics of the "
            "captions, with 95 % intervals: what a short training would gain by "
            "--condition-scaling whitened.",
            "Dots joined by lines, as it is and whitened: "
            + "; ".join(
                f"{names[c.row.spec]} {text.number(c.plain.value)} and "
                f"{text.number(c.whitened.value)}"
                for c in found
            )
            + ".",
        )


WHITENING = ReportFigure(
    "Whitened features", "As it is, or whitened", draw_whitening, probes=("reader-whitened",)
)
