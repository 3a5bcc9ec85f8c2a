"""The prompts of generated images: GenEval's, or text alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..data.geneval import GenevalPrompt, from_metadata, to_metadata
from ..errors import DataError
from ..files import canonical
from ..schema import load_dataclass
from ..types import ImagePrompt


@dataclass(frozen=True)
class TextPrompt:
    """A prompt without clauses.

    Attributes:
        prompt_id: its place in the folder.
        name: its id in a benchmark, e.g. DPG-Bench's item_id; '' if it has none.
        task: the kind of prompt, e.g. one of HPS v2's four styles; '' if there is none.
    """

    prompt_id: int
    text: str
    name: str = ""
    task: str = ""


def prompt_record(prompt: ImagePrompt) -> dict[str, Any]:
    """A prompt as JSON, without its number; GenEval's in the published form."""
    if isinstance(prompt, GenevalPrompt):
        return to_metadata(prompt)
    assert isinstance(prompt, TextPrompt)
    record = asdict(prompt)
    del record["prompt_id"]
    return {name: value for name, value in record.items() if value or name == "text"}


def read_prompt(record: Any, prompt_id: int, where: str) -> GenevalPrompt | TextPrompt:
    """What :func:`prompt_record` gave.

    Raises:
        DataError: beginning with ``where``, if it is broken.
    """
    if isinstance(record, dict) and "text" in record and "include" not in record:
        return load_dataclass(TextPrompt, {**record, "prompt_id": prompt_id}, where, DataError)
    try:
        return from_metadata(record, prompt_id)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def meaning(prompt: ImagePrompt) -> bytes:
    """The same for two prompts with the same text, task and clauses, whatever their numbers."""
    return canonical(prompt_record(prompt))
