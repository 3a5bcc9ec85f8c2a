"""``encbench confirm``"""

from __future__ import annotations

from dataclasses import replace

import typer

from ..confirm.config import ConfirmConfig
from .answers import PrintJson, print_json
from .options import DryRun, add_command

app = typer.Typer(add_completion=False)


@add_command(app, "confirm", ConfirmConfig)
def confirm(config: ConfirmConfig, dry_run: DryRun = False, json: PrintJson = False) -> None:
    """Test a ranking: train a small model on each of a few encoders and score their images.

    Everything but the encoder is the same: data and their order, network, steps, seeds, noise. The
    images are scored by GenEval. The rules of the verdict are printed before training. To resume
    after a stop, run the same command again. Under accelerate launch or torchrun each process
    trains one model at a time.
    """
    from .. import distributed
    from ..config import default_store

    config = replace(config, store=config.store or default_store())
    distributed.run_command(lambda: (_plan_only if dry_run else carry_out)(config, json))


def _plan_only(config: ConfirmConfig, json: bool) -> None:
    from ..confirm.run import plan_lines, prepare

    ready = prepare(config)
    if json:
        print_json("confirmation plan", ready.plan)
        return
    typer.echo("\n".join(plan_lines(ready)))


def carry_out(config: ConfirmConfig, json: bool) -> None:
    """Confirm, print the verdicts, and write the report."""
    from ..confirm.run import run_confirmation, verdict_lines
    from ..pipeline import report

    verdict = run_confirmation(config)
    page = report(config.out)
    if json:
        print_json("verdict", verdict)
        return
    typer.echo("\n".join(verdict_lines(verdict)))
    typer.echo(f"report: {page}")
