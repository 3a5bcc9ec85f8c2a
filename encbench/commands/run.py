"""``encbench run``"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from ..config import RunConfig
from ..confirm.config import ConfirmConfig, parse_duration
from ..presets import PRESETS
from .answers import PrintJson, print_json
from .options import DryRun, Parquet, add_command

app = typer.Typer(add_completion=False)
CONFIRM = "Confirmation"


@add_command(app, "run", RunConfig, PRESETS)
def run(
    config: RunConfig,
    dry_run: DryRun = False,
    confirm: Annotated[
        bool,
        typer.Option(
            "--confirm",
            help="Then test the ranking, as encbench confirm does: train and score small few-step "
            "models on some of the encoders.",
            rich_help_panel=CONFIRM,
        ),
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="With --confirm: time for the trainings, such as 12m or 2h; measuring takes "
            "additional time.",
            rich_help_panel=CONFIRM,
        ),
    ] = None,
    parquet: Parquet = False,
    json: PrintJson = False,
) -> None:
    """Measure encoders, rank them and write a report.

    Trains nothing unless --confirm is given. --dry-run prints downloads and time first. To resume
    after a stop, run the same command again. An encoder named python:MODULE:NAME runs that code.
    """
    from .. import distributed
    from . import show

    after = _confirmation(config, confirm, budget)
    show.check_parquet(parquet)
    distributed.run_command(
        lambda: (
            plan_only(config, json, after) if dry_run else _carry_out(config, json, after, parquet)
        )
    )


def plan_only(config: RunConfig, json: bool, after: ConfirmConfig | None = None) -> None:
    """Print what a run would do, download and cost."""
    from ..estimate import plan_run
    from . import show

    plan = plan_run(config)
    ready = show.plan_confirmation(config, after) if after else None
    if json:
        print_json("plan", replace(plan, confirmation=ready and ready.plan))
        return
    show.plan(plan)
    if ready is not None:
        show.confirmation(ready)


def _carry_out(config: RunConfig, json: bool, after: ConfirmConfig | None, parquet: bool) -> None:
    from ..pipeline import run
    from . import show
    from .confirm import carry_out

    if not config.encoders and config.on_scenes and not json:  # first contact: print the plan
        plan_only(config, json, after)
    outcome = run(config)
    if not json:
        show.outcome(config.out, outcome)
    elif after is None:
        print_json("prediction", outcome.prediction)
    show.write_parquet(config.out, parquet)
    if after is not None:
        carry_out(after, json)
    show.failures(outcome.failed)


def _confirmation(config: RunConfig, wanted: bool, budget: str | None) -> ConfirmConfig | None:
    """What --confirm asks for; None without it."""
    from ..errors import UsageError

    if not wanted:
        if budget is not None:
            raise UsageError("--budget is for the confirmation: give --confirm with it")
        return None
    return ConfirmConfig(
        out=config.out,
        budget=None if budget is None else parse_duration(budget),
        device=config.device,
        seed=config.seed,
        store=config.store,
    )
