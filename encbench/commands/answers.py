"""What commands print with ``--json``: one object on standard output, whose schema is
``docs/schema.json`` (made by ``python -m encbench.commands.answers > docs/schema.json``).

Each object says its ``kind`` and the number of its ``schema``. Fields are only ever added.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

SCHEMA = 1
PrintJson = Annotated[
    bool, typer.Option("--json", help="Print the answer as JSON (schema: docs/schema.json).")
]
KINDS = {
    "agreement": "metrics.geneval.tables:Agreement",
    "checks": "doctor:Checks",
    "comparison": "metrics.tables:ScoreComparison",
    "confirmation plan": "records:ConfirmPlan",
    "extensions": "commands.list:ExtensionList",
    "plan": "estimate:RunPlan",
    "prediction": "records:Prediction",
    "records": "pipeline:Measured",
    "replacement": "replacement:Replacement",
    "scores": "metrics.run:ScoreRecord",
    "training": "flow.trainer:TrainingResult",
    "training plan": "flow.estimate:TrainingPlan",
    "validation": "validate:Validation",
    "verdict": "records:Verdict",
}
"""Each kind of answer, and the class that holds its fields."""
TYPES = {bool: "boolean", int: "integer", str: "string", Path: "string", types.NoneType: "null"}


def print_json(kind: str, answer: Any) -> None:
    """Print an answer of one of :data:`KINDS`; NaN and infinity become null."""
    from ..records import clean

    value = {"kind": kind, "schema": SCHEMA} | clean(dataclasses.asdict(answer))
    typer.echo(json.dumps(value, indent=1, allow_nan=False))


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of every answer."""
    definitions: dict[str, Any] = {}
    answers = []
    for kind, place in KINDS.items():
        module, _, name = place.partition(":")
        cls = getattr(import_module(f"encbench.{module}"), name)
        head = {"kind": {"const": kind}, "schema": {"const": SCHEMA}}
        rest = {"required": [*head], "properties": head}
        answers.append({"title": kind, "allOf": [_schema(cls, definitions), rest]})
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What encbench prints with --json; null stands for a number that is undefined",
        "oneOf": answers,
        "$defs": dict(sorted(definitions.items())),
    }


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, args = get_origin(kind) or kind, get_args(kind)
    if isinstance(origin, type) and dataclasses.is_dataclass(origin):
        name = f"{origin.__module__.removeprefix('encbench.')}.{origin.__qualname__}"
        if name not in definitions:
            definitions[name] = {}  # a class may contain itself
            hints = get_type_hints(origin)
            names = [field.name for field in dataclasses.fields(origin)]
            definitions[name] = {
                "type": "object",
                "required": names,
                "properties": {each: _schema(hints[each], definitions) for each in names},
            }
        return {"$ref": f"#/$defs/{name}"}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(each, definitions) for each in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is float:
        return {"type": ["number", "null"]}
    if origin in TYPES:
        return {"type": TYPES[origin]}
    if hasattr(origin, "parse"):  # written as its text
        return {"type": "string"}
    if origin in (dict, Mapping):
        return {
            "type": "object",
            "additionalProperties": _schema((args or (str, Any))[1], definitions),
        }
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": _schema(args[0] if args else Any, definitions)}
    return {}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
