"""``encbench validate``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

import typer

from ..options import option
from .answers import PrintJson, print_json
from .options import add_command

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class ValidateConfig:
    outcomes: str = option(
        MISSING,
        "Trained outcomes: a bank, a .csv or .jsonl with the columns spec and score, or a "
        "published table: emf, ted-6k, ted-6k-video, decoder-llms.",
    )
    run: tuple[str, ...] = option((), "Folders of runs, whose records hold scores.")
    predictions: tuple[str, ...] = option((), "Files of predictions, with scores by encoder.")
    cell: str = option(
        "steps=4&tier=A&combos=seen",
        "Which scores of a bank to read: sampling steps, wording tier and combinations.",
    )
    recipe: str | None = option(
        None,
        "Which recipe to read, if the outcomes hold several: the first characters of its hash.",
        shown="the only one",
    )
    controls: bool = option(False, "Include control encoders.")
    seed: int = option(0, "Random seed of the bootstrap and of the random orders.", least=0)
    out: Path | None = option(None, "Folder for the table (.md, .csv, .json) and the plot.")


@add_command(app, "validate", ValidateConfig, toml=False)
def validate(config: ValidateConfig, json: PrintJson = False) -> None:
    """Measure how well scores from before training predict the order of trained models.

    Prints Spearman's correlation with its interval, the same within strata and with one encoder
    left out, what random orders reach, and the ceiling that the noise between seeds sets.
    """
    from ..validate import validate_files

    found = validate_files(
        config.outcomes, [Path(name) for name in config.run],
        [Path(name) for name in config.predictions], cell=config.cell,
        recipe=config.recipe or "", controls=config.controls, seed=config.seed,
    )  # fmt: skip
    if config.out is not None:
        found.write(config.out)
    if json:
        print_json("validation", found)
        return
    typer.echo(found.markdown(), nl=False)
    if config.out is not None:
        typer.echo(f"\nwritten: {config.out / 'validation.md'}, .csv, .json and .png")
