"""Two runs on one page: where they agree, what differs, and their figures side by side."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from encbench.files import slug, to_csv, write_text
from encbench.records import Ranked

from . import tables, text
from .figure_set import draw_figures
from .figures import (
    BLUE,
    DARK,
    RUST,
    VERMILION,
    WIDTH,
    Drawing,
    PlotStyle,
    add_axes,
    canvas,
    finish,
    legend,
    name_width,
)
from .load import Run, load_run
from .provenance import provenance_rows
from .render import render_html
from .svg import hover
from .words import rule_record, run_summary, run_warnings

UNIMPORTANT = {"Prediction", "Made", "Records"}  # differ always
SLOPES = {
    "better in the second": PlotStyle(BLUE, "o", size=4, line="-"),
    "the same": PlotStyle(DARK, "o", size=4, line="-"),
    "worse in the second": PlotStyle(VERMILION, "o", size=4, line="-"),
}
Fact = tuple[str, str, str]
"""Its name, and its value in the first and in the second run."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs with their labels."""

    first: Run
    second: Run
    labels: tuple[str, str]

    @property
    def runs(self) -> tuple[Run, Run]:
        return self.first, self.second

    @cached_property
    def shared(self) -> list[tuple[Ranked, Ranked]]:
        """The candidates of both runs, in the first one's order."""
        other = {row.spec: row for row in self.second.candidates}
        return [(row, other[row.spec]) for row in self.first.candidates if row.spec in other]

    @cached_property
    def places(self) -> dict[str, tuple[int, int]]:
        """Spec -> place among the shared candidates, in each run."""
        orders = [
            [row.spec for row in run.candidates if row.spec in {a.spec for a, _ in self.shared}]
            for run in self.runs
        ]
        return {a.spec: (orders[0].index(a.spec) + 1, orders[1].index(a.spec) + 1)
                for a, _ in self.shared}  # fmt: skip

    def only(self, run: Run) -> list[str]:
        """Names of the candidates that the other run does not have."""
        return [run.brief[row.spec] for row in run.candidates if row.spec not in self.places]

    def comparable(self, probe: str) -> bool:
        """Whether a probe's scores have the same scale: the same data and version."""
        specs = [run.probes.get(probe) for run in self.runs]
        pins = {(spec.dataset, spec.version) if spec else None for spec in specs}
        return len(pins) == 1 and None not in pins

    @property
    def headline(self) -> str:
        """Which encoder each run advises."""
        names = [run.brief.get(run.choice or "", "no encoder") for run in self.runs]
        if self.first.choice is not None and self.first.choice == self.second.choice:
            return f"Both runs advise {names[0]}."
        told = [f"{label} advises {n}" for label, n in zip(self.labels, names, strict=True)]
        return f"{'; '.join(told)}."

    @property
    def agreement(self) -> str:
        """How far the orders agree on the candidates of both runs."""
        n = len(self.shared)
        if n < 3:
            return (
                f"{text.count_noun(n, 'candidate')} in both runs: a rank correlation needs three."
            )
        rho = spearmanr([a.value for a, _ in self.shared], [b.value for _, b in self.shared])
        moved = sum(a != b for a, b in self.places.values())
        return (
            f"{text.count_noun(n, 'candidate')} in both runs: Spearman's rank correlation of their "
            f"scores is {text.number(float(rho.statistic), 2)}; {moved} changed places."
        )


def build_comparison(first: Path, second: Path, out: Path | None = None) -> Path:
    """Write a page that shows two finished runs side by side.

    Args:
        first, second: folders of runs, each with prediction.json and records/.
        out: where to write; ``compare-SECOND`` in the first run's folder by default.

    Returns:
        the path of ``index.html``, which opens offline; beside it ``comparison.csv``.

    Raises:
        RecordError: in one line, naming the file that is missing, damaged or newer.
        StoreError: if the page cannot be written.
    """
    c = Comparison(load_run(first), load_run(second), name_runs(first, second))
    folder = out or first / f"compare-{slug(second.resolve().name)}"
    slopes = draw_slopes(c)
    view = {
        "c": c,
        "columns": [
            _column(run, label, folder) for run, label in zip(c.runs, c.labels, strict=True)
        ],
        "slopes": slopes if isinstance(slopes, Drawing) else None,
        "ranking": rank_table(c) if c.shared else None,
        "differences": difference_table(c),
        "scores": [
            (f"{name}: {text.clean_text(probe.title)}", score_table(c, name), c.comparable(name))
            for name, probe in c.first.probes.items()
            if name in c.second.probes
        ],
        "sections": pair_figures(c),
    }
    write_text(folder / "comparison.csv", comparison_csv(c))
    write_text(folder / "index.html", render_html("compare.html", view))
    return folder / "index.html"


