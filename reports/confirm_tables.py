"""The tables of a confirmation, and its CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from encbench.records import TrainedEncoder

from . import text
from .confirm_load import Confirmation, Group
from .tables import Table, TableCell, TableRow, number_cell, scored, text_cell, write_csv


def _kind(c: Confirmation, row: TrainedEncoder) -> str:
    if row.control:
        return "control"
    return "use" if c.winner is row else ""


def _encoder(c: Confirmation, row: TrainedEncoder) -> TableCell:
    tag = "control" if row.control else ""
    return text_cell(c.name(row.spec), title=text.clean_text(row.spec), tag=tag)


def _several_stages(c: Confirmation) -> bool:
    return len({row.stage for row in c.trained}) > 1


def group_title(group: Group) -> str:
    """A tier and whether its combinations were seen, as a heading: 'B, held-out'."""
    return f"{group[0]}, {group[1]}"


def outcome_table(c: Confirmation) -> Table:
    """What was predicted and what came out in the cell of both verdicts."""
    stages = _several_stages(c)
    steps = f"GenEval, {c.primary.steps} steps"
    head = (
        "Predicted rank", "Actual rank", "Encoder", "Predicted score", steps, "Each seed",
        "Parent, flow matching", *(["Stage"] if stages else []),
    )  # fmt: skip
    rows = []
    for row in c.rows:
        place = c.places.get(row.spec)
        parent = row.parent.get(c.verdict.primary)
        by_seed = row.by_seed.get(c.verdict.primary) or []
        cells = [
            TableCell("control")
            if row.control
            else number_cell(row.predicted_rank, text.count(row.predicted_rank)),
            number_cell(place, text.count(place)),
            _encoder(c, row),
            scored(row.predicted),
            scored(c.entry(row)),
            TableCell(", ".join(map(text.number, by_seed)) or text.NOTHING),
            scored(parent),
        ]
        if stages:
            cells.append(text_cell(row.stage))
        rows.append(TableRow(tuple(cells), _kind(c, row)))
    return Table(head, "rrlrrrr" + "l" * stages, tuple(rows))


def by_group(c: Confirmation) -> Table | None:
    """At the verdicts' number of steps: each wording tier, seen and held-out combinations."""
    if len(c.groups) < 2:
        return None
    rows = [
        TableRow(
            (_encoder(c, row), *(scored(c.entry(row, group=g), 2) for g in c.groups)), _kind(c, row)
        )
        for row in c.rows
    ]  # fmt: skip
    return Table(("Encoder", *map(group_title, c.groups)), _align(c.groups), tuple(rows))


def by_steps(c: Confirmation) -> Table | None:
    """In the verdicts' group of prompts: each number of steps."""
    if len(c.steps) < 2:
        return None
    head = ("Encoder", *(text.count_noun(steps, "step") for steps in c.steps))
    rows = [
        TableRow((_encoder(c, row), *(scored(c.entry(row, s)) for s in c.steps)), _kind(c, row))
        for row in c.rows
    ]
    return Table(head, _align(c.steps), tuple(rows))


def _align(columns: Sequence[Any]) -> str:
    return "l" + "r" * len(columns)


def by_task(c: Confirmation) -> Table | None:
    """Share of right images of each task, in the cell of both verdicts."""
    names = dict.fromkeys(n for row in c.rows for n in row.tasks.get(c.verdict.primary) or {})
    if not names:
        return None
    rows = []
    for row in c.rows:
        tasks = row.tasks.get(c.verdict.primary) or {}
        cells = (number_cell(tasks.get(name), text.number(tasks.get(name), 2)) for name in names)
        rows.append(TableRow((_encoder(c, row), *cells), _kind(c, row)))
    head = ("Encoder", *(text.clean_text(name).replace("_", " ") for name in names))
    return Table(head, _align(tuple(names)), tuple(rows))


def lead_table(c: Confirmation) -> Table | None:
    """The predicted winner's paired lead over each rival."""
    head = ("Rival", "Lead of the predicted first", "Upper end, corrected", "Which is better")
    rows = []
    for entry in c.verdict.choice.get("leads") or []:
        lead = entry.get("lead") or {}
        low, top = lead.get("low"), entry.get("high_corrected")
        better = "not settled"
        if text.is_number(top) and top < 0:
            better = "the rival"
        elif text.is_number(low) and low > 0:
            better = "the predicted first"
        cells = (
            text_cell(c.name(entry.get("rival"))),
            scored(lead),
            number_cell(top),
            text_cell(better),
        )
        rows.append(TableRow(cells))
    return Table(head, "lrrl", tuple(rows)) if rows else None


