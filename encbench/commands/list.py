"""``encbench list``"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from ..options import option
from .options import add_command

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class ListConfig:
    what: str | None = option(
        None, "A kind such as encoders, probes or presets.", shown="all names", argument=True
    )


@add_command(app, "list", ListConfig, toml=False)
def list_(config: ListConfig) -> None:
    """List what there is of each kind of extension, including other packages' extensions."""
    from .. import registry
    from ..errors import UnknownNameError

    what, kinds = config.what, {f"{kind}s": kind for kind in registry.GROUPS}
    if what is None:
        known = [(title, ", ".join(registry.names(kind))) for title, kind in kinds.items()]
        _print_table(("encbench list ...", "names"), [*known, ("presets", ", ".join(_presets()))])
    elif what == "presets":
        _print_table(("name", "what it is"), list(_presets().items()))
    elif what in kinds:
        _print_kind(kinds[what])
    else:
        raise UnknownNameError("kind of extension", what, [*kinds, "presets"])


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


def _presets() -> dict[str, str]:
    """What each preset of run, train and confirm is, by the command and its name."""
    from ..confirm.config import PRESETS as CONFIRM
    from ..flow.presets import PRESETS as TRAIN
    from ..presets import PRESETS as RUN
    from .options import summary

    commands = {"run": RUN, "train": TRAIN, "confirm": CONFIRM}
    return {
        f"{command} --preset {name}": summary(make)
        for command, presets in commands.items()
        for name, make in presets.items()
    }


def _print_kind(kind: str) -> None:
    """Each extension of a kind, then their options; one that cannot be loaded says why."""
    from .. import registry
    from ..encoders.spec import COMMON_OPTIONS
    from ..errors import EncbenchError
    from .options import summary

    rows: list[tuple[str, str, str, str]] = []
    options = {f"every {kind}": COMMON_OPTIONS if kind == "encoder" else {}}
    for name in registry.names(kind):
        try:
            thing = registry.get(kind, name)
        except EncbenchError as error:
            rows.append((name, str(error), "", ""))
            continue
        spec, examples = getattr(thing, "spec", None), getattr(thing, "examples", ())
        title = getattr(thing if spec is None else spec, "title", "")
        text = getattr(thing, "summary", "") or title or summary(thing)
        rows.append(
            (name, text, getattr(spec, "main_metric", ""), "\n".join(map(shlex.quote, examples)))
        )
        options[name] = getattr(thing, "options", {})
    _print_table(("name", "what it is", "main metric", "examples"), rows)
    for name, texts in options.items():
        if texts:
            typer.echo(f"\noptions of {name}, as in SPEC?option=value&option=value:")
        for option_name, text in texts.items():
            typer.echo(f"  {option_name:12s} {text}")
