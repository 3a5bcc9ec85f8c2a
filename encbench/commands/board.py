"""``encbench board``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

import typer

from ..options import option
from .answers import PrintJson, print_json
from .options import add_command

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class BoardConfig:
    runs: tuple[str, ...] = option(MISSING, "Folders of runs to merge.", argument=True)
    out: Path = option(Path("site"), "Folder for the page.")
    rule: str | None = option(
        None, "Rule to rank by. See: encbench list rules.",
        shown="reader; emf-retrieval where the reader probe was left out",
    )  # fmt: skip


@add_command(app, "board", BoardConfig, toml=False)
def board(config: BoardConfig, json: PrintJson = False) -> None:
    """Rank the encoders of several runs on one static page.

    Runs are merged only if their data, versions and settings are the same. Encoders that cannot be
    told apart share a rank. The page opens without a server and without a network.
    """
    from ..board import build_board, merge_runs

    merged = merge_runs([Path(run) for run in config.runs], rule=config.rule)
    page = build_board(merged, config.out)
    if json:
        print_json("prediction", merged.prediction)
    else:
        runs = f"{len(merged.runs)} run{'s' * (len(merged.runs) > 1)}"
        typer.echo(f"board of {len(merged.rows)} encoders from {runs}: {page}")
