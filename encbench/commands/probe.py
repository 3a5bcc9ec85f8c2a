"""``encbench probe``"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from .options import add_run_options

if TYPE_CHECKING:
    from ..config import RunConfig

app = typer.Typer(add_completion=False)


def probe(config: RunConfig, dry_run: bool) -> None:
    """Only measure: write the records of encoders and controls, no ranking.

    Then: encbench rank OUT, encbench report OUT.
    """
    from . import show

    if dry_run:
        from ..estimate import plan_run

        show.plan(plan_run(config))
        return
    from ..pipeline import probe_all

    records, failed = probe_all(config)
    typer.echo(f"{len(records)} records under {config.out / 'records'}")
    show.failures(failed)


app.command("probe")(add_run_options(probe))
