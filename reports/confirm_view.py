"""Everything that a report shows of a confirmation, ready for the templates."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from encbench.files import write_atomic
from encbench.records import Verdict, clean
from encbench.types import Cell

from . import confirm_tables, confirm_words
from .confirm_figures import draw_confirm_figures
from .confirm_load import Confirmation, Grid, load_confirmation, load_grids
from .confirm_words import Statement
from .figures import Drawing
from .load import Run
from .tables import Table, to_tex
from .text import clean_text, count_noun, encode

FEW_GRIDS = 6  # shown at once; of more, those that the verdicts are about


@dataclass(frozen=True)
class View:
    """What the templates print."""

    headline: str
    summary: str
    advice: str
    verdict: Verdict
    same_prediction: bool
    primary: Cell
    statements: list[Statement]
    warnings: list[str]
    rules: list[tuple[str, str]]
    figures: dict[str, Drawing]
    reasons: dict[str, str]
    grids: list[Grid]
    encoders: Table
    leads: Table | None
    rule: Table | None
    failed: list[tuple[str, str]]
    breakdown: list[tuple[str, Table]]
    predictors: Table | None
    other_predictors: Table | None
    plan: list[tuple[str, str]]
    plan_json: str
    provenance: list[tuple[str, str]]
    files: dict[str, str]

    @property
    def names(self) -> set[str]:
        """Of all pictures that are written beside the report."""
        return {*self.figures, *(grid.file for grid in self.grids)}


def build_view(ranked: Run) -> View | None:
    """The confirmation of a run; None where none was made.

    Raises:
        RecordError: in one line, if verdict.json is damaged, newer or was changed.
    """
    c = load_confirmation(ranked)
    if c is None:
        return None
    figures, reasons = draw_confirm_figures(c)
    encoders = confirm_tables.outcome_table(c)
    comment = f"encbench confirmation; verdict {c.verdict.hash}; needs booktabs"
    return View(
        headline=clean_text(confirm_words.headline(c)),
        summary=confirm_words.confirm_summary(c),
        advice=clean_text(ranked.advice),
        verdict=c.verdict,
        same_prediction=c.same_prediction,
        primary=c.primary,
        statements=confirm_words.statements(c),
        warnings=confirm_words.confirm_warnings(c),
        rules=confirm_words.rules(c),
        figures=figures,
        reasons=reasons,
        grids=_grids(c),
        encoders=encoders,
        leads=confirm_tables.lead_table(c),
        rule=confirm_tables.rule(c),
        failed=confirm_words.failed_trainings(c),
        breakdown=_breakdown(c),
        predictors=confirm_tables.predictors(c, primary=True),
        other_predictors=confirm_tables.predictors(c, primary=False),
        plan=confirm_words.plan_rows(c),
        plan_json=json.dumps(
            clean(asdict(c.verdict.plan)), indent=2, ensure_ascii=False, sort_keys=True
        ),
        provenance=confirm_words.provenance_rows(c),
        files={
            "confirmation.csv": confirm_tables.confirmation_csv(c),
            "confirmation.tex": to_tex(encoders, comment),
        },
    )


def _grids(c: Confirmation) -> list[Grid]:
    """All grids; of many, those of the predicted first and last, the best, and the constant are
    shown at once."""
    found = load_grids(c)
    if len(found) <= FEW_GRIDS:
        return found
    wanted = {row.spec for row in (c.winner, c.best, c.constant, *c.trained[-1:]) if row}
    return [grid.fold(shown=grid.row.spec in wanted) for grid in found]


def _breakdown(c: Confirmation) -> list[tuple[str, Table]]:
    _, steps, tier, combos = c.primary
    group = clean_text(f"tier {tier}, {combos} combinations")
    found: list[tuple[str, Any]] = [
        (f"Each number of steps, {group}", confirm_tables.by_steps(c)),
        (f"Each wording tier and kind of combination, {count_noun(steps, 'step')}",
         confirm_tables.by_group(c)),
        (f"Each task, {count_noun(steps, 'step')}, {group}", confirm_tables.by_task(c)),
    ]  # fmt: skip
    return [(title, table) for title, table in found if table is not None]


def write_files(view: View | None, folder: Path) -> None:
    """Write tables and pictures of a confirmation; without one, remove those of an earlier.

    Raises:
        StoreError: if they cannot be written.
    """
    if view is None:
        for name in ("confirmation.csv", "confirmation.tex"):
            (folder / name).unlink(missing_ok=True)
        return
    for drawing in view.figures.values():
        write_atomic(folder / "figures" / f"{drawing.name}.png", drawing.png)
        write_atomic(folder / "figures" / f"{drawing.name}.svg", drawing.svg)
    for grid in view.grids:
        write_atomic(folder / "figures" / f"{grid.file}.png", grid.png)
    for name, text in view.files.items():
        write_atomic(folder / name, encode(text))
