"""``encbench zoo``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def zoo() -> None:
    """Small encoders that come with encbench: what there is, and how to train them again.

    All read the same captions of rendered scenes by the same tokenizer; they differ in what they
    were trained to do. Use one like any encoder: --encoders zoo:mini-clip "zoo:mini-t5?step=3pct".
    """


@app.command("list")
def list_(
    folder: Annotated[
        Path | None,
        typer.Option("--in", help="A folder of `zoo train`; by default the shipped ones."),
    ] = None,
) -> None:
    """Names, sizes, losses, and whether every file is what its manifest says."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ..zoo.table import zoo_rows

    table = Table(box=None)
    for column in ("name", "trained to do", "step", "steps", "parameters", "MB", "loss", "files"):
        right = column in ("steps", "parameters", "MB", "loss")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    found = zoo_rows(folder)
    for row in found:
        table.add_row(*map(escape, row.cells))
    Console().print(table)
    wrong = [row.problem for row in found if row.problem]
    for line in wrong:
        typer.echo(line, err=True)
    if wrong:
        raise typer.Exit(1)


@app.command("train")
def train(
    name: Annotated[
        str,
        typer.Argument(
            help="mini-clip, mini-t5, mini-gemma, mini-blip3o, mini-dinov3, scene-vq, or all."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the models, one folder each and stage.")],
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps in all; by default as many as the recipe says. Fewer make a lesser model.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of initialization and data.")] = 0,
) -> None:
    """Train one, or all, on the CPU: some minutes each on one core.

    Stages at 3 % and 20 % of the steps and the finished model are written as NAME-3pct,
    NAME-20pct and NAME, in the layouts that clip:, t5:, gemma:, blip3o: and dinov3: read; so
    `--encoders clip:OUT/mini-clip` works at once. Started again, it goes on where it was. With
    seed 0 and all steps it makes the models that come with encbench (up to rounding: a loss
    within 2 % of the one in `zoo list`). mini-blip3o reads images by scene-vq: OUT's if it is
    there, else the shipped one.
    """
    from ..progress import show_log
    from ..zoo.catalog import ORDER
    from ..zoo.train import train_member as train_one

    show_log()
    for each in ORDER if name == "all" else (name,):
        done = train_one(each, out, steps=steps, seed=seed)
        typer.echo(f"{each}: loss {done.losses[-1]:.3f} after {done.seconds:,.0f} s")
        for folder in done.folders:
            typer.echo(f"  {folder}")
