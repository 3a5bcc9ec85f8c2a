"""Captions and prompts with their content, for the reader: about shapes, COCO's classes, or a
user's own words.

A statement is a GenEval prompt: a text with its clauses. Captions are statements without a task.
Nothing here needs an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np

from encbench.data.geneval import (
    CLASSES,
    COLORS,
    RELATIONS,
    Clause,
    GenevalPrompt,
    draw_prompts,
    prompt_text,
)
from encbench.data.scenes.captions import describe_scene, reword
from encbench.data.scenes.prompts import prompt_held_out, scene_prompts
from encbench.data.scenes.sampler import sample_scenes
from encbench.data.scenes.words import WORDS, Words
from encbench.data.scenes.world import GRID, MAX_OBJECTS
from encbench.data.vocabulary import Vocabulary
from encbench.types import ImageTextDataset

from .perturb import rng_for

SEEN, OTHER_WORDS, HELD_OUT = "seen", "other-words", "held-out"
PER_TASK = 40
HELD_OUT_SHARE = 6  # one pair of color and COCO class in six is held out


@dataclass(frozen=True)
class Language:
    """The training captions and test prompts of the reader.

    Attributes:
        name: what the statements are about, such as 'shapes'.
        labels, colors: what the statements may name.
        captions: to train a reader on.
        prompts: GenEval prompts by question: in the captions' own words ('seen'), the same
            prompts in other words ('other-words'), and combinations that no caption shows, in
            the captions' words ('held-out').
        rare: whether nearly every answer is no, as with many labels; a reader then begins with
            how often each answer is yes, which takes it hundreds of steps to learn.
    """

    name: str
    labels: tuple[str, ...]
    colors: tuple[str, ...]
    captions: tuple[GenevalPrompt, ...]
    prompts: dict[str, tuple[GenevalPrompt, ...]]
    rare: bool = False


def language_for(
    captions: ImageTextDataset | None, vocabulary: Mapping[str, Any] | None = None
) -> Callable[[int, int], Language]:
    """The shapes for scenes and where no captions are given, COCO's classes for all others; a
    vocabulary of the user's own where there is one.

    Args:
        vocabulary: the fields of a :class:`encbench.data.vocabulary.Vocabulary`.

    Returns:
        a function of a seed and a number of captions.
    """
    if vocabulary is not None:
        return partial(own_words, Vocabulary(**vocabulary))
    if captions is None or any(label.split()[-1] in GRID.shapes for label in captions.labels):
        return shapes
    return coco


@lru_cache(maxsize=2)
def shapes(seed: int, count: int) -> Language:
    """The small world that confirmations on a CPU train in (``scenes-grid``): tier A's words,
    other words are tier B's."""
    read = []
    for scene in sample_scenes("probe-fit", count, seed=seed, world=GRID):
        content = describe_scene(scene, "A", seed=seed)
        clauses = [Clause(g.shape, g.count, g.color) for g in content.groups]
        if content.relation is not None:  # 'a left of b' is stored with the second clause
            clauses = [clauses[1], replace(clauses[0], position=(content.relation, 0))]
        read.append(GenevalPrompt(0, "", content.text, tuple(clauses)))
    asked = _balanced(
        scene_prompts(seed=seed, per_task=_most("seen"), combos="seen", world=GRID), prompt_held_out
    )
    held_out = scene_prompts(seed=seed, per_task=_most("held-out"), combos="held-out", world=GRID)
    return Language(
        "shapes",
        GRID.shapes,
        GRID.colors,
        tuple(read),
        {SEEN: asked, OTHER_WORDS: _reworded(asked, reword, seed), HELD_OUT: tuple(held_out)},
    )


@cache
def _most(combos: str) -> dict[str, int]:
    """As many prompts of each task as there are, :data:`PER_TASK` at most; twice as many of
    color_attr, which are chosen from."""
    found: dict[str, int] = {}
    for prompt in scene_prompts(combos=combos, world=GRID):  # type: ignore[arg-type]
        found[prompt.task] = found.get(prompt.task, 0) + 1
    twice = {"color_attr": 2 * PER_TASK}
    return {task: min(count, twice.get(task, PER_TASK)) for task, count in found.items()}


def _balanced(
    prompts: Sequence[GenevalPrompt], held_out: Callable[[tuple[Clause, ...]], bool]
) -> tuple[GenevalPrompt, ...]:
    """The prompts. Each one about two colored things comes also with its colors exchanged, so that
    a reader that cannot tell which color belongs to which thing gets exactly half of them right. A
    prompt whose exchange is
    held out is left out."""
    kept = [prompt for prompt in prompts if prompt.task != "color_attr"]
    pairs: list[GenevalPrompt] = []
    known: set[frozenset[Clause]] = set()
    for prompt in prompts:
        if prompt.task != "color_attr" or len(pairs) >= PER_TASK:
            continue
        one, other = prompt.include
        swap = (replace(one, color=other.color), replace(other, color=one.color))
        if not held_out(swap) and not known & {frozenset(prompt.include), frozenset(swap)}:
            known |= {frozenset(prompt.include), frozenset(swap)}
            exchanged = replace(prompt, text=prompt_text(swap), include=swap)
            pairs += [prompt, exchanged]
    return tuple(kept + pairs)


def _reworded(
    prompts: Sequence[GenevalPrompt], write: Callable[..., str], seed: int
) -> tuple[GenevalPrompt, ...]:
    return tuple(
        replace(prompt, text=write(prompt.include, "B", seed=seed + number))
        for number, prompt in enumerate(prompts)
    )


