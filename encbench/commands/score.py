"""``encbench score``"""

from __future__ import annotations

import typer

from ..config import ScoreConfig
from .options import add_command

app = typer.Typer(add_completion=False)


@add_command(app, "score", ScoreConfig)
def score(config: ScoreConfig) -> None:
    """Score a folder of generated images by any metrics, with intervals clustered on prompts.

    Started again, it goes on where it was; several processes (accelerate launch --multi_gpu -m
    encbench score ...) share the work. More: docs/metrics.md.
    """
    from .. import distributed

    distributed.run_command(lambda: _score(config))


def _score(config: ScoreConfig) -> None:
    from ..metrics.run import score_all, score_lines

    typer.echo("\n".join(score_lines(score_all(config))))
    typer.echo(f"scores are in {config.out}; compare two: encbench compare {config.out} OTHER")
