"""``encbench doctor``"""

from __future__ import annotations

import typer

from .answers import PrintJson, print_json

app = typer.Typer(add_completion=False)


@app.command("doctor")
def doctor(json: PrintJson = False) -> None:
    """Check packages, device, memory, cache, hub and extensions; say what to do next."""
    from ..doctor import examine

    found = examine()
    if json:
        print_json("checks", found)
    else:
        for check in found.checks:
            color = typer.colors.GREEN if check.good else typer.colors.RED
            typer.secho("ok " if check.good else "fix", fg=color, nl=False)
            typer.echo(f" {check.what}: {check.found}")
        typer.echo(f"\n{found.next}")
    if not found.good:
        raise typer.Exit(1)
