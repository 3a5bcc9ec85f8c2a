"""Your own words for the probes that write their prompts: a small TOML file.

classes = ["sneaker", "sandal", "boot", "hiking pole"]    # in the singular
attributes = ["leather", "red", "worn"]                   # default: GenEval's ten colors

[synonyms]                                                # for the question in other words
sneaker = "trainer"
red = "crimson"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import DataError
from ..files import digest, expand_home, parse_toml, read_text
from ..schema import check_text, check_value
from .geneval import COLORS

CLASSES_LEAST, ATTRIBUTES_LEAST = 4, 2
KEYS = ("classes", "attributes", "synonyms")


@dataclass(frozen=True)
class Vocabulary:
    """Classes and attributes that prompts are written with.

    Attributes:
        name: the file's.
        classes: things, in the singular.
        attributes: words that may stand before a thing; of one thing, one at a time.
        synonyms: other words for some of both.
    """

    name: str
    classes: tuple[str, ...]
    attributes: tuple[str, ...] = COLORS
    synonyms: Mapping[str, str] = field(default_factory=dict)

    @property
    def pin(self) -> str:
        """Content hash."""
        return digest(asdict(self))[:12]


def read_vocabulary(path: Path) -> Vocabulary:
    """Read a vocabulary.

    Raises:
        DataError: in one line, if it is missing or broken, or has too few words.
    """
    path = expand_home(path)
    values = parse_toml(read_text(path, DataError), str(path), DataError)
    unknown = sorted(set(values) - set(KEYS))
    if unknown:
        raise DataError(f"{path} has the key '{unknown[0]}'; a vocabulary has {', '.join(KEYS)}")
    if "classes" not in values:
        raise DataError(f'{path} has no classes; write classes = ["sneaker", "boot", ...]')
    words: dict[str, tuple[str, ...]] = {}
    for key, least in (("classes", CLASSES_LEAST), ("attributes", ATTRIBUTES_LEAST)):
        given = check_value(
            tuple[str, ...], values.get(key, list(COLORS)), f"{path}: {key}", DataError
        )
        words[key] = tuple(" ".join(word.split()) for word in given)
        for word in words[key]:
            check_text(word, f"{path}: {key}", DataError)
            if not word:
                raise DataError(f"{path}: {key} has an empty text; remove it")
        if len(set(words[key])) < len(words[key]):
            raise DataError(f"{path}: {key} names one word twice; remove one of them")
        if len(words[key]) < least:
            raise DataError(f"{path}: {key} has {len(words[key])} words; give {least} or more")
    synonyms = check_value(
        dict[str, str], values.get("synonyms", {}), f"{path}: synonyms", DataError
    )
    for word in synonyms:
        if word not in (*words["classes"], *words["attributes"]):
            raise DataError(f"{path}: synonyms has '{word}', which is no class or attribute")
    return Vocabulary(path.stem, words["classes"], words["attributes"], synonyms)
