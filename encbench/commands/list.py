"""``encbench list``"""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import GROUPS

app = typer.Typer(add_completion=False)
KINDS = {f"{kind}s": kind for kind in GROUPS} | {"presets": ""}


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")],
) -> None:
    """What there is to choose from, third parties' included."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from .. import registry
    from ..errors import UnknownNameError

    if what not in KINDS:
        raise UnknownNameError("kind of thing to list", what, KINDS)
    table = Table(box=None)
    table.add_column("name", style="bold")
    table.add_column("what it is")
    if what == "presets":
        from ..presets import PRESETS

        for name, make in PRESETS.items():
            table.add_row(name, _first_paragraph(make))
    elif what == "probes":
        table.add_column("main metric")
        for name in registry.names("probe"):
            spec = registry.get("probe", name).spec
            table.add_row(name, escape(spec.title), spec.main_metric)
    else:
        things = {name: registry.get(KINDS[what], name) for name in registry.names(KINDS[what])}
        if any(hasattr(thing, "examples") for thing in things.values()):
            table.add_column("examples", overflow="fold")
        for name, thing in things.items():
            summary = getattr(thing, "summary", None) or _first_paragraph(thing)
            examples = "\n".join(getattr(thing, "examples", ()))
            table.add_row(name, escape(summary), *([escape(examples)] if examples else []))
    Console().print(table)
    if what == "encoders":
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


def _first_paragraph(thing: object) -> str:
    return " ".join((thing.__doc__ or "").split("\n\n")[0].split())