def name_runs(first: Path, second: Path) -> tuple[str, str]:
    """The names of the folders; equal names get that of their parent folder, too."""
    paths = (first.resolve(), second.resolve())
    names = [text.clean_text(path.name) for path in paths]
    if names[0] == names[1]:
        names = [text.clean_text(f"{path.parent.name}/{path.name}") for path in paths]
    if names[0] == names[1]:
        names = [f"{name} ({n})" for n, name in enumerate(names, 1)]
    return names[0], names[1]


def _column(run: Run, label: str, folder: Path) -> dict[str, Any]:
    """The column of one run at the top of the page."""
    report = run.folder / "report" / "index.html"
    return {
        "label": label,
        "advice": text.clean_text(run.advice),
        "record": rule_record(run),
        "summary": run_summary(run),
        "warnings": run_warnings(run),
        "report": Path(os.path.relpath(report, folder)).as_posix() if report.is_file() else "",
    }


# ---------------------------------------------------------------------------- the tables


def rank_table(c: Comparison) -> tables.Table:
    """The shared candidates, their places and scores in both runs."""
    alike = c.first.primary == c.second.primary and c.comparable(c.first.primary[0])

    def place(which: int) -> tables.Column:
        def cell(pair: Any) -> tables.TableCell:
            ranks = text.format_ranks(pair[which].rank_low, pair[which].rank_high)
            return tables.number_cell(pair[which].rank, text.count, f"[{ranks}]")

        return f"Rank in {c.labels[which]}", "r", cell

    def score(which: int) -> tables.Column:
        name = f"{c.runs[which].score_name} in {c.labels[which]}"
        return name, "r", lambda pair: tables.score_cell(pair[which].score)

    def encoder(pair: Any) -> tables.TableCell:
        return tables.encoder_cell(pair[0].spec, c.first.brief[pair[0].spec])

    def gain(pair: Any) -> tables.TableCell:
        return tables.number_cell(pair[1].value - pair[0].value)

    columns: list[tables.Column] = [
        ("Encoder", "l", encoder),
        place(0), place(1), score(0), score(1),
        ("Places moved", "r", lambda pair: tables.number_cell(_moved(c, pair[0].spec), _signed)),
    ]  # fmt: skip
    if alike:
        columns.append(("Second − first", "r", gain))
    return tables.make_table(c.shared, columns)


def _moved(c: Comparison, spec: str) -> int:
    """How many places higher an encoder is in the second run, among the shared ones."""
    return c.places[spec][0] - c.places[spec][1]


def _signed(value: Any) -> str:
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{abs(value):.0f}"


def score_table(c: Comparison, probe: str) -> tables.Table:
    """A probe's main score of every encoder that it measured in both runs."""
    name = c.first.probes[probe].main_metric
    rows = [
        (row, *entries)
        for row in c.first.rows
        if all(entries := [run.score(row.spec, probe, name) for run in c.runs])
    ]
    columns: list[tables.Column] = [
        ("Encoder", "l", lambda item: tables.encoder_cell(
            item[0].spec, c.first.brief[item[0].spec], control=item[0].control)),
        (f"{name} in {c.labels[0]}", "r", lambda item: tables.score_cell(item[1])),
        (f"{name} in {c.labels[1]}", "r", lambda item: tables.score_cell(item[2])),
    ]  # fmt: skip
    if c.comparable(probe):
        columns.append(
            ("Second − first", "r", lambda i: tables.number_cell(i[2].value - i[1].value))
        )
    return tables.make_table(rows, columns, lambda item: "control" if item[0].control else "")


def difference_table(c: Comparison) -> tables.Table | None:
    """Pins that differ between the runs; None if all are the same."""
    columns: list[tables.Column] = [
        ("", "l", lambda fact: tables.text_cell(fact[0])),
        (c.labels[0], "l", lambda fact: tables.text_cell(fact[1] or text.NOTHING)),
        (c.labels[1], "l", lambda fact: tables.text_cell(fact[2] or text.NOTHING)),
    ]
    facts = [fact for fact in _facts(c) if fact[1] != fact[2]]
    return tables.make_table(facts, columns) if facts else None


