"""The tables of a confirmation, and its CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from encbench.files import to_csv
from encbench.records import Lead, TrainedEncoder
from encbench.types import Cell

from . import text
from .confirmation import Confirmation, metric_heading, metric_title
from .published import MODELS, PublishedModel
from .tables import (
    Column,
    Table,
    TableCell,
    encoder_cell,
    make_table,
    number_cell,
    score_cell,
    text_cell,
    two_digits,
)


def _by_encoder(c: Confirmation, columns: Sequence[Column]) -> Table:
    """A row for each trained encoder and control."""

    def kind(row: TrainedEncoder) -> str:
        return "control" if row.control else "use" if row is c.winner else ""

    return make_table(c.rows, columns, kind)


def _encoder(c: Confirmation) -> Column:
    return (
        "Encoder", "l", lambda row: encoder_cell(row.spec, c.name(row.spec), control=row.control)
    )  # fmt: skip


def _score(c: Confirmation, title: str, digits: int = 3, **where: Any) -> Column:
    return title, "r", lambda row: score_cell(c.entry(row, **where), digits)


def outcome_table(c: Confirmation) -> Table:
    """Prediction and outcome in the cell of both verdicts."""
    columns: list[Column] = [
        ("Predicted rank", "r", lambda row: TableCell("control") if row.control
         else number_cell(row.predicted_rank, text.count)),
        ("Actual rank", "r", lambda row: number_cell(c.places.get(row.spec), text.count)),
        _encoder(c),
        ("Predicted score", "r", lambda row: score_cell(row.predicted)),
        _score(c, c.axis_title),
        ("Each seed", "r", lambda row: TableCell(
            ", ".join(map(text.number, row.by_seed.get(c.primary) or [])) or text.NOTHING)),
        ("Parent, flow matching", "r", lambda row: score_cell(row.parent.get(c.primary))),
    ]  # fmt: skip
    if len(c.stages) > 1:
        columns.append(("Stage", "l", lambda row: text_cell(row.stage)))
    return _by_encoder(c, columns)


def breakdown_tables(c: Confirmation) -> list[tuple[str, Table]]:
    """Each number of steps, wording, metric and task, with titles; where there are several."""
    steps = text.count_noun(c.primary.steps, "step")
    tables = []
    if len(c.steps) > 1:
        by_steps = [_score(c, text.count_noun(s, "step"), steps=s) for s in c.steps]
        tables.append((f"Each number of steps, {c.group_name}", by_steps))
    if len(c.groups) > 1:
        by_group = [_score(c, ", ".join(group), 2, group=group) for group in c.groups]
        tables.append((f"Each wording tier and kind of combination, {steps}", by_group))
    tasks = dict.fromkeys(name for row in c.rows for name in row.tasks.get(c.primary) or {})
    if tasks:
        by_task = [_task(c, name) for name in tasks]
        tables.append((f"Each task, {steps}, {c.group_name}", by_task))
    found = [(title, _by_encoder(c, [_encoder(c), *columns])) for title, columns in tables]
    if len(c.metrics) > 1:
        title = f"Each method, number of steps and metric, {c.group_name}; published ones in gray"
        found.append((title, methods_table(c)))
    return found


def methods_table(c: Confirmation) -> Table:
    """Each model at each number of steps by each metric, as EMF's tables 3 and 4 have them, and
    the published models that were scored by one of these metrics."""

    def metric(name: str) -> Column:
        def cell(item: tuple[TrainedEncoder, int] | PublishedModel) -> TableCell:
            if isinstance(item, PublishedModel):
                return number_cell(item.scores.get(name))
            row, steps = item
            return score_cell(c.entry(row, steps, metric=name))

        return metric_heading(name), "r", cell

    def method(item: tuple[TrainedEncoder, int] | PublishedModel) -> TableCell:
        if isinstance(item, PublishedModel):
            return TableCell(item.name, "(published)", item.name.lower())
        return encoder_cell(item[0].spec, c.name(item[0].spec), control=item[0].control)

    def kind(item: tuple[TrainedEncoder, int] | PublishedModel) -> str:
        if isinstance(item, PublishedModel):
            return "published"
        return "control" if item[0].control else "use" if item[0] is c.winner else ""

    items: list[tuple[TrainedEncoder, int] | PublishedModel] = [
        (row, steps) for row in c.rows for steps in c.steps
    ]
    items += [model for model in MODELS if set(model.scores) & set(c.metrics)]
    columns: list[Column] = [
        ("Method", "l", method),
        ("Steps", "r", lambda item: number_cell(
            item.steps if isinstance(item, PublishedModel) else item[1], text.count)),
        *map(metric, c.metrics),
    ]  # fmt: skip
    return make_table(items, columns, kind)


def _task(c: Confirmation, name: str) -> Column:
    """Share of right images of a task, in the cell of both verdicts."""

    def cell(row: TrainedEncoder) -> TableCell:
        return number_cell((row.tasks.get(c.primary) or {}).get(name), two_digits)

    return text.clean_text(name).replace("_", " "), "r", cell


def lead_table(c: Confirmation) -> Table | None:
    """The predicted winner's paired lead over each rival."""

    def better(entry: Lead) -> str:
        if entry.high_corrected < 0:
            return "the rival"
        return "the predicted first" if entry.lead.low > 0 else "not settled"

    leads = c.verdict.choice.leads
    columns: list[Column] = [
        ("Rival", "l", lambda entry: text_cell(c.name(entry.rival))),
        ("Lead of the predicted first", "r", lambda entry: score_cell(entry.lead)),
        ("Upper end, corrected", "r", lambda entry: number_cell(entry.high_corrected)),
        ("Which is better", "l", lambda entry: text_cell(better(entry))),
    ]
    return make_table(leads, columns) if leads else None


