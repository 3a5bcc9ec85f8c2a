"""Splits of scenes and wordings: no scene and no held-out combination is in two of them.

Splits are disjoint by construction: a scene carries its split in the last bits of its x
coordinates, far below what a pixel shows (see ``sampler``). A pair of color and shape, or a
triple of shape, relation and shape, is either seen or held out, by hash, whatever the wording.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Literal

from ...errors import UnknownNameError, UsageError
from .world import COLORS, OPPOSITE, SHAPES, Scene, true_relations

Combos = Literal["seen", "held-out", "both"]
Tier = Literal["A", "B", "C"]
Pairs = frozenset[tuple[str, str]]

SPLITS: dict[str, tuple[Tier, ...]] = {
    "encoder-train": ("A", "B"),
    "reencoder-train": ("A",),
    "judge-train": ("A",),
    "generator-train": ("A",),
    "probe-fit": ("A", "B"),
    "probe-test": ("A", "B", "C"),
    "geneval": ("A", "B", "C"),
}
"""Each split with the wording tiers it may be told in. The order is that of the split's tag in
a scene, so append only (there is room for eight)."""

TESTS = ("probe-test", "geneval")
LEAST = 0.45  # of a relation's strength
"""The splits that may hold held-out combinations. All others are fitted on: seen ones only."""

PAIR_STEP = 6  # one pair of color and shape in six is held out


def check_split(split: str, combos: Combos = "seen", tiers: Iterable[Tier] = ()) -> int:
    """The split's number.

    Raises:
        UnknownNameError: if there is no such split.
        UsageError: if it must not hold these combinations or these wordings.
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if combos not in ("seen", "held-out", "both"):
        raise UsageError(f"combos must be seen, held-out or both, not '{combos}'")
    if combos != "seen" and split not in TESTS:
        raise UsageError(
            f"'{split}' is trained on and holds seen combinations only; take "
            f"{' or '.join(TESTS)} for {combos} ones"
        )
    for tier in tiers:
        if tier not in SPLITS[split]:
            may = ", ".join(SPLITS[split])
            raise UsageError(
                f"'{split}' cannot be described in wording tier {tier}; allowed: {may}"
            )
    return list(SPLITS).index(split)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _by_hash(names: Iterable[str], salt: str) -> list[str]:
    return sorted(names, key=lambda name: _hash(f"{salt} {name}"))


@cache
def held_out_pairs() -> Pairs:
    """Held-out (color, shape): two shapes of every color, one or two colors of every shape.

    Every sixth diagonal of the table whose rows and columns stand in the order of their hashes.
    """
    return frozenset(
        (color, shape)
        for i, color in enumerate(_by_hash(COLORS, "color"))
        for j, shape in enumerate(_by_hash(SHAPES, "shape"))
        if (i + j) % PAIR_STEP == 0
    )


def triple(one: str, relation: str, other: str) -> tuple[str, str, str]:
    """A triple of shapes told one way only: 'right of' as 'left of', 'below' as 'above'."""
    if relation in ("right of", "below"):
        return other, OPPOSITE[relation], one
    return one, relation, other


@cache
def held_out_triples() -> frozenset[tuple[str, str, str]]:
    """Held-out (shape, relation, shape), told by 'left of' and 'above': each shape before the
    next one in the order of their hashes.

    So every shape is first once and second once in each of the two relations, never with its
    own like; more than one triple in twelve would leave few scenes of four objects.
    """
    found = set()
    for relation in ("left of", "above"):
        order = _by_hash(SHAPES, relation)
        found |= {(order[i - 1], relation, order[i]) for i in range(len(order))}
    return frozenset(found)


def held_out(scene: Scene) -> list[str]:
    """The held-out combinations that a scene shows, in words; empty for a seen scene.

    LEAST is below GenEval's .5, so that a relation which only nearly holds counts too.
    """
    found = [
        f"{thing.color} {thing.shape}"
        for thing in scene.objects
        if (thing.color, thing.shape) in held_out_pairs()
    ]
    for i, one in enumerate(scene.objects):
        for other in scene.objects[:i]:
            for relation in true_relations(one, other, LEAST):
                said = triple(one.shape, relation, other.shape)
                if said in held_out_triples():
                    found.append(" ".join(said))
    return found
