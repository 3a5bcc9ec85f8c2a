"""From the answers of a blind study to strengths, agreement and ties.

The strength b of a model is its Bradley-Terry logit: a person prefers i to j with probability
1 / (1 + exp(b_j - b_i)); a tie is half a win for each. Strengths add up to 0. Answers of one person
are related, and so are those about one prompt, so the covariance is clustered on both (Cameron,
Gelbach and Miller 2011), with Student's t for few people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from ..errors import DataError
from ..files import read_json
from ..schema import get_field, load_dataclass
from ..types import Estimate, Score
from .page import VERSION, Pair

Choice = Literal["left", "right", "tie"]
PRIOR = 0.1  # of a tie between each two models: keeps strengths finite where one always wins


@dataclass(frozen=True)
class Answer:
    """A person's answer about a pair. ``won`` is 1 if the first model (by name) is better, 0 if
    the second is, .5 for a tie."""

    person: str
    pair: Pair
    choice: Choice

    @property
    def models(self) -> tuple[str, str]:
        first, second = sorted((self.pair.left, self.pair.right))
        return first, second

    @property
    def won(self) -> float:
        if self.choice == "tie":
            return 0.5
        chosen = self.pair.left if self.choice == "left" else self.pair.right
        return float(chosen == self.models[0])


@dataclass(frozen=True)
class StudyResult:
    """The result of a study.

    Attributes:
        strengths: model -> Bradley-Terry logit, best first.
        wins: (first, second) -> share of answers that prefer the first, ties as halves; n answers.
        ties: share of answers.
        left: share of the other answers that chose the left image; far from .5 if people chose
            sides.
        agreement: share of two people's answers to one pair that are the same; None without any.
        alpha: Krippendorff's, over prefers first, prefers second, tie: 0 = as by chance.
        people, answers: how many.
    """

    question: str
    strengths: dict[str, Estimate]
    wins: dict[tuple[str, str], Score]
    ties: float
    left: float
    agreement: float | None
    alpha: float | None
    people: int
    answers: int
    notes: tuple[str, ...] = ()


def read_study(key: Path, answers: Sequence[Path]) -> StudyResult:
    """Read ``key.json`` and the files that people sent back.

    Raises:
        DataError: in one line: no answers, another study's, a pair that is not in the study, or
            two files of one person that differ.
    """
    about = read_json(key, DataError)
    study = get_field(about, "study", str, str(key), DataError)
    if get_field(about, "version", int, str(key), DataError) != VERSION:
        raise DataError(f"{key} is of another version of encbench; read it with that one")
    models = get_field(about, "models", list[str], str(key), DataError)
    pairs = {
        pair.pair_id: pair
        for pair in (
            load_dataclass(Pair, row, f"{key}: pairs[{i}]", DataError)
            for i, row in enumerate(get_field(about, "pairs", list, str(key), DataError))
        )
    }
    strange = [p for p in pairs.values() if p.left == p.right or not {p.left, p.right} <= {*models}]
    if len({*models}) < len(models) or strange:
        raise DataError(f"{key}: its pairs and models do not belong together; make the study again")
    found: dict[str, list[Answer]] = {}
    notes = []
    for path in answers:
        person, said = _read_answers(path, study, pairs)
        if not said:
            notes.append(f"{path.name} holds no answers")
        elif found.setdefault(person, said) != said:
            raise DataError(
                f"{path} and another file are of the same person but differ; keep the later one"
            )
    everything = [answer for said in found.values() for answer in said]
    if not everything:
        raise DataError("there are no answers to read; name the files that people sent back")
    unfinished = sum(len(said) < len(pairs) for said in found.values())
    if unfinished:
        notes.append(f"{unfinished} of {len(found)} people did not answer all {len(pairs)} pairs")
    question = get_field(about, "question", str, str(key), DataError)
    return evaluate_answers(everything, models, question=question, notes=notes)


def _read_answers(path: Path, study: str, pairs: dict[str, Pair]) -> tuple[str, list[Answer]]:
    record = read_json(path, DataError)
    where = str(path)
    if get_field(record, "study", str, where, DataError) != study:
        raise DataError(f"{path} holds answers to another study")
    person = get_field(record, "person", str, where, DataError)
    found = []
    for i, row in enumerate(get_field(record, "answers", list, where, DataError)):
        at = f"{where}: answers[{i}]"
        pair = get_field(row, "pair", str, at, DataError)
        if pair not in pairs:
            raise DataError(f"{at}: there is no pair {pair!r} in this study")
        choice: Any = get_field(row, "choice", Choice, at, DataError)
        found.append(Answer(person, pairs[pair], choice))
    if len({answer.pair.pair_id for answer in found}) < len(found):
        raise DataError(f"{path} answers a pair twice")
    return person, sorted(found, key=lambda answer: answer.pair.pair_id)


def evaluate_answers(
    answers: Sequence[Answer],
    models: Sequence[str],
    *,
    question: str = "",
    notes: Sequence[str] = (),
) -> StudyResult:
    """Strengths, preferences, agreement and ties of answers (at least one)."""
    models = sorted(models)
    strengths = fit_strengths(answers, models)
    order = sorted(models, key=lambda name: -strengths[name].value)
    wins = {}
    for first, second in combinations(order, 2):
        mine = [a for a in answers if set(a.models) == {first, second}]
        if mine:
            won = np.array([a.won if a.models[0] == first else 1 - a.won for a in mine])
            value = float(won.mean())
            half = _half_width(won - value, mine) / len(mine)
            wins[first, second] = Score(
                value, len(mine), max(0.0, value - half), min(1.0, value + half)
            )
    chosen = [a.choice for a in answers if a.choice != "tie"]
    agreement, alpha = measure_agreement(answers)
    return StudyResult(
        question=question,
        strengths={name: strengths[name] for name in order},
        wins=wins,
        ties=1 - len(chosen) / len(answers),
        left=chosen.count("left") / len(chosen) if chosen else float("nan"),
        agreement=agreement,
        alpha=alpha,
        people=len({a.person for a in answers}),
        answers=len(answers),
        notes=tuple(notes),
    )


def fit_strengths(answers: Sequence[Answer], models: Sequence[str]) -> dict[str, Estimate]:
    """Bradley-Terry logits with 95 % intervals, by Newton's method on the (concave) likelihood."""
    places = {name: i for i, name in enumerate(models)}
    design = np.zeros((len(answers), len(models)))
    for row, answer in zip(design, answers, strict=True):
        first, second = answer.models
        row[places[first]], row[places[second]] = 1, -1
    won = np.array([answer.won for answer in answers])
    extra = np.array([np.eye(len(models))[i] - np.eye(len(models))[j]
                      for i, j in combinations(range(len(models)), 2)])  # fmt: skip
    strengths = np.zeros(len(models))
    ones = np.ones((len(models), len(models)))  # fixes the sum, which the data leave open
    for _ in range(100):
        chance, prior = _logistic(design @ strengths), _logistic(extra @ strengths)
        slope = design.T @ (won - chance) + PRIOR * extra.T @ (0.5 - prior)
        curve = (
            design.T @ (design * (chance * (1 - chance))[:, None])
            + PRIOR * extra.T @ (extra * (prior * (1 - prior))[:, None])
            + ones
        )
        step = np.linalg.solve(curve, slope)
        strengths = strengths + step
        if np.abs(step).max() < 1e-10:
            break
    bread = np.linalg.inv(curve)  # a row of ``design`` adds up to 0, so ``ones`` drops out
    errors = (won - _logistic(design @ strengths))[:, None] * design @ bread
    found = {}
    for name, place in places.items():
        half = _half_width(errors[:, place], answers)
        value = float(strengths[place])
        found[name] = Estimate(value, value - half, value + half)
    return found


