"""``encbench train``"""

from __future__ import annotations

from dataclasses import replace

import typer

from ..flow.config import TrainConfig
from ..flow.presets import PRESETS
from .answers import PrintJson, print_json
from .options import DryRun, add_command

app = typer.Typer(add_completion=False)


@add_command(app, "train", TrainConfig, PRESETS)
def train(config: TrainConfig, dry_run: DryRun = False, json: PrintJson = False) -> None:
    """Train a few-step text-to-image model on the features of an encoder.

    Flow matching comes first, then MeanFlow; the checkpoint at the switch is kept as the parent.
    To resume after a stop, run the same command again. Several GPUs:
    accelerate launch --multi_gpu -m encbench train ... More: docs/training.md.
    """
    from ..config import default_store
    from ..distributed import is_leader
    from ..encoders.detect import complete_spec

    store, encoder = config.store or default_store(), complete_spec(config.encoder)
    config = replace(config, store=store, encoder=encoder)
    if dry_run:
        from ..estimate import matrix_rate
        from ..flow.estimate import plan_training

        if not is_leader():
            return
        plan = plan_training(config, matrix_rate)
        if json:
            print_json("training plan", plan)
            return
        typer.echo("\n".join(plan.lines))
        return
    from ..flow.train import train as run

    done = run(config)
    if not is_leader():
        return
    if json:
        print_json("training", done)
        return
    typer.echo(f"trained {done.steps:,} steps in {done.seconds / 60:.1f} minutes: {done.path}")
    typer.echo(f"sample it: encbench sample {config.out} --prompts 'a red circle' --out FOLDER")
