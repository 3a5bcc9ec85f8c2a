"""GenEval scores with intervals, comparisons and tables, from verdicts.

The unit that is drawn is the prompt: its images stay together in the bootstrap, and prompts are
drawn anew within each task. So an interval tells what other prompts of the same tasks might
have given. A task in which every image is right, or every one wrong, gets an interval of no
width: the bootstrap cannot know better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float

from ...data.geneval import TASKS, GenevalPrompt
from ...errors import DataError
from ...intervals import LEVEL, resampled_means
from ...types import Score
from .folder import meaning
from .score import PromptResult, Scoring

OVERALL = "overall"


@dataclass(frozen=True)
class ScoreComparison:
    """Two models on the same prompts.

    Attributes:
        first, second: scores by task, and overall, over the prompts that both have.
        difference: second minus first, with paired intervals.
        notes: what was left out, in words.
    """

    first: dict[str, Score]
    second: dict[str, Score]
    difference: dict[str, Score]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Agreement:
    """Two detectors on the same images.

    Attributes:
        share: of images with the same verdict.
        kappa: Cohen's, 1 = always, 0 = as by chance; NaN where both always say the same one thing.
        by_task: the share for each task.
        both, first_only, second_only, neither: images called right by whom.
    """

    share: Score
    kappa: float
    by_task: dict[str, Score]
    both: int
    first_only: int
    second_only: int
    neither: int
    notes: tuple[str, ...] = field(default=())


def task_scores(results: Sequence[PromptResult], *, seed: int = 0) -> dict[str, Score]:
    """Share of right images of each task that has any, and 'overall', the mean of those shares.

    Returns:
        for each: value, number of prompts, 95 % interval, number of unscored images.
    """
    rows = [(r.prompt, np.array([r.right, r.scored], float)) for r in results]
    found = _by_task(rows, seed)
    unscored = {
        task: sum(len(r.images) - r.scored for r in results if r.prompt.task == task)
        for task in TASKS
    }
    unscored[OVERALL] = sum(unscored.values())
    return {
        name: Score(d.value[0], d.n, *d.interval(0), unscored[name]) for name, d in found.items()
    }


@dataclass(frozen=True)
class _Draws:
    """Columns of ratios: their values, the number of prompts, and B resampled values."""

    value: Float[np.ndarray, " C"]
    n: int
    draws: Float[np.ndarray, "B C"]

    def interval(self, column: int) -> tuple[float, float]:
        low, high = np.percentile(self.draws[:, column], LEVEL)
        return float(low), float(high)


def _ratios(table: Float[np.ndarray, "n D"], seed: int) -> _Draws:
    """Of each pair of columns (right, scored), the ratio of sums, and what resamples give."""
    means = resampled_means(table, seed)
    total = table.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = means[:, 0::2] / means[:, 1::2]
    return _Draws(total[0::2] / total[1::2], len(table), draws)


def _by_task(
    rows: Sequence[tuple[GenevalPrompt, Float[np.ndarray, " D"]]], seed: int
) -> dict[str, _Draws]:
    """Ratios of each task, over the prompts that have a scored image in every column, and their
    mean over tasks, which are drawn independently of each other."""
    found: dict[str, _Draws] = {}
    for number, task in enumerate(TASKS):
        table = [row for prompt, row in rows if prompt.task == task and (row[1::2] > 0).all()]
        if table:
            found[task] = _ratios(np.stack(table), seed * len(TASKS) + number)
    if found:
        parts = list(found.values())
        found[OVERALL] = _Draws(
            np.mean([part.value for part in parts], axis=0),
            sum(part.n for part in parts),
            np.mean([part.draws for part in parts], axis=0),
        )
    return found


def compare_scorings(first: Scoring, second: Scoring, *, seed: int = 0) -> ScoreComparison:
    """Two folders of images of the same prompts, prompt by prompt.

    Raises:
        DataError: if they have no scored prompt in common.
    """
    pairs, notes = _common(first, second)
    rows = [(a.prompt, np.array([a.right, a.scored, b.right, b.scored], float)) for a, b in pairs]
    found = _by_task(rows, seed)
    if not found:
        raise DataError(f"{first.images} and {second.images} have no scored prompt in common")
    if first.detector != second.detector or first.colors != second.colors:
        notes.append(
            f"they were judged differently: {first.detector} with {first.colors or 'no'} colors, "
            f"and {second.detector} with {second.colors or 'no'} colors"
        )
    made: list[dict[str, Score]] = [{}, {}, {}]
    for name, d in found.items():
        for side in (0, 1):
            made[side][name] = Score(float(d.value[side]), d.n, *d.interval(side))
        low, high = np.percentile(d.draws[:, 1] - d.draws[:, 0], LEVEL)
        made[2][name] = Score(float(d.value[1] - d.value[0]), d.n, float(low), float(high))
    return ScoreComparison(made[0], made[1], made[2], tuple(notes))


def agree(first: Scoring, second: Scoring, *, seed: int = 0) -> Agreement:
    """Verdicts of two detectors on the same images.

    Raises:
        DataError: if they have no scored image in common.
    """
    from sklearn.metrics import cohen_kappa_score

    pairs, notes = _common(first, second)
    rows, verdicts, strangers = [], [], 0
    for a, b in pairs:
        others = {image.file: image for image in b.images}
        both = []
        for image in a.images:
            other = others.get(image.file)
            if other is None or image.verdict is None or other.verdict is None:
                continue
            if image.sha256 != other.sha256:
                strangers += 1
                continue
            both.append((image.verdict.correct, other.verdict.correct))
        verdicts += both
        rows.append((a.prompt, np.array([sum(x == y for x, y in both), len(both)], float)))
    if not verdicts:
        raise DataError(f"{first.images} and {second.images} have no scored image in common")
    if strangers:
        notes.append(f"{strangers:,} images of the same name are not the same and were left out")
    found = _by_task(rows, seed)
    by_task = {n: Score(float(d.value[0]), d.n, *d.interval(0)) for n, d in found.items()}
    by_task.pop(OVERALL)
    table = np.stack([row for _, row in rows if row[1] > 0])
    total = _ratios(table, seed)
    one, two = map(list, zip(*verdicts, strict=True))
    known = len({*one, *two}) > 1
    return Agreement(
        share=Score(float(total.value[0]), len(verdicts), *total.interval(0)),
        kappa=float(cohen_kappa_score(one, two)) if known else float("nan"),
        by_task=by_task,
        both=verdicts.count((True, True)),
        first_only=verdicts.count((True, False)),
        second_only=verdicts.count((False, True)),
        neither=verdicts.count((False, False)),
        notes=tuple(notes),
    )


def _common(
    first: Scoring, second: Scoring
) -> tuple[list[tuple[PromptResult, PromptResult]], list[str]]:
    others = {meaning(result.prompt): result for result in second.results}
    pairs = [
        (result, others[key])
        for result in first.results
        if (key := meaning(result.prompt)) in others
    ]
    notes = []
    for side, scoring in (("first", first), ("second", second)):
        left_out = len(scoring.results) - len(pairs)
        if left_out:
            notes.append(
                f"{left_out:,} of {len(scoring.results):,} prompts of the {side} are not in the "
                "other and were left out"
            )
        notes += [f"the {side}: {note}" for note in scoring.notes]
    return pairs, notes


def breakdown(results: Sequence[PromptResult], *, seed: int = 0) -> pd.DataFrame:
    """How often what was asked for is there, by class, count, color and relation.

    Each include clause of each scored image is one row of the data; exclusions count with the
    clause of their class, so that four clocks are not two.

    Returns:
        columns by ('class', 'count', 'color', 'relation'), value, prompts, images, share (of
        images in which the clause holds), low, high (95 %, clustered on prompts).
    """
    held: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for result in results:
        for place, clause in enumerate(result.prompt.include):
            right = 0
            for image in result.images:
                if image.verdict is not None:
                    parts = image.verdict.clauses
                    out = [p for p in parts if p.exclude and p.clause.label == clause.label]
                    right += all(part.correct for part in [parts[place], *out])
            groups = [("class", clause.label), ("count", str(clause.count))]
            groups += [("color", clause.color)] if clause.color else []
            groups += [("relation", clause.position[0])] if clause.position else []
            for group in groups:
                held.setdefault(group, []).append((right, result.scored))
    order = {"class": 0, "count": 1, "color": 2, "relation": 3}
    rows = []
    for (by, value), counts in sorted(
        held.items(), key=lambda item: (order[item[0][0]], item[0][1])
    ):
        table = np.array([row for row in counts if row[1]], float)
        if len(table):
            found = _ratios(table, seed)
            images = int(table[:, 1].sum())
            rows.append((by, value, len(table), images, float(found.value[0]), *found.interval(0)))
    columns = ["by", "value", "prompts", "images", "share", "low", "high"]
    return pd.DataFrame(rows, columns=columns)
