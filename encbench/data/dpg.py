"""Long prompts: DPG-Bench (arXiv 2403.05135) or any others in one of its forms."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import digest, expand_home, read_json_lines, read_text, split_lines
from ..listing import list_files
from ..schema import check_text, describe_value
from ..types import Prompt, PromptSet
from .datasets import DatasetSpec, PromptFamily
from .lines import TABLES, language_notes, require_column, table_rows

IDS = ("item_id", "prompt_id", "id")
TEXTS = ("text", "prompt")
FETCH = "run 'encbench data fetch dpg --to FOLDER'"
# `pin` of the 1,065 published prompts, whose files `fetch` verifies by their git blob ids
PUBLISHED = "f1052ce31c8afd62ca1a833ca5b08fb59b59c53e7f2b11f5fcd1fb2ac8970f90"


def load_prompts(path: Path) -> PromptSet:
    """Read prompts from a folder of ``<id>.txt`` files, from a .jsonl, .csv or .tsv, or from a
    .txt with one prompt a line.

    A record holds an id (``item_id``, ``prompt_id`` or ``id``) and a text (``text`` or
    ``prompt``); rows of a table that repeat both, as ELLA's dpg_bench.csv has one for each
    question, are one prompt, and where a table has no ids its rows are numbered. White space
    around a text is dropped (two of the published files begin or end with some), and line ends
    are those of Unix. Prompts are sorted by id, numbers in it by value. An empty prompt stays, so
    that it is counted, and is told in the notes.

    Raises:
        DataError: in one line, naming the file and line, if something is missing, broken or
            there twice.
    """
    path, notes = Path(path), list[str]()
    if path.is_dir():
        found = list(_from_folder(path, notes))
    elif not path.exists():
        raise DataError(f"there are no prompts at {path}; {FETCH}, or check the path")
    elif path.suffix.lower() in TABLES:
        found = list(_from_table(path))
    elif path.suffix.lower() == ".txt":
        found = list(_from_list(path, notes))
    else:
        found = list(_from_lines(path))
    if not found:
        raise DataError(f"{path} holds no prompts")

    seen: set[str] = set()
    for prompt in found:
        if prompt.prompt_id in seen:
            raise DataError(f"{path} has the prompt id {prompt.prompt_id!a} twice")
        seen.add(prompt.prompt_id)
    prompts = tuple(sorted(found, key=lambda prompt: _natural(prompt.prompt_id)))
    empty = [prompt.prompt_id for prompt in prompts if not prompt.text]
    if empty:
        notes.append(f"{len(empty):,} prompts are empty (first: {empty[0]!r})")
    notes += language_notes([prompt.text for prompt in prompts])
    pin = prompts_pin(prompts)
    name = "dpg-bench" if pin == PUBLISHED else path.stem
    return PromptSet(name, pin, prompts, tuple(notes))


def prompts_pin(prompts: Iterable[Prompt]) -> str:
    """sha256 over ids and texts, in this order."""
    return digest([[prompt.prompt_id, prompt.text] for prompt in prompts])


def _prompt(identity: Any, text: Any, where: str) -> Prompt:
    if type(identity) not in (str, int):
        raise DataError(
            f"{where}: its id must be a text or a number, not {describe_value(identity)}"
        )
    if not isinstance(text, str):
        raise DataError(f"{where}: {TEXTS[0]} must be a text, not {describe_value(text)}")
    check_text(str(identity), f"{where}: its id", DataError)
    check_text(text, f"{where}: {TEXTS[0]}", DataError)
    return Prompt(str(identity), text.replace("\r\n", "\n").strip())


def _from_folder(folder: Path, notes: list[str]) -> Iterator[Prompt]:
    files, left_out = list_files(folder, (".txt",))
    notes += left_out
    if not files:
        raise DataError(f"no .txt files in {folder}; {FETCH}, or check the path")
    if len(files) == 1 and not re.search(r"\d", files[0].stem):  # no id: a list, as in prompts.txt
        yield from _from_list(files[0], notes)
        return
    for file in files:
        yield _prompt(file.stem, read_text(file, DataError), str(file))


def _from_list(file: Path, notes: list[str]) -> Iterator[Prompt]:
    lines = [line for line in split_lines(read_text(file, DataError)) if line.strip()]
    notes.append(f"{file.name} was read as a list of {len(lines):,} prompts, one a line")
    for number, line in enumerate(lines, 1):
        yield _prompt(number, line, f"line {number} of {file}")


def _from_lines(file: Path) -> Iterator[Prompt]:
    for where, entry in read_json_lines(file, DataError):
        if not isinstance(entry, dict):
            raise DataError(f"{where} must be an object with {IDS[0]} and {TEXTS[0]}")
        identity = next((key for key in IDS if key in entry), None)
        text = next((key for key in TEXTS if key in entry), None)
        if identity is None or text is None:
            has = ", ".join(map(ascii, list(entry)[:12])) or "nothing"
            raise DataError(f"{where} lacks {IDS[0]} or {TEXTS[0]} (it has {has})")
        yield _prompt(entry[identity], entry[text], where)


def _from_table(file: Path) -> Iterator[Prompt]:
    names, rows = table_rows(file)
    identity = next((key for key in IDS if key in names), None)
    column = require_column(names, TEXTS, str(file))
    texts: dict[str, str] = {}
    for number, (where, row) in enumerate(rows, 1):
        prompt = _prompt(number if identity is None else row[identity], row[column], where)
        if texts.setdefault(prompt.prompt_id, prompt.text) != prompt.text:
            raise DataError(f"{where}: the id {prompt.prompt_id!r} already belongs to another text")
    yield from (Prompt(key, text) for key, text in texts.items())


def _natural(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key by which 'p9' comes before 'p10'."""
    parts = re.findall(r"[0-9]+|[^0-9]+", text)
    digits = [part.lstrip("0") if part[0] in "0123456789" else None for part in parts]
    key = [
        (1, 0, part) if digit is None else (0, len(digit), digit)
        for part, digit in zip(parts, digits, strict=True)
    ]
    return key, text


def _load(spec: DatasetSpec) -> PromptSet:
    return load_prompts(expand_home(spec.source))


FAMILY = PromptFamily(
    name="dpg",
    summary="DPG-Bench, or any prompts in a folder of .txt, a .jsonl, .csv, .tsv or .txt file.",
    examples=("dpg:FOLDER", "dpg:dpg_bench.csv"),
    load=_load,
)
