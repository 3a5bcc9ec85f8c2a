"""``encbench run``"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from .options import add_run_options

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..confirm.plan import ConfirmConfig

app = typer.Typer(add_completion=False)


def run(config: RunConfig, dry_run: bool, confirm: bool, budget: str | None) -> None:
    """Probe the encoders, rank them and write the report.

    Needs no training, unless --confirm asks for it. Started again, it goes on where it was.
    """
    from . import show

    after = _confirmation(config, confirm, budget)
    if dry_run:
        from ..estimate import plan_run

        show.plan(plan_run(config))
        if after is not None:
            show.confirmation(config, after)
        return
    from ..pipeline import run

    outcome = run(config)
    show.outcome(config.out, outcome)
    if after is not None:
        from .confirm import carry_out

        carry_out(after)
    show.failures(outcome.failed)


def _confirmation(config: RunConfig, wanted: bool, budget: str | None) -> ConfirmConfig | None:
    """What --confirm asks for; None without it."""
    from ..errors import UsageError

    if not wanted:
        if budget is not None:
            raise UsageError("--budget is the confirmation's: give --confirm with it")
        return None
    from ..confirm.budget import seconds
    from ..confirm.plan import ConfirmConfig

    return ConfirmConfig(
        out=config.out,
        budget=None if budget is None else seconds(budget),
        device=config.device,
        seed=config.seed,
        store=config.store,
    )


app.command("run")(add_run_options(run, confirms=True))
