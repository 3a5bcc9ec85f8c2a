"""Ranking rules as data: which scores of which probes put encoders in order, and what for.

A rule is frozen before any training that it is judged by. Another choice of scores, parameters
or weights is another version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """One score in a rule's sum.

    Attributes:
        probe, score: as in a record; higher is better.
        weight: what the score is multiplied with.
        parameters: the probe's own settings that the rule was chosen with, as (name, value), so
            that a rule keeps its meaning when a probe's defaults change.
    """

    probe: str
    score: str
    weight: float = 1.0
    parameters: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        text = f"{self.probe} {self.score}"
        if self.parameters:
            text += f" ({', '.join(f'{name} {value}' for name, value in self.parameters)})"
        return text if self.weight == 1 else f"{self.weight:g} x {text}"


@dataclass(frozen=True)
class RankingRule:
    """How encoders are put in order.

    Attributes:
        name: as in ``--rule`` and in a prediction.
        version: raised with every change to the other fields.
        predicts: what the order stands for, in words.
        terms: their weighted sum is an encoder's value.
        pooling: of vectors, for probes that pool.
        fallback: terms to use in place of ``terms`` where the data do not give those.
        fallback_when: when that is, in words.
    """

    name: str
    version: int
    predicts: str
    terms: tuple[Term, ...]
    pooling: str = "mean"
    fallback: tuple[Term, ...] = ()
    fallback_when: str = ""

    @property
    def sentence(self) -> str:
        """The rule in words."""
        text = f"{' + '.join(map(str, self.terms))}, {self.pooling} pooling over real tokens"
        if self.fallback:
            text += f" ({' + '.join(map(str, self.fallback))} {self.fallback_when})"
        return f"{text}; predicts {self.predicts}"

    def value(self, score: Callable[[str, str], float]) -> float:
        """An encoder's value: higher is better.

        Args:
            score: gives the encoder's score from the names of probe and score; raises KeyError
                where there is none.

        Raises:
            KeyError: if a score of ``terms`` is missing, and one of ``fallback`` as well.
        """
        try:
            return sum(term.weight * score(term.probe, term.score) for term in self.terms)
        except KeyError:
            if not self.fallback:
                raise
            return sum(term.weight * score(term.probe, term.score) for term in self.fallback)


_READER = (
    ("reader steps", "mean over 100, 200, 300 and 400"),
    ("seeds", 4),
    ("captions", 2000),
)
READER = RankingRule(
    name="reader",
    version=1,
    predicts="4-step GenEval in the wording that was trained on (tier A)",
    terms=(Term("reader", "everything", parameters=_READER),),
)
OTHER_WORDS = RankingRule(
    name="reader-other-words",
    version=1,
    predicts="4-step GenEval in other words than those that were trained on (tier B)",
    terms=(
        Term("reader", "everything", parameters=_READER),
        Term("reader", "other-words", weight=2.0, parameters=_READER),
    ),
)
EMF = RankingRule(
    name="emf-retrieval",
    version=1,
    predicts="few-step GenEval, as EMF (arXiv 2604.18168) has it",
    terms=(Term("retrieval", "scaled@2"),),
    fallback=(Term("retrieval", "recall@2"),),
    fallback_when="where there are no images",
)
RULES: Mapping[str, RankingRule] = {rule.name: rule for rule in (READER, OTHER_WORDS, EMF)}