def _logistic(logits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    chance: Float[np.ndarray, " n"] = 1 / (1 + np.exp(-logits))
    return chance


def _half_width(errors: Float[np.ndarray, " n"], answers: Sequence[Answer]) -> float:
    """Half of the 95 % interval of a sum of ``errors``, clustered on people and on prompts."""
    from scipy.stats import t

    people, prompts = [a.person for a in answers], [a.pair.prompt for a in answers]
    count = len(answers)
    alone = float((errors**2).sum()) * count / max(1, count - 1)
    sizes, variances = [], []
    for labels in (people, prompts):
        kinds, place = np.unique(labels, return_inverse=True)
        if len(kinds) > 1:
            sums = np.bincount(place, errors)
            sizes.append(len(kinds))
            variances.append(float((sums**2).sum()) * len(kinds) / (len(kinds) - 1))
    # what people share, and what prompts share, each beyond what single answers scatter
    variance = max(alone, alone + sum(each - alone for each in variances))
    free = min(sizes, default=count) - 1
    return float(t.ppf(0.975, free) * np.sqrt(variance)) if free else float("nan")


def measure_agreement(answers: Sequence[Answer]) -> tuple[float | None, float | None]:
    """Share of equal answers among pairs of answers to one question, and Krippendorff's alpha
    (nominal; 1 - observed / expected disagreement); None where no two people answered one."""
    by_pair: dict[str, list[float]] = {}
    for answer in answers:
        by_pair.setdefault(answer.pair.pair_id, []).append(answer.won)
    several = [row for row in by_pair.values() if len(row) > 1]
    if not several:
        return None, None
    values = [value for row in several for value in row]
    total = len(values)
    differing = weighted = pairs = 0.0
    for row in several:
        unequal = sum(a != b for a, b in combinations(row, 2))
        differing += unequal
        pairs += len(row) * (len(row) - 1) / 2
        weighted += 2 * unequal / (len(row) - 1)
    counts = np.array([values.count(value) for value in (0.0, 0.5, 1.0)], float)
    expected = 1 - (counts * (counts - 1)).sum() / (total * (total - 1))
    observed = weighted / total
    return 1 - differing / pairs, 1 - observed / expected if expected > 0 else None


def study_lines(found: StudyResult) -> list[str]:
    """The tables that ``encbench study read`` prints."""
    lines = [
        f"{found.answers:,} answers of {found.people} people to: {found.question}",
        f"{'':24s} strength   95 % interval (Bradley-Terry logit; 0 = the mean of the models)",
    ]
    lines += [
        f"{name:24s} {each.value:+8.3f}   [{each.low:+.3f}, {each.high:+.3f}]"
        for name, each in found.strengths.items()
    ]
    for (first, second), score in found.wins.items():
        lines.append(
            f"{first} preferred to {second}: {score.value:.1%} [{score.low:.1%}, {score.high:.1%}] "
            f"of {score.n:,} answers, ties as halves"
        )
    lines.append(f"ties: {found.ties:.1%}; left image chosen: {found.left:.1%} of the others")
    if found.agreement is None:
        lines.append("agreement: no pair was answered by two people")
    else:
        alpha = "undefined" if found.alpha is None else f"{found.alpha:.2f}"
        lines.append(f"agreement: {found.agreement:.1%} of two people's answers; alpha {alpha}")
    return lines + [f"note: {note}" for note in found.notes]


def result_record(found: StudyResult) -> dict[str, Any]:
    """JSON-ready."""
    record = asdict(found)
    record["wins"] = [
        {"first": first, "second": second, **asdict(score)}
        for (first, second), score in found.wins.items()
    ]
    return record
