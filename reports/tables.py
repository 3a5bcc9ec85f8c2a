"""The tables of a ranking, and writers for Markdown, CSV and TeX.

A table is built once; every format shows the same cells. HTML is the template's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from encbench.files import to_csv
from encbench.records import PairedDifference
from encbench.types import ProbeSpec

from . import text
from .load import Entry, Run
from .published import SCORES, published_for
from .rows import shown_scores

MOST_SCORES = 9  # in one table; scores.csv holds all


@dataclass(frozen=True)
class TableCell:
    """One cell: its text (maybe data, so escaped), a smaller note (our words, an interval), a sort
    key, a longer text on hover, and a tag."""

    text: str
    note: str = ""
    sort: Any = None
    title: str = ""
    tag: str = ""

    @property
    def whole(self) -> str:
        return f"{self.text} {self.note}".strip()


@dataclass(frozen=True)
class TableRow:
    cells: tuple[TableCell, ...]
    kind: str = ""  # 'control', 'use', 'tied', 'published' or ''


@dataclass(frozen=True)
class Table:
    """``align``: one letter a column, 'l' for words and 'r' for numbers."""

    head: tuple[str, ...]
    align: str
    rows: tuple[TableRow, ...]


Column = tuple[str, str, Callable[[Any], TableCell]]
"""Title, alignment, and an item's cell."""


def make_table(
    items: Iterable[Any], columns: Sequence[Column], kind: Callable[[Any], str] = lambda item: ""
) -> Table:
    """A table with a row for each item."""
    heads, aligns, cells = zip(*columns, strict=True)
    rows = tuple(TableRow(tuple(cell(item) for cell in cells), kind(item)) for item in items)
    return Table(tuple(map(text.clean_text, heads)), "".join(aligns), rows)


def text_cell(value: Any, **more: Any) -> TableCell:
    """Words from data; sorts by them."""
    words = text.clean_text(value)
    return TableCell(words, sort=words.lower(), **more)


def number_cell(value: Any, show: Callable[[Any], str] = text.number, note: str = "") -> TableCell:
    """A number; sorts by its value, missing ones last."""
    return TableCell(show(value), note, sort=value if text.is_number(value) else None)


def two_digits(value: Any) -> str:
    return text.number(value, 2)


def score_cell(entry: Entry | None, digits: int = 3) -> TableCell:
    """A score with its interval."""
    value = entry.value if entry else None
    return number_cell(value, lambda shown: text.number(shown, digits), text.span(entry, digits))


def encoder_cell(spec: str, name: str, *, control: bool = False) -> TableCell:
    return text_cell(name, title=text.clean_text(spec), tag="control" if control else "")


# ---------------------------------------------------------------------------- the tables


def _kind(run: Run) -> Callable[[Any], str]:
    """How an encoder's row is marked."""

    def kind(row: Any) -> str:
        if row.control:
            return "control"
        return "use" if row.spec == run.choice else "tied" if row.spec in run.ties else ""

    return kind


def _encoder(run: Run) -> Column:
    """A short name; the ranking and the list of encoders have it in full."""
    return (
        "Encoder", "l",
        lambda row: encoder_cell(row.spec, run.brief[row.spec], control=row.control),
    )  # fmt: skip


def _name(run: Run, spec: str) -> str:
    return run.brief.get(spec, text.clean_text(spec))


def ranking_table(run: Run) -> Table:
    """All encoders by the primary rule, best first; controls stand between them without a rank."""
    costs = {row.spec: run.cost(row.spec) for row in run.prediction.order}
    columns: list[Column] = [
        ("Rank", "r", lambda row: TableCell("control") if row.control
         else number_cell(row.rank, text.count)),
        ("95 % of ranks", "r", lambda row: TableCell(
            text.format_ranks(row.rank_low, row.rank_high), sort=row.rank_low)),
        ("Encoder", "l", lambda row: encoder_cell(row.spec, row.name)),
        (run.score_name, "r", lambda row: score_cell(row.score)),
        ("n", "r", lambda row: number_cell(
            row.n, text.count, f"({row.unscored} unscored)" if row.unscored else "")),
        ("Parameters", "r", lambda row: number_cell(
            costs[row.spec].get("parameters"), text.quantity)),
        ("License", "l", lambda row: text_cell(costs[row.spec].get("license") or text.NOTHING)),
    ]  # fmt: skip
    if len({row.stage for row in run.prediction.order}) > 1:
        columns.append(("Stage", "l", lambda row: text_cell(row.stage)))
    return make_table(run.prediction.order, columns, _kind(run))


