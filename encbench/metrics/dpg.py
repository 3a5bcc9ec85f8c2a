"""DPG-Bench's generation score (arXiv 2403.05135): questions about each prompt's images.

A question counts as right only if it is answered yes and all questions that it depends on count
as right. The score of an image is its share of right questions. Categories are the means of the
plain answers, over all images (the published script keeps those of the last image of each prompt,
and leaves out the first question of its file).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image

from ..errors import DataError, UsageError
from ..files import digest, expand_home, read_csv
from ..schema import check_text
from ..types import ImagePrompt, ImageScore, MetricSpec
from ..vision import ReEncoderSpec
from . import MetricFamily
from .answer import DEFAULT, Answerer, ask_all, load_answerer, no_answer
from .prompts import TextPrompt

FETCH = "run 'encbench data fetch dpg-questions --to FOLDER'"
COLUMNS = (
    "item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language",
)  # fmt: skip
SPEC = MetricSpec("dpg", "DPG-Bench", "share of right questions", needs=("a prompt of DPG-Bench",))


@dataclass(frozen=True)
class Question:
    """A question about a prompt's images, whose right answer is yes.

    Attributes:
        number: within its prompt, from 1.
        parents: numbers of the questions that must be right for this one to count.
        category: entity, attribute, relation, global or other.
    """

    number: int
    text: str
    parents: tuple[int, ...]
    category: str


@dataclass(frozen=True)
class QuestionSet:
    """The questions of each prompt, by its id, and each prompt's id by its text."""

    by_id: Mapping[str, tuple[Question, ...]]
    ids: Mapping[str, str]
    pin: str

    def find(self, prompt: ImagePrompt) -> tuple[Question, ...]:
        """A prompt's questions.

        Raises:
            DataError: if it is no prompt of the file.
        """
        name = prompt.name if isinstance(prompt, TextPrompt) else ""
        found = self.by_id.get(name) or self.by_id.get(self.ids.get(prompt.text.strip(), ""))
        if found is None:
            raise DataError(
                f"no question of the DPG file is about the prompt '{prompt.text[:60]}'; score "
                "images of its prompts, or give the file that belongs to these"
            )
        return found


def load_questions(path: Path) -> QuestionSet:
    """Read the published csv.

    Raises:
        DataError: in one line that names the row: no file, a column or a parent that is missing,
            questions that depend on each other in a circle.
    """
    if not path.is_file():
        raise DataError(f"there are no DPG questions at {path}; {FETCH}")
    columns, lines = read_csv(path, DataError)
    lost = [name for name in COLUMNS if name not in columns]
    if lost:
        raise DataError(f"{path} has no column {', '.join(lost)}; {FETCH}")
    rows: dict[str, list[Question]] = {}
    texts: dict[str, str] = {}
    for number, row in enumerate(lines, 2):
        question = _question(row, f"row {number} of {path}")
        rows.setdefault(row["item_id"], []).append(question)
        texts.setdefault(row["item_id"], row["text"].strip())
    if not rows:
        raise DataError(f"{path} holds no questions; {FETCH}")
    for item, questions in rows.items():
        _check(questions, f"{path}: prompt {item}")
    found = {item: tuple(questions) for item, questions in rows.items()}
    pin = digest(
        [[i, [[q.number, q.text, q.parents, q.category] for q in found[i]]] for i in found]
    )
    return QuestionSet(found, {text: item for item, text in texts.items()}, pin)


def _question(row: Mapping[str, str | None], where: str) -> Question:
    cells = {name: row[name] for name in COLUMNS}
    for name, cell in cells.items():
        if cell is None:
            raise DataError(f"{where} has no {name}")
        check_text(cell, f"{where}: {name}", DataError)
    try:
        number = int(cells["proposition_id"] or "")
        parents = tuple(int(each) for each in (cells["dependency"] or "").split(","))
    except ValueError:
        raise DataError(
            f"{where}: proposition_id and dependency must be numbers, not "
            f"'{cells['proposition_id']}' and '{cells['dependency']}'"
        ) from None
    category = (cells["tuple"] or "").partition("(")[0].partition("-")[0].strip()
    text = (cells["question_natural_language"] or "").strip()
    if not text or not category:
        raise DataError(f"{where} has no question or no category in its tuple")
    return Question(number, text, tuple(p for p in parents if p), category)  # 0 = no parent


