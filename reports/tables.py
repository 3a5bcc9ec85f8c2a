"""The tables of a report, and how each is written as Markdown, CSV and TeX.

A table is built once; every format shows the same cells. HTML is the template's work.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from encbench.records import PairedDifference

from . import text
from .load import Run
from .published import published_for


@dataclass(frozen=True)
class TableCell:
    """One cell: what is read (maybe data, so escaped), the smaller note beside it (our own
    words, an interval), what it sorts by, more of it on hovering, and a tag."""

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
    kind: str = ""  # 'control', 'use', 'tied' or ''


@dataclass(frozen=True)
class Table:
    """``align``: one letter a column, 'l' for words and 'r' for numbers."""

    head: tuple[str, ...]
    align: str
    rows: tuple[TableRow, ...]


def text_cell(value: str, **more: Any) -> TableCell:
    return TableCell(value, sort=value.lower(), **more)


def number_cell(value: Any, shown: str | None = None, **more: Any) -> TableCell:
    """A number; sorts by its value, missing ones last."""
    known = text.is_number(value)
    return TableCell(
        shown if shown is not None else text.number(value), sort=value if known else None, **more
    )


def scored(entry: Any, digits: int = 3) -> TableCell:
    """A score with its interval."""
    if not entry:
        return number_cell(None)
    return number_cell(
        entry.get("value"),
        text.number(entry.get("value"), digits),
        note=text.span(entry, digits),
    )


# ---------------------------------------------------------------------------- the tables


def _kind(run: Run, spec: str, control: bool) -> str:
    if control:
        return "control"
    return "use" if spec == run.use else "tied" if spec in run.tied else ""


def _encoder(run: Run, spec: str, control: bool = False) -> TableCell:
    """A short name; the ranking and the list of encoders have it in full."""
    name = run.brief.get(spec, text.clean_text(spec))
    return text_cell(name, title=text.clean_text(spec), tag="control" if control else "")


def ranking_table(run: Run) -> Table:
    """Everyone by the primary rule, best first; controls in their place, without a rank."""
    stages = len({row.stage for row in run.prediction.order}) > 1
    head = ["Rank", "95 % of ranks", "Encoder", run.primary[1], "n", "Parameters", "License"]
    rows = []
    for row in run.prediction.order:
        place = text.format_ranks(row.rank_low, row.rank_high)
        cost = run.cost(row.spec)
        missing = f"({row.unscored} unscored)" if row.unscored else ""
        cells = [
            number_cell(row.rank, text.count(row.rank))
            if not row.control
            else TableCell("control"),
            TableCell(place, sort=row.rank_low),
            text_cell(text.clean_text(row.name), title=text.clean_text(row.spec)),
            number_cell(row.value, note=text.interval(row.low, row.high)),
            number_cell(row.n, text.count(row.n), note=missing),
            number_cell(cost.get("parameters"), text.quantity(cost.get("parameters"))),
            text_cell(str(cost.get("license") or text.NOTHING)),
        ]
        if stages:
            cells.append(text_cell(row.stage))
        rows.append(TableRow(tuple(cells), _kind(run, row.spec, row.control)))
    return Table((*head, *(["Stage"] if stages else [])), "rrlrrrl" + "l" * stages, tuple(rows))


def cost(run: Run) -> Table:
    head = (
        "Encoder", run.primary[1], "Prompts/s", "Tokens/s", "Latency (ms)", "Parameters", "Memory",
        "Tokens at most", "License",
    )  # fmt: skip
    rows = []
    for row in run.candidates:
        c = run.cost(row.spec)
        rate, tokens, wait = (
            c.get(k) for k in ("prompts_per_second", "tokens_per_second", "latency_ms")
        )
        limit = c.get("max_tokens")
        cells = (
            _encoder(run, row.spec),
            number_cell(row.value, note=text.interval(row.low, row.high)),
            number_cell(rate, text.quantity(rate)),
            number_cell(tokens, text.quantity(tokens)),
            number_cell(wait, text.quantity(wait)),
            number_cell(c.get("parameters"), text.quantity(c.get("parameters"))),
            number_cell(c.get("memory_bytes"), text.format_bytes(c.get("memory_bytes"))),
            number_cell(limit, text.count(limit) if limit else "no limit"),
            text_cell(str(c.get("license") or "unknown")),
        )
        rows.append(TableRow(cells, _kind(run, row.spec, False)))
    return Table(head, "lrrrrrrrl", tuple(rows))


def rivals(run: Run) -> Table:
    """Other orders of the same candidates beside the primary one."""
    head = ("Order by", "Spearman", "Candidates, best first", "Best score", "Remark")
    rows = []
    for rival in run.prediction.rivals:
        best = rival.scores.get(rival.order[0]) if rival.order else None
        remarks = [
            "as published" if rival.published else "",
            "saturated: tells encoders apart no longer" if rival.saturated else "",
            "lower is better" if rival.direction == "lower" else "",
        ]
        cells = (
            text_cell(f"{rival.probe}: {rival.score}"),
            number_cell(rival.agreement, text.number(rival.agreement, 2)),
            TableCell(_chain(run, rival.order)),
            scored(best),
            TableCell("; ".join(filter(None, remarks))),
        )
        rows.append(TableRow(cells, "saturated" if rival.saturated else ""))
    return Table(head, "lrlrl", tuple(rows))


def sensitivity(run: Run) -> Table:
    """The order under every other layer and pooling, and the pairs that change places."""
    head = ("Layer", "Pooling", "Candidates, best first", "Clearly reversed", "Within intervals")
    rows = []
    for v in run.prediction.sensitivity:
        unclear = [pair for pair in v.flips if pair not in v.clear_flips]
        cells = (
            text_cell(text.clean_text(v.layer)),
            text_cell(text.clean_text(v.pooling)),
            TableCell(_chain(run, v.order)),
            TableCell(text.listing((_chain(run, pair[::-1]) for pair in v.clear_flips), 5)),
            TableCell(text.listing((_chain(run, pair[::-1]) for pair in unclear), 5)),
        )
        rows.append(TableRow(cells))
    return Table(head, "lllll", tuple(rows))


def _chain(run: Run, specs: Sequence[str]) -> str:
    """'A > B > C', of more than six the first five."""
    names = [run.brief.get(spec, text.clean_text(spec)) for spec in specs]
    if len(names) > 6:
        names = [*names[:5], f"{len(names) - 5} more"]
    return " > ".join(names)


def difference_table(run: Run, wanted: Sequence[PairedDifference]) -> Table:
    """Paired differences by the primary rule."""
    head = ("First", "Second", "Difference", "p", "p (Holm)", "Distinguishable")
    controls = {row.spec for row in run.controls}
    rows = []
    for pair in wanted:
        cells = (
            _encoder(run, pair.a),
            _encoder(run, pair.b, pair.b in controls),
            number_cell(pair.difference, note=text.interval(pair.low, pair.high)),
            number_cell(pair.p, text.p_value(pair.p)),
            number_cell(pair.p_holm, text.p_value(pair.p_holm)),
            text_cell("yes" if pair.distinguishable else "no"),
        )
        rows.append(TableRow(cells, "" if pair.distinguishable else "apart-no"))
    return Table(head, "llrrrl", tuple(rows))


def published(run: Run) -> Table | None:
    """Our values as the paper defines them, beside the paper's; None if no encoder is in it."""
    head = ("Encoder", "Score", "Ours", "Published", "Ours − published")
    rows = []
    for row in run.candidates:
        paper = published_for(row.spec)
        if paper is None:
            continue
        for title, probe, score, theirs in (
            ("discriminability", "retrieval", f"published@{run.k}", paper.discriminability),
            ("disentanglement", "ablation", "published", paper.disentanglement),
        ):
            ours = run.score(row.spec, probe, score)
            gap = ours["value"] - theirs if ours else None
            cells = (
                _encoder(run, row.spec),
                text_cell(title),
                scored(ours),
                number_cell(theirs),
                number_cell(gap),
            )
            rows.append(TableRow(cells))
    return Table(head, "llrrr", tuple(rows)) if rows else None


