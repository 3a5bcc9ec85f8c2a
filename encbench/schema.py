"""Values from JSON, checked against the types that the code declares.

One check for every file that is read: a wrong type, a missing key or a number beyond 64 bits
gives one line that names the file and the key.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints, overload

from .errors import ModelError, RecordError
from .files import MakeError, parse_json, read_bytes, read_json

T = TypeVar("T")
INT64 = range(-(2**63), 2**63)
_REQUIRED = object()
_WORDS = {
    bool: "true or false", int: "a whole number of at most 64 bits", float: "a finite number",
    str: "a text", list: "a list", tuple: "a list", dict: "an object", Mapping: "an object",
    Sequence: "a list", Path: "a path", type(None): "null",
}  # fmt: skip


def load_dataclass(cls: type[T], value: Any, where: str, error: MakeError = RecordError) -> T:
    """Build a dataclass, and those inside it, from JSON.

    Keys that the class does not have are ignored, since a newer version may have written them;
    a missing key takes the field's default.

    Args:
        cls: a dataclass. Its fields may be bool, int (64 bits), float (finite), str, Path, Any,
            None, Literal, unions, other dataclasses, and lists, tuples and mappings of these; a
            class with a ``parse`` is read from its text, also as a key. A field with "null" in its
            metadata takes that for null; see ``types.NULLABLE``.
        value: as the JSON reader gave it.
        where: the file, and the line or key in it; the message begins with it.
        error: the class of error to raise.

    Raises:
        error: one line that names file and key.
    """
    if not isinstance(value, dict):
        raise error(f"{where} must be an object, not {describe_value(value)}")
    values = {}
    for field, kind in _fields(cls):  # type: ignore[arg-type]
        name = field.name
        if value.get(name, 0) is None and "null" in field.metadata:
            values[name] = field.metadata["null"]
        elif name in value:
            values[name] = check_value(kind, value[name], f"{where}: {name}", error)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise error(f"{where} has no '{name}'")
    return cls(**values)


def read_dataclass(cls: type[T], path: Path, error: MakeError = RecordError) -> T:
    """Read a JSON file into a dataclass; see :func:`load_dataclass`."""
    return load_dataclass(cls, read_json(path, error), str(path), error)


def read_model_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A model's configuration as another library wrote it; ``Infinity`` and repeated keys, which
    these libraries write and read, are taken as they take them.

    Raises:
        ModelError: naming the file, if it is missing or not a JSON object.
    """
    path = folder / name
    if not path.exists():
        raise ModelError(f"{folder} lacks {name}: is it a folder of a model?")
    value = parse_json(read_bytes(path, ModelError), str(path), _damaged_model, strict=False)
    if not isinstance(value, dict):
        raise _damaged_model(f"{path} is not a JSON object")
    return value


def _damaged_model(text: str) -> ModelError:
    return ModelError(f"{text}; download it again")


@overload
def get_field(
    record: Any, key: str, kind: type[T], where: str, error: MakeError = ..., default: Any = ...
) -> T: ...
@overload
def get_field(
    record: Any, key: str, kind: Any, where: str, error: MakeError = ..., default: Any = ...
) -> Any: ...
def get_field(
    record: Any,
    key: str,
    kind: Any,
    where: str,
    error: MakeError = RecordError,
    default: Any = _REQUIRED,
) -> Any:
    """A key of a JSON object, of the type asked for; ``default`` where the key is missing.

    Raises:
        error: one line that begins with ``where``.
    """
    if not isinstance(record, dict):
        raise error(f"{where} must be an object, not {describe_value(record)}")
    if key not in record:
        if default is _REQUIRED:
            has = ", ".join(map(ascii, list(record)[:12])) or "nothing"
            raise error(f"{where} has no '{key}' (it has {has})")
        return default
    return check_value(kind, record[key], f"{where}: {key}", error)


