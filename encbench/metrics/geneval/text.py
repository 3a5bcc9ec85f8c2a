"""Scores as text for the terminal and as files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...data.geneval import PUBLISHED
from ...files import to_csv, write_json, write_text
from ...types import Score
from ..score import Scoring
from ..tables import OVERALL, ScoreComparison, task_scores
from .metric import SPEC
from .tables import Agreement, breakdown, published_columns

SHOWN = 10  # problems in the terminal


def write_scores(scoring: Scoring, out: Path, *, seed: int = 0) -> dict[str, Score]:
    """Write ``scores.json``, ``breakdown.csv`` and, with the published evaluator's columns,
    ``results.jsonl``; the scores by task."""
    write_text(Path(out) / "results.jsonl", published_columns(scoring))
    scores = task_scores(scoring.results, SPEC, seed=seed)
    body: dict[str, Any] = {
        "images": scoring.images.name,
        "detector": scoring.setting("detector"),
        "colors": scoring.setting("colors"),
        "overlap_limit": float(scoring.setting("overlap_limit", "1")),
        "seed": seed,
        "partial": bool(scoring.notes),
        "notes": list(scoring.notes),
        "scores": {name: asdict(score) for name, score in scores.items()},
        "unscored": [{"file": i.file, "problem": i.score.problem} for i in scoring.unscored],
    }
    write_json(Path(out) / "scores.json", body)
    table = breakdown(scoring.results, seed=seed)
    head = [str(name) for name in table]
    write_text(Path(out) / "breakdown.csv", to_csv(head, table.itertuples(index=False)))
    return scores


def score_lines(scores: Mapping[str, Score], scoring: Scoring) -> list[str]:
    """The table that ``encbench geneval score`` prints."""
    lines = [f"{'':14s} {'score':>6s}   {'95 % interval':15s} prompts  unscored images"]
    for name, score in scores.items():
        lines.append(f"{name:14s} {_interval(score)} {score.n:7,d}  {score.unscored:,}")
    counts = {name: score.n for name, score in scores.items() if name != OVERALL}
    if counts != PUBLISHED:
        lines.append(f"these are {sum(counts.values()):,} prompts, not the 553 published ones")
    lines += [f"PARTIAL: {note}" for note in scoring.notes]
    problems = [image.score.problem for image in scoring.unscored]
    lines += [f"unscored: {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"unscored: {len(problems) - SHOWN:,} more, all named in scores.json")
    return lines


def comparison_lines(found: ScoreComparison) -> list[str]:
    """The table that ``encbench geneval compare`` prints."""
    lines = [
        f"{'':14s} {'first':>6s} {'second':>7s}  {'difference':>10s}   {'95 % interval':17s} n"
    ]
    for name, change in found.difference.items():
        sure = "" if change.low <= 0 <= change.high else "  *"
        lines.append(
            f"{name:14s} {found.first[name].value:6.3f} {found.second[name].value:7.3f}  "
            f"{change.value:+10.3f}   [{change.low:+.3f}, {change.high:+.3f}]  {change.n:,}{sure}"
        )
    lines.append("* = the interval leaves out 0; n = prompts that both have; second minus first")
    return lines + [f"note: {note}" for note in found.notes]


def agreement_lines(found: Agreement) -> list[str]:
    """The table that ``encbench geneval compare --detectors`` prints."""
    kappa = (
        "undefined (all verdicts are the same)" if math.isnan(found.kappa) else f"{found.kappa:.3f}"
    )
    lines = [f"{'':14s} {'agree':>6s}   {'95 % interval':15s}"]
    lines += [f"{name:14s} {_interval(score)}" for name, score in found.by_task.items()]
    lines += [
        f"{'all images':14s} {_interval(found.share)} {found.share.n:7,d} images",
        f"Cohen's kappa {kappa}",
        f"right by both {found.both:,}, by the first only {found.first_only:,}, by the second only "
        f"{found.second_only:,}, by neither {found.neither:,}",
    ]
    return lines + [f"note: {note}" for note in found.notes]


def _interval(score: Score) -> str:
    return f"{score.value:6.3f}   [{score.low:.3f}, {score.high:.3f}]"
