"""The vocabulary of each wording tier. Beside function words, no two tiers share a word.

Tier A is GenEval's own wording; B and C are synonyms. An encoder that was not trained on a tier
must know its words from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .splits import Tier


@dataclass(frozen=True)
class Words:
    """The words of one tier. Tables have the keys of ``world``.

    Attributes:
        shapes, colors, sizes: one word (or two) for each; shapes in the singular.
        grounds: colors of grounds.
        relations: 'a' stands to 'b' in words that fit between them.
        counts: for two, three and four things.
        thing: what every shape is.
        lone: 'one' before ``thing``.
        places: by row and column of the 3 x 3 board, with its preposition.
    """

    shapes: Mapping[str, str]
    colors: Mapping[str, str]
    sizes: Mapping[str, str]
    grounds: Mapping[str, str]
    relations: Mapping[str, str]
    counts: Mapping[int, str]
    thing: str
    lone: str
    places: tuple[tuple[str, str, str], ...]


A = Words(
    shapes={name: name for name in (
        "circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond", "crescent",
        "arrow", "hourglass", "semicircle",
    )},
    colors={name: name for name in (
        "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
    )},
    sizes={"small": "small", "medium": "medium", "large": "large"},
    grounds={name: name for name in ("white", "black", "gray", "cream", "navy")},
    relations={name: name for name in ("left of", "right of", "above", "below")},
    counts={2: "two", 3: "three", 4: "four"},
    thing="shape",
    lone="one",
    places=(
        ("in the top left", "at the top", "in the top right"),
        ("on the left", "in the center", "on the right"),
        ("in the bottom left", "at the bottom", "in the bottom right"),
    ),
)  # fmt: skip

B = Words(
    shapes={
        "circle": "disc", "square": "box", "triangle": "wedge", "star": "pentagram",
        "cross": "plus sign", "ring": "hoop", "heart": "love sign", "diamond": "rhombus",
        "crescent": "moon", "arrow": "pointer", "hourglass": "sandglass",
        "semicircle": "half-disc",
    },
    colors={
        "red": "crimson", "orange": "tangerine", "yellow": "golden", "green": "emerald",
        "blue": "azure", "purple": "violet", "pink": "rosy", "brown": "chestnut",
        "black": "ebony", "white": "ivory",
    },
    sizes={"small": "tiny", "medium": "average-sized", "large": "big"},
    grounds={
        "white": "ivory", "black": "ebony", "gray": "ashen", "cream": "vanilla",
        "navy": "midnight",
    },
    relations={
        "left of": "to the west of", "right of": "to the east of", "above": "over",
        "below": "beneath",
    },
    counts={2: "a pair of", 3: "a trio of", 4: "a quartet of"},
    thing="figure",
    lone="a single",
    places=(
        ("in the upper western area", "in the upper area", "in the upper eastern area"),
        ("in the western area", "in the central area", "in the eastern area"),
        ("in the lower western area", "in the lower area", "in the lower eastern area"),
    ),
)  # fmt: skip

C = Words(
    shapes={
        "circle": "dot", "square": "block", "triangle": "pyramid", "star": "asterisk",
        "cross": "addition symbol", "ring": "donut", "heart": "valentine", "diamond": "lozenge",
        "crescent": "sickle", "arrow": "dart", "hourglass": "egg timer", "semicircle": "dome",
    },
    colors={
        "red": "scarlet", "orange": "pumpkin-coloured", "yellow": "lemon-coloured",
        "green": "jade", "blue": "cobalt", "purple": "plum-coloured",
        "pink": "bubblegum-coloured", "brown": "cocoa-coloured", "black": "inky",
        "white": "snowy",
    },
    sizes={"small": "miniature", "medium": "middling", "large": "enormous"},
    grounds={
        "white": "snowy", "black": "inky", "gray": "slate", "cream": "eggshell",
        "navy": "indigo",
    },
    relations={
        "left of": "leftward of", "right of": "rightward of", "above": "higher than",
        "below": "under",
    },
    counts={2: "a couple of", 3: "a triplet of", 4: "a foursome of"},
    thing="form",
    lone="a solitary",
    places=(
        ("up high on the leftward flank", "up high", "up high on the rightward flank"),
        ("on the leftward flank", "halfway across and halfway up", "on the rightward flank"),
        ("down low on the leftward flank", "down low", "down low on the rightward flank"),
    ),
)  # fmt: skip

WORDS: dict[Tier, Words] = {"A": A, "B": B, "C": C}
