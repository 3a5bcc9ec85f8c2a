"""``encbench data``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def data() -> None:
    """Fetch public data sets: pinned, verified, resumable."""


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="coco or dpg.")],
    to: Annotated[Path, typer.Option(help="Folder to put it in.")],
    split: Annotated[str, typer.Option(help="COCO: val2017 or train2017.")] = "val2017",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Download a data set, after telling its size. Started again, it goes on where it was."""
    from ..data.fetch import fetch
    from ..progress import show_log

    show_log()

    def confirm(text: str) -> bool:
        typer.echo(text)
        return yes or typer.confirm("Go on?", default=True)

    folder = fetch(name, to, split=split, confirm=confirm)
    typer.echo(f"{name} is at {folder}; use it by --{name} {folder}")
