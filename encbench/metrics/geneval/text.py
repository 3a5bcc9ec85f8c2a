"""Scores as text for the terminal and as files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...files import write_atomic, write_json
from ...types import Score
from .folder import PUBLISHED
from .score import Scoring
from .tables import OVERALL, Agreement, ScoreComparison, breakdown, task_scores


def write_scores(scoring: Scoring, out: Path, *, seed: int = 0) -> dict[str, Score]:
    """Write ``scores.json`` and ``breakdown.csv`` beside the results; the scores by task."""
    scores = task_scores(scoring.results, seed=seed)
    unscored = [
        {"file": image.file, "problem": image.problem}
        for result in scoring.results
        for image in result.images
        if image.verdict is None
    ]
    body: dict[str, Any] = {
        "images": str(scoring.images),
        "detector": scoring.detector,
        "colors": scoring.colors,
        "overlap_limit": scoring.overlap_limit,
        "seed": seed,
        "partial": bool(scoring.notes),
        "notes": list(scoring.notes),
        "scores": {name: asdict(score) for name, score in scores.items()},
        "unscored": unscored,
    }
    write_json(Path(out) / "scores.json", body)
    table = breakdown(scoring.results, seed=seed)
    write_atomic(Path(out) / "breakdown.csv", table.to_csv(index=False).encode())
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
    lines += _problems(scoring)
    return lines


def _problems(scoring: Scoring, most: int = 10) -> list[str]:
    problems = [
        image.problem
        for result in scoring.results
        for image in result.images
        if image.verdict is None
    ]
    lines = [f"unscored: {problem}" for problem in problems[:most]]
    if len(problems) > most:
        lines.append(f"unscored: {len(problems) - most:,} more, all named in scores.json")
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
    return [*lines, *_notes(found.notes)]


def agreement_lines(found: Agreement) -> list[str]:
    """The table that ``encbench geneval compare --detectors`` prints."""
    kappa = (
        "undefined (all verdicts are the same)" if math.isnan(found.kappa) else f"{found.kappa:.3f}"
    )
    lines = [f"{'':14s} {'agree':>6s}   {'95 % interval':15s}"]
    lines += [f"{name:14s} {_interval(score)}" for name, score in found.by_task.items()]
    lines.append(f"{'all images':14s} {_interval(found.share)} {found.share.n:7,d} images")
    lines.append(f"Cohen's kappa {kappa}")
    lines.append(
        f"right by both {found.both:,}, by the first only {found.first_only:,}, by the second only "
        f"{found.second_only:,}, by neither {found.neither:,}"
    )
    return [*lines, *_notes(found.notes)]


def _notes(notes: Sequence[str]) -> Iterable[str]:
    return (f"note: {note}" for note in notes)


def _interval(score: Score) -> str:
    return f"{score.value:6.3f}   [{score.low:.3f}, {score.high:.3f}]"
