"""``encbench rank``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command("rank")
def rank(
    out: Annotated[Path, typer.Argument(help="Folder of a run, with records in it.")],
    rule: Annotated[
        str | None,
        typer.Option(
            help="Rule to rank by. See: encbench list rules.  [default: reader; emf-retrieval "
            "where the reader probe was left out]"
        ),
    ] = None,
) -> None:
    """Rank the encoders of a run from all its records, into prediction.json."""
    from ..pipeline import rank as rank_records
    from ..progress import show_log
    from . import show

    show_log()
    show.ranking(rank_records(out, rule=rule))
    typer.echo(f"prediction: {out / 'prediction.json'}")
