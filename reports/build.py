"""A run folder becomes a report: one HTML page, Markdown, CSV, TeX and figures.

Only files of the run folder are read, and nothing in the report depends on when or where it
is made: the same run gives the same bytes.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from encbench import registry
from encbench.errors import from_os_error
from encbench.files import slug, write_atomic, write_text
from encbench.pages import hash_script
from encbench.records import clean

from . import confirm_tables, confirm_words, published, tables, words
from .confirmation import Confirmation, load_confirmation, load_grids
from .figures import Drawing, ReportFigure
from .gallery import load_gallery
from .load import Run, load_run
from .rows import draw_scores
from .text import clean_text, listing, markdown, quantity

LONG = 160  # characters from which the first line is set smaller
FEW_PAIRS = 15  # rows shown at once; more are folded away
PLACED = (
    "Ranking", "Score and cost", "Sensitivity to layer and pooling", "Predicted and actual",
    "By steps, wording and task", "Through training", "Actual score and cost",
    "The published evidence",
)  # fmt: skip
"""Sections that stand in the templates with more than figures in them."""
FIGURE_SECTIONS = ("Two probes", "Prompt ablation", words.CONTENT, "Similarity")
"""Sections of figures alone, in their order; others follow."""


@dataclass
class FigureSet:
    """Figures by the section they stand in, and in place of one that cannot be drawn the reason."""

    sections: dict[str, list[Drawing | str]] = field(default_factory=dict)

    def add(self, section: str, result: Drawing | str) -> None:
        if result:
            self.sections.setdefault(section, []).append(result)

    @property
    def drawings(self) -> dict[str, Drawing]:
        everything = (item for items in self.sections.values() for item in items)
        return {item.name: item for item in everything if isinstance(item, Drawing)}

    @property
    def free(self) -> list[tuple[str, str, list[Drawing | str]]]:
        """Sections that the templates do not name: id, heading and figures."""
        titles = [title for title in self.sections if title not in PLACED]
        known = [title for title in FIGURE_SECTIONS if title in titles]
        order = dict.fromkeys([*known, *titles])
        return [(slug(title).lower(), title, self.sections[title]) for title in order]


def build_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of a finished run; with a verdict.json, its confirmation comes first.

    Args:
        run: the run's folder, with prediction.json, records/ and maybe media/ and config.json.
        out: where to write; the run's ``report`` folder by default.

    Returns:
        the path of ``index.html``, which holds everything and opens offline. Beside it:
        report.md, ranking.csv, ranking.tex, scores.csv and figures/*.png, *.svg; of a
        confirmation also confirmation.csv and confirmation.tex.

    Raises:
        RecordError: in one line, naming the file that is missing, damaged or newer.
        StoreError: if the report cannot be written.
    """
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
    files["report.md"] = _render_markdown(view)
    files["index.html"] = _render_html(view)  # the last: with it the report is complete
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


def draw_figures(
    subject: Run | Confirmation, needs: Literal["ranking", "confirmation"] = "ranking"
) -> FigureSet:
    """All registered figures of a run or of a confirmation; in a run, also the scores of each
    probe that no figure is registered for."""
    figures = FigureSet()
    covered: set[str] = set()
    for name in registry.names("figure"):
        figure: ReportFigure = registry.get("figure", name)
        if figure.needs == needs:
            covered |= set(figure.probes)
            results = figure.draw(subject)
            for result in [results] if isinstance(results, Drawing | str) else results:
                figures.add(figure.section, _name(result, name, figure.title))
    if isinstance(subject, Confirmation):
        return figures
    for probe in subject.probes.values():
        if probe.name not in covered:
            section = probe.display.section or clean_text(probe.name)
            taken = {*figures.drawings, *registry.names("figure")}
            name = slug(probe.name).lower()
            while name in taken:
                name += "-scores"
            figures.add(section, _name(draw_scores(subject, probe), name, ""))
    return figures


def _name(result: Drawing | str, name: str, title: str) -> Drawing | str:
    """A drawing with the name and title that it was registered under."""
    if isinstance(result, str):
        return result
    full = f"{name}-{result.name}" if result.name else name
    return dataclasses.replace(result, name=full, title=result.title or title)


def _remove_stale(folder: Path, files: Iterable[str]) -> None:
    """Remove what an earlier report has and this one does not: it would contradict it. An
    earlier report's Markdown lists its figures; whatever else lies there is the user's."""
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
        "provenance": _provenance(run),
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


def _provenance(run: Run) -> list[tuple[str, str]]:
    """What pins this run, as label and value; several values where records differ."""
    p = run.prediction
    seen: dict[str, dict[str, None]] = {}
    packages: dict[str, dict[str, None]] = {}
    for record in run.records:
        origin = dict(record.provenance)
        if origin.get("commit") and origin.get("dirty"):
            origin["commit"] = f"{origin['commit']} with uncommitted changes"
        for key in ("commit", "python", "platform", "cpu_count", "device"):
            if origin.get(key):
                seen.setdefault(key, {})[str(origin[key])] = None
        for name, version in (origin.get("packages") or {}).items():
            packages.setdefault(str(name), {})[str(version)] = None
    rule = {name: getattr(p.rule, name) for name in ("name", "version", "metric", "resamples")}
    seconds = sum(record.seconds or 0 for record in run.records)
    origins = {name: "; ".join(values) for name, values in seen.items()}
    rows = [
        ("Prediction", f"sha256 {p.hash}"),
        ("Made", p.created),
        ("Rule", ", ".join(f"{k} {v}" for k, v in rule.items() if v)),
        ("Seed", str(p.seed)),
        *((f"Data of {probe}", str(dataset)) for probe, dataset in p.data.items()),
        ("Images re-encoded by", run.reencoder),
        ("Device asked for", str(run.config.get("device") or "")),
        ("Commit", origins.get("commit", "")),
        ("Python", origins.get("python", "")),
        ("Platform", origins.get("platform", "")),
        ("CPUs", origins.get("cpu_count", "")),
        ("Device", origins.get("device", "")),
        ("Packages", ", ".join(f"{name} {' or '.join(v)}" for name, v in packages.items())),
        ("Records", f"{len(run.records)}, {quantity(seconds)} s of probing"),
    ]
    return [(clean_text(label), clean_text(value)) for label, value in rows if value]


# ------------------------------------------------------------------------------ rendering


def _environment(**options: Any) -> Environment:
    return Environment(
        loader=PackageLoader("encbench.reports", "templates"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, **options,
    )  # fmt: skip


def _render_html(view: dict[str, Any]) -> str:
    environment = _environment(autoescape=True)

    def source(name: str) -> str:
        assert environment.loader is not None
        return environment.loader.get_source(environment, name)[0]

    script = source("script.js")
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["line"] = clean_text
    style = source("style.css") + (source("confirm.css") if view["confirmation"] else "")
    return environment.get_template("report.html").render(
        **view, style=Markup(style), script=Markup(script), script_hash=hash_script(script)
    )


class _Ready(str):
    """Markdown that is already escaped."""


def _render_markdown(view: dict[str, Any]) -> str:
    """As with HTML, whatever a template prints is escaped unless it is marked as ready."""
    environment = _environment(
        finalize=lambda value: value if isinstance(value, _Ready) else markdown(str(value))
    )
    environment.filters["table"] = lambda table: _Ready(tables.to_markdown(table))
    environment.filters["listing"] = listing
    return environment.get_template("report.md").render(**view)
