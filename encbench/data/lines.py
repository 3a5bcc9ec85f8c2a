"""Captions of your own, without images: lines, or a table with a column for the group.

Captions of one group say the same thing in other words, as those of one image do in COCO; the
retrieval probe asks whether an encoder finds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import digest, expand_home, read_csv, read_json_lines, read_text, split_lines
from ..schema import check_text, describe_value
from ..types import Caption, CaptionSet, ImageRecord
from .datasets import DatasetFamily, DatasetSpec, DatasetUse

TEXTS = ("caption", "text", "prompt")
GROUPS = ("group", "image_id", "image", "id")
TABLES = (".csv", ".tsv")
FOREIGN = 0.2  # share of letters beyond ASCII from which on a note says what that means


def table_rows(file: Path) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """The columns of a .csv or .tsv in small letters, and its rows with the place of each.

    Raises:
        DataError: naming the line, if it is broken.
    """
    columns, rows = read_csv(file, DataError)
    names = {column: column.strip().lower() for column in columns}
    places = (f"row {number} of {file}" for number in range(1, len(rows) + 1))
    read = [{names[k]: v for k, v in row.items() if k in names} for row in rows]
    return list(names.values()), list(zip(places, read, strict=True))


def require_column(names: Mapping[str, Any] | list[str], known: tuple[str, ...], what: str) -> str:
    """The first of the known columns that is there.

    Raises:
        DataError: naming those that are.
    """
    found = next((name for name in known if name in names), None)
    if found is None:
        has = ", ".join(map(ascii, list(names)[:12])) or "nothing"
        listed = "' or '".join(known)
        raise DataError(f"{what} has no column '{listed}' (it has {has})")
    return found


def load_captions(path: Path) -> CaptionSet:
    """Read captions from a .csv, .tsv or .jsonl with a column ``caption`` (or ``text``,
    ``prompt``) and one for the ``group`` (or ``image_id``, ``image``, ``id``), or from a .txt with
    a caption a line and an empty line between groups.

    Raises:
        DataError: in one line, if a column is missing, a text is broken, or no two captions share
            a group.
    """
    if not path.is_file():
        raise DataError(f"there are no captions at {path}; check the path")
    groups: dict[Any, list[str]] = {}
    for where, group, text in _entries(path):
        if not isinstance(text, str):
            raise DataError(f"{where}: the caption must be a text, not {describe_value(text)}")
        check_text(text, f"{where}: the caption", DataError)
        if text.strip():
            groups.setdefault(group, []).append(text.strip())
    if not any(len(texts) > 1 for texts in groups.values()):
        raise DataError(
            f"no two captions of {path} share a group, which recall needs: add a column "
            f"'{GROUPS[0]}', in a .txt an empty line between groups; or give them as --prompts"
        )
    numbered = list(enumerate(groups.values(), 1))
    texts = [(number, text) for number, group in numbered for text in group]
    return CaptionSet(
        path.stem,
        digest([list(map(str, groups)), list(groups.values())]),
        tuple(
            ImageRecord(number, str(group), None, 0, 0) for number, group in enumerate(groups, 1)
        ),
        tuple(Caption(n, number, text) for n, (number, text) in enumerate(texts, 1)),
        notes=tuple(language_notes([text for _, text in texts])),
    )


def language_notes(texts: list[str]) -> list[str]:
    """Notes for texts that are not in English letters."""
    letters = Counter(c.isascii() for text in texts for c in text if c.isalpha())
    if letters[False] <= FOREIGN * letters.total():
        return []
    return [
        "many letters are not English: recall, similarity, length and truncation mean the same as "
        "in English; ablation removes what stands between spaces, which is no word in Chinese, "
        "Japanese or Thai; decodability, minimal pairs and the reader ask English sentences only"
    ]


def _entries(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Place, group and text of each caption."""
    suffix = path.suffix.lower()
    if suffix in TABLES:
        names, rows = table_rows(path)
        text = require_column(names, TEXTS, str(path))
        column = next((name for name in GROUPS if name in names), None)
        for number, (where, row) in enumerate(rows):
            yield where, number if column is None else row[column], row[text]
    elif suffix == ".txt":
        paragraph = 0
        for number, line in enumerate(split_lines(read_text(path, DataError)), 1):
            paragraph += not line.strip()
            yield f"line {number} of {path}", paragraph, line
    else:
        for number, (where, row) in enumerate(read_json_lines(path, DataError)):
            if not isinstance(row, dict):
                raise DataError(f"{where} must be an object with '{TEXTS[0]}' and '{GROUPS[0]}'")
            text = require_column(row, TEXTS, where)
            group = next((row[name] for name in GROUPS if name in row), number)
            yield where, str(group), row[text]


def _load(spec: DatasetSpec, use: DatasetUse) -> CaptionSet:
    if use.training:
        raise DataError(f"'{spec}' has no images, so nothing can be trained on it")
    return load_captions(expand_home(spec.source))


FAMILY = DatasetFamily(
    name="captions",
    summary="Captions without images: a .csv, .tsv or .jsonl with a group, or a .txt of lines.",
    examples=("captions:captions.csv",),
    load=_load,
)
