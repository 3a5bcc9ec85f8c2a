"""``encbench list``"""

from __future__ import annotations

from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False)


@app.command("list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(help="A kind such as encoders, probes or presets; without one, all names."),
    ] = None,
) -> None:
    """List what there is of each kind of extension, including other packages' extensions."""
    from rich.console import Console
    from rich.table import Table

    from .. import registry
    from ..errors import UnknownNameError

    kinds = {f"{kind}s": kind for kind in registry.GROUPS}
    table = Table(box=None)
    if what is None:
        table.add_column("encbench list ...", style="bold")
        table.add_column("names", overflow="fold")
        for title, kind in kinds.items():
            table.add_row(title, ", ".join(registry.names(kind)))
        table.add_row("presets", ", ".join(_presets()))
    elif what == "presets":
        table.add_column("name", style="bold")
        table.add_column("what it is")
        for name, text in _presets().items():
            table.add_row(name, text)
    elif what in kinds:
        _fill(table, kinds[what])
    else:
        raise UnknownNameError("kind of extension", what, [*kinds, "presets"])
    Console().print(table)
    if what == "encoders":
        _encoder_options()


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


def _fill(table: Any, kind: str) -> None:
    """A row for each extension of a kind; one that cannot be loaded says why."""
    from rich.markup import escape

    from .. import registry
    from ..errors import EncbenchError
    from .options import summary

    columns: dict[str, list[str]] = {
        "name": [],
        "what it is": [],
        "main metric": [],
        "examples": [],
    }
    for name in registry.names(kind):
        try:
            thing = registry.get(kind, name)
        except EncbenchError as error:
            text, metric, examples = str(error), "", ()
        else:
            spec = getattr(thing, "spec", None)
            title = getattr(thing if spec is None else spec, "title", "")
            text = getattr(thing, "summary", "") or title or summary(thing)
            metric, examples = getattr(spec, "main_metric", ""), getattr(thing, "examples", ())
        cells = (name, text, metric, "\n".join(examples))
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(escape(cell))
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    for title in shown:
        table.add_column(title, style="bold" if title == "name" else "", overflow="fold")
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)


def _encoder_options() -> None:
    from .. import registry
    from ..encoders.spec import COMMON_OPTIONS

    typer.echo("\noptions of every encoder, as family:source?option=value&option=value:")
    for name, text in COMMON_OPTIONS.items():
        typer.echo(f"  {name:12s} {text}")
    for name in registry.names("encoder"):
        options = registry.get("encoder", name).options
        if options:
            typer.echo(f"\nfurther options of {name}:")
        for option, text in options.items():
            typer.echo(f"  {option:12s} {text}")
