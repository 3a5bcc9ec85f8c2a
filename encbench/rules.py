"""Ranking rules as data: the scores of probes by which encoders are ordered, and what they predict.

A rule is frozen before the trainings that it is judged by. Changed scores, parameters or weights
make a new version. A package adds a rule by an entry point of the group
``encbench.rules`` that names a :class:`RankingRule`. How well a rule did on encoders that were
trained after it was frozen stands in ``data/rule_records.json``, written by :func:`save_record`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from . import registry
from .errors import EncbenchError
from .files import read_json, write_json
from .records import TrackRecord, clean
from .schema import check_value
from .sentences import describe_cell
from .types import Cell

RECORDS = Path(__file__).parent / "data" / "rule_records.json"
DEFAULTS = ("reader", "emf-retrieval")
"""Rules to rank by without --rule: the first whose probes were run on all encoders."""


@dataclass(frozen=True)
class Term:
    """One score in a rule's sum.

    Attributes:
        probe, score: as in a record; higher is better.
        weight: factor of the score.
        parameters: the probe's own settings that the rule was chosen with, as (name, value), so
            that a rule keeps its meaning when a probe's defaults change.
    """

    probe: str
    score: str
    weight: float = 1.0
    parameters: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        text = f"{self.probe} {self.score}"
        return text if self.weight == 1 else f"{self.weight:g} x {text}"


@dataclass(frozen=True)
class RankingRule:
    """How encoders are put in order.

    Attributes:
        name: as in the registry, in ``--rule`` and in a prediction.
        version: raised with every change that can change an order.
        predicts: what the order predicts, in words.
        terms: their weighted sum is an encoder's value; higher is better.
        cell: the cell of trained scores that the order predicts; None if no single one.
        pooling: of vectors; '' where no term's probe pools.
        fallback: terms to use in place of ``terms`` where the data do not give those.
        fallback_when: when that is, in words.
    """

    name: str
    version: int
    predicts: str
    terms: tuple[Term, ...]
    cell: Cell | None = None
    pooling: str = "mean"
    fallback: tuple[Term, ...] = ()
    fallback_when: str = ""

    @property
    def sentence(self) -> str:
        """The rule in words."""
        text = f"Encoders are ranked by {' + '.join(map(str, self.terms))}"
        if self.fallback:
            text += f" ({' + '.join(map(str, self.fallback))} {self.fallback_when})"
        settings = dict(pair for term in self.terms for pair in term.parameters)
        if settings:
            text += f", with {', '.join(f'{name} {value}' for name, value in settings.items())}"
        if self.pooling:
            text += f", {self.pooling} pooling over real tokens"
        return f"{text}. This predicts {self.predicts}."

    summary = sentence  # for encbench list

    @property
    def probes(self) -> tuple[str, ...]:
        """Names of the probes that the terms need."""
        return tuple(dict.fromkeys(term.probe for term in self.terms))

    def choose_terms(self, has: Callable[[str, str], bool]) -> tuple[Term, ...]:
        """``terms`` if all of their scores are there, else ``fallback`` if all of its are, else
        (). ``has`` is asked for a probe's name and a score's."""
        for terms in (self.terms, self.fallback):
            if all(has(term.probe, term.score) for term in terms):
                return terms
        return ()

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


TRAINED_WORDING = Cell("geneval", 4, "A", "seen")
OTHER_WORDING = Cell("geneval", 4, "B", "seen")
_READER = (
    ("reader steps", "mean over 100, 200, 300 and 400"),
    ("seeds", 4),
    ("captions", 2000),
)
READER = RankingRule(
    name="reader",
    # Version 1 was everything. Versions 2 and 3, on the way to this product, cut the share.
    # docs/prediction.md has the record of each.
    version=4,
    predicts=describe_cell(TRAINED_WORDING),
    terms=(Term("reader", "readable-entropy", parameters=_READER),),
    cell=TRAINED_WORDING,
    pooling="",
)
OTHER_WORDS = RankingRule(
    name="reader-other-words",
    version=2,  # version 1, everything + 2 x other-words, failed on the first held-out encoders
    predicts=describe_cell(OTHER_WORDING),
    terms=(
        Term("reader", "everything", weight=0.1, parameters=_READER),
        Term("reader", "other-words", parameters=_READER),
    ),
    cell=OTHER_WORDING,
    pooling="",
)
EMF = RankingRule(
    name="emf-retrieval",
    version=1,
    predicts="few-step GenEval, as EMF (arXiv 2604.18168) has it",
    terms=(Term("retrieval", "scaled@2"),),
    fallback=(Term("retrieval", "recall@2"),),
    fallback_when="where there are no images",
)


def load_rule(name: str) -> RankingRule:
    """A registered rule.

    Raises:
        UnknownNameError: with the nearest known names.
        EncbenchError: if what is registered is no rule, or goes by another name.
    """
    rule = registry.get("rule", name)
    if not isinstance(rule, RankingRule) or not rule.terms:
        raise EncbenchError(f"the rule '{name}' must be an encbench.rules.RankingRule with terms")
    if rule.name != name:
        raise EncbenchError(f"the rule '{name}' names itself '{rule.name}'; use one name")
    return rule


def load_rules() -> dict[str, RankingRule]:
    """All registered rules by name."""
    return {name: load_rule(name) for name in registry.names("rule")}


# -------------------------------------------------------------------------- track records


def read_records(path: Path = RECORDS) -> list[TrackRecord]:
    """How rules did on held-out encoders; [] without the file.

    Raises:
        RecordError: one line that names file and key, if it is damaged.
    """
    if not path.exists():
        return []
    records: list[TrackRecord] = check_value(list[TrackRecord], read_json(path), str(path))
    return records


def save_record(record: TrackRecord, path: Path = RECORDS) -> None:
    """Write a track record, in place of one of the same rule, version, cell and recipe."""
    kept = [row for row in read_records(path) if row.key != record.key]
    rows = sorted([*kept, record], key=lambda row: tuple(map(str, row.key)))
    write_json(path, clean([asdict(row) for row in rows]))


def find_record(rule: RankingRule, path: Path = RECORDS) -> TrackRecord | None:
    """The record of this version of a rule, in the cell that it predicts: tier A if it names
    none; of several recipes, the one with most encoders."""
    cell = rule.cell or TRAINED_WORDING
    wanted = (rule.name, rule.version, cell)
    found = [r for r in read_records(path) if (r.rule, r.version, r.cell) == wanted]
    return max(found, key=lambda row: row.encoders, default=None)