def rule(c: Confirmation) -> Table | None:
    """The numbers behind the verdict on the order."""
    r = c.verdict.rule
    if not r:
        return None
    how = "exact" if r.get("exact") else "from sampled orders"
    rows = [
        ("Rank correlation", scored(r.get("statistic"), 2),
         "size-weighted mean of Spearman's within stages of training"),
        ("p", number_cell(r.get("p"), text.p_value(r.get("p"))),
         f"one-sided, by permutation, {how}"),
        ("Smallest p", number_cell(r.get("smallest_p"), text.p_value(r.get("smallest_p"))),
         "what a perfect order of these encoders would reach"),
        ("Top-1 regret", scored(r.get("regret")),
         "GenEval lost by choosing the predicted first, corrected for the best one's luck"),
        ("Range of scores", number_cell(r.get("score_range")), "best minus worst encoder"),
        ("Seed deviation", number_cell(r.get("seed_deviation")),
         "of one training's score; unknown with one seed"),
        ("Seed-to-seed correlation", number_cell(r.get("seed_correlation"),
         text.number(r.get("seed_correlation"), 2)),
         "between seeds over the same encoders: the ceiling of any prediction"),
    ]  # fmt: skip
    made = tuple(TableRow((text_cell(name), value, text_cell(what))) for name, value, what in rows)
    return Table(("Quantity", "Value", "What it is"), "lrl", made)


def predictors(c: Confirmation, *, primary: bool) -> Table | None:
    """Everything that could have predicted the order, best first.

    Args:
        primary: in the cell of both verdicts, or in all others.
    """
    wanted = [p for p in c.verdict.exploratory if (p.cell == c.verdict.primary) == primary]
    if not wanted:
        return None
    wanted.sort(key=lambda p: (str(p.cell) if not primary else "", -_number(p.statistic), p.name))
    rows = []
    for p in wanted:
        where = f"{text.count_noun(p.cell.steps, 'step')}, {group_title(p.cell.group)}"
        cells = [
            text_cell(text.clean_text(p.name)),
            number_cell(p.statistic, text.number(p.statistic, 2)),
            number_cell(p.p, text.p_value(p.p)),
            number_cell(p.p_holm, text.p_value(p.p_holm)),
            number_cell(p.encoders, text.count(p.encoders)),
        ]
        if not primary:
            cells.insert(1, text_cell(text.clean_text(where)))
        rows.append(TableRow(tuple(cells)))
    head = ["Predictor", "Rank correlation", "p", "p (Holm)", "Encoders"]
    if not primary:
        head.insert(1, "Cell")
    return Table(tuple(head), "l" + "l" * (not primary) + "rrrr", tuple(rows))


def _number(value: Any) -> float:
    return float(value) if text.is_number(value) else float("-inf")


# --------------------------------------------------------------------------------- files


def confirmation_csv(c: Confirmation) -> str:
    """One row for each encoder and cell, with every digit of the verdict; after the scores, the
    share of right images of each task."""
    tasks = list(
        dict.fromkeys(task for row in c.rows for cells in row.tasks.values() for task in cells)
    )
    head = (
        "spec", "name", "stage", "control", "predicted", "predicted_low", "predicted_high",
        "predicted_rank", "parameters", "training_seconds", "cell", "steps", "tier", "combos",
        "primary", "value", "low", "high", "n", "by_seed", "parent", "parent_low", "parent_high",
        *tasks,
    )  # fmt: skip
    rows = []
    for row in c.rows:
        seconds = [s for s in row.training_seconds if text.is_number(s)]
        for key, entry in row.scores.items():
            parent: Any = row.parent.get(key) or {}
            shares = row.tasks.get(key) or {}
            rows.append(
                (
                    row.spec, row.name, row.stage, row.control,
                    *(row.predicted.get(end) for end in ("value", "low", "high")),
                    row.predicted_rank, row.parameters,
                    sum(seconds) / len(seconds) if seconds else None, key,
                    key.steps, key.tier, key.combos, key == c.primary,
                    *(entry.get(end) for end in ("value", "low", "high", "n")),
                    " ".join(map(str, row.by_seed.get(key) or [])),
                    *(parent.get(end) for end in ("value", "low", "high")),
                    *(shares.get(task) for task in tasks),
                )
            )  # fmt: skip
    return write_csv(head, rows)
