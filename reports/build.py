"""Writes the report of a run folder: one HTML page, Markdown, CSV, TeX and figures.

Only files of the run folder are read, and the report does not depend on time or machine: the same
run gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from encbench.errors import from_os_error
from encbench.files import write_atomic, write_text
from encbench.records import clean

from . import confirm_tables, confirm_words, published, tables, words
from .compare import build_comparison
from .confirmation import Confirmation, load_confirmation, load_grids
from .figure_set import draw_figures
from .gallery import load_gallery
from .load import Run, load_run
from .provenance import provenance_rows
from .render import render_html, render_markdown
from .text import clean_text

LONG = 160  # characters from which the first line is set smaller
FEW_PAIRS = 15  # rows shown at once; more are folded away


def build_report(run: Path, out: Path | None = None, beside: Path | None = None) -> Path:
    """Write the report of a finished run; with a verdict.json, its confirmation comes first.

    Args:
        run: the run's folder, with prediction.json, records/ and maybe media/ and config.json.
        out: where to write; the run's ``report`` folder by default.
        beside: another run; instead of a report, both are shown side by side on one page
            (:func:`encbench.reports.compare.build_comparison`).

    Returns:
        the path of ``index.html``, which holds everything and opens offline. Beside it:
        report.md, ranking.csv, ranking.tex, scores.csv and figures/*.png, *.svg; of a
        confirmation also confirmation.csv and confirmation.tex.

    Raises:
        RecordError: in one line, naming the file that is missing, damaged or newer.
        StoreError: if the report cannot be written.
    """
    if beside is not None:
        return build_comparison(run, beside, out)
    loaded = load_run(run)
    confirmation = load_confirmation(loaded)
    folder = out or run / "report"
    view = _view(loaded, confirmation)
    comment = f"encbench ranking; prediction {loaded.prediction.hash}; needs booktabs"
    files: dict[str, bytes | str] = {
        "ranking.csv": tables.ranking_csv(loaded),
        "ranking.tex": tables.to_tex(view["ranking"], comment),
        "scores.csv": tables.scores_csv(loaded),
    }
    drawings = dict(view["figures"].drawings)
    if confirmation:
        shown = view["confirmation"]
        comment = f"encbench confirmation; verdict {confirmation.verdict.hash}; needs booktabs"
        files["confirmation.csv"] = confirm_tables.confirmation_csv(confirmation)
        files["confirmation.tex"] = tables.to_tex(shown.encoders, comment)
        files |= {f"figures/{grid.file}.png": grid.image.content for grid in shown.grids}
        drawings |= shown.figures.drawings
    for name, drawing in drawings.items():
        files |= {f"figures/{name}.png": drawing.png, f"figures/{name}.svg": drawing.svg}
    files["report.md"] = render_markdown(view)
    # The last: with it the report is complete.
    files["index.html"] = render_html("report.html", view, confirmed=confirmation is not None)
    try:
        _remove_stale(folder, files)
    except OSError as error:
        raise from_os_error(error, f"writing {folder}") from error
    for name, content in files.items():
        if isinstance(content, str):
            write_text(folder / name, content)
        else:
            write_atomic(folder / name, content)
    return folder / "index.html"


def _remove_stale(folder: Path, files: Iterable[str]) -> None:
    """Remove files of an earlier report that this one lacks: they would contradict it. The earlier
    report's Markdown lists its figures; all other files in the folder are the user's."""
    earlier = folder / "report.md"
    source = earlier.read_bytes().decode("utf-8", "replace") if earlier.is_file() else ""
    names = {f"figures/{name}.{end}" for name in re.findall(r"\(figures/([\w.-]+)\.png\)", source)
             for end in ("png", "svg")}  # fmt: skip
    for name in sorted({*names, "confirmation.csv", "confirmation.tex"} - set(files)):
        (folder / name).unlink(missing_ok=True)


def _view(run: Run, confirmation: Confirmation | None) -> dict[str, Any]:
    """Everything that the templates show."""
    among, against = words.split_pairs(run)
    advice = confirm_words.headline(confirmation) if confirmation else clean_text(run.advice)
    summary = words.run_summary(run)
    if confirmation:
        summary = f"{confirm_words.confirm_summary(confirmation)} Ranking: {summary}"
    return {
        "run": run,
        "confirmation": _confirmation_view(confirmation) if confirmation else None,
        "advice": advice,
        "long": len(advice) > LONG,
        "record": words.rule_record(run),
        "summary": summary,
        "warnings": words.run_warnings(run),
        "failed": run.prediction.failed,
        "figures": draw_figures(run),
        "ranking": tables.ranking_table(run),
        "cost": tables.cost_table(run) if run.candidates else None,
        "sensitivity": tables.sensitivity_table(run) if run.prediction.sensitivity else None,
        "rules": tables.rule_table(run),
        "rivals": tables.rival_table(run) if run.prediction.rivals else None,
        "pairs": tables.difference_table(run, among) if among else None,
        "against": tables.difference_table(run, against) if against else None,
        "fold_pairs": len(among) > FEW_PAIRS,
        "published": tables.published_table(run),
        "scores": [
            (
                clean_text(f"{name}: {probe.title}" if probe.title else name),
                tables.score_table(run, probe),
            )
            for name, probe in run.probes.items()
        ],
        "encoders": tables.encoder_table(run),
        "gallery": load_gallery(run),
        "definitions": words.definitions(run),
        "paper": published,
        "provenance": provenance_rows(run),
        "config": _as_json(run.config),
    }


def _confirmation_view(c: Confirmation) -> SimpleNamespace:
    """What the templates show of a confirmation."""
    return SimpleNamespace(
        c=c,
        advice=clean_text(c.run.advice),
        statements=confirm_words.statements(c),
        warnings=confirm_words.confirm_warnings(c),
        rules=confirm_words.rules(c),
        figures=draw_figures(c, "confirmation"),
        grids=load_grids(c),
        encoders=confirm_tables.outcome_table(c),
        leads=confirm_tables.lead_table(c),
        rule=confirm_tables.rule_table(c),
        failed=confirm_words.failed_trainings(c),
        breakdown=confirm_tables.breakdown_tables(c),
        predictors=confirm_tables.predictor_table(c, primary=True),
        other_predictors=confirm_tables.predictor_table(c, primary=False),
        plan=confirm_words.plan_rows(c),
        plan_json=_as_json(clean(dataclasses.asdict(c.verdict.plan))),
        provenance=confirm_words.verdict_provenance(c),
    )


def _as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
