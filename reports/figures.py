"""How figures are registered and styled, and what they share.

A figure is a :class:`ReportFigure` under the entry-point group ``encbench.figures``. Its drawing
function returns a :class:`Drawing`, or a sentence that says why there is none.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path

from encbench.records import Ranked

from . import text
from .load import Entry, Run, shuffled_spec
from .svg import add_titles
from .text import Real

DPI = 150
WIDTH = 7.2  # inches; a page's text width
# Okabe and Ito's colors, which stay apart under all common color blindness.
BLUE, SKY, GREEN, ORANGE, VERMILION = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00"
INK, DARK, GRAY, PALE = "#333333", "#4d4d4d", "#6f6f6f", "#d9d9d9"
RUST = "#A84300"  # vermilion for words: 6 to 1 against white, as small type needs

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
    """A finished figure, as files. Name and title are those it was registered under; a drawing
    function that returns several drawings names each."""

    caption: str
    alt: str
    png: bytes
    svg: bytes
    name: str = ""
    title: str = ""


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report. Its entry point's name is its file's name.

    Attributes:
        section: heading of its section in the report; a section of this name is added if there is
            none.
        title: its title, in bold below the figure.
        draw: takes a :class:`encbench.reports.load.Run`, or a
            :class:`encbench.reports.confirmation.Confirmation`, and returns a drawing, several,
            or a sentence with the reason why there is none ('' = show nothing).
        probes: probes that it shows; a probe without a figure gets one of its scores.
        needs: input of ``draw``; 'validation' is :class:`encbench.validate.Validation`, which no
            report has.
    """

    section: str
    title: str
    draw: Callable[[Any], Drawing | Sequence[Drawing] | str]
    probes: tuple[str, ...] = ()
    needs: Literal["ranking", "confirmation", "validation"] = "ranking"


# ------------------------------------------------------------------------ canvas and files


@contextmanager
def canvas(height: Real) -> Iterator[Figure]:
    """A figure of page width and this height in inches, drawn in our style, off screen."""
    settings: dict[Any, Any] = dict(mpl.rcParamsDefault)
    settings |= {**STYLE, "backend": mpl.rcParams["backend"]}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # an emoji in a name is drawn as a box
        figure = Figure(figsize=(WIDTH, height), dpi=DPI)
        FigureCanvasAgg(figure)
        yield figure


def finish(figure: Figure, caption: str, alt: str, name: str = "", title: str = "") -> Drawing:
    """Save as PNG and SVG; the same figure gives the same bytes."""
    files = {}
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
        files[kind] = buffer.getvalue()
    return Drawing(caption, alt, files["png"], add_titles(files["svg"]), name, title)


