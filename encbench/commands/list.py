"""``encbench list``"""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(add_completion=False)
KINDS = {"encoders": "encoder", "re-encoders": "re-encoder", "probes": "probe", "presets": ""}


@app.command("list")
def list_(
    what: Annotated[str, typer.Argument(help="encoders, re-encoders, probes or presets.")],
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
            table.add_row(name, " ".join((make.__doc__ or "").split("\n\n")[0].split()))
    elif what == "probes":
        table.add_column("main metric")
        for name in registry.names("probe"):
            spec = registry.get("probe", name).spec
            table.add_row(name, escape(spec.title), spec.main_metric)
    else:
        table.add_column("examples", overflow="fold")
        for name in registry.names(KINDS[what]):
            family = registry.get(KINDS[what], name)
            table.add_row(name, escape(family.summary), escape("\n".join(family.examples)))
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