# ------------------------------------------------------------------------- COCO's classes


@lru_cache(maxsize=2)
def coco(seed: int, count: int) -> Language:
    """GenEval's grammar over COCO's 80 classes. Other words are :data:`SYNONYMS` with tier B's
    colors, counts, relations and ways of saying."""
    words = replace(WORDS["B"], shapes=SYNONYMS)
    return _written("COCO's classes", CLASSES, COLORS, words, seed, count)


def own_words(vocabulary: Vocabulary, seed: int, count: int) -> Language:
    """The same over a user's classes and attributes. What has no synonym keeps its own word."""
    other, known = vocabulary.synonyms, WORDS["B"].colors
    words = replace(
        WORDS["B"],
        shapes={name: other.get(name, name) for name in vocabulary.classes},
        colors={name: other.get(name, known.get(name, name)) for name in vocabulary.attributes},
    )
    name = f"the words of {vocabulary.name}"
    return _written(name, vocabulary.classes, vocabulary.attributes, words, seed, count)


def _written(
    name: str, labels: tuple[str, ...], colors: tuple[str, ...], words: Words, seed: int, count: int
) -> Language:
    """GenEval's grammar over any words. Captions name one or two kinds of things, with counts,
    colors or a relation; one pair of color and label in six is held out.

    Args:
        words: for the question in other words.
    """
    pairs = _held_out_pairs(labels, colors)

    def has_held_out(clauses: tuple[Clause, ...]) -> bool:
        return any(c.color is not None and (c.color, c.label) in pairs for c in clauses)

    read = []
    for number in range(count):
        rng = rng_for("reader caption", seed, number)
        clauses = _draw_clauses(rng, labels, colors)
        while has_held_out(clauses):
            clauses = _draw_clauses(rng, labels, colors)
        frame = ("a photo of ", "a picture of ", "")[int(rng.integers(3))]
        text = frame + prompt_text(clauses).removeprefix("a photo of ")
        read.append(GenevalPrompt(0, "", text, clauses))

    def draw(combos: bool, per_task: dict[str, int]) -> list[GenevalPrompt]:
        def allowed(prompt: GenevalPrompt) -> bool:
            return has_held_out(prompt.include) == combos

        return draw_prompts(labels, colors, (2, 3, 4), seed, per_task, allowed)

    tasks = ("single_object", "two_object", "counting", "colors", "position")
    seen = draw(False, {**dict.fromkeys(tasks, PER_TASK), "color_attr": 2 * PER_TASK})
    asked = _balanced(seen, has_held_out)
    held_out = draw(True, dict.fromkeys(("colors", "color_attr"), PER_TASK))
    other_words = _reworded(asked, partial(reword, words=words), seed)
    prompts = {SEEN: asked, OTHER_WORDS: other_words, HELD_OUT: tuple(held_out)}
    prompts = {question: listed for question, listed in prompts.items() if listed}
    return Language(name, labels, colors, tuple(read), prompts, rare=True)


def _draw_clauses(
    rng: np.random.Generator, names: tuple[str, ...], adjectives: tuple[str, ...]
) -> tuple[Clause, ...]:
    """One or two kinds of things, four things at most; colors on all of them or on none."""
    kinds = 1 + int(rng.random() < 0.6)
    labels = rng.permutation(len(names))[:kinds]
    counts = [1] * kinds
    if rng.random() < 0.4:
        counts[int(rng.integers(kinds))] = int(rng.integers(2, MAX_OBJECTS + 2 - kinds))
    colors: list[str | None] = [None] * kinds
    if rng.random() < 0.7:
        colors = [adjectives[int(rng.integers(len(adjectives)))] for _ in labels]
    made = [Clause(names[i], n, c) for i, n, c in zip(labels, counts, colors, strict=True)]
    if kinds == 2 and rng.random() < 0.5:
        relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
        made[1] = replace(made[1], position=(relation, 0))
    return tuple(made)


@cache
def _held_out_pairs(labels: tuple[str, ...], colors: tuple[str, ...]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (color, label)
        for color in colors
        for label in labels
        if int(rng_for("held out", color, label).integers(HELD_OUT_SHARE)) == 0
    )


SYNONYMS = dict(zip(CLASSES, (
    "human being", "pushbike", "automobile", "motorbike", "aircraft", "coach", "locomotive",
    "lorry", "watercraft", "stoplight", "water plug", "halt board", "coin machine", "garden settee",
    "feathered animal", "feline", "hound", "steed", "ewe", "heifer", "pachyderm", "grizzly",
    "striped equine", "long-necked ruminant", "rucksack", "parasol", "purse", "cravat",
    "travel case", "flying disc", "snow runner", "snow deck", "athletic orb",
    "string-held flyer", "slugger's club", "catcher's mitt", "skating deck", "wave rider",
    "court paddle", "flask", "goblet", "mug", "pronged utensil", "blade", "ladle", "basin",
    "plantain", "pippin", "sub roll", "citrus fruit", "green floret", "orange root",
    "frankfurter", "Italian flatbread", "doughnut", "gateau", "seat", "sofa", "houseplant",
    "bunk", "supper board", "lavatory", "television", "notebook computer", "pointing device",
    "zapper", "typing board", "mobile", "electronic heater", "stove", "bread browner",
    "washbasin", "fridge", "volume", "timepiece", "urn", "paper cutter", "plush toy", "blow-dryer",
    "dental brush",
), strict=True))  # fmt: skip
"""What an English reader takes for the same, without the class's own word."""
