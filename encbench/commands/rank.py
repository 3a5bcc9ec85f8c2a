"""``encbench rank``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command("rank")
def rank(
    out: Annotated[Path, typer.Argument(help="Folder of a run, with records in it.")],
) -> None:
    """Rank the encoders of a run from all its records, into prediction.json."""
    from ..pipeline import rank
    from ..progress import show_log
    from . import show

    show_log()
    show.ranking(rank(out))
    typer.echo(f"prediction: {out / 'prediction.json'}")
