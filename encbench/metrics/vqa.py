"""A soft score by questions made from GenEval's clauses; it needs no data.

Each clause gives atomic questions whose right answer is yes: is the object there, in this number,
of this color, in this place. The score of an image is the mean probability of the right answer,
as GenEval 2 and TIFA average it. An answerer that always says yes gets 1, so compare answerers on
shuffled images before you trust one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL.Image import Image

from ..data.geneval import Clause, GenevalPrompt, article, pluralize
from ..errors import DataError, UsageError
from ..types import ImagePrompt, ImageScore, MetricSpec
from ..vision import ReEncoderSpec
from . import MetricFamily
from .answer import DEFAULT, Answerer, ask_all, load_answerer, no_answer

SPEC = MetricSpec("vqa", "VQA score", "mean probability of the right answer", needs=("clauses",))
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def questions_of(prompt: GenevalPrompt) -> list[tuple[str, str]]:
    """A prompt's atomic questions, each with its kind: object, count, color or position.

    An exclusion of n + 1 objects together with an inclusion of n asks for exactly n.
    """
    found: list[tuple[str, str]] = []
    for clause in prompt.include:
        found.append(("object", f"Is there {_one(clause.label)} in the image?"))
        upper = {c.count for c in prompt.exclude if c.label == clause.label}
        if clause.count > 1 or upper:
            exactly = "exactly" if clause.count + 1 in upper else "at least"
            things = _things(clause)
            found.append(("count", f"Are there {exactly} {things} in the image?"))
        if clause.color:
            verb, name = ("Is", clause.label) if clause.count == 1 else (
                "Are", pluralize(clause.label)
            )  # fmt: skip
            found.append(("color", f"{verb} the {name} {clause.color}?"))
        if clause.position:
            relation, target = clause.position
            other = prompt.include[target].label
            found.append(("position", f"Is the {clause.label} {relation} the {other}?"))
    return list(dict.fromkeys(found))


def _one(label: str) -> str:
    return f"{article(label)} {label}"


def _things(clause: Clause) -> str:
    count = NUMBERS[clause.count] if clause.count < len(NUMBERS) else str(clause.count)
    return f"{count} {clause.label if clause.count == 1 else pluralize(clause.label)}"


class VqaMetric:
    """The :class:`~encbench.types.ImageMetric` of atomic questions."""

    spec = SPEC

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer
        self.name = str(ReEncoderSpec(SPEC.name, options=(("answerer", answerer.name),)))

    def check(self, prompts: Sequence[ImagePrompt]) -> None:
        """Raise DataError if a prompt has no clauses."""
        for prompt in prompts:
            if not isinstance(prompt, GenevalPrompt):
                raise DataError(
                    f"vqa needs prompts with clauses, and '{prompt.text[:60]}' has none; take "
                    "prompts from: encbench geneval prompts"
                )

    def score(self, prompts: Sequence[ImagePrompt], images: Sequence[Image]) -> list[ImageScore]:
        """The mean probability of yes of each image; parts are the answers, by kind.

        Raises:
            DataError: as :meth:`check` does.
        """
        self.check(prompts)
        asked = [questions_of(p) for p in prompts if isinstance(p, GenevalPrompt)]
        answers = ask_all(self.answerer, images, [[q for _, q in row] for row in asked])
        return [self._score(row, found) for row, found in zip(asked, answers, strict=True)]

    def _score(self, questions: Sequence[tuple[str, str]], answers: np.ndarray) -> ImageScore:
        if np.isnan(answers).any():
            first = questions[int(np.argmax(np.isnan(answers)))][1]
            return ImageScore(problem=no_answer(self.answerer, first))
        rows = enumerate(zip(questions, answers.tolist(), strict=True))
        parts = {f"{kind}/{i}": share for i, ((kind, _), share) in rows}
        return ImageScore(float(answers.mean()), parts=parts)


def _load(spec: ReEncoderSpec, device: torch.device) -> VqaMetric:
    if spec.source or spec.revision:
        raise UsageError(f"'{spec}': vqa takes options only, e.g. vqa?answerer=vlm:FOLDER")
    return VqaMetric(load_answerer(spec.get("answerer", DEFAULT), device))


FAMILY = MetricFamily(
    summary="mean probability of the right answers about GenEval's clauses, as GenEval 2 has it",
    load=_load,
    examples=("vqa", "vqa?answerer=vlm:FOLDER"),
    options={"answerer": f"spec of who answers; see encbench list answerers [{DEFAULT}]"},
    spec=SPEC,
)
