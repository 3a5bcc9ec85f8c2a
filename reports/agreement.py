"""The figure of a validation: scores from before training against trained outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from encbench.types import Estimate

from . import text
from .figures import (
    BLUE,
    CONTROL,
    DARK,
    WIDTH,
    Drawing,
    PlotStyle,
    ReportFigure,
    add_axes,
    canvas,
    draw_point,
    finish,
    legend,
    set_limits,
)
from .svg import hover

if TYPE_CHECKING:
    from encbench.validate import Validation

COLUMNS, MOST = 4, 24
MARKERS = "osv^P*"


def draw_agreement(found: Validation) -> Drawing:
    """One panel for each score, best first, :data:`MOST` at most: across the score with its 95 %
    interval, up the outcome with the range of its seeds; points are numbered by encoder."""
    rows = found.rows[:MOST]
    strata = sorted({row.stratum for row in found.encoders if not row.control})
    styles = {
        name: PlotStyle(DARK, MARKERS[place % len(MARKERS)], size=4)
        for place, name in enumerate(strata)
    }
    numbers = {row.spec: number for number, row in enumerate(found.encoders, 1)}
    outcomes = [score for row in found.encoders for score in row.scores]
    each, above = (WIDTH - 0.5) / COLUMNS, 0.4
    with canvas(0.35 + -(-len(rows) // COLUMNS) * (each + above)) as figure:
        for place, row in enumerate(rows):
            left = 0.5 + (place % COLUMNS) * each
            top = 0.55 + (place // COLUMNS) * (each + above)
            axes = add_axes(figure, left, top, each - 0.14, each - 0.14)
            values = found.scores[row.name]
            here = [encoder for encoder in found.encoders if encoder.spec in values]
            for encoder in here:
                score = values[encoder.spec]
                style = CONTROL if encoder.control else styles[encoder.stratum]
                seeds = Estimate(encoder.mean, min(encoder.scores), max(encoder.scores))
                facts = (
                    f"score {text.format_score(score)}",
                    f"outcome {text.number(encoder.mean)}",
                )
                draw_point(
                    axes, style, score.value, encoder.mean, across=score, down=seeds, width=0.5,
                    words=hover(encoder.spec, *facts),
                )  # fmt: skip
                axes.annotate(
                    str(numbers[encoder.spec]), (score.value, encoder.mean), fontsize=4.5,
                    xytext=(2.5, 2.5), textcoords="offset points", color=DARK,
                )  # fmt: skip
            ends = [x for e in here for x in (values[e.spec].low, values[e.spec].high)]
            set_limits(axes, "x", ends)
            set_limits(axes, "y", outcomes)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.tick_params(labelsize=5.5, labelleft=place % COLUMNS == 0)
            title = f"{text.shorten(row.name, 34)}\n{row.pooled.value:.2f} "
            title += f"({row.pooled.low:.2f} to {row.pooled.high:.2f})"
            axes.set_title(title, fontsize=6, color=BLUE if place == 0 else DARK, pad=3)
            axes.grid()
        keys = {name or "encoders": style for name, style in styles.items()}
        if any(row.control for row in found.encoders):
            keys["controls"] = CONTROL
        legend(figure, keys)
        key = "; ".join(f"{number} {spec}" for spec, number in numbers.items())
        caption = (
            f"Outcome (vertical, with the range of its seeds) against each score from before "
            f"training (horizontal, with its 95 % interval), {len(rows)} of {len(found.rows)} "
            f"scores, best first; above each its Spearman correlation. Encoders: {key}."
        )
        alt = "Scatter plots of outcomes against scores: " + "; ".join(
            f"{row.name} {row.pooled.value:.2f}" for row in rows
        )
        return finish(figure, caption, f"{alt}.")


AGREEMENT = ReportFigure(
    "Validation", "Outcomes against scores from before training", draw_agreement, needs="validation"
)
