"""``encbench compare``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="Folder written by encbench score.")],
    second: Annotated[Path, typer.Argument(help="Folder written by encbench score.")],
    seed: Annotated[int, typer.Option(help="Random seed of the bootstrap.")] = 0,
) -> None:
    """Compare two scored folders by every metric that both have, paired by prompt."""
    from ..metrics.run import compare_all

    typer.echo("\n".join(compare_all(first, second, seed=seed)))
