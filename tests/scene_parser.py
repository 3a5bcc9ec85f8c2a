"""Reads captions of scenes: from a text to its claims, with word lists of its own.

It shares nothing with the captioner. Whatever it does not understand is an error, so that no
claim goes unchecked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# word -> (meaning, plural)
NOUNS = {
    "circle": ("circle", "circles"), "disc": ("circle", "discs"), "dot": ("circle", "dots"),
    "square": ("square", "squares"), "box": ("square", "boxes"), "block": ("square", "blocks"),
    "triangle": ("triangle", "triangles"), "wedge": ("triangle", "wedges"),
    "pyramid": ("triangle", "pyramids"), "star": ("star", "stars"),
    "pentagram": ("star", "pentagrams"), "asterisk": ("star", "asterisks"),
    "cross": ("cross", "crosses"), "plus sign": ("cross", "plus signs"),
    "addition symbol": ("cross", "addition symbols"), "ring": ("ring", "rings"),
    "hoop": ("ring", "hoops"), "donut": ("ring", "donuts"), "heart": ("heart", "hearts"),
    "love sign": ("heart", "love signs"), "valentine": ("heart", "valentines"),
    "diamond": ("diamond", "diamonds"), "rhombus": ("diamond", "rhombuses"),
    "lozenge": ("diamond", "lozenges"), "crescent": ("crescent", "crescents"),
    "moon": ("crescent", "moons"), "sickle": ("crescent", "sickles"),
    "arrow": ("arrow", "arrows"), "pointer": ("arrow", "pointers"), "dart": ("arrow", "darts"),
    "hourglass": ("hourglass", "hourglasses"), "sandglass": ("hourglass", "sandglasses"),
    "egg timer": ("hourglass", "egg timers"), "semicircle": ("semicircle", "semicircles"),
    "half-disc": ("semicircle", "half-discs"), "dome": ("semicircle", "domes"),
}  # fmt: skip
COLORS = {
    "red": "red crimson scarlet", "orange": "orange tangerine pumpkin-coloured",
    "yellow": "yellow golden lemon-coloured", "green": "green emerald jade",
    "blue": "blue azure cobalt", "purple": "purple violet plum-coloured",
    "pink": "pink rosy bubblegum-coloured", "brown": "brown chestnut cocoa-coloured",
    "black": "black ebony inky", "white": "white ivory snowy",
}  # fmt: skip
GROUNDS = {
    "white": "white ivory snowy", "black": "black ebony inky", "gray": "gray ashen slate",
    "cream": "cream vanilla eggshell", "navy": "navy midnight indigo",
}  # fmt: skip
SIZES = {
    "small": "small tiny miniature", "medium": "medium average-sized middling",
    "large": "large big enormous",
}  # fmt: skip
RELATIONS = {
    "to the west of": "left of", "to the east of": "right of", "leftward of": "left of",
    "rightward of": "right of", "left of": "left of", "right of": "right of", "above": "above",
    "over": "above", "higher than": "above", "below": "below", "beneath": "below",
    "under": "below",
}  # fmt: skip
NUMBERS = {
    "a single": 1, "a solitary": 1, "one": 1, "an": 1, "a": 1, "two": 2, "three": 3, "four": 4,
    "a pair of": 2, "a trio of": 3, "a quartet of": 4, "a couple of": 2, "a triplet of": 3,
    "a foursome of": 4,
}  # fmt: skip
# (column, row), from top left
PLACES = {
    "in the top left": (0, 0), "at the top": (1, 0), "in the top right": (2, 0),
    "on the left": (0, 1), "in the center": (1, 1), "on the right": (2, 1),
    "in the bottom left": (0, 2), "at the bottom": (1, 2), "in the bottom right": (2, 2),
    "in the upper western area": (0, 0), "in the upper area": (1, 0),
    "in the upper eastern area": (2, 0), "in the western area": (0, 1),
    "in the central area": (1, 1), "in the eastern area": (2, 1),
    "in the lower western area": (0, 2), "in the lower area": (1, 2),
    "in the lower eastern area": (2, 2), "up high on the leftward flank": (0, 0),
    "up high on the rightward flank": (2, 0), "up high": (1, 0), "on the leftward flank": (0, 1),
    "on the rightward flank": (2, 1), "halfway across and halfway up": (1, 1),
    "down low on the leftward flank": (0, 2), "down low on the rightward flank": (2, 2),
    "down low": (1, 2),
}  # fmt: skip
CLOSINGS = (
    "nothing else is in the picture", "no further figure has been added",
    "the remainder stays empty",
)  # fmt: skip
# what may be left of a sentence when its claims are taken out: a head and a tail
HEADS = (
    "", "a photo of", "a picture of", "is", "are", "there is", "there are",
    "a drawing that contains", "a sketch in which there can be seen", "has been drawn",
    "have been drawn", "one may notice", "behold", "the artwork includes", "that sits", "that sit",
    "which there is", "which there are", "positioned", "is positioned", "with it", "with them",
    "sits", "rests", "which is sits", "it is", "this picture shows", "on there is", "on there are",
    "has been drawn against", "have been drawn against", "against can be seen",
    "the artwork includes before", "across one may notice",
)  # fmt: skip
TAILS = ("", "on", "set against", "with behind")
FILLERS = {f"{head} {tail}".strip() for head in HEADS for tail in TAILS}


@dataclass(frozen=True)
class Phrase:
    shape: str
    color: str | None
    size: str | None
    count: int
    kind: str  # 'some', 'the', 'another'


@dataclass(frozen=True)
class Claims:
    """What one sentence claims."""

    phrases: tuple[Phrase, ...] = ()
    relation: tuple[int, str, int] | None = None  # places in ``phrases``
    place: tuple[int, int] | None = None
    ground: str | None = None
    total: int | None = None
    size: str | None = None  # of 'it' or of the one thing spoken of
    complete: bool = False


def _any(words) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def _table(of: dict[str, str]) -> dict[str, str]:
    return {word: meaning for meaning, words in of.items() for word in words.split()}


COLOR_OF, GROUND_OF, SIZE_OF = _table(COLORS), _table(GROUNDS), _table(SIZES)
SINGULAR = {one: meaning for one, (meaning, _) in NOUNS.items()}
PLURAL = {many: meaning for meaning, many in NOUNS.values()}
NOUN = _any([*PLURAL, *SINGULAR])
PHRASE = re.compile(
    rf"\b(?P<number>the|another|{_any(NUMBERS)}) (?:(?P<size>{_any(SIZE_OF)}) )?"
    rf"(?:(?P<color>{_any(COLOR_OF)}) )?(?P<noun>{NOUN})(?![\w-])"
)
GROUND = re.compile(
    rf"\b(?P<number>an?) (?P<ground>{_any(GROUND_OF)}) (?:background|backdrop|canvas)\b"
)
TOTAL = re.compile(rf"\b(?P<number>{_any(NUMBERS)}) (?P<noun>(?:shape|figure|form)s?)\b")
RELATION = re.compile(rf"\b(?:{_any(RELATIONS)})(?![\w-])")
PLACE = re.compile(rf"\b(?:{_any(PLACES)})(?![\w-])")
SIZE = re.compile(rf"\b(?:which|it) is (?P<size>{_any(SIZE_OF)})\b")


def check_article(text: str) -> None:
    """'an' stands before a vowel that is heard, 'a' before everything else."""
    for article, word in re.findall(r"\b(an?) ([\w-]+)", text.lower()):
        vowel = word[0] in "aeiou" or word == "hourglass"
        assert (article == "an") == vowel, f"'{article} {word}' in: {text}"


def parse(text: str) -> list[Claims]:
    """The claims of each sentence.

    Raises:
        AssertionError: on bad grammar, or on anything not understood.
    """
    check_article(text)
    assert "  " not in text
    assert text == text.strip()
    if text.endswith("."):
        sentences = text[:-1].split(". ")
        assert all(s[0].isupper() for s in sentences), text
    else:
        assert "." not in text
        assert text == text.lower()
        sentences = [text]
    return [_sentence(s.lower()) for s in sentences]


def _sentence(text: str) -> Claims:
    if text in CLOSINGS:
        return Claims(complete=True)
    rest = text

    def take(pattern: re.Pattern[str], mark: str) -> list[re.Match[str]]:
        nonlocal rest
        found = list(pattern.finditer(rest))
        rest = pattern.sub(mark, rest)
        return found

    size = take(SIZE, " which is ") if ", which is" in rest else take(SIZE, " it is ")
    ground = take(GROUND, " ")
    total = take(TOTAL, " ")
    place = take(PLACE, " ")
    order = [("np", m) for m in PHRASE.finditer(rest)]
    bare = PHRASE.sub(lambda m: "#" * len(m[0]), rest)
    order += [("rel", m) for m in RELATION.finditer(bare)]
    order.sort(key=lambda item: item[1].start())
    rest = RELATION.sub(" ", bare)
    rest = " ".join(re.sub(r"[#,]|\band\b", " ", rest).split())
    assert rest in FILLERS, f"not understood: '{rest}' of '{text}'"
    for found in (size, ground, total, place):
        assert len(found) <= 1, text

    phrases = tuple(_phrase(m, text) for kind, m in order if kind == "np")
    relation = None
    kinds = [kind for kind, _ in order]
    if "rel" in kinds:
        word = next(m[0] for kind, m in order if kind == "rel")
        assert kinds.count("rel") == 1, text
        assert len(phrases) == 2, text
        at = kinds.index("rel")
        forward = at == 1 and f"{word} which" not in text
        relation = (0, RELATIONS[word], 1) if forward else (1, RELATIONS[word], 0)
        if at == 2:
            pronoun = text.split(word)[1].split(",")[0].strip()
            assert pronoun == ("it" if phrases[0].count == 1 else "them"), text
    _agreement(text, phrases, relation, total)
    return Claims(
        phrases,
        relation,
        PLACES[place[0][0]] if place else None,
        GROUND_OF[ground[0]["ground"]] if ground else None,
        _total(total[0], text) if total else None,
        SIZE_OF[size[0]["size"]] if size else None,
    )


def _phrase(match: re.Match[str], text: str) -> Phrase:
    number, noun = match["number"], match["noun"]
    count = NUMBERS.get(number, 1)
    assert noun in (PLURAL if count > 1 else SINGULAR), f"number of '{match[0]}' in: {text}"
    meaning = (PLURAL if count > 1 else SINGULAR)[noun]
    kind = number if number in ("the", "another") else "some"
    color, size = match["color"], match["size"]
    return Phrase(
        meaning, COLOR_OF[color] if color else None, SIZE_OF[size] if size else None, count, kind
    )


def _total(match: re.Match[str], text: str) -> int:
    count = NUMBERS[match["number"]]
    assert match["noun"].endswith("s") == (count > 1), text
    return count


def _agreement(text, phrases, relation, total) -> None:
    """A verb in the singular has one subject, one in the plural several."""
    verb = re.search(r"\b(is|are|has|have|sits|sit|rests)\b(?! positioned)", text)
    if verb is None or text.startswith("it is") or "there can be seen" in text:
        return
    if total:
        several = NUMBERS[total[0]["number"]] > 1
    elif relation:
        several = phrases[relation[0]].count > 1
    else:
        several = len(phrases) > 1 or phrases[0].count > 1
    assert (verb[0] in ("are", "have", "sit")) == several, f"'{verb[0]}' in: {text}"
