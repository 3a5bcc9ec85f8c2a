"""``encbench pull``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

import typer

from ..options import option
from .options import add_command

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class PullConfig:
    source: str = option(
        MISSING, "Repository on the hub: OWNER/NAME, or OWNER/NAME@REVISION.", argument=True
    )
    to: Path = option(MISSING, "Folder that gets a folder for each run, or for the model.")
    model: bool = option(False, "Fetch an exported model, not the records of runs.")


@add_command(app, "pull", PullConfig, toml=False)
def pull(config: PullConfig) -> None:
    """Fetch runs' records, or an exported model, that encbench push uploaded.

    Every record is checked. Rank all runs on one page: encbench board FOLDER/* --out site.
    """
    from ..share import pull as fetch

    for path in fetch(config.source, config.to, model=config.model):
        typer.echo(str(path))
