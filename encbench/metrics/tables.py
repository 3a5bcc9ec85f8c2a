"""Scores with intervals and comparisons, from a metric's results for each image. The bootstrap
resamples prompts within each task: images of a prompt stay together, also those of several folders
with the same prompt. So an interval covers other prompts of the same tasks. If every image of a
task is right, or every one wrong, its interval has no width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..errors import DataError
from ..files import digest
from ..intervals import LEVEL, resampled_means
from ..types import ImagePrompt, MetricSpec, Score, SetMetric
from .prompts import meaning
from .score import PromptResult, Scoring, scored_counts

OVERALL = "overall"
GROUPS = 20  # of prompts, that are left out in turn for intervals of whole sets


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
class Ratios:
    """Columns of ratios: their values, the number of prompts, and B resampled values."""

    value: Float[np.ndarray, " C"]
    n: int
    draws: Float[np.ndarray, "B C"]

    @classmethod
    def of(cls, table: Float[np.ndarray, "n D"], seed: int) -> Ratios:
        """Of each pair of columns (sum, count), the ratio of sums, and what resamples give."""
        means, total = resampled_means(table, seed), table.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = means[:, 0::2] / means[:, 1::2]
        return cls(total[0::2] / total[1::2], len(table), draws)

    def score(self, column: int = 0, unscored: int = 0) -> Score:
        low, high = np.percentile(self.draws[:, column], LEVEL)
        return Score(float(self.value[column]), self.n, float(low), float(high), unscored)

    def difference(self) -> Score:
        """The second column minus the first."""
        low, high = np.percentile(self.draws[:, 1] - self.draws[:, 0], LEVEL)
        return Score(float(self.value[1] - self.value[0]), self.n, float(low), float(high))


Row = tuple[ImagePrompt, Float[np.ndarray, " D"]]


def task_of(spec: MetricSpec, prompt: ImagePrompt) -> str:
    """The task that a prompt's images are averaged in: its own, or all."""
    return prompt.task if spec.tasks else OVERALL


def average_values(
    values: Float[np.ndarray, " P"], prompts: Sequence[ImagePrompt], spec: MetricSpec
) -> float:
    """A metric's value of a set of prompts, from one value for each; NaN = unscored. Of a metric
    of whole sets, whose only value it is."""
    if spec.whole_set:
        return float(values[0])
    by_task: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        if not np.isnan(value):
            by_task.setdefault(task_of(spec, prompt), []).append(float(value))
    return float(np.mean([np.mean(row) for row in by_task.values()])) if by_task else float("nan")


def ratios_by_task(rows: Sequence[Row], spec: MetricSpec, seed: int) -> dict[str, Ratios]:
    """Ratios of each task, over the prompts that have a scored image in every column, and overall:
    their mean over the metric's tasks, which are drawn independently of each other, or that over
    all images."""
    tasks = spec.tasks or tuple(dict.fromkeys(prompt.task for prompt, _ in rows if prompt.task))
    found: dict[str, Ratios] = {}
    for number, task in enumerate(tasks):
        mine = [row for row in rows if row[0].task == task]
        if ratios := _ratios(mine, seed * len(tasks) + number):
            found[task] = ratios
    if not spec.tasks:
        overall = _ratios(rows, seed)
        return found | {OVERALL: overall} if overall else {}
    if found:
        parts = list(found.values())
        found[OVERALL] = Ratios(
            np.mean([part.value for part in parts], axis=0),
            sum(part.n for part in parts),
            np.mean([part.draws for part in parts], axis=0),
        )
    return found


def _ratios(rows: Sequence[Row], seed: int) -> Ratios | None:
    table = [row for row in by_meaning(rows).values() if (row[1::2] > 0).all()]
    return Ratios.of(np.stack(table), seed) if table else None


def by_meaning(rows: Sequence[Row]) -> dict[bytes, Float[np.ndarray, " D"]]:
    """The sum of the rows of each prompt, which may stand in several folders."""
    found: dict[bytes, Float[np.ndarray, " D"]] = {}
    for prompt, row in rows:
        key = meaning(prompt)
        found[key] = found[key] + row if key in found else row
    return found


def counted(result: PromptResult) -> Float[np.ndarray, " 2"]:
    """Sum and number of a prompt's values."""
    return np.array([sum(result.values), len(result.values)], float)


def task_scores(
    results: Sequence[PromptResult], spec: MetricSpec, *, seed: int = 0
) -> dict[str, Score]:
    """Mean value of the images of each task that has any, and 'overall', the mean of those means.

    Returns:
        for each: value, number of prompts, 95 % interval, number of unscored images.
    """
    rows = [(result.prompt, counted(result)) for result in results]
    unscored: dict[str, int] = {}
    for result in results:
        for name in {result.prompt.task or OVERALL, OVERALL}:
            lost = len(result.images) - len(result.values)
            unscored[name] = unscored.get(name, 0) + lost
    found = ratios_by_task(rows, spec, seed)
    return {name: each.score(unscored=unscored[name]) for name, each in found.items()}


