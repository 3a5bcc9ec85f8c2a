"""Tables specific to GenEval: agreement of detectors, breakdown by clauses, published columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ...data.geneval import GenevalPrompt, to_metadata
from ...errors import DataError
from ...types import Score
from ..score import ImageResult, PromptResult, Scoring
from ..tables import OVERALL, Ratios, by_meaning, common_notes, ratios_by_task
from .metric import SPEC, Judgment
from .verdict import keep_objects


@dataclass(frozen=True)
class Agreement:
    """Two detectors on the same images.

    Attributes:
        share: of images with the same verdict.
        kappa: Cohen's, 1 = always, 0 = as by chance; NaN where both always say the same one thing.
        by_task: the share for each task.
        both, first_only, second_only, neither: number of images that both, one or neither judge as
            right.
    """

    share: Score
    kappa: float
    by_task: dict[str, Score]
    both: int
    first_only: int
    second_only: int
    neither: int
    notes: tuple[str, ...] = ()


def prompt_of(result: PromptResult) -> GenevalPrompt:
    """The prompt of a result of GenEval."""
    assert isinstance(result.prompt, GenevalPrompt)
    return result.prompt


def judgment_of(image: ImageResult) -> Judgment:
    """GenEval's verdict on an image."""
    assert isinstance(image.score, Judgment)
    return image.score


def agree(first: Scoring, second: Scoring, *, seed: int = 0) -> Agreement:
    """Verdicts of two detectors on the same images, which are paired by their file names.

    Raises:
        DataError: if they have no scored image in common.
    """
    from sklearn.metrics import cohen_kappa_score

    others = {image.file: image for result in second.results for image in result.images}
    rows, verdicts, strangers = [], [], 0
    for result in first.results:
        both = []
        for image in result.images:
            other = others.get(image.file)
            if other is None or None in (image.score.value, other.score.value):
                continue
            if image.sha256 != other.sha256:
                strangers += 1
                continue
            both.append((image.score.value == 1, other.score.value == 1))
        verdicts += both
        rows.append((result.prompt, np.array([sum(a == b for a, b in both), len(both)], float)))
    if not verdicts:
        raise DataError(
            f"{first.images.name} and {second.images.name} have no scored image in common"
        )
    notes = common_notes(first, second)
    if strangers:
        notes.append(f"{strangers:,} images of the same name are not the same and were left out")
    by_task = {name: each.score() for name, each in ratios_by_task(rows, SPEC, seed).items()}
    del by_task[OVERALL]
    total = Ratios.of(np.stack([row for row in by_meaning(rows).values() if row[1]]), seed).score()
    one, two = map(list, zip(*verdicts, strict=True))
    known = len({*one, *two}) > 1
    return Agreement(
        Score(total.value, len(verdicts), total.low, total.high),
        float(cohen_kappa_score(one, two)) if known else float("nan"),
        by_task,
        both=verdicts.count((True, True)),
        first_only=verdicts.count((True, False)),
        second_only=verdicts.count((False, True)),
        neither=verdicts.count((False, False)),
        notes=tuple(notes),
    )


def breakdown(results: Sequence[PromptResult], *, seed: int = 0) -> pd.DataFrame:
    """How often clauses hold, by class, count, color and relation.

    Each include clause of each scored image is one row of the data; exclusions count with the
    clause of their class, so that four clocks are not two.

    Returns:
        columns by ('class', 'count', 'color', 'relation'), value, prompts, images, share (of
        images in which the clause holds), low, high (95 %, clustered on prompts).
    """
    held: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for result in results:
        prompt = prompt_of(result)
        verdicts = [v for i in result.images if (v := judgment_of(i).verdict) is not None]
        for place, clause in enumerate(prompt.include):
            places = [place] + [
                len(prompt.include) + i
                for i, other in enumerate(prompt.exclude)
                if other.label == clause.label
            ]
            right = sum(all(v.clauses[i].correct for i in places) for v in verdicts)
            groups = [("class", clause.label), ("count", str(clause.count))]
            groups += [("color", clause.color)] if clause.color else []
            groups += [("relation", clause.position[0])] if clause.position else []
            for group in groups:
                held.setdefault(group, []).append((right, len(verdicts)))
    order = ("class", "count", "color", "relation")
    rows = []
    for by, value in sorted(held, key=lambda group: (order.index(group[0]), group[1])):
        table = np.array([row for row in held[by, value] if row[1]], float)
        if len(table):
            found = Ratios.of(table, seed).score()
            images = int(table[:, 1].sum())
            rows.append((by, value, found.n, images, found.value, found.low, found.high))
    columns = ["by", "value", "prompts", "images", "share", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def published_columns(scoring: Scoring) -> str:
    """Scored images in the columns of the published evaluator, which its summary reads; JSON
    lines."""
    limit = float(scoring.setting("overlap_limit", "1"))
    lines = []
    for result in scoring.results:
        prompt = prompt_of(result)
        for image in result.images:
            judgment = judgment_of(image)
            if judgment.verdict is None:
                continue
            kept = keep_objects(judgment.objects, prompt.task, limit)
            details = {
                label: [[*judgment.objects[i].box, judgment.objects[i].score] for i in places]
                for label, places in kept.items()
            }
            row: dict[str, Any] = {
                "filename": f"{scoring.images.name}/{image.file}",
                "tag": prompt.task,
                "prompt": prompt.text,
                "correct": judgment.verdict.correct,
                "reason": judgment.verdict.reason,
                "metadata": json.dumps(to_metadata(prompt)),
                "details": json.dumps(details),
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines)