def _check(questions: Sequence[Question], where: str) -> None:
    parents = {q.number: q.parents for q in questions}
    if len(parents) < len(questions):
        raise DataError(f"{where} gives two questions the same number")
    for question in questions:
        missing = [p for p in question.parents if p not in parents]
        if missing:
            raise DataError(
                f"{where}: question {question.number} depends on {missing[0]}, which is missing"
            )
    try:
        TopologicalSorter(parents).prepare()
    except CycleError:
        raise DataError(f"{where}: its questions depend on each other in a circle") from None


def judge_answers(questions: Sequence[Question], yes: Mapping[int, bool]) -> dict[int, bool]:
    """Which questions count as right: answered yes, as are all that they depend on.

    Args:
        questions: of one prompt.
        yes: each question's answer about one image.
    """
    parents = {q.number: q.parents for q in questions}
    right: dict[int, bool] = {}
    for number in TopologicalSorter(parents).static_order():
        right[number] = yes[number] and all(right[parent] for parent in parents[number])
    return right


class DpgMetric:
    """The :class:`~encbench.types.ImageMetric` of DPG-Bench."""

    spec = SPEC

    def __init__(self, questions: QuestionSet, answerer: Answerer) -> None:
        self.questions, self.answerer = questions, answerer
        options = (("answerer", answerer.name), ("questions", questions.pin[:12]))
        self.name = str(ReEncoderSpec(SPEC.name, options=options))

    def check(self, prompts: Sequence[ImagePrompt]) -> None:
        """Raise DataError if there are no questions about a prompt."""
        for prompt in prompts:
            self.questions.find(prompt)

    def score(self, prompts: Sequence[ImagePrompt], images: Sequence[Image]) -> list[ImageScore]:
        """The share of right questions of each image; parts are its plain answers, by category.

        Raises:
            DataError: as :meth:`check` does.
        """
        asked = [self.questions.find(prompt) for prompt in prompts]
        answers = ask_all(self.answerer, images, [[q.text for q in row] for row in asked])
        return [self._score(row, found) for row, found in zip(asked, answers, strict=True)]

    def _score(self, questions: Sequence[Question], answers: np.ndarray) -> ImageScore:
        if np.isnan(answers).any():
            first = questions[int(np.argmax(np.isnan(answers)))]
            return ImageScore(problem=no_answer(self.answerer, first.text))
        yes = {q.number: bool(p > 0.5) for q, p in zip(questions, answers, strict=True)}
        right = judge_answers(questions, yes)
        parts = {f"{q.category}/{q.number}": float(yes[q.number]) for q in questions}
        return ImageScore(sum(right.values()) / len(right), parts=parts)


def _load(spec: ReEncoderSpec, device: torch.device) -> DpgMetric:
    if not spec.source or spec.revision:
        raise UsageError(f"'{spec}' names no questions; write dpg:dpg_bench.csv ({FETCH})")
    questions = load_questions(expand_home(spec.source))
    return DpgMetric(questions, load_answerer(spec.get("answerer", DEFAULT), device))


FAMILY = MetricFamily(
    summary="DPG-Bench: questions with dependencies about long prompts (arXiv 2403.05135)",
    load=_load,
    examples=("dpg:dpg_bench.csv", "dpg:dpg_bench.csv?answerer=vlm:FOLDER"),
    options={"answerer": f"spec of who answers; see encbench list answerers [{DEFAULT}]"},
    spec=SPEC,
)