def rule_table(c: Confirmation) -> Table | None:
    """The numbers behind the verdict on the order."""
    rule = c.verdict.rule
    if not c.candidates:
        return None

    def value(name: str, show: Callable[[Any], str] = text.number) -> TableCell:
        return number_cell(getattr(rule, name), show)

    exact = "exact" if rule.exact else "from sampled orders"
    rows = [
        ("Rank correlation", score_cell(rule.statistic, 2),
         "size-weighted mean of Spearman's within stages of training"),
        ("p", value("p", text.p_value), f"one-sided, by permutation, {exact}"),
        ("Smallest p", value("smallest_p", text.p_value),
         "what a perfect order of these encoders would reach"),
        ("Top-1 regret", score_cell(rule.regret),
         f"{c.metric} lost by choosing the predicted first, corrected for the best one's luck"),
        ("Range of scores", value("score_range"), "best minus worst encoder"),
        ("Seed deviation", value("seed_deviation"),
         "of one training's score; unknown with one seed"),
        ("Seed-to-seed correlation", value("seed_correlation", two_digits),
         "between seeds over the same encoders: the ceiling of any prediction"),
    ]  # fmt: skip
    columns: list[Column] = [
        ("Quantity", "l", lambda row: text_cell(row[0])),
        ("Value", "r", lambda row: row[1]),
        ("What it is", "l", lambda row: text_cell(row[2])),
    ]
    return make_table(rows, columns)


def predictor_table(c: Confirmation, *, primary: bool) -> Table | None:
    """Every score that could have predicted the order, best first.

    Args:
        primary: in the cell of both verdicts, or in all others.
    """
    predictors = [p for p in c.verdict.exploratory if (p.cell == c.primary) == primary]
    predictors.sort(
        key=lambda p: (
            "" if primary else str(p.cell),
            -p.statistic if text.is_number(p.statistic) else float("inf"),
            p.name,
        )
    )
    columns: list[Column] = [
        ("Predictor", "l", lambda p: text_cell(p.name)),
        ("Cell", "l", lambda p: text_cell(cell_title(p.cell))),
        ("Rank correlation", "r", lambda p: number_cell(p.statistic, two_digits)),
        ("p", "r", lambda p: number_cell(p.p, text.p_value)),
        ("p (Holm)", "r", lambda p: number_cell(p.p_holm, text.p_value)),
        ("Encoders", "r", lambda p: number_cell(p.encoders, text.count)),
    ]
    if primary:
        del columns[1]
    return make_table(predictors, columns) if predictors else None


def cell_title(cell: Cell) -> str:
    """'4 steps, B, held-out', with the metric where it is not GenEval."""
    metric = "" if cell.metric == "geneval" else f"{metric_title(cell.metric)}, "
    return f"{metric}{text.count_noun(cell.steps, 'step')}, {', '.join(cell.group)}"


# --------------------------------------------------------------------------------- files


def confirmation_csv(c: Confirmation) -> str:
    """One row for each encoder and cell, with every digit of the verdict; after the scores, the
    share of right images of each task."""
    tasks = list(
        dict.fromkeys(task for row in c.rows for cells in row.tasks.values() for task in cells)
    )
    head = (
        "spec", "name", "stage", "control", "predicted", "predicted_low", "predicted_high",
        "predicted_rank", "parameters", "training_seconds", "cell", *Cell._fields, "primary",
        "value", "low", "high", "n", "by_seed", "parent", "parent_low", "parent_high", *tasks,
    )  # fmt: skip
    ends = attrgetter("value", "low", "high")
    rows = []
    for row in c.rows:
        for cell, entry in row.scores.items():
            parent = ends(row.parent[cell]) if cell in row.parent else (None, None, None)
            shares = row.tasks.get(cell) or {}
            rows.append(
                (
                    row.spec, row.name, row.stage, row.control, *ends(row.predicted),
                    row.predicted_rank, row.parameters, c.mean_seconds(row), str(cell), *cell,
                    cell == c.primary, *ends(entry), entry.n,
                    " ".join(map(str, row.by_seed.get(cell) or [])), *parent,
                    *map(shares.get, tasks),
                )
            )  # fmt: skip
    return to_csv(head, rows)