# What a reader looks for first; everything else is in scores.csv.
_SHOWN = {
    "retrieval": (
        "scaled@{k}", "published@{k}", "floor", "ceiling@{k}", "recall@1", "recall@{k}",
        "recall@10", "text-to-image@1",
    ),
    "ablation": (
        "published", "baseline", "calibrated", "calibrated/centered", "calibrated/whitened",
        "identification", "identification-distractors", "monotonicity", "published/untruncated",
    ),
    "minimal-pairs": (
        "scaled", "swapped", "replaced", "hard", "wording/reordered", "wording/reframed",
        "wording/tier-B", "wording/tier-C", "held-out",
    ),
    "decodability": (
        "tokens", "pooled", "objects/tokens", "colors/tokens", "count/tokens", "relation/tokens",
        "binding/tokens", "image/tokens", "image/pooled",
    ),
}  # fmt: skip
_MOST = 9


def score_table(run: Run, probe: str) -> Table:
    """Scores of one probe, encoders down and scores across; the main metric first."""
    records = {row.spec: run.record(row.spec, probe) for row in run.prediction.order}
    there = {name: None for record in records.values() if record for name in record.scores}
    main = {str(record.probe["main_metric"]): None for record in records.values() if record}
    wanted = [name.format(k=run.k) for name in _SHOWN.get(probe, tuple(there))]
    names = [name for name in dict.fromkeys((*main, *wanted)) if name in there][:_MOST]
    rows = []
    for row in run.prediction.order:
        if records[row.spec] is None:
            continue
        cells = [scored(run.score(row.spec, probe, name)) for name in names]
        kind = _kind(run, row.spec, row.control)
        rows.append(TableRow((_encoder(run, row.spec, row.control), *cells), kind))
    return Table(("Encoder", *names), "l" + "r" * len(names), tuple(rows))