def _facts(c: Comparison) -> Iterator[Fact]:
    first, second = (dict(provenance_rows(run)) for run in c.runs)
    for label in dict.fromkeys([*first, *second]):
        if label == "Packages":
            packages = [
                dict(item.split(" ", 1) for item in side.get(label, "").split(", ") if " " in item)
                for side in (first, second)
            ]
            for name in dict.fromkeys([*packages[0], *packages[1]]):
                yield f"Package {name}", packages[0].get(name, ""), packages[1].get(name, "")
        elif label not in UNIMPORTANT:
            yield label, first.get(label, ""), second.get(label, "")
    options = [run.config for run in c.runs]
    for key in sorted({*options[0], *options[1]} - {"out", "encoders", "config", "device"}):
        values = [text.clean_text(side.get(key, "")) for side in options]
        yield f"Option {key.replace('_', '-')}", values[0], values[1]
    cards = [{r.card.spec: r.card.revision for r in run.records} for run in c.runs]
    for a, _ in c.shared:
        revisions = [str(side.get(a.spec, "")) for side in cards]
        yield f"Weights of {c.first.brief[a.spec]}", revisions[0], revisions[1]
    only = [", ".join(c.only(run)) for run in c.runs]
    yield "Candidates of one run only", only[0], only[1]


def comparison_csv(c: Comparison) -> str:
    """The shared candidates with every digit."""
    names = ("rank", "rank_low", "rank_high", "value", "low", "high")
    head = ("spec", "name", *(f"{name}_{n}" for n in (1, 2) for name in names))
    rows = [
        (a.spec, a.name, *(getattr(row, name) for row in (a, b) for name in names))
        for a, b in c.shared
    ]
    return to_csv(head, rows)


# --------------------------------------------------------------------------- the figures


def pair_figures(c: Comparison) -> list[tuple[str, str, list[tuple[Drawing | None, ...]]]]:
    """By section (id, heading): each figure of either run, beside the same one of the other."""
    sets = [draw_figures(run) for run in c.runs]
    sections = []
    for title in dict.fromkeys(title for figures in sets for title in figures.sections):
        found = [
            {d.name: d for d in figures.sections.get(title, []) if isinstance(d, Drawing)}
            for figures in sets
        ]
        names = dict.fromkeys([*found[0], *found[1]])
        if names:
            pairs = [tuple(side.get(name) for side in found) for name in names]
            sections.append((slug(title).lower(), title, pairs))
    return sections


def draw_slopes(c: Comparison) -> Drawing | str:
    """The shared candidates' order in both runs, each joined by a line."""
    if len(c.shared) < 2:
        return "It takes two candidates in both runs to compare their orders."
    names = text.short_names({a.spec: a.name for a, _ in c.shared}, 34)
    room, height = 0.35 + name_width(names.values()), 0.24 * len(names)
    with canvas(height + 0.85) as figure:
        axes = add_axes(figure, room, 0.6, WIDTH - 2 * room, height)
        keys: dict[str, PlotStyle] = {}
        for a, b in c.shared:
            places = c.places[a.spec]
            moved = _moved(c, a.spec)
            change = tuple(SLOPES)[0 if moved > 0 else 2 if moved < 0 else 1]
            style = keys.setdefault(change, SLOPES[change])
            facts = (
                f"{label}: place {place} of {len(names)}, {text.format_score(row.score)}"
                for label, place, row in zip(c.labels, places, (a, b), strict=True)
            )
            words = hover(a.name, *facts)
            axes.plot([0, 1], places, **style.options, **words)
            color = RUST if style.color == VERMILION else style.color
            for x, place, side in ((0, places[0], "right"), (1, places[1], "left")):
                axes.annotate(
                    f"{names[a.spec]}  {place}" if side == "right" else f"{place}  {names[a.spec]}",
                    (x, place), xytext=(-6 if side == "right" else 6, 0), ha=side, va="center",
                    textcoords="offset points", color=color, **words,
                )  # fmt: skip
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(len(names) + 0.5, 0.5)
        axes.set_axis_off()
        for x, label, side in ((0, c.labels[0], "right"), (1, c.labels[1], "left")):
            axes.annotate(
                text.shorten(label, 30), (x, 0.5), xytext=(0, 4), ha=side, va="bottom",
                textcoords="offset points", fontweight="bold",
            )  # fmt: skip
        legend(figure, {key: keys[key] for key in SLOPES if key in keys})
        return finish(
            figure,
            "Places among the candidates of both runs, by each run's own rule. Places whose "
            "intervals overlap can change by chance.",
            f"Lines from the place in {c.labels[0]} to the place in {c.labels[1]}: "
            + "; ".join(f"{names[spec]} {a} to {b}" for spec, (a, b) in c.places.items())
            + ".",
            name="ranks",
            title=f"Order in {c.labels[0]} and in {c.labels[1]}",
        )
