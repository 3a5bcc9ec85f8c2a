"""``encbench list``"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import typer

from ..options import option
from .answers import PrintJson, print_json
from .options import add_command

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class ListConfig:
    what: str | None = option(
        None, "A kind such as encoders, probes or presets.", shown="all names", argument=True
    )


@dataclass(frozen=True)
class Extension:
    """One extension, or the preset of a command; ``problem``: why it cannot be loaded."""

    kind: str
    name: str
    summary: str = ""
    main_metric: str = ""
    examples: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class ExtensionList:
    """Extensions of one kind, or of all; ``options`` are those of every encoder."""

    extensions: tuple[Extension, ...]
    options: Mapping[str, str] = field(default_factory=dict)


@add_command(app, "list", ListConfig, toml=False)
def list_(config: ListConfig, json: PrintJson = False) -> None:
    """List encoders, probes, metrics and all other extensions, and presets."""
    from .. import registry
    from ..encoders.spec import COMMON_OPTIONS
    from ..errors import UnknownNameError

    what, kinds = config.what, {f"{kind}s": kind for kind in registry.GROUPS}
    if what is not None and what not in ("presets", *kinds):
        raise UnknownNameError("kind of extension", what, [*kinds, "presets"])
    if what is None and not json:  # loads nothing
        rows = [(title, ", ".join(registry.names(kind))) for title, kind in kinds.items()]
        rows.append(("presets", ", ".join(preset.name for preset in _presets())))
        _print_table(("encbench list ...", "names"), rows)
        return
    found: list[Extension] = []
    for title, kind in kinds.items():
        if what in (None, title):
            found += [_load(kind, name) for name in registry.names(kind)]
    if what in (None, "presets"):
        found += _presets()
    common = COMMON_OPTIONS if what in (None, "encoders") else {}
    if json:
        print_json("extensions", ExtensionList(tuple(found), common))
        return
    table = [
        (each.name, each.problem or each.summary, each.main_metric,
         "\n".join(map(shlex.quote, each.examples)))
        for each in found
    ]  # fmt: skip
    _print_table(("name", "what it is", "main metric", "examples"), table)
    for name, texts in {"every encoder": common, **{e.name: e.options for e in found}}.items():
        if texts:
            typer.echo(f"\noptions of {name}, as in SPEC?option=value&option=value:")
        for option_name, text in texts.items():
            typer.echo(f"  {option_name:12s} {text}")


def _print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table without the columns that are empty in all rows."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table, columns = Table(box=None), list(zip(*rows, strict=True))
    shown = [(title, cells) for title, cells in zip(titles, columns, strict=True) if any(cells)]
    for title, _ in shown:
        table.add_column(title, style="bold" if title == titles[0] else "", overflow="fold")
    for row in zip(*(cells for _, cells in shown), strict=True):
        table.add_row(*map(escape, row))
    Console().print(table)


def _presets() -> list[Extension]:
    """The presets of run, train and confirm."""
    from ..confirm.config import PRESETS as CONFIRM
    from ..flow.presets import PRESETS as TRAIN
    from ..presets import PRESETS as RUN
    from .options import summary

    commands = {"run": RUN, "train": TRAIN, "confirm": CONFIRM}
    return [
        Extension("preset", f"{command} --preset {name}", summary(make))
        for command, presets in commands.items()
        for name, make in presets.items()
    ]


def _load(kind: str, name: str) -> Extension:
    """The description of an extension, or why it cannot be loaded."""
    from .. import registry
    from ..errors import EncbenchError
    from .options import summary

    try:
        thing = registry.get(kind, name)
    except EncbenchError as error:
        return Extension(kind, name, problem=str(error))
    spec = getattr(thing, "spec", None)
    title = getattr(thing if spec is None else spec, "title", "")
    return Extension(
        kind,
        name,
        getattr(thing, "summary", "") or title or summary(thing),
        getattr(spec, "main_metric", ""),
        tuple(getattr(thing, "examples", ())),
        dict(getattr(thing, "options", {})),
    )
