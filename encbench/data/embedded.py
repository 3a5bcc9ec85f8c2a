"""A small text set made by rule, so that a first run needs no download.

A scene is two groups of things (what, colour, size, how many), a relation and a place. Each of
its five captions draws its own wording, synonyms and details, so that captions of one image
share meaning rather than words; many scenes have a twin with colours or relation exchanged,
which a bag of words cannot tell apart. Long prompts describe such scenes at length.

Only ``Random.random`` is used, whose sequence Python guarantees: same seed, same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from ..files import digest
from ..types import Caption, CaptionSet, ImageRecord, Prompt, PromptSet
from .dpg import prompts_pin

T = TypeVar("T")
IMAGES = 300
PROMPTS = 150
WORDS = (60, 90)  # in a long prompt

# what -> its words as singular/plural; animals have their own colours and details
ANIMALS = {
    "dog": ("dog/dogs", "puppy/puppies", "hound/hounds"),
    "cat": ("cat/cats", "kitten/kittens", "feline/felines"),
    "horse": ("horse/horses", "pony/ponies", "stallion/stallions"),
    "cow": ("cow/cows", "calf/calves"),
    "bird": ("bird/birds", "pigeon/pigeons"),
    "rabbit": ("rabbit/rabbits", "bunny/bunnies", "hare/hares"),
}
THINGS = {
    "car": ("car/cars", "automobile/automobiles", "sedan/sedans"),
    "bicycle": ("bicycle/bicycles", "bike/bikes"),
    "truck": ("truck/trucks", "lorry/lorries"),
    "boat": ("boat/boats", "rowing boat/rowing boats"),
    "bench": ("bench/benches", "seat/seats"),
    "tent": ("tent/tents", "pavilion/pavilions"),
    "balloon": ("balloon/balloons", "party balloon/party balloons"),
    "umbrella": ("umbrella/umbrellas", "parasol/parasols"),
    "ball": ("ball/balls", "football/footballs"),
    "suitcase": ("suitcase/suitcases", "travel bag/travel bags"),
    "sofa": ("sofa/sofas", "couch/couches", "settee/settees"),
    "lamp": ("lamp/lamps", "lantern/lanterns"),
    "vase": ("vase/vases", "flower vase/flower vases"),
    "cup": ("cup/cups", "mug/mugs"),
    "box": ("box/boxes", "crate/crates"),
    "book": ("book/books", "novel/novels"),
}
COLOURS = {
    "red": ("red", "crimson", "scarlet"),
    "blue": ("blue", "azure", "navy"),
    "green": ("green", "emerald", "olive"),
    "yellow": ("yellow", "golden", "lemon-coloured"),
    "purple": ("purple", "violet", "lilac"),
    "pink": ("pink", "rose-coloured"),
    "black": ("black", "jet-black", "dark"),
    "white": ("white", "snow-white", "pale"),
    "brown": ("brown", "chestnut", "tan"),
    "grey": ("grey", "gray", "silvery"),
}
FUR = ("black", "white", "brown", "grey")
SIZES = {"large": ("large", "big", "huge"), "small": ("small", "little", "tiny"), "": ("",)}
COUNTS = {1: ("a",), 2: ("two", "a pair of", "a couple of"), 3: ("three",), 4: ("four",)}
RELATIONS = {
    "beside": ("next to", "beside", "alongside"),
    "behind": ("behind", "at the back of"),
    "in front": ("in front of", "before"),
    "left": ("to the left of", "on the left side of"),
    "right": ("to the right of", "on the right side of"),
}
OPPOSITE = {
    "beside": "beside", "behind": "in front", "in front": "behind", "left": "right", "right": "left"
}  # fmt: skip
PLACES = {
    "beach": ("on the beach", "at the seaside", "on a sandy shore"),
    "street": ("on the street", "in the road", "on a city lane"),
    "field": ("in a field", "in a meadow", "on the grass"),
    "snow": ("in the snow", "on snowy ground", "in a wintry landscape"),
    "garden": ("in the garden", "in a backyard", "among flower beds"),
    "lake": ("by the lake", "at the edge of the water", "on a lakeside path"),
    "room": ("in the living room", "inside a house", "indoors"),
    "hall": ("in a large hall", "inside a warehouse", "in an empty storeroom"),
    "yard": ("on a farm", "in a barnyard", "at a ranch"),
    "square": ("on the market square", "in the town plaza", "at an outdoor market"),
}


@dataclass(frozen=True)
class Group:
    """Some things of one kind, by the keys of the tables above."""

    what: str
    colour: str
    size: str
    count: int


@dataclass(frozen=True)
class Scene:
    first: Group
    relation: str
    second: Group
    place: str

    @property
    def meaning(self) -> frozenset[tuple[object, ...]]:
        """Equal for two scenes that show the same thing, told from either side."""
        return frozenset(
            {
                (self.first, self.relation, self.second, self.place),
                (self.second, OPPOSITE[self.relation], self.first, self.place),
            }
        )


def embedded_captions(seed: int = 0) -> CaptionSet:
    """300 images without files, five captions each; no two of the same scene."""
    rng = Random(f"captions {seed}")
    scenes = _scenes(rng, IMAGES)
    captions = []
    for number, scene in enumerate(scenes, 1):
        texts = [_caption(rng, scene, wording) for wording in _shuffled(rng, WORDINGS)[:5]]
        captions += [Caption(5 * number - 4 + i, number, text) for i, text in enumerate(texts)]
    images = tuple(
        ImageRecord(number, f"scene-{number:04d}", None, 0, 0, licence="Apache-2.0")
        for number in range(1, IMAGES + 1)
    )
    return CaptionSet(
        name="embedded",
        pin=digest([[c.caption_id, c.image_id, c.text] for c in captions]),
        images=images,
        captions=tuple(captions),
        notes=("made by rule, without images: it shows how the tool works, not how encoders rank",),
    )


def embedded_prompts(seed: int = 0) -> PromptSet:
    """150 long prompts of 60 to 90 words in several sentences."""
    rng = Random(f"prompts {seed}")
    texts = [_long_prompt(rng, scene) for scene in _scenes(rng, PROMPTS)]
    prompts = tuple(Prompt(f"embedded{n}", text) for n, text in enumerate(texts))
    note = "made by rule: it shows how the tool works, not how encoders rank"
    return PromptSet("embedded", prompts_pin(prompts), prompts, (note,))


# --------------------------------------------------------------------------------- scenes


def _pick(rng: Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _shuffled(rng: Random, options: Sequence[T]) -> list[T]:
    keyed = [(rng.random(), position) for position in range(len(options))]
    return [options[position] for _, position in sorted(keyed)]


def _scenes(rng: Random, count: int) -> list[Scene]:
    scenes: list[Scene] = []
    seen: set[frozenset[tuple[object, ...]]] = set()
    while len(scenes) < count:
        scene = _scene(rng)
        for candidate in (scene, _twin(rng, scene)) if rng.random() < 0.5 else (scene,):
            if candidate.meaning not in seen and len(scenes) < count:
                seen.add(candidate.meaning)
                scenes.append(candidate)
    return scenes


def _scene(rng: Random) -> Scene:
    first = _pick(rng, [*ANIMALS, *THINGS])
    second = _pick(rng, [what for what in [*ANIMALS, *THINGS] if what != first])
    return Scene(
        _group(rng, first),
        _pick(rng, list(RELATIONS)),
        _group(rng, second),
        _pick(rng, list(PLACES)),
    )


def _group(rng: Random, what: str) -> Group:
    colours = FUR if what in ANIMALS else list(COLOURS)
    count = _pick(rng, (1, 1, 1, 2, 3, 4))
    return Group(what, _pick(rng, colours), _pick(rng, ("large", "small", "")), count)


def _twin(rng: Random, scene: Scene) -> Scene:
    """The same things with colours exchanged, else standing the other way round."""
    first, second = scene.first, scene.second
    exchanged = {first.what: second.colour, second.what: first.colour}
    natural = all(what in THINGS or colour in FUR for what, colour in exchanged.items())
    if natural and first.colour != second.colour and rng.random() < 0.7:
        return replace(
            scene,
            first=replace(first, colour=second.colour),
            second=replace(second, colour=first.colour),
        )
    return replace(scene, relation=OPPOSITE[scene.relation])


# ---------------------------------------------------------------------------------- words


def _words(rng: Random, group: Group, size: bool = True) -> str:
    """A noun phrase, e.g. 'a pair of tiny violet lamps'."""
    tables = ANIMALS if group.what in ANIMALS else THINGS
    forms = _pick(rng, tables[group.what]).split("/")
    parts = [
        _pick(rng, SIZES[group.size]) if size else "",
        _pick(rng, COLOURS[group.colour]),
        forms[group.count > 1],
    ]
    phrase = " ".join(filter(None, parts))
    quantity = _pick(rng, COUNTS[group.count])
    return f"{'an' if quantity == 'a' and phrase[0] in 'aeiou' else quantity} {phrase}"


def _be(group: Group) -> str:
    return "is" if group.count == 1 else "are"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


WORDINGS = (
    "{a} {rel} {b} {place}",
    "there {is_a} {a} {rel} {b} {place}",
    "{place}, {b} {is_b} {back} {a}",
    "{a} and {b} {place}",
    "{b} {back} {a}",
    "{a} can be seen {place}, {rel} {b}",
    "a view of {b} that {is_b} {back} {a} {place}",
    "a picture that shows {a} {rel} {b}",
)


def _caption(rng: Random, scene: Scene, wording: str) -> str:
    return _sentence(
        wording.format(
            a=_words(rng, scene.first, rng.random() < 0.6),
            b=_words(rng, scene.second, rng.random() < 0.6),
            rel=_pick(rng, RELATIONS[scene.relation]),
            back=_pick(rng, RELATIONS[OPPOSITE[scene.relation]]),
            is_a=_be(scene.first),
            is_b=_be(scene.second),
            place=_pick(rng, PLACES[scene.place]),
        )
    )


# --------------------------------------------------------------------------- long prompts

LIGHTS = (
    "early morning light", "the warm glow of the evening sun", "soft and even daylight",
    "the cold light of a winter afternoon", "a single bright beam of sunlight",
    "the last light before nightfall",
)  # fmt: skip
COATS = (
    "a soft and carefully drawn outline", "alert eyes and a curious look",
    "a calm and patient look", "a faint pattern of lighter patches on the back",
)  # fmt: skip
SURFACES = (
    "a smooth surface that reflects the surroundings", "a few scratches that tell of long use",
    "a fresh coat of paint without a single mark", "thin decorative lines along the edges",
    "a rough texture that looks almost carved by hand",
)  # fmt: skip
BACKDROPS = (
    "a row of tall narrow windows closes off the background, half hidden by drifting mist",
    "behind everything, a low stone wall runs from one side of the picture to the other",
    "the background fades into gentle blurred shapes, so that nothing distracts the eye",
    "far away, the outline of rolling hills meets a sky with a handful of thin clouds",
    "a plain wooden fence stands in the distance, with climbing plants along its posts",
)  # fmt: skip
MOODS = (
    "the whole scene feels quiet and unhurried, like a moment between two events",
    "everything is arranged with care, as in a still life by a patient painter",
    "the composition is simple, and its few strong colours stand out at once",
    "it looks like a photograph taken in passing, slightly tilted but full of detail",
    "the mood is cheerful and a little strange, as in an illustration for children",
)  # fmt: skip
VISIBLE = ("just visible", "half in shadow", "clearly in focus", "partly hidden from view")
NEAR = ("a few steps away", "off to one side", "close to the lower edge")


def _long_prompt(rng: Random, scene: Scene) -> str:
    """Sentences are drawn until their number of words fits."""
    while True:
        third = _group(rng, _pick(rng, list(THINGS)))
        light, place = _pick(rng, LIGHTS), _pick(rng, PLACES[scene.place])
        relation = _pick(rng, RELATIONS[scene.relation])
        sentences = [
            f"{place}, {_words(rng, scene.first)} {_be(scene.first)} placed {relation} "
            f"{_words(rng, scene.second)}, all of it under {light}",
            _detail(rng, scene.first),
            _detail(rng, scene.second),
            f"{_pick(rng, NEAR)}, {_words(rng, third)} {_be(third)} {_pick(rng, VISIBLE)}",
            _pick(rng, BACKDROPS),
            _pick(rng, MOODS),
        ]
        kept = [s for i, s in enumerate(sentences) if i in (0, 1, 3) or rng.random() < 0.8]
        text = " ".join(map(_sentence, kept))
        if third.what not in (scene.first.what, scene.second.what) and (
            WORDS[0] <= len(text.split()) <= WORDS[1]
        ):
            return text


def _detail(rng: Random, group: Group) -> str:
    animal = group.what in ANIMALS
    noun = (ANIMALS if animal else THINGS)[group.what][0].split("/")[group.count > 1]
    colour = COLOURS[group.colour][0]
    verb = _pick(rng, ("has", "shows") if group.count == 1 else ("have", "show"))
    each = "" if group.count == 1 else " each"
    return f"the {colour} {noun}{each} {verb} {_pick(rng, COATS if animal else SURFACES)}"
