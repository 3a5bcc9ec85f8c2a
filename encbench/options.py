"""Options are declared once, as fields of a frozen dataclass made by :func:`option`.

A field holds its default, help, group and bounds. The command line
(:mod:`encbench.commands.options`), the reading of TOML and JSON (:func:`from_values`), the checks
(:func:`check_options`) and the tables of the docs (:func:`option_table`) are made from it.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .errors import UnknownNameError, UsageError
from .files import expand_home
from .schema import check_value

C = TypeVar("C")
Real = int | float


@dataclass(frozen=True)
class Option:
    """The declaration of an option, besides its name, type and default.

    Attributes:
        help: one or two sentences for ``--help`` and the docs.
        group: heading under which the help shows it.
        choices: allowed values, or a function that returns them; for each item of a tuple.
        least, most, above, below: bounds of a number, or of each item of a tuple.
        parse: makes the value from the text that the command line or TOML gives.
        flag: replaces the flag made from the name.
        metavar: what the help shows in place of a value.
        shown: the default in words, if it depends on something else (None).
        argument: given by its place on the command line, not by a flag.
    """

    help: str
    group: str = ""
    choices: Iterable[str] | Callable[[], Iterable[str]] = ()
    least: Real | None = None
    most: Real | None = None
    above: Real | None = None
    below: Real | None = None
    parse: Callable[[Any], Any] | None = None
    flag: str = ""
    metavar: str | None = None
    shown: str = ""
    argument: bool = False


def option(default: Any, help: str, group: str = "", **more: Any) -> Any:
    """A field of a configuration; see :class:`Option`. ``default`` may be ``MISSING``, or a
    function that makes it."""
    metadata = {"option": Option(help, group, **more)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@cache
def options_of(cls: type) -> dict[str, tuple[Option, Any, Any]]:
    """Each field's option, type and default (None for one that is computed) by name."""
    hints = get_type_hints(cls)
    return {
        field.name: (
            field.metadata["option"],
            hints[field.name],
            None if field.default_factory is not MISSING else field.default,
        )
        for field in dataclasses.fields(cls)
    }


def flag(name: str, declared: Option | None = None) -> str:
    """The flag of a field on the command line."""
    if declared is not None and (declared.argument or declared.flag):
        return name.upper() if declared.argument else declared.flag
    return "--" + name.replace("_", "-")


def from_values(cls: type[C], values: Mapping[str, Any]) -> C:
    """A configuration from plain values (flags, TOML, JSON); None means the default.

    Raises:
        UsageError: for an unknown key or a value of the wrong type, by name.
    """
    return cls(**typed_values(cls, values))


def typed_values(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the fields' types; see :func:`from_values`."""
    known = options_of(cls)
    typed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise UnknownNameError("configuration key", key, known)
        if value is not None:
            declared, kind, _ = known[key]
            typed[key] = _typed(declared, kind, value, flag(key, declared))
    return typed


def _typed(declared: Option, kind: Any, value: Any, name: str) -> Any:
    if declared.parse is not None:
        value = declared.parse(value)
    if isinstance(value, Path):
        value = str(value)
    if get_origin(kind) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        value = [str(item) if isinstance(item, Path) else item for item in items]
    made = check_value(kind, value, name, UsageError)
    return expand_home(made) if isinstance(made, Path) else made


def check_options(config: Any) -> None:
    """Check choices and bounds; for ``__post_init__``.

    Raises:
        UsageError: naming the option.
    """
    for key, (declared, _, _) in options_of(type(config)).items():  # type: ignore[arg-type]
        value, name = getattr(config, key), flag(key, declared)
        choices = declared.choices() if callable(declared.choices) else declared.choices
        known = tuple(choices)
        for item in value if isinstance(value, tuple) else (value,):
            if known and item is not None and item not in known:
                raise UnknownNameError(name, item, known)
            if isinstance(item, int | float):
                _check_bounds(declared, item, name)


def _check_bounds(declared: Option, value: Real, name: str) -> None:
    bounds: list[tuple[str, Real | None, Callable[[Real, Real], bool]]] = [
        ("at least", declared.least, operator.ge),
        ("above", declared.above, operator.gt),
        ("at most", declared.most, operator.le),
        ("below", declared.below, operator.lt),
    ]
    given = [(word, limit, holds) for word, limit, holds in bounds if limit is not None]
    if not all(holds(value, limit) for _, limit, holds in given):
        text = " and ".join(f"{word} {limit:g}" for word, limit, _ in given)
        raise UsageError(f"{name} must be {text}, not {value}")


def to_values(config: Any) -> dict[str, Any]:
    """JSON-ready, paths as text; :func:`from_values` reads it back."""

    def plain(value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    return {
        key: [plain(item) for item in value] if isinstance(value, tuple) else plain(value)
        for key, value in dataclasses.asdict(config).items()
    }


def option_table(cls: type) -> str:
    """The options of a configuration as Markdown, a table for each group."""
    groups: dict[str, list[str]] = {}
    for key, (declared, kind, default) in options_of(cls).items():
        name = flag(key, declared)
        shown = declared.shown or _show(default)
        cells = (f"`{name}`", _kind_words(kind), f"`{shown}`" if shown else "", declared.help)
        row = (
            "| " + " | ".join(cell.replace("|", "\\|").replace("[", "\\[") for cell in cells) + " |"
        )
        groups.setdefault(declared.group, []).append(row)
    head = "| option | type | default | what it does |\n|---|---|---|---|\n"
    tables = [
        (f"**{group}**\n\n" if group else "") + head + "\n".join(rows)
        for group, rows in groups.items()
    ]
    return "\n\n".join(tables) + "\n"


def _show(default: Any) -> str:
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return "" if default is None or default is MISSING else str(default)


def _kind_words(kind: Any) -> str:
    words = {int: "integer", float: "number", bool: "flag", str: "text", Path: "path"}
    inner = [k for k in get_args(kind) if k not in (type(None), Ellipsis)]
    if get_origin(kind) is tuple:
        return f"{_kind_words(inner[0])}, several"
    if get_origin(kind) is Mapping:
        return "KEY=VALUE, several"
    return words[inner[0] if inner else kind]