def cost_table(run: Run) -> Table:
    costs = {row.spec: run.cost(row.spec) for row in run.candidates}

    def amount(title: str, name: str, show: Callable[[Any], str] = text.quantity) -> Column:
        return title, "r", lambda row: number_cell(costs[row.spec].get(name), show)

    columns: list[Column] = [
        _encoder(run),
        (run.score_name, "r", lambda row: score_cell(row.score)),
        amount("Prompts/s", "prompts_per_second"),
        amount("Tokens/s", "tokens_per_second"),
        amount("Latency (ms)", "latency_ms"),
        amount("Parameters", "parameters"),
        amount("Memory", "memory_bytes", text.format_bytes),
        amount("Tokens at most", "max_tokens", lambda n: text.count(n) if n else "no limit"),
        ("License", "l", lambda row: text_cell(costs[row.spec].get("license") or "unknown")),
    ]
    return make_table(run.candidates, columns, _kind(run))


def rival_table(run: Run) -> Table:
    """Other orders of the same candidates beside the primary one."""

    def remarks(rival: Any) -> str:
        words = (
            "as published" if rival.published else "",
            "saturated: tells encoders apart no longer" if rival.saturated else "",
            "lower is better" if rival.direction == "lower" else "",
        )
        return "; ".join(filter(None, words))

    columns: list[Column] = [
        ("Order by", "l", lambda r: text_cell(f"{r.probe}: {r.score}")),
        ("Spearman", "r", lambda r: number_cell(r.agreement, two_digits)),
        ("Candidates, best first", "l", lambda r: TableCell(_chain(run, r.order))),
        ("Best score", "r", lambda r: score_cell(r.scores.get(r.order[0]) if r.order else None)),
        ("Remark", "l", lambda r: TableCell(remarks(r))),
    ]
    return make_table(
        run.prediction.rivals, columns, lambda rival: "saturated" if rival.saturated else ""
    )


def rule_table(run: Run) -> Table | None:
    """The orders by other rules than the primary one; None without any."""
    columns: list[Column] = [
        ("Rule", "l", lambda o: text_cell(o.rule.name)),
        ("Candidates, best first", "l", lambda o: TableCell(
            _chain(run, [row.spec for row in o.order if not row.control]))),
        ("What it advises", "l", lambda o: TableCell(text.clean_text(o.advice.text))),
        ("How far to trust it", "l", lambda o: TableCell(text.clean_text(o.rule.trust))),
    ]  # fmt: skip
    others = run.prediction.others
    return make_table(others, columns) if others else None


def sensitivity_table(run: Run) -> Table:
    """The order under every other layer and pooling, and the pairs that change places."""

    def chains(pairs: Sequence[Sequence[str]]) -> TableCell:
        return TableCell(text.listing((_chain(run, pair[::-1]) for pair in pairs), 5))

    columns: list[Column] = [
        ("Layer", "l", lambda v: text_cell(v.layer)),
        ("Pooling", "l", lambda v: text_cell(v.pooling)),
        ("Candidates, best first", "l", lambda v: TableCell(_chain(run, v.order))),
        ("Clearly reversed", "l", lambda v: chains(v.clear_flips)),
        ("Within intervals", "l",
         lambda v: chains([pair for pair in v.flips if pair not in v.clear_flips])),
    ]  # fmt: skip
    return make_table(run.prediction.sensitivity, columns)


