"""How figures look and how they are saved; and the first of them, the ranking.

A drawing function returns a :class:`Drawing`, or a sentence that says why there is none.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from encbench.records import Ranked

from . import text
from .load import Run, shuffled_spec
from .text import Real

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
WIDTH = 7.2  # inches; a page's text width
# Okabe and Ito's colors, which stay apart under all common color blindness.
BLUE, SKY, GREEN, ORANGE, VERMILION = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00"
INK, GRAY, PALE = "#333333", "#8a8a8a", "#d9d9d9"

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the same everywhere
    "font.size": 8,
    "text.parse_math": False,  # a $ in an encoder's name is a $
    "text.color": INK,
    "axes.edgecolor": GRAY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "grid.color": "#ececec",
    "grid.linewidth": 0.6,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "svg.fonttype": "path",
    "svg.hashsalt": "encbench",
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure, as files."""

    name: str
    title: str
    caption: str
    alt: str
    png: bytes
    svg: bytes


@contextmanager
def canvas(height: Real) -> Iterator[Figure]:
    """A figure of page width and this height in inches, drawn in our style, off screen."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = dict(mpl.rcParamsDefault)
    settings |= {**STYLE, "backend": mpl.rcParams["backend"]}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # an emoji in a name is drawn as a box
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        FigureCanvasAgg(figure)
        yield figure


def finish(figure: Figure, name: str, title: str, caption: str, alt: str) -> Drawing:
    """Save as PNG and SVG; the same figure gives the same bytes."""
    files = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
        files[kind] = buffer.getvalue()
    return Drawing(name, title, caption, alt, files["png"], files["svg"])


def add_axes(figure: Figure, left: Real, top: Real, width: Real, height: Real) -> Axes:
    """Axes at a place given in inches from the figure's upper left corner."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def name_width(names: Iterable[str]) -> float:
    """Inches that the widest of some names takes at the usual size."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(STYLE["font.family"], size=STYLE["font.size"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        widths = [text_to_path.get_text_width_height_descent(n, font, False)[0] for n in names]
    return max(widths, default=0.0) / 72


@dataclass(frozen=True)
class PlotStyle:
    """How one encoder's marks are drawn."""

    color: str
    marker: str
    fill: str
    size: Real = 6.0


FADED = PlotStyle("#e7a67c", "D", "white", 3)  # an encoder's own shuffle
PRINTED = PlotStyle(GRAY, "s", PALE, 5)  # a published value


def plot_style(run: Run, row: Ranked) -> PlotStyle:
    if shuffled_spec(row.spec) is not None:
        return FADED
    if row.control:
        return PlotStyle(VERMILION, "D", "white", 4.2)
    if row.spec == run.use:
        return PlotStyle(BLUE, "o", BLUE)
    if row.spec in run.tied:
        return PlotStyle(BLUE, "o", SKY)
    return PlotStyle("#4d4d4d", "o", "#4d4d4d")


def legend(figure: Figure, run: Run, top: Real, more: Sequence[Any] = ()) -> None:
    """One line that explains the marks that occur, ``top`` inches below the upper edge."""
    kinds: list[tuple[str, Ranked | None]] = [
        ("advised", next((r for r in run.candidates if r.spec == run.use), None)),
        ("tied with it", next((r for r in run.candidates if r.spec in run.tied), None)),
        (
            "other candidates" if run.use else "candidates",
            next((r for r in run.candidates if r.spec not in (run.use, *run.tied)), None),
        ),
        ("controls", next((r for r in run.controls if shuffled_spec(r.spec) is None), None)),
    ]
    handles: list[Any] = []
    for label, row in kinds:
        if row is not None:
            handles.append(key(label, plot_style(run, row), linestyle="-", linewidth=1))
    handles += more
    if handles:
        figure.legend(
            handles=handles, loc="upper left", ncols=len(handles), handlelength=1.6,
            bbox_to_anchor=(0.0, 1 - top / figure.get_size_inches()[1]), borderaxespad=0,
            columnspacing=1.3, handletextpad=0.5,
        )  # fmt: skip


