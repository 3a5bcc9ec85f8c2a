"""``encbench probe``"""

from __future__ import annotations

import typer

from ..config import RunConfig
from ..presets import PRESETS
from .answers import PrintJson, print_json
from .options import DryRun, Parquet, add_command

app = typer.Typer(add_completion=False)


@add_command(app, "probe", RunConfig, PRESETS)
def probe(
    config: RunConfig, dry_run: DryRun = False, parquet: Parquet = False, json: PrintJson = False
) -> None:
    """Measure encoders and write their records, without a ranking.

    Next: encbench rank OUT, then encbench report OUT.
    """
    from .. import distributed
    from . import show
    from .run import plan_only

    show.check_parquet(parquet)
    distributed.run_command(
        lambda: plan_only(config, json) if dry_run else _carry_out(config, json, parquet)
    )


def _carry_out(config: RunConfig, json: bool, parquet: bool) -> None:
    from ..pipeline import Measured, probe_all
    from . import show

    records, failed = probe_all(config)
    if json:
        print_json("records", Measured(tuple(records), tuple(failed)))
    else:
        typer.echo(f"{len(records)} records under {config.out / 'records'}")
    show.write_parquet(config.out, parquet)
    show.failures(failed)
