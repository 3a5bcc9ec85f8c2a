"""Long prompts: DPG-Bench (arXiv 2403.05135) or any others in its form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import DataError
from ..files import digest
from ..types import Prompt, PromptSet

IDS = ("item_id", "prompt_id", "id")
TEXTS = ("text", "prompt")
FETCH = "run 'encbench data fetch dpg --to FOLDER'"
# `pin` of the 1,065 published prompts, whose files `fetch` verifies by their git blob ids
PUBLISHED = "f1052ce31c8afd62ca1a833ca5b08fb59b59c53e7f2b11f5fcd1fb2ac8970f90"


def load_prompts(path: Path) -> PromptSet:
    """Read prompts from a folder of ``<id>.txt`` files or from a jsonl file.

    A line of the jsonl holds an id (``item_id``, ``prompt_id`` or ``id``) and a text (``text``
    or ``prompt``). White space around a text is dropped: two of the published files begin or
    end with some. Prompts are sorted by id, numbers in it by value. An empty prompt stays, so
    that it is counted, and is told in the notes.

    Raises:
        DataError: in one line, naming the file and line, if something is missing, broken or
            there twice.
    """
    path = Path(path)
    if path.is_dir():
        found = list(_from_folder(path))
    elif path.is_file():
        found = list(_from_lines(path))
    else:
        raise DataError(f"there are no prompts at {path}; {FETCH}, or check the path")
    if not found:
        raise DataError(f"{path} holds no prompts")

    seen: set[str] = set()
    for prompt in found:
        if prompt.prompt_id in seen:
            raise DataError(f"{path} has the prompt id {prompt.prompt_id!r} twice")
        seen.add(prompt.prompt_id)
    prompts = tuple(sorted(found, key=lambda prompt: _natural(prompt.prompt_id)))
    empty = [prompt.prompt_id for prompt in prompts if not prompt.text]
    notes = (f"{len(empty):,} prompts are empty (first: {empty[0]!r})",) if empty else ()
    pin = prompts_pin(prompts)
    name = "dpg-bench" if pin == PUBLISHED else path.stem
    return PromptSet(name, pin, prompts, notes)


def prompts_pin(prompts: Iterable[Prompt]) -> str:
    """sha256 over ids and texts, in this order."""
    return digest([[prompt.prompt_id, prompt.text] for prompt in prompts])


def _from_folder(folder: Path) -> Iterator[Prompt]:
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise DataError(f"no .txt files in {folder}; {FETCH}, or check the path")
    for file in files:
        yield Prompt(file.stem, _decode(file).strip())


def _from_lines(file: Path) -> Iterator[Prompt]:
    for number, line in enumerate(_decode(file).split("\n"), 1):
        if not line.strip():
            continue
        where = f"line {number} of {file}"
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(
                f"{where} is no JSON ({error}); each line must be one record"
            ) from error
        if not isinstance(entry, dict):
            raise DataError(f"{where} is no record with {IDS[0]} and {TEXTS[0]}")
        identity = next((entry[key] for key in IDS if key in entry), None)
        text = next((entry[key] for key in TEXTS if key in entry), None)
        if not isinstance(identity, str | int) or not isinstance(text, str):
            raise DataError(f"{where} lacks {IDS[0]} or {TEXTS[0]} (it has {list(entry)})")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where} holds half of a surrogate pair: {error.object[error.start]!a}"
            ) from error
        yield Prompt(str(identity), text.strip())


def _decode(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is no UTF-8 text (byte {error.start:,}); convert it first"
        ) from error


def _natural(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key by which 'p9' comes before 'p10'."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    digits = [part.lstrip("0") if part[0] in "0123456789" else None for part in parts]
    key = [
        (1, 0, part) if digit is None else (0, len(digit), digit)
        for part, digit in zip(parts, digits, strict=True)
    ]
    return key, text
