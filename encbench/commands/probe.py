"""``encbench probe``"""

from __future__ import annotations

import typer

from ..config import RunConfig
from ..presets import PRESETS
from .answers import PrintJson, print_json
from .options import DryRun, add_command

app = typer.Typer(add_completion=False)


@add_command(app, "probe", RunConfig, PRESETS)
def probe(config: RunConfig, dry_run: DryRun = False, json: PrintJson = False) -> None:
    """Measure encoders and write their records, without a ranking.

    Afterwards: encbench rank OUT, then encbench report OUT.
    """
    from .. import distributed
    from .run import plan_only

    distributed.run_command(lambda: (plan_only if dry_run else _carry_out)(config, json))


def _carry_out(config: RunConfig, json: bool) -> None:
    from ..pipeline import Measured, probe_all
    from . import show

    records, failed = probe_all(config)
    if json:
        print_json("records", Measured(tuple(records), tuple(failed)))
    else:
        typer.echo(f"{len(records)} records under {config.out / 'records'}")
    show.failures(failed)
