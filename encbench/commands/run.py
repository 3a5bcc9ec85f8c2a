"""``encbench run``"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from .options import command

if TYPE_CHECKING:
    from ..config import RunConfig

app = typer.Typer(add_completion=False)


def run(config: RunConfig, dry_run: bool) -> None:
    """Probe the encoders, rank them and write the report.

    Needs no training. Started again, it goes on where it was.
    """
    from . import show

    if dry_run:
        from ..estimate import plan_run

        show.plan(plan_run(config))
        return
    from ..pipeline import run

    outcome = run(config)
    show.outcome(config.out, outcome)


app.command("run")(command(run))