def metric_title(run: Run) -> str:
    """What the primary score is, as an axis says it."""
    probe, metric = run.primary
    if metric.startswith("scaled@"):
        return f"{metric}   (0: random images, 1: the re-encoder's own nearest neighbors)"
    if metric.startswith("recall@"):
        return f"{metric}   (share of queries that find another caption of their image)"
    return f"{probe}: {metric}"


# --------------------------------------------------------------------------- the ranking


def draw_ranking(run: Run) -> Drawing | str:
    """Scores with their intervals, one line an encoder; an encoder's own shuffle on its line."""
    owned = {c.spec for row in run.candidates if (c := run.own_shuffle(row.spec))}
    rows = [r for r in run.prediction.order if r.spec not in owned and text.is_number(r.value)]
    if not rows:
        return "Nothing was ranked."
    names = text.short_names({r.spec: r.name for r in rows}, 36)
    height = 0.2 * len(rows)
    with canvas(height + 1.1) as figure:
        left = 0.85 + name_width(names.values())
        width = WIDTH - left - 1.45
        axes = add_axes(figure, left, 0.52, width, height)
        across = axes.get_yaxis_transform()  # x in widths of the axes, y in rows
        inch = 1 / width
        for y, row in enumerate(rows):
            other = run.own_shuffle(row.spec) if not row.control else None
            if other:
                _dot(axes, other.value, y, other.low, other.high, FADED)
            _dot(axes, row.value, y, row.low, row.high, plot_style(run, row))
            ranks = text.format_ranks(row.rank_low, row.rank_high)
            style: dict[str, Any] = {
                "va": "center", "transform": across, "color": VERMILION if row.control else INK,
            }  # fmt: skip
            beside = f"{text.number(row.value)} {text.interval(row.low, row.high)}"
            axes.text(0.1 * inch + 1, y, beside, fontsize=7, **style)
            axes.text(-0.72 * inch, y, names[row.spec], ha="right", **style)
            if not row.control:
                axes.text(-0.58 * inch, y, text.count(row.rank), ha="center", **style)
                axes.text(-0.22 * inch, y, ranks, ha="center", fontsize=7, **style)
        for x, title, side in (
            (0.1 * inch + 1, "score and interval", "left"),
            (-0.58 * inch, "rank", "center"),
            (-0.22 * inch, "95 %", "center"),
        ):
            axes.text(
                x, -1, title, transform=across, va="center", ha=side, fontsize=6.5, color=GRAY
            )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        if axes.get_xlim()[0] < 0 < axes.get_xlim()[1]:
            axes.axvline(0, color=GRAY, linewidth=0.6, zorder=1)
        axes.text(
            1, -0.32 / height, metric_title(run), transform=axes.transAxes, ha="right", va="top",
            fontsize=7,
        )  # fmt: skip
        more = [key("own shuffle", FADED)] if owned else []
        legend(figure, run, 0.08, more)
        return finish(
            figure,
            "ranking",
            "Ranking with 95 % intervals",
            "Dots are scores by the primary rule, lines their 95 % bootstrap intervals, clustered "
            "on images. Numbers beside names are ranks among candidates; controls have none."
            + (" The pale diamond on a line is that encoder's own shuffle." if owned else ""),
            "Dot plot of scores with 95 % intervals, best first: "
            + "; ".join(f"{names[r.spec]} {text.number(r.value)}" for r in rows)
            + ".",
        )


def _dot(axes: Axes, value: Real, y: Real, low: Any, high: Any, mark: PlotStyle) -> None:
    if text.is_number(low) and text.is_number(high):
        axes.plot([low, high], [y, y], color=mark.color, linewidth=1.4, solid_capstyle="butt")
    axes.plot(
        [value], [y], marker=mark.marker, color=mark.color, markerfacecolor=mark.fill,
        markersize=mark.size, linestyle="none",
    )  # fmt: skip


def key(label: str, mark: PlotStyle, **more: Any) -> Any:
    """A legend's handle."""
    from matplotlib.lines import Line2D

    more.setdefault("linestyle", "none" if mark.marker else "-")
    return Line2D(
        [], [], color=mark.color, marker=mark.marker, markerfacecolor=mark.fill,
        markersize=mark.size, label=label, **more,
    )  # fmt: skip