def part_scores(results: Sequence[PromptResult], *, seed: int = 0) -> dict[str, Score]:
    """Mean of the parts of each group ('group/item') over all images; see ``ImageScore.parts``."""
    rows: dict[str, list[Row]] = {}
    for result in results:
        sums: dict[str, Float[np.ndarray, " 2"]] = {}
        for image in result.images:
            for name, value in image.score.parts.items():
                group, slash, _ = name.rpartition("/")
                if slash:
                    sums[group] = sums.get(group, np.zeros(2)) + np.array([value, 1.0])
        for group, pair in sums.items():
            rows.setdefault(group, []).append((result.prompt, pair))
    found = {group: _ratios(rows[group], seed) for group in sorted(rows)}
    return {group: ratios.score() for group, ratios in found.items() if ratios}


@dataclass(frozen=True)
class SetValue:
    """A set's value, and what it is without each group of prompts, for intervals: a bootstrap
    would count images twice, which shifts distances of distributions.

    Attributes:
        value: of all images.
        without: of all but those of each group; None where that has none, or too few are left.
        prompts, unscored: how many.
        sets: digest of the prompts, which two sets must share to be compared.
    """

    value: float
    without: tuple[float | None, ...]
    prompts: int
    unscored: int
    sets: str

    def score(self) -> Score:
        """With the delete-a-group jackknife's 95 % interval."""
        half = _jackknife(np.array(self.without, float))
        return Score(self.value, self.prompts, self.value - half, self.value + half, self.unscored)


def set_value(
    metric: SetMetric, features: Float[np.ndarray, "N F"], results: Sequence[PromptResult]
) -> SetValue:
    """A metric of whole sets, over all scored images.

    Args:
        features: of the scored images, in the order of the results.

    Raises:
        DataError: if there are too few images.
    """
    keys = [meaning(result.prompt) for result in results]
    groups = [int(digest(key.decode())[:8], 16) % GROUPS for key in keys]
    owners = np.repeat(groups, scored_counts(results))
    without = []
    for group in range(GROUPS):
        kept = np.flatnonzero(owners != group)
        value: float | None = None
        if len(kept) < len(owners):
            with suppress(DataError):  # too few
                value = float(metric.reduce(features[kept]))
        without.append(value)
    unscored = sum(len(result.images) for result in results) - len(owners)
    pin = digest(sorted(key.decode() for key in keys))
    return SetValue(metric.reduce(features), tuple(without), len(set(keys)), unscored, pin)


def compare_sets(first: SetValue, second: SetValue) -> Score:
    """Second minus first, paired by the groups of prompts that are left out.

    Raises:
        DataError: if they are of different prompts.
    """
    if first.sets != second.sets:
        raise DataError(
            "the two folders hold images of different prompts, so their whole sets cannot be "
            "compared"
        )
    change = second.value - first.value
    half = _jackknife(np.array(second.without, float) - np.array(first.without, float))
    return Score(change, first.prompts, change - half, change + half)


def _jackknife(without: Float[np.ndarray, " G"]) -> float:
    """Half of the 95 % interval, by Student's t; NaN with fewer than 5 usable groups."""
    from scipy.stats import t

    kept = without[np.isfinite(without)]
    groups = len(kept)
    if groups < 5:
        return float("nan")
    error = np.sqrt((groups - 1) / groups * ((kept - kept.mean()) ** 2).sum())
    return float(t.ppf(0.975, groups - 1) * error)


def compare_scorings(
    first: Scoring, second: Scoring, spec: MetricSpec, *, seed: int = 0
) -> ScoreComparison:
    """Two folders of images of the same prompts, prompt by prompt.

    Raises:
        DataError: if they have no scored prompt in common.
    """
    sides = [
        by_meaning([(result.prompt, counted(result)) for result in scoring.results])
        for scoring in (first, second)
    ]
    prompts = {meaning(result.prompt): result.prompt for result in first.results}
    rows = [
        (prompt, np.concatenate([sides[0][key], sides[1][key]]))
        for key, prompt in prompts.items()
        if key in sides[1]
    ]
    found = ratios_by_task(rows, spec, seed)
    if not found:
        raise DataError(
            f"{first.images.name} and {second.images.name} have no scored prompt in common"
        )
    notes = common_notes(first, second)
    if first.metric != second.metric:
        notes.append(f"they were judged differently: {first.metric}, and {second.metric}")
    return ScoreComparison(
        {name: each.score(0) for name, each in found.items()},
        {name: each.score(1) for name, each in found.items()},
        {name: each.difference() for name, each in found.items()},
        tuple(notes),
    )


def common_notes(first: Scoring, second: Scoring) -> list[str]:
    """What only one of two scorings has, in words."""
    have = [{meaning(r.prompt) for r in scoring.results} for scoring in (first, second)]
    notes = []
    for side, scoring in enumerate((first, second)):
        name = ("first", "second")[side]
        lost = sum(meaning(result.prompt) not in have[1 - side] for result in scoring.results)
        if lost:
            notes.append(
                f"{lost:,} of {len(scoring.results):,} prompts of the {name} are not in the other "
                "and were left out"
            )
        notes += [f"the {name}: {note}" for note in scoring.notes]
    return notes