def name_width(names: Iterable[str]) -> float:
    """Inches that the widest of some names takes at the usual size."""
    font = FontProperties(STYLE["font.family"], size=STYLE["font.size"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        widths = [text_to_path.get_text_width_height_descent(n, font, False)[0] for n in names]
    return max(widths, default=0.0) / 72


# -------------------------------------------------------------------------- marks and keys


@dataclass(frozen=True)
class PlotStyle:
    """How points and lines are drawn, in a plot and in its key.

    Attributes:
        marker: matplotlib's marker; '' = none.
        fill: of the marker; the style's color if ''.
        line: matplotlib's line style; '' = none.
    """

    color: str
    marker: str = ""
    fill: str = ""
    size: Real = 6.0
    line: Any = ""
    width: Real = 1.0

    @property
    def options(self) -> dict[str, Any]:
        """Keywords of ``Axes.plot`` and of a key's handle."""
        return {
            "color": self.color, "marker": self.marker, "markersize": self.size,
            "markerfacecolor": self.fill or self.color, "linestyle": self.line or "none",
            "linewidth": self.width,
        }  # fmt: skip


CONTROL = PlotStyle(VERMILION, "D", "white", 4.2)
SHUFFLE = PlotStyle("#e7a67c", "D", "white", 3)  # an encoder's own
LEVEL = PlotStyle(VERMILION, line=(0, (4, 3)), width=0.9)  # a control's score, right across
FAINT = PlotStyle(PALE, line="-", width=0.8)  # other encoders, behind one's own plot
PRINTED = PlotStyle(GRAY, "s", PALE, 5)  # a published value


def ink(row: Any) -> str:
    """The color of an encoder's name."""
    return RUST if row.control else INK


def ranked_style(run: Run, row: Ranked) -> PlotStyle:
    """The mark of an encoder: advised, tied with the advised one, another, or a control."""
    if row.control:
        return CONTROL if shuffled_spec(row.spec) is None else SHUFFLE
    if row.spec == run.choice:
        return PlotStyle(BLUE, "o")
    return PlotStyle(BLUE, "o", SKY) if row.spec in run.ties else PlotStyle(DARK, "o")


def ranked_keys(run: Run, *, controls: bool = True) -> dict[str, PlotStyle]:
    """The marks that occur, explained."""
    keys: dict[str, PlotStyle] = {}
    for row in (*run.candidates, *(run.rows if controls else ())):
        label = "other candidates" if run.choice else "candidates"
        if row.spec == run.choice or row.spec in run.ties:
            label = "advised" if row.spec == run.choice else "tied with it"
        keys["controls" if row.control else label] = replace(ranked_style(run, row), line="-")
    return keys


def legend(figure: Figure, keys: Mapping[str, PlotStyle]) -> None:
    """One line that explains the marks, at the upper edge."""
    handles = [Line2D([], [], label=label, **style.options) for label, style in keys.items()]
    if handles:
        figure.legend(
            handles=handles, loc="upper left", ncols=len(handles), handlelength=1.7,
            bbox_to_anchor=(0.0, 1 - 0.07 / figure.get_size_inches()[1]), borderaxespad=0,
            columnspacing=1.3, handletextpad=0.5,
        )  # fmt: skip


def interval_ends(entry: Entry | None) -> tuple[float, float] | None:
    """Where a score's interval begins and ends; None where it has none."""
    known = entry and text.is_number(entry.low) and text.is_number(entry.high)
    return (entry.low, entry.high) if entry and known else None


def spread(entries: Iterable[Entry | None]) -> list[float]:
    """The numbers among values and intervals, for the limits of an axis."""
    values = [x for entry in entries if entry for x in (entry.value, entry.low, entry.high)]
    return [x for x in values if text.is_number(x)]


def draw_point(
    axes: Axes, style: PlotStyle, x: Real, y: Real, *, across: Entry | None = None,
    down: Entry | None = None, width: Real = 1.0, words: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """A mark with the intervals of its scores: ``across`` is horizontal, ``down`` vertical.
    ``words`` are shown on hover (:func:`encbench.reports.svg.hover`)."""
    line: dict[str, Any] = {
        "color": style.color,
        "linewidth": width,
        "solid_capstyle": "butt",
        **(words or {}),
    }
    if ends := interval_ends(across):
        axes.plot(ends, [y, y], **line)
    if ends := interval_ends(down):
        axes.plot([x, x], ends, **line)
    axes.plot([x], [y], **{**style.options, "linestyle": "none", "zorder": 4}, **(words or {}))


# ------------------------------------------------------------------------------------ axes


def add_axes(figure: Figure, left: Real, top: Real, width: Real, height: Real) -> Axes:
    """Axes at a place given in inches from the figure's upper left corner."""
    w, h = figure.get_size_inches()
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def set_limits(axes: Axes, axis: Literal["x", "y"], values: Sequence[Real]) -> None:
    """Limits with room around the values, also where there is only one."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.1, 0.01)
    getattr(axes, f"set_{axis}lim")(low - room, high + room)


def label_rows(axes: Axes, rows: Sequence[Any], names: Mapping[str, str]) -> None:
    """Encoders down the vertical axis, the first on top; those without a name have no label."""
    axes.set_yticks(range(len(rows)), [names.get(row.spec, "") for row in rows])
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(ink(row))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_visible(False)


@contextmanager
def small_plots(
    rows: Sequence[Any], each: Real, keys: Mapping[str, PlotStyle], *, across: str = "",
    down: str = "", color: Callable[[Any], str] = ink,
) -> Iterator[tuple[Figure, list[Axes]]]:  # fmt: skip
    """A figure with one small plot for each encoder, named; scales are on the outer ones only.

    Args:
        each: height of a plot in inches.
        keys: explained above the plots.
        across, down: labels of the axes.
        color: of an encoder's name.
    """
    names = text.short_names({row.spec: row.name for row in rows}, 22)
    columns = 3 if len(rows) in (1, 2, 3, 5, 6) else 4
    above, below = 0.3, 0.36 if across else 0.2
    left = 0.5 if down else 0.45
    width = (WIDTH - left - 0.05) / columns
    with canvas(0.3 + -(-len(rows) // columns) * (each + above) + below) as figure:
        plots = []
        for i, row in enumerate(rows):
            top = 0.52 + (i // columns) * (each + above)
            axes = add_axes(figure, left + (i % columns) * width, top, width - 0.14, each)
            rank = getattr(row, "rank", None) or getattr(row, "predicted_rank", None)
            title = f"{rank}  {names[row.spec]}" if rank else names[row.spec]
            axes.set_title(title, color=color(row), fontsize=7, pad=3)
            first, lowest = i % columns == 0, i + columns >= len(rows)
            axes.tick_params(labelsize=6.5, labelleft=first, labelbottom=lowest)
            axes.set_xlabel(across if lowest else "", fontsize=7)
            axes.set_ylabel(down if first else "", fontsize=7)
            axes.grid()
            plots.append(axes)
        legend(figure, keys)
        yield figure, plots
