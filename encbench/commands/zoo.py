"""``encbench zoo``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

import typer

from ..options import check_options, option
from ..zoo.catalog import ORDER
from .options import add_command

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def zoo() -> None:
    """List or train the small encoders that come with encbench.

    All were trained on the same captions of rendered scenes with the same tokenizer; their
    objectives differ. Use one like any encoder: --encoders zoo:mini-clip "zoo:mini-t5?step=3pct".
    """


@dataclass(frozen=True)
class ListConfig:
    folder: Path | None = option(
        None, "A folder of `zoo train`.", flag="--in", shown="the zoo that comes with encbench"
    )


@add_command(app, "list", ListConfig, toml=False)
def list_(config: ListConfig) -> None:
    """List names, sizes and losses, and check every file against its manifest."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..zoo.table import zoo_rows

    table = Table(box=None)
    for column in ("name", "trained to do", "step", "steps", "parameters", "MB", "loss", "files"):
        right = column in ("steps", "parameters", "MB", "loss")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    rows = zoo_rows(config.folder)
    for row in rows:
        table.add_row(*map(escape, row.cells))
    Console().print(table)
    wrong = [row.problem for row in rows if row.problem]
    for line in wrong:
        typer.echo(line, err=True)
    if wrong:
        raise typer.Exit(1)


@dataclass(frozen=True)
class TrainConfig:
    name: str = option(
        MISSING, f"{', '.join(ORDER)}, or all.", choices=(*ORDER, "all"), argument=True
    )
    out: Path = option(MISSING, "Folder for the models, one folder for each model and stage.")
    steps: int | None = option(
        None, "Training steps; fewer make a worse model.", least=1, shown="the recipe's"
    )
    seed: int = option(0, "Random seed of initialization and data.", least=0)

    def __post_init__(self) -> None:
        check_options(self)


@add_command(app, "train", TrainConfig, toml=False)
def train(config: TrainConfig) -> None:
    """Train one encoder of the zoo, or all, on the CPU: a few minutes each on one core.

    Stages at 3 % and 20 % of the steps and the finished model are written as NAME-3pct,
    NAME-20pct and NAME, in the layouts that clip:, t5:, gemma:, blip3o: and dinov3: read; so
    `--encoders clip:OUT/mini-clip` works at once. To resume after a stop, run it again. With
    seed 0 and all steps the result equals the models that come with encbench up to rounding (a
    loss within 2 % of the one in `zoo list`). mini-blip3o reads images by scene-vq: the one in
    OUT if there is one, else the shipped one.
    """
    from ..zoo.train import train_member

    for name in ORDER if config.name == "all" else (config.name,):
        done = train_member(name, config.out, steps=config.steps, seed=config.seed)
        typer.echo(f"{name}: loss {done.losses[-1]:.3f} after {done.seconds:,.0f} s")
        for folder in done.folders:
            typer.echo(f"  {folder}")
