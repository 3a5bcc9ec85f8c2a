"""``encbench validate``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import SeveralValues

app = typer.Typer(add_completion=False)


@app.command("validate", cls=SeveralValues)
def validate(
    outcomes: Annotated[
        str,
        typer.Option(
            help="Trained outcomes: the bank, a .csv or .jsonl with the columns spec and score, or "
            "a published table: emf, ted-6k, ted-6k-video, decoder-llms."
        ),
    ],
    run: Annotated[
        list[Path] | None, typer.Option(help="Folders of runs, whose records hold scores.")
    ] = None,
    predictions: Annotated[
        list[Path] | None, typer.Option(help="Files of predictions, with scores by encoder.")
    ] = None,
    cell: Annotated[
        str, typer.Option(help="Of a bank: sampling steps, wording tier and combinations.")
    ] = "steps=4&tier=A&combos=seen",
    recipe: Annotated[
        str, typer.Option(help="Of outcomes of several recipes: the beginning of one's name.")
    ] = "",
    controls: Annotated[bool, typer.Option("--controls", help="Count control encoders, too.")] = (
        False
    ),
    seed: Annotated[int, typer.Option(help="Of the bootstrap and the random orders.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the table (.md, .csv, .json) and plot.", show_default=False),
    ] = None,
) -> None:
    """Measure how well scores from before training put trained outcomes in order: Spearman's
    correlation with its interval, within strata, leaving one encoder out, beside what random
    orders reach and what the seeds allow."""
    from ..errors import UsageError
    from ..types import Cell
    from ..validate import load_outcomes, load_predictions, load_run_scores
    from ..validate import validate as measure

    try:
        where = Cell.parse(cell)
    except ValueError as error:
        raise UsageError(f"--cell {error}") from error
    scores = load_predictions(predictions or [])
    for folder in run or []:
        for name, values in load_run_scores(folder).items():
            scores.setdefault(name, {}).update(values)
    found = measure(
        load_outcomes(outcomes, cell=where, recipe=recipe), scores, controls=controls, seed=seed
    )
    typer.echo(found.markdown(), nl=False)
    if out is not None:
        found.write(out)
        typer.echo(f"\nwritten: {out / 'validation.md'}, .csv, .json and .png")
