"""A run folder becomes a report: one HTML page, Markdown, CSV, TeX and figures.

Only files of the run folder are read, and nothing in the report depends on when or where it
is made: the same run gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from encbench.files import write_atomic

from . import curves, figures, kinds, scatter, tables, words
from .confirm_view import View, build_view, write_files
from .figures import Drawing
from .gallery import gallery_cases
from .load import Run, load_run
from .published import LABEL, LINK, REFERENCE, SILENT
from .text import clean_text, encode, listing, markdown, quantity

LONG = 160  # characters from which the first line is set smaller
FEW_PAIRS = 15  # rows shown at once; more are folded away


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
    folder = out or run / "report"
    drawings, reasons = draw_figures(loaded)
    confirmation = build_view(loaded)
    for drawing in drawings.values():
        write_atomic(folder / "figures" / f"{drawing.name}.png", drawing.png)
        write_atomic(folder / "figures" / f"{drawing.name}.svg", drawing.svg)
    write_files(confirmation, folder)
    _remove_stale(folder / "figures", {*drawings, *(confirmation.names if confirmation else ())})
    view = _view(loaded, drawings, reasons, confirmation)
    ranking = tables.ranking_table(loaded)
    comment = f"encbench ranking; prediction {loaded.prediction.hash}; needs booktabs"
    for name, text in (
        ("ranking.csv", tables.ranking_csv(loaded)),
        ("ranking.tex", tables.to_tex(ranking, comment)),
        ("scores.csv", tables.scores_csv(loaded)),
        ("report.md", _render_markdown(view)),
        ("index.html", _render_html(view)),
    ):
        write_atomic(folder / name, encode(text))
    return folder / "index.html"


def draw_figures(run: Run) -> tuple[dict[str, Drawing], dict[str, str]]:
    """All figures by name, and for those that cannot be drawn the reason, by function."""
    drawings: dict[str, Drawing] = {}
    reasons: dict[str, str] = {}
    for draw in (figures.draw_ranking, *scatter.FIGURES, *curves.FIGURES, *kinds.FIGURES):
        made = draw(run)
        if isinstance(made, Drawing):
            drawings[made.name] = made
        else:
            reasons[draw.__name__.removeprefix("draw_")] = made
    for drawing in curves.draw_similarities(run):
        drawings[drawing.name] = drawing
    return drawings, reasons


def _remove_stale(folder: Path, names: set[str]) -> None:
    """Figures of an earlier report that this one does not have would contradict it."""
    known = {"ranking", "cost", "plane-published", "plane-calibrated", "ablation"}
    known |= {"ablation-places", "sensitivity", "minimal-pairs", "decodability", "stages"}
    for path in folder.glob("*"):
        ours = path.stem in known or path.stem.startswith(("similarity-", "confirm-"))
        if ours and path.suffix in (".png", ".svg") and path.stem not in names:
            path.unlink(missing_ok=True)


def _view(
    run: Run, drawings: dict[str, Drawing], reasons: dict[str, str], confirmation: View | None
) -> dict[str, Any]:
    """Everything that the templates show."""
    among, against = words.split_pairs(run)
    first = confirmation.headline if confirmation else clean_text(run.advice)
    summary = words.run_summary(run)
    return {
        "run": run,
        "confirmation": confirmation,
        "advice": first,
        "long": len(first) > LONG,
        "summary": f"{confirmation.summary} Ranking: {summary}" if confirmation else summary,
        "warnings": words.run_warnings(run),
        "failed": [words.failure(entry) for entry in run.prediction.failed],
        "figures": drawings,
        "reasons": reasons,
        "similarities": [d for d in drawings.values() if d.name.startswith("similarity-")],
        "ranking": tables.ranking_table(run),
        "cost": tables.cost(run) if run.candidates else None,
        "sensitivity": tables.sensitivity(run) if "sensitivity" in drawings else None,
        "rivals": tables.rivals(run) if run.prediction.rivals else None,
        "pairs": tables.difference_table(run, among) if among else None,
        "against": tables.difference_table(run, against) if against else None,
        "fold_pairs": len(among) > FEW_PAIRS,
        "published": tables.published(run),
        "scores": [
            (probe, _title(run, probe), tables.score_table(run, probe)) for probe in run.probes
        ],
        "encoders": tables.encoder_table(run),
        "gallery": gallery_cases(run),
        "definition": words.definition(run),
        "silent": SILENT,
        "reference": REFERENCE,
        "label": LABEL,
        "link": LINK,
        "provenance": _provenance(run),
        "config": json.dumps(run.config, indent=2, ensure_ascii=False, sort_keys=True),
    }


def _title(run: Run, probe: str) -> str:
    titles = (str(r.probe.get("title") or "") for r in run.records if r.probe["name"] == probe)
    title = next(filter(None, titles), "")
    return clean_text(f"{probe}: {title}" if title else probe)


def _provenance(run: Run) -> list[tuple[str, str]]:
    """What pins this run, as label and value; several values where records differ."""
    p = run.prediction
    seen: dict[str, dict[str, None]] = {}
    packages: dict[str, dict[str, None]] = {}
    for record in run.records:
        origin = record.provenance
        for key in ("python", "platform", "cpu_count", "device"):
            if origin.get(key) is not None:
                seen.setdefault(key, {})[str(origin[key])] = None
        if origin.get("commit"):
            dirty = " with uncommitted changes" if origin.get("dirty") else ""
            seen.setdefault("commit", {})[f"{origin['commit']}{dirty}"] = None
        for name, version in (origin.get("packages") or {}).items():
            packages.setdefault(str(name), {})[str(version)] = None
    rule = ", ".join(f"{k} {v}" for k, v in p.rule.items() if k != "text")
    seconds = sum(record.seconds or 0 for record in run.records)
    rows = [
        ("Prediction", f"sha256 {p.hash}"),
        ("Made", p.created),
        ("Rule", rule),
        ("Seed", str(p.seed)),
        *((f"Data of {probe}", str(dataset)) for probe, dataset in p.data.items()),
        ("Images re-encoded by", run.reencoder),
        ("Device asked for", str(run.config.get("device") or "")),
        ("Commit", "; ".join(seen.get("commit", {}))),
        ("Python", "; ".join(seen.get("python", {}))),
        ("Platform", "; ".join(seen.get("platform", {}))),
        ("CPUs", "; ".join(seen.get("cpu_count", {}))),
        ("Device", "; ".join(seen.get("device", {}))),
        ("Packages", ", ".join(f"{name} {' or '.join(v)}" for name, v in packages.items())),
        ("Records", f"{len(run.records)}, {quantity(seconds)} s of probing"),
    ]
    return [(label, clean_text(value)) for label, value in rows if value]


# ------------------------------------------------------------------------------ rendering


def _render_html(view: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("encbench.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def source(name: str) -> str:
        assert environment.loader is not None
        return environment.loader.get_source(environment, name)[0]

    script = source("script.js")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    environment.filters["line"] = clean_text
    style = source("style.css") + (source("confirm.css") if view["confirmation"] else "")
    return environment.get_template("report.html").render(
        **view, style=Markup(style), script=Markup(script), script_hash=allowed
    )


class _Ready(str):
    """Markdown that is already escaped."""


def _render_markdown(view: dict[str, Any]) -> str:
    """As with HTML, whatever a template prints is escaped unless it is marked as ready."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("encbench.reports", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, _Ready) else markdown(str(value)),
    )
    environment.filters["table"] = lambda table: _Ready(tables.to_markdown(table))
    environment.filters["listing"] = listing
    return environment.get_template("report.md").render(**view)
