"""``encbench doctor``"""

from __future__ import annotations

import typer

app = typer.Typer(add_completion=False)


@app.command("doctor")
def doctor() -> None:
    """Check this machine: packages, device, cache, registry. Ends with 1 if something is off."""
    from ..doctor import examine

    found = examine()
    for check in found:
        color = typer.colors.GREEN if check.good else typer.colors.RED
        typer.secho("ok  " if check.good else "off ", fg=color, nl=False)
        typer.echo(f" {check.what}: {check.found}")
    if not all(check.good for check in found):
        raise typer.Exit(1)
