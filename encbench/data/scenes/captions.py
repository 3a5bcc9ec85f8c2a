"""Captions written from a scene by rule: short ones in GenEval's style, long ones in DPG-Bench's.

Everything in a caption is true of its scene: counts are exact for the attributes named, and a
relation is stated only if GenEval's rule holds with a margin (``world.MARGIN``) between all objects
of the two kinds. A long caption describes every object with its size, color, shape and
place, the ground, and some relations, in four to six sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from ..geneval import Clause, article, pluralize
from .splits import Tier
from .words import WORDS, Words
from .world import OPPOSITE, Scene, SceneObject, board_position, true_relations

T = TypeVar("T")
Style = Literal["short", "long"]
STYLES: tuple[Style, ...] = ("short", "long")
SENTENCES = 6  # at most, in a long caption


@dataclass(frozen=True)
class Group:
    """Objects that share one name: ``count`` of a shape, with the attributes that are named."""

    shape: str
    color: str | None = None
    size: str | None = None
    count: int = 1


@dataclass(frozen=True)
class CaptionContent:
    """A short caption with its content: the groups it names, and maybe a relation of the first
    group to the second."""

    text: str
    groups: tuple[Group, ...]
    relation: str | None = None


def caption(scene: Scene, tier: Tier = "A", style: Style = "short", *, seed: int = 0) -> str:
    """One caption. The same arguments give the same text; other seeds give other ones."""
    if style == "short":
        return describe_scene(scene, tier, seed=seed).text
    return _long(scene, tier, _draw(scene, tier, style, seed))


def describe_scene(scene: Scene, tier: Tier = "A", *, seed: int = 0) -> CaptionContent:
    """The short caption that :func:`caption` writes, with its content."""
    return _short(scene, tier, _draw(scene, tier, "short", seed))


def _draw(scene: Scene, tier: Tier, style: Style, seed: int) -> Draw:
    # a number that tells scenes apart; Python's own hashes differ from process to process
    mark = sum(int(8192 * o.x + 8192 * 8192 * o.y) << 7 * i for i, o in enumerate(scene.objects))
    which = seed * 6 + "ABC".index(tier) * 2 + STYLES.index(style)
    return Draw(mark * 0xD1342543DE82EF95 + which * 0x9FB21C651E98DF25)


def reword(
    include: Sequence[Clause], tier: Tier, *, seed: int = 0, words: Words | None = None
) -> str:
    """The text of a GenEval prompt in tier B or C, from its clauses; their labels are shapes, or
    what ``words`` has words for."""
    words = words or WORDS[tier]
    groups = [Group(clause.label, clause.color, None, clause.count) for clause in include]
    draw = Draw(seed * 3 + "ABC".index(tier))
    if len(groups) == 2 and include[1].position:
        return draw.pick(_RELATED[tier])(words, groups[1], include[1].position[0], groups[0], "")
    return draw.pick(_LISTED[tier])(words, groups, "")


class Draw:
    """A little seeded generator (SplitMix64): a caption draws a dozen numbers, and seeding one
    of the library's would take longer than that."""

    def __init__(self, seed: int) -> None:
        self.state = (seed ^ (seed >> 64)) & _WORD

    def random(self) -> float:
        """The next number in [0, 1)."""
        self.state = z = (self.state + 0x9E3779B97F4A7C15) & _WORD
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _WORD
        return ((z ^ (z >> 31)) >> 11) * 2.0**-53

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.random() * len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        left = list(options)
        return [left.pop(int(self.random() * len(left))) for _ in options]


_WORD = (1 << 64) - 1


# ------------------------------------------------------------------------------ noun phrases


def _bare(words: Words, group: Group) -> str:
    """A noun with its adjectives, without article or number."""
    noun = words.shapes[group.shape]
    parts = [
        words.sizes[group.size] if group.size else "",
        words.colors[group.color] if group.color else "",
        pluralize(noun) if group.count > 1 else noun,
    ]
    return " ".join(filter(None, parts))


def _phrase(words: Words, group: Group) -> str:
    """E.g. 'an orange star', 'a pair of emerald discs'."""
    bare = _bare(words, group)
    if group.count == 1:
        return f"{article(bare)} {bare}"
    return f"{words.counts[group.count]} {bare}"


def _ground(words: Words, scene: Scene) -> str:
    name = words.grounds[scene.ground]
    return f"{article(name)} {name}"


