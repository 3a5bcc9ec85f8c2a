"""``encbench rank``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

import typer

from ..options import option
from .answers import PrintJson, print_json
from .options import Parquet, add_command

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class RankConfig:
    out: Path = option(MISSING, "Folder of a run, with records in it.", argument=True)
    rule: str | None = option(
        None, "Rule to rank by. See: encbench list rules.",
        shown="reader; emf-retrieval where the reader probe was left out",
    )  # fmt: skip


@add_command(app, "rank", RankConfig, toml=False)
def rank(config: RankConfig, parquet: Parquet = False, json: PrintJson = False) -> None:
    """Rank the encoders of a run and write prediction.json."""
    from ..pipeline import rank
    from . import show

    show.check_parquet(parquet)
    prediction = rank(config.out, rule=config.rule)
    if json:
        print_json("prediction", prediction)
    else:
        show.ranking(prediction)
        typer.echo(f"prediction: {config.out / 'prediction.json'}")
    show.write_parquet(config.out, parquet)
