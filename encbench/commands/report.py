"""``encbench report``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command("report")
def report(
    out: Annotated[Path, typer.Argument(help="Folder of a run, with prediction.json in it.")],
    to: Annotated[
        Path | None,
        typer.Option(help="Where to write it (default OUT/report).", show_default=False),
    ] = None,
) -> None:
    """Write the report of a run: HTML, Markdown, CSV, TeX and figures."""
    from ..pipeline import report
    from ..progress import show_log

    show_log()
    typer.echo(f"report: {report(out, to)}")
