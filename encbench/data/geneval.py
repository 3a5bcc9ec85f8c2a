"""GenEval's prompts (arXiv 2310.11513): read, written, and drawn by seed for any class list.

A prompt is a list of clauses that an image of it must meet, and a text that follows from them
by a small grammar; the published 553 prompts and generated ones share both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from ..errors import DataError, UnknownNameError, UsageError
from ..files import digest, expand_home, parse_json, read_json_lines, write_text
from ..schema import INT64, check_text, describe_value
from ..types import Prompt, PromptSet
from .datasets import DatasetSpec, PromptFamily

COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
)  # fmt: skip
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
OPPOSITE = {"left of": "right of", "above": "below", "right of": "left of", "below": "above"}
RELATIONS = tuple(OPPOSITE)
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote",
    "computer keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator",
    "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""GenEval's names of COCO's 80 classes, in COCO's order; three differ from COCO's own."""
COCO_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
"""COCO's own name of each class that GenEval names otherwise."""
PUBLISHED = {
    "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100,
    "color_attr": 100,
}  # fmt: skip
"""How many prompts of each task GenEval has."""
FREE = "free"  # tag of a prompt without clauses, as encbench sample writes it
FETCH = "run 'encbench data fetch geneval --to FOLDER'"
FILE = "evaluation_metadata.jsonl"

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PAIRS = {"scissors", "skis", "glasses", "trousers", "pliers"}
_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "knife": "knives",
    "sheep": "sheep", "fish": "fish", "deer": "deer", "broccoli": "broccoli", "mouse": "mice",
    "goose": "geese", "leaf": "leaves", "wolf": "wolves", "shelf": "shelves", "loaf": "loaves",
    "scarf": "scarves", "half": "halves", "foot": "feet", "tooth": "teeth", "potato": "potatoes",
    "tomato": "tomatoes", "quiz": "quizzes",
}  # fmt: skip
# Written with a vowel but spoken with a consonant, and the other way round.
_CONSONANT = re.compile(r"(uni(?!n|m)|us[aeu]|ut[eio]|uk|eu|ewe|one\b|once\b)")
_VOWEL = re.compile(r"([aeiou]|hour|honest|heir)")


@dataclass(frozen=True)
class Clause:
    """What an image must show: at least ``count`` objects of a class, maybe of a color, maybe
    in a relation to what another clause found; ``position`` is e.g. ``('left of', 0)``, where
    the number is the place of an earlier clause. As an exclusion: fewer than ``count``."""

    label: str
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class GenevalPrompt:
    """One prompt. ``prompt_id`` is its place in the file, which names its folder of images."""

    prompt_id: int
    task: str
    text: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()


# ------------------------------------------------------------------------ reading, writing