def encoder_table(run: Run) -> Table:
    """Who was measured: the spec and the revision that pin each encoder."""
    head = ("Encoder", "Spec", "Revision", "Width", "Layer", "Pooling", "Recipe", "Precision")
    rows = []
    for row in run.prediction.order:
        card: Any = next((r.card for r in run.records if r.card.get("spec") == row.spec), {})
        tag = "control" if row.control else ""
        cells = [
            text_cell(text.clean_text(row.name), tag=tag),
            text_cell(text.clean_text(row.spec)),
        ]
        for key in ("revision", "dim", "layer", "pooling", "recipe", "dtype"):
            value = str(card.get(key, text.NOTHING))
            short = value[:12] + "…" if key == "revision" and len(value) > 20 else value
            cells.append(text_cell(text.clean_text(short), title=value if short != value else ""))
        rows.append(TableRow(tuple(cells), _kind(run, row.spec, row.control)))
    return Table(head, "lllrllll", tuple(rows))


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


def write_csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow(["" if value is None else value for value in row])
    return buffer.getvalue()


def ranking_csv(run: Run) -> str:
    """The ranking with every digit that the prediction holds."""
    head = (
        "rank", "rank_low", "rank_high", "name", "spec", "control", "score", "value", "low",
        "high", "n", "unscored", "parameters", "license", "pooling", "stage",
    )  # fmt: skip
    return write_csv(
        head,
        (
            (
                r.rank, r.rank_low, r.rank_high, r.name, r.spec, r.control, run.primary[1], r.value,
                r.low, r.high, r.n, r.unscored, r.parameters, run.cost(r.spec).get("license"),
                r.pooling, r.stage,
            )
            for r in run.prediction.order
        ),
    )  # fmt: skip


def scores_csv(run: Run) -> str:
    """Every score of every record, one a line, with every digit."""
    head = (
        "spec", "name", "control", "layer", "pooling", "probe", "probe_version", "dataset", "score",
        "value", "low", "high", "n", "unscored",
    )  # fmt: skip
    rows = []
    for record in run.records:
        for name, entry in record.scores.items():
            rows.append(
                (
                    record.card.spec, record.name, record.card.control, record.card.layer,
                    record.pooling, record.probe["name"], record.probe.get("version"),
                    record.probe.get("dataset"), name, entry.get("value"), entry.get("low"),
                    entry.get("high"), entry.get("n"), entry.get("unscored"),
                )
            )  # fmt: skip
    return write_csv(head, rows)
