"""Sentences for people: the same on the command line and in the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .records import TrackRecord, Verdict
from .types import Cell

# Frozen with the rules (benchmarks/outcomes/predictions-1.json), so the words stay.
IN_WORDS = {
    "A": "in the wording that was trained on (tier A)",
    "B": "in other words than those that were trained on (tier B)",
    "C": "in words that no encoder was trained on (tier C)",
}
CONFIRMED, NOT_CONFIRMED, OVERTURNED = "confirmed", "not confirmed", "overturned by "
ORDERS = {
    CONFIRMED: "The predicted order is confirmed.",
    NOT_CONFIRMED: "The predicted order is not confirmed.",
}


def describe_cell(cell: Cell) -> str:
    """A cell in words, e.g. '4-step GenEval in the wording that was trained on (tier A)'."""
    metric = {"geneval": "GenEval"}.get(cell.metric, cell.metric)
    place = IN_WORDS.get(cell.tier, f"on prompts of {cell.tier}")
    return f"{cell.steps}-step {metric} {place}" + (", held-out" * (cell.combos == "held-out"))


def describe_record(record: TrackRecord | None) -> str:
    """How far a ranking rule can be trusted."""
    if record is None:
        return (
            "This rule has no record yet: its orders have not been checked by training models on "
            "the encoders."
        )
    return (
        f"Record of this rule: on {record.encoders} held-out encoders its order agreed with models "
        f"trained afterwards with a rank correlation of {record.correlation:.2f} ({record.low:.2f} "
        f"to {record.high:.2f}), measured by {describe_cell(record.cell)}."
    )


def list_either(names: Sequence[str], most: int = 5) -> str:
    """'A', 'A or B', 'A, B or C'; of more than ``most``, 'A, B, C, D or one of 7 others'."""
    if len(names) > most:
        names = [*names[: most - 1], f"one of {len(names) - most + 1} others"]
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def verdict_headline(verdict: Verdict, name: Callable[[str], str]) -> str:
    """Both verdicts of the first question, and the choice of the second.

    Args:
        name: of an encoder, by its spec.
    """
    if all(row.control for row in verdict.encoders):
        return "No encoder was trained, so nothing is confirmed and nothing is refuted."
    first = _choice_sentence(verdict.choice.verdict, verdict.choice.winner, name)
    order = ORDERS.get(verdict.rule.verdict, "Not settled: is the predicted order right?")
    second = ""
    if verdict.second is not None:
        choice = verdict.second.choice
        second = " " + _choice_sentence(choice.verdict, choice.winner, name, "In other words: ")
    return f"{first} {order}{second}"


def _choice_sentence(verdict: str, winner: str, name: Callable[[str], str], where: str = "") -> str:
    best = name(winner) if winner else "the encoder that was predicted first"
    if verdict == CONFIRMED:
        text = f"Confirmed: {best} is the best choice. Trained, it beats every rival."
    elif verdict.startswith(OVERTURNED):
        rival = name(verdict.removeprefix(OVERTURNED))
        text = f"Overturned: {best} is not the best choice. Trained, {rival} beats it."
    else:
        text = f"Not settled: is {best} the best choice?"
    return where + (text[0].lower() + text[1:] if where else text)