def _things(words: Words, count: int) -> str:
    """E.g. 'two shapes'."""
    if count == 1:
        return f"{words.lone} {words.thing}"
    return f"{words.counts[count]} {pluralize(words.thing)}"


def _and(phrases: Sequence[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)


def _are(group: Group, one: str, many: str) -> str:
    return one if group.count == 1 else many


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


# -------------------------------------------------------------------------------- short ones
# Each way of saying is a function of (words, groups or two groups with a relation, ground).
# ``ground`` is '' or ends the caption.

List = Callable[[Words, Sequence[Group], str], str]
Related = Callable[[Words, Group, str, Group, str], str]


def _list(before: str, after: str = "", after_many: str = "") -> List:
    def say(words: Words, groups: Sequence[Group], ground: str) -> str:
        several = len(groups) > 1 or groups[0].count > 1
        listed = _and([_phrase(words, group) for group in groups])
        return f"{before}{listed}{after_many if several else after}{ground}"

    return say


def _between(before: str, one: str = "", many: str = "") -> Related:
    def say(words: Words, a: Group, relation: str, b: Group, ground: str) -> str:
        said = words.relations[relation]
        middle = _are(a, one, many)
        return f"{before}{_phrase(words, a)} {middle}{said} {_phrase(words, b)}{ground}"

    return say


def _to_which(words: Words, a: Group, relation: str, b: Group, ground: str) -> str:
    """Tier B: '(b), to the west of which there is (a)'."""
    said = words.relations[relation]
    is_a = _are(a, "is", "are")
    return f"{_phrase(words, b)}, {said} which there {is_a} {_phrase(words, a)}{ground}"


def _with(words: Words, a: Group, relation: str, b: Group, ground: str) -> str:
    """Tier C: '(b) with (a) leftward of it'."""
    said = words.relations[relation]
    return f"{_phrase(words, b)} with {_phrase(words, a)} {said} {_are(b, 'it', 'them')}{ground}"


_LISTED: dict[Tier, tuple[List, ...]] = {
    "A": (_list("a photo of "), _list("a photo of "), _list("a picture of "), _list("")),
    "B": (
        _list("a drawing that contains "),
        _list("a sketch in which there can be seen "),
        _list("", " has been drawn", " have been drawn"),
    ),
    "C": (_list("one may notice "), _list("behold "), _list("the artwork includes ")),
}
_RELATED: dict[Tier, tuple[Related, ...]] = {
    "A": (
        _between("a photo of "),
        _between("a photo of "),
        _between("a picture of "),
        _between("", "is ", "are "),
    ),
    "B": (
        _between("", "that sits ", "that sit "),
        _between("", "has been drawn ", "have been drawn "),
        _to_which,
        _between("a drawing that contains "),
    ),
    "C": (_between("one may notice "), _between("", "positioned ", "positioned "), _with),
}
_GROUND: dict[Tier, str] = {
    "A": " on {} background",
    "B": ", set against {} backdrop",
    "C": ", with {} canvas behind",
}


def _short(scene: Scene, tier: Tier, draw: Draw) -> CaptionContent:
    words = WORDS[tier]
    color = draw.random() < 0.8
    size = color and draw.random() < 0.25
    groups = draw.shuffled(_groups(scene.objects, color, size))
    ground = ""
    if draw.random() < 0.3:
        ground = _GROUND[tier].format(_ground(words, scene))
    if len(groups) > 1 and draw.random() < (0.7 if len(groups) == 2 else 0.5):
        able = list(_related(scene, groups))
        if able:
            a, relation, b = draw.pick(able)
            text = draw.pick(_RELATED[tier])(words, a, relation, b, ground)
            return CaptionContent(text, (a, b), relation)
    return CaptionContent(draw.pick(_LISTED[tier])(words, groups, ground), tuple(groups))


def _groups(objects: Sequence[SceneObject], color: bool, size: bool) -> list[Group]:
    """Objects called alike, in the order in which each kind first occurs."""
    kinds = [(o.shape, o.color if color else None, o.size if size else None) for o in objects]
    return [Group(*kind, count=kinds.count(kind)) for kind in dict.fromkeys(kinds)]


def _members(scene: Scene, group: Group) -> list[SceneObject]:
    return [
        thing
        for thing in scene.objects
        if thing.shape == group.shape
        and group.color in (None, thing.color)
        and group.size in (None, thing.size)
    ]


def _related(scene: Scene, groups: Sequence[Group]) -> Iterator[tuple[Group, str, Group]]:
    """Relations that hold between all objects of two kinds."""
    for i, a in enumerate(groups):
        for b in groups[:i]:
            pairs = [true_relations(x, y) for x in _members(scene, a) for y in _members(scene, b)]
            for relation in pairs[0]:
                if all(relation in pair for pair in pairs):
                    yield a, relation, b
                    yield b, OPPOSITE[relation], a


# --------------------------------------------------------------------------------- long ones


def _long(scene: Scene, tier: Tier, draw: Draw) -> str:
    words, objects = WORDS[tier], draw.shuffled(scene.objects)
    sentences = [_overview(words, tier, scene, draw)]
    if len(objects) == 1:
        (thing,) = objects
        sentences.append(_object(words, tier, thing, draw, size=False))
        sentences.append(f"it is {words.sizes[thing.size]}")
    else:
        told: list[Group] = []
        for thing in objects:
            group = Group(thing.shape, thing.color, thing.size)
            sentences.append(_object(words, tier, thing, draw, again=group in told))
            told.append(group)
        unique = [g for g in _groups(objects, True, False) if g.count == 1]
        for a, relation, b in _distinct(draw.shuffled(list(_related(scene, unique)))):
            if len(sentences) < SENTENCES - (len(objects) < 4):
                sentences.append(_relation(words, tier, a, relation, b, draw))
    if len(sentences) < SENTENCES - 2 or (len(sentences) < SENTENCES and draw.random() < 0.5):
        sentences.append(_CLOSING[tier])
    return " ".join(map(_sentence, sentences))


def _distinct(said: Sequence[tuple[Group, str, Group]]) -> Iterator[tuple[Group, str, Group]]:
    """One relation for each pair of groups."""
    pairs = set()
    for a, relation, b in said:
        if frozenset((a, b)) not in pairs:
            pairs.add(frozenset((a, b)))
            yield a, relation, b


def _overview(words: Words, tier: Tier, scene: Scene, draw: Draw) -> str:
    count, ground = len(scene.objects), _ground(words, scene)
    things = _things(words, count)
    are, have = ("is", "has") if count == 1 else ("are", "have")
    return draw.pick(
        {
            "A": (
                f"this picture shows {things} on {ground} background",
                f"on {ground} background there {are} {things}",
            ),
            "B": (
                f"{things} {have} been drawn against {ground} backdrop",
                f"against {ground} backdrop, {things} can be seen",
            ),
            "C": (
                f"the artwork includes {things} before {ground} canvas",
                f"across {ground} canvas one may notice {things}",
            ),
        }[tier]
    )


def _object(
    words: Words,
    tier: Tier,
    thing: SceneObject,
    draw: Draw,
    *,
    size: bool = True,
    again: bool = False,
) -> str:
    """An object with its place; ``again`` where one just like it was told before."""
    group = Group(thing.shape, thing.color, thing.size if size else None)
    bare = _bare(words, group)
    what = f"another {bare}" if again else f"{article(bare)} {bare}"
    column, row = board_position(thing)
    where = words.places[row][column]
    ways = {
        "A": ["{what} is {where}", "there is {what} {where}", "{where} there is {what}"],
        "B": ["{what} has been drawn {where}", "{where} sits {what}"],
        "C": ["{what} rests {where}", "{where} one may notice {what}"],
    }[tier]
    if tier == "B" and size and not again:
        plain = _phrase(words, Group(thing.shape, thing.color))
        ways.append(f"{plain}, which is {words.sizes[thing.size]}, sits {{where}}")
    return draw.pick(ways).format(what=what, where=where)


def _relation(words: Words, tier: Tier, a: Group, relation: str, b: Group, draw: Draw) -> str:
    one, other, said = f"the {_bare(words, a)}", f"the {_bare(words, b)}", words.relations[relation]
    return draw.pick(
        {
            "A": (f"{one} is {said} {other}",),
            "B": (f"{said} {other} sits {one}", f"{one} has been drawn {said} {other}"),
            "C": (f"{one} rests {said} {other}", f"{one} is positioned {said} {other}"),
        }[tier]
    )


_CLOSING: dict[Tier, str] = {
    "A": "nothing else is in the picture",
    "B": "no further figure has been added",
    "C": "the remainder stays empty",
}