def check_value(kind: Any, value: Any, where: str, error: MakeError = RecordError) -> Any:
    """``value`` as ``kind``: lists become tuples, whole numbers floats, where that is declared.

    Raises:
        error: one line that begins with ``where``.
    """
    origin, args = get_origin(kind) or kind, get_args(kind)
    if kind is Any or kind is object:
        return _check_any(value, where, error)
    if origin in (Union, types.UnionType):
        return _check_union(args, value, where, error)
    if origin is Literal:
        if value not in args or type(value) not in map(type, args):
            raise error(f"{where} must be {_or(map(repr, args))}, not {describe_value(value)}")
        return value
    if dataclasses.is_dataclass(origin):
        return load_dataclass(origin, value, where, error)  # type: ignore[arg-type]
    if hasattr(origin, "parse") and isinstance(value, str):
        try:
            return origin.parse(value)
        except ValueError as problem:
            raise error(f"{where}: {problem}") from problem
    if not _fits(origin, value):
        expected = _WORDS.get(origin, getattr(origin, "__name__", str(origin)))
        raise error(f"{where} must be {expected}, not {describe_value(value)}")
    if isinstance(value, dict):
        name, item = args or (str, Any)
        return {
            check_value(name, k, where, error): check_value(item, each, f"{where}.{k}", error)
            for k, each in value.items()
        }
    if isinstance(value, list):
        return _check_list(origin, args, value, where, error)
    if origin is float:
        return float(value)
    return Path(value) if origin is Path else value


def check_text(text: str, where: str, error: MakeError) -> str:
    """``text``, if it can be encoded: half of a surrogate pair is a name that is not UTF-8, or a
    broken escape, and no tokenizer reads it.

    Raises:
        error: one line that begins with ``where``.
    """
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise error(
            f"{where} holds half of a surrogate pair ({problem.object[problem.start]!a}), which is "
            "not text; rename or remove it"
        ) from problem
    return text


def describe_value(value: Any) -> str:
    """A JSON value in a few words for an error message."""
    if isinstance(value, dict | list):
        return f"{_WORDS[type(value)]} of {len(value):,}"
    shown = ascii(value) if isinstance(value, str) else str(value)
    shown = shown if len(shown) <= 40 else f"{shown[:36]}..."
    return f"the text {shown}" if isinstance(value, str) else {"None": "null"}.get(shown, shown)


@cache
def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls) if field.init]


def _fits(kind: Any, value: Any) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and value in INT64
    if kind is float:
        return (isinstance(value, int) and value in INT64) or (
            isinstance(value, float) and math.isfinite(value)
        )
    if kind is str:
        return isinstance(value, str)
    if kind is Path:
        return isinstance(value, str) and _can_be_path(value)
    if kind in (list, tuple, Sequence):
        return isinstance(value, list)
    if kind in (dict, Mapping):
        return isinstance(value, dict)
    return isinstance(value, kind)


def _can_be_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # the first half of a surrogate pair
        return False


def _check_list(
    origin: Any, args: tuple[Any, ...], value: list[Any], where: str, error: MakeError
) -> Any:
    if origin is tuple and args and args[-1] is not Ellipsis:
        if len(value) != len(args):
            raise error(f"{where} must hold {len(args)} values, not {len(value):,}")
        kinds: Sequence[Any] = args
    else:
        kinds = [args[0] if args else Any] * len(value)
    items = [
        check_value(kind, item, f"{where}[{place}]", error)
        for place, (kind, item) in enumerate(zip(kinds, value, strict=True))
    ]
    return tuple(items) if origin is tuple else items


def _check_union(args: tuple[Any, ...], value: Any, where: str, error: MakeError) -> Any:
    if value is None and type(None) in args:
        return None
    kinds = [kind for kind in args if kind is not type(None)]
    problems = []
    for kind in kinds:
        try:
            return check_value(kind, value, where, RecordError)
        except RecordError as problem:
            problems.append(problem)
    if len(kinds) == 1:
        raise error(str(problems[0]))
    names = [_WORDS.get(get_origin(kind) or kind, getattr(kind, "__name__", "?")) for kind in kinds]
    raise error(f"{where} must be {_or(names)}, not {describe_value(value)}")


def _check_any(value: Any, where: str, error: MakeError) -> Any:
    """Any JSON, but with numbers that fit 64 bits: NumPy, torch and SQLite take no others."""
    if isinstance(value, dict):
        for key, each in value.items():
            _check_any(each, f"{where}.{key}", error)
    elif isinstance(value, list):
        for place, each in enumerate(value):
            _check_any(each, f"{where}[{place}]", error)
    elif isinstance(value, float) and not math.isfinite(value):
        raise error(f"{where} must be a finite number, not {value}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise error(f"{where} must fit into 64 bits, not {describe_value(value)}")
    return value


def _or(words: Any) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else str(last)