def load_geneval(path: Path) -> list[GenevalPrompt]:
    """Read prompts in the published form, one JSON record a line.

    Args:
        path: the file, or a folder that holds ``evaluation_metadata.jsonl``.

    Raises:
        DataError: in one line, naming file and line, if something is missing or broken.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    if not path.exists():
        raise DataError(f"there are no GenEval prompts at {path}; {FETCH}")
    rows = enumerate(read_json_lines(path, DataError))
    prompts = [_from_record(row, number, where) for number, (where, row) in rows]
    if not prompts:
        raise DataError(f"{path} holds no prompts; {FETCH}")
    return prompts


def write_geneval(prompts: Sequence[GenevalPrompt], path: Path) -> None:
    """Write prompts in the published form, one JSON record a line.

    Raises:
        StoreError: if the file cannot be written.
    """
    lines = [json.dumps(to_metadata(prompt), ensure_ascii=False) + "\n" for prompt in prompts]
    write_text(path, "".join(lines))


def parse_metadata(text: str, prompt_id: int, where: str) -> GenevalPrompt:
    """One JSON record.

    Raises:
        DataError: beginning with ``where``, if it is broken.
    """
    return _from_record(parse_json(text, where, DataError), prompt_id, where)


def _from_record(record: Any, prompt_id: int, where: str) -> GenevalPrompt:
    try:
        return from_metadata(record, prompt_id)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def to_metadata(prompt: GenevalPrompt) -> dict[str, Any]:
    """A prompt in the published form: tag, include, exclude (if there is any), prompt."""

    def written(clause: Clause) -> dict[str, Any]:
        record: dict[str, Any] = {"class": clause.label, "count": clause.count}
        if clause.color is not None:
            record["color"] = clause.color
        if clause.position is not None:
            record["position"] = list(clause.position)
        return record

    record = {"tag": prompt.task, "include": [written(clause) for clause in prompt.include]}
    if prompt.exclude:
        record["exclude"] = [written(clause) for clause in prompt.exclude]
    return record | {"prompt": prompt.text}


def from_metadata(record: Any, prompt_id: int) -> GenevalPrompt:
    """A prompt from its published form.

    Raises:
        DataError: saying what is wrong with it.
    """
    if not isinstance(record, dict):
        raise DataError(f"expected an object with tag and include, not {describe_value(record)}")
    task, text = record.get("tag"), record.get("prompt", "")
    if task not in TASKS:
        raise DataError(f"tag must be one of {', '.join(TASKS)}, not {describe_value(task)}")
    if not isinstance(text, str):
        raise DataError(f"prompt must be a text, not {describe_value(text)}")
    check_text(text, "prompt", DataError)
    parts = []
    for key in ("include", "exclude"):
        entries = record.get(key, [])
        if not isinstance(entries, list):
            raise DataError(f"{key} is not a list of clauses")
        parts.append(tuple(_clause(entry, key, place) for place, entry in enumerate(entries)))
    if not parts[0]:
        raise DataError("include holds no clause")
    return GenevalPrompt(prompt_id, task, text, *parts)


def _clause(entry: Any, key: str, place: int) -> Clause:
    where = f"{key} clause {place}"
    if not isinstance(entry, dict) or not isinstance(entry.get("class"), str):
        raise DataError(f"{where} has no class")
    label, count, color = entry["class"], entry.get("count"), entry.get("color")
    check_text(label, f"{where}: class", DataError)
    where = f"{where} ({label})"
    if type(count) is not int or count < 1 or count not in INT64:  # True is an int, too
        raise DataError(f"{where} has the count {describe_value(count)}, not a number from 1 up")
    if key == "exclude":  # the published evaluator looks at nothing but class and count
        return Clause(label, count)
    if color is not None and color not in COLORS:
        raise DataError(
            f"{where} has the color {describe_value(color)}, not one of {', '.join(COLORS)}"
        )
    position = entry.get("position")
    if position is None:
        return Clause(label, count, color)
    if not isinstance(position, list) or len(position) != 2 or position[0] not in RELATIONS:
        raise DataError(
            f"{where} has the position {describe_value(position)}, not [relation, clause] with a "
            f"relation of {', '.join(RELATIONS)}"
        )
    relation, target = position
    if type(target) is not int or not 0 <= target < place:
        raise DataError(
            f"{where} relates to {describe_value(target)}, which is not an earlier clause"
        )
    return Clause(label, count, color, (relation, target))


# ------------------------------------------------------------------------------- grammar


def article(words: str) -> str:
    """'a' or 'an', by how the first word sounds."""
    word = words.lower()
    return "an" if _VOWEL.match(word) and not _CONSONANT.match(word) else "a"


def pluralize(label: str) -> str:
    """The plural of a class name, e.g. 'wine glasses', 'knives', 'people'."""
    before, _, noun = label.rpartition(" ")
    if noun in _IRREGULAR:
        noun = _IRREGULAR[noun]
    elif noun.endswith(("s", "x", "z", "ch", "sh")):
        noun += "es"
    elif noun.endswith("y") and noun[-2:-1] not in "aeiou":
        noun = noun[:-1] + "ies"
    else:
        noun += "s"
    return f"{before} {noun}" if before else noun


def published_plural(label: str) -> str:
    """The plural as the published prompts have it, e.g. 'knifes', 'benchs', 'persons'."""
    return label + ("es" if label.endswith("s") else "s")


def prompt_text(include: Sequence[Clause], *, published: bool = False) -> str:
    """The text that goes with clauses.

    Args:
        include: one clause, or two, the second maybe in relation to the first.
        published: word for word as in the published prompts, which have one rule for plurals and
            write 'a scissors'.
    """
    phrases = [_phrase(clause, published) for clause in include]
    if len(include) == 2 and include[1].position:
        return f"a photo of {phrases[1]} {include[1].position[0]} {phrases[0]}"
    return f"a photo of {' and '.join(phrases)}"


def _phrase(clause: Clause, published: bool) -> str:
    one, color = clause.label, f"{clause.color} " if clause.color else ""
    many = published_plural(one) if published else pluralize(one)
    if not published and one in _PAIRS:  # 'a pair of red scissors'
        one, many, color = f"pair of {color}{one}", f"pairs of {color}{one}", ""
    if clause.count == 1:
        return f"{article(color + one)} {color}{one}"
    count = _NUMBERS[clause.count] if clause.count < len(_NUMBERS) else str(clause.count)
    return f"{count} {color}{many}"


# ----------------------------------------------------------------------------- generation


def generate_prompts(
    labels: Sequence[str],
    *,
    seed: int,
    per_task: Mapping[str, int],
    colors: Sequence[str] = COLORS,
    counts: Sequence[int] = (2, 3, 4),
    allowed: Callable[[GenevalPrompt], bool] | None = None,
) -> list[GenevalPrompt]:
    """Draw prompts of GenEval's six tasks for any class list.

    No two prompts mean the same ('a left of b' is 'b right of a'). Every prompt that a task
    allows is equally likely; the first n of a task are the same however many are asked for.

    Args:
        labels: class names, in the singular.
        seed: the same seed and lists give the same prompts.
        per_task: how many of which task, e.g. ``{'single_object': 80}``.
        colors: out of :data:`COLORS`; a color_attr prompt has two different ones.
        counts: of the counting task; more than that many are excluded.
        allowed: a prompt for which it says False is drawn again; it sees prompt_id 0.

    Returns:
        prompts in the order of :data:`TASKS`, numbered from 0.

    Raises:
        UnknownNameError: for a task or color that there is not.
        UsageError: if a class is named twice, or there are fewer prompts than asked for.
    """
    for color in colors:
        if color not in COLORS:
            raise UnknownNameError("GenEval color", color, COLORS)
    for task in per_task:
        if task not in TASKS:
            raise UnknownNameError("GenEval task", task, TASKS)
    for name, given in (("class", labels), ("color", colors), ("count", counts)):
        if len(set(given)) < len(given):
            raise UsageError(f"a {name} is named twice among {', '.join(map(str, given))}")
    if any(count < 1 for count in counts):
        raise UsageError(f"counts must be 1 or more, not {', '.join(map(str, counts))}")
    prompts = draw_prompts(labels, colors, counts, seed, per_task, allowed)
    for task, wanted in per_task.items():
        found = sum(prompt.task == task for prompt in prompts)
        if found < wanted:
            raise UsageError(
                f"there are only {found:,} different {task} prompts for these "
                f"{len(labels):,} classes, not {wanted:,}; ask for fewer or allow more"
            )
    return prompts


def draw_prompts(
    labels: Sequence[str],
    colors: Sequence[str],
    counts: Sequence[int],
    seed: int,
    per_task: Mapping[str, int],
    allowed: Callable[[GenevalPrompt], bool] | None = None,
) -> list[GenevalPrompt]:
    """As :func:`generate_prompts`, with any words for colors, and fewer prompts of a task if there
    are not enough."""

    def drawn(task: str) -> Iterator[GenevalPrompt]:
        axes = _axes(task, labels, colors, counts)
        seen = set()
        total = math.prod(map(len, axes))
        for number in _shuffled(Random(f"geneval {task} {seed}"), total):
            include, exclude = _decode(task, axes, number)
            meaning = _meaning(include) if include else None
            if meaning is None or meaning in seen:
                continue
            text = prompt_text(include)
            prompt = GenevalPrompt(0, task, text, include, exclude)
            if allowed is None or allowed(prompt):
                seen.add(meaning)
                yield prompt

    found = [p for task in TASKS for p in islice(drawn(task), per_task.get(task, 0))]
    return [replace(prompt, prompt_id=number) for number, prompt in enumerate(found)]


def _axes(
    task: str, labels: Sequence[str], colors: Sequence[str], counts: Sequence[int]
) -> list[Sequence[Any]]:
    """What a prompt of a task is chosen from, one list for each choice."""
    axes: dict[str, list[Sequence[Any]]] = {
        "single_object": [labels],
        "two_object": [labels, labels],
        "counting": [labels, counts],
        "colors": [labels, colors],
        "position": [labels, labels, RELATIONS],
        "color_attr": [labels, labels, colors, colors],
    }
    return axes[task]


def _decode(
    task: str, axes: Sequence[Sequence[Any]], number: int
) -> tuple[tuple[Clause, ...], tuple[Clause, ...]]:
    """The clauses that a number stands for; none where they name the same thing twice."""
    chosen = []
    for axis in axes:
        number, place = divmod(number, len(axis))
        chosen.append(axis[place])
    first, *rest = chosen
    if task == "single_object":
        return (Clause(first),), ()
    if task == "counting":
        return (Clause(first, rest[0]),), (Clause(first, rest[0] + 1),)
    if task == "colors":
        return (Clause(first, color=rest[0]),), ()
    second = rest[0]
    if first == second:
        return (), ()
    if task == "two_object":
        return (Clause(first), Clause(second)), ()
    if task == "position":
        return (Clause(first), Clause(second, position=(rest[1], 0))), ()
    if rest[1] == rest[2]:
        return (), ()
    return (Clause(first, color=rest[1]), Clause(second, color=rest[2])), ()


def _meaning(include: tuple[Clause, ...]) -> frozenset[tuple[object, ...]]:
    """Equal for two lists of clauses that ask for the same picture."""
    things = [(c.label, c.count, c.color) for c in include]
    if len(include) == 2 and include[1].position:
        relation = include[1].position[0]
        return frozenset(
            {(things[1], relation, things[0]), (things[0], OPPOSITE[relation], things[1])}
        )
    return frozenset(things)


def _shuffled(rng: Random, count: int) -> Iterator[int]:
    """The numbers below ``count`` in random order, made as they are asked for."""
    moved: dict[int, int] = {}
    for place in range(count):
        # random() alone is promised to stay the same from one Python to the next
        other = place + int(rng.random() * (count - place))
        yield moved.get(other, other)
        moved[other] = moved.get(place, place)


def _load(spec: DatasetSpec) -> PromptSet:
    found = load_geneval(expand_home(spec.source))
    prompts = tuple(Prompt(f"{prompt.prompt_id:05d}", prompt.text) for prompt in found)
    return PromptSet("geneval", digest([to_metadata(p) for p in found]), prompts)


FAMILY = PromptFamily(
    name="geneval",
    summary="GenEval's prompts, or others in their form.",
    examples=("geneval:FOLDER",),
    load=_load,
)