def _chain(run: Run, specs: Sequence[str]) -> str:
    """'A > B > C', of more than six the first five."""
    names = [_name(run, spec) for spec in specs]
    return " > ".join(names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"])


def difference_table(run: Run, pairs: Sequence[PairedDifference]) -> Table:
    """Paired differences by the primary rule."""
    controls = {row.spec for row in run.controls}

    def encoder(spec: str) -> TableCell:
        return encoder_cell(spec, _name(run, spec), control=spec in controls)

    columns: list[Column] = [
        ("First", "l", lambda pair: encoder(pair.a)),
        ("Second", "l", lambda pair: encoder(pair.b)),
        ("Difference", "r", lambda pair: number_cell(
            pair.difference, note=text.interval(pair.low, pair.high))),
        ("p", "r", lambda pair: number_cell(pair.p, text.p_value)),
        ("p (Holm)", "r", lambda pair: number_cell(pair.p_holm, text.p_value)),
        ("Distinguishable", "l", lambda pair: text_cell("yes" if pair.distinguishable else "no")),
    ]  # fmt: skip
    return make_table(pairs, columns)


def published_table(run: Run) -> Table | None:
    """Our values as the paper defines them, beside the paper's; None if no encoder is in it."""
    rows = [
        (row, name, run.score(row.spec, probe, score), float(getattr(paper, name)))
        for row in run.candidates
        if (paper := published_for(row.spec))
        for name, probe, score in SCORES
    ]
    columns: list[Column] = [
        ("Encoder", "l", lambda item: encoder_cell(item[0].spec, run.brief[item[0].spec])),
        ("Score", "l", lambda item: text_cell(item[1])),
        ("Ours", "r", lambda item: score_cell(item[2])),
        ("Published", "r", lambda item: number_cell(item[3])),
        ("Ours − published", "r",
         lambda item: number_cell(item[2].value - item[3] if item[2] else None)),
    ]  # fmt: skip
    return make_table(rows, columns) if rows else None


def score_table(run: Run, probe: ProbeSpec) -> Table:
    """Scores of one probe, encoders down and scores across; the main metric first."""

    def column(name: str) -> Column:
        return name, "r", lambda row: score_cell(run.score(row.spec, probe.name, name))

    rows = [row for row in run.prediction.order if run.record(row.spec, probe.name)]
    names = shown_scores(run, probe)[:MOST_SCORES]
    return make_table(rows, [_encoder(run), *map(column, names)], _kind(run))


def encoder_table(run: Run) -> Table:
    """The measured encoders: spec and revision that pin each one."""
    cards = {record.card.spec: record.card for record in reversed(run.records)}

    def fact(title: str, name: str, align: str = "l") -> Column:
        def cell(row: Any) -> TableCell:
            value = str(getattr(cards.get(row.spec), name, text.NOTHING))
            if name == "revision" and len(value) > 20:
                return text_cell(value[:12] + "…", title=text.clean_text(value))
            return text_cell(value)

        return title, align, cell

    columns: list[Column] = [
        ("Encoder", "l", lambda row: text_cell(row.name, tag="control" if row.control else "")),
        ("Spec", "l", lambda row: text_cell(row.spec)),
        fact("Revision", "revision"), fact("Width", "dim", "r"), fact("Layer", "layer"),
        fact("Pooling", "pooling"), fact("Recipe", "recipe"), fact("Precision", "dtype"),
    ]  # fmt: skip
    return make_table(run.prediction.order, columns, _kind(run))


# --------------------------------------------------------------------------- the formats


def to_markdown(table: Table) -> str:
    """A pipe table; every cell is escaped."""
    lines = [
        "| " + " | ".join(text.markdown(h) for h in table.head) + " |",
        "|" + "|".join(" --- " if a == "l" else " ---: " for a in table.align) + "|",
    ]
    for row in table.rows:
        cells = (f"{text.markdown(c.text)} {c.note}".strip() for c in row.cells)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def to_tex(table: Table, comment: str = "") -> str:
    """A booktabs tabular; needs only \\usepackage{booktabs}."""
    lines = [f"% {text.clean_text(comment)}"] if comment else []
    lines += [rf"\begin{{tabular}}{{{table.align}}}", r"\toprule"]
    lines.append(" & ".join(text.tex(h) for h in table.head) + r" \\")
    lines.append(r"\midrule")
    for row in table.rows:
        style = r"\textit{%s}" if row.kind == "control" else "%s"
        lines.append(" & ".join(style % text.tex(c.whole) for c in row.cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def ranking_csv(run: Run) -> str:
    """The ranking with every digit that the prediction holds."""
    head = (
        "rank", "rank_low", "rank_high", "name", "spec", "control", "score", "value", "low",
        "high", "n", "unscored", "parameters", "license", "pooling", "stage",
    )  # fmt: skip
    rows = []
    for row in run.prediction.order:
        other = {"license": run.cost(row.spec).get("license"), "score": run.score_name}
        rows.append([other[name] if name in other else getattr(row, name) for name in head])
    return to_csv(head, rows)


def scores_csv(run: Run) -> str:
    """Every score of every record, one a line, with every digit."""
    head = (
        "spec", "name", "control", "layer", "pooling", "probe", "probe_version", "dataset", "score",
        "value", "low", "high", "n", "unscored",
    )  # fmt: skip
    rows = [
        (
            record.card.spec, record.name, record.card.control, record.card.layer,
            record.pooling, record.probe.name, record.probe.version,
            record.probe.dataset, name, *(getattr(entry, column) for column in head[-5:]),
        )
        for record in run.records
        for name, entry in record.scores.items()
    ]  # fmt: skip
    return to_csv(head, rows)
