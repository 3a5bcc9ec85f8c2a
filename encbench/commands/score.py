"""``encbench score``"""

from __future__ import annotations

import typer

from ..config import ScoreConfig
from .answers import PrintJson, print_json
from .options import add_command

app = typer.Typer(add_completion=False)


@add_command(app, "score", ScoreConfig)
def score(config: ScoreConfig, json: PrintJson = False) -> None:
    """Score a folder of generated images by any metrics, with intervals.

    The bootstrap keeps the images of a prompt together. To resume after a stop, run the same
    command again. Several processes (accelerate launch --multi_gpu -m encbench score ...) share it.
    More: docs/metrics.md.
    """
    from .. import distributed

    distributed.run_command(lambda: _score(config, json))


def _score(config: ScoreConfig, json: bool) -> None:
    from ..metrics.run import score_all, score_lines

    record = score_all(config)
    if json:
        print_json("scores", record)
        return
    typer.echo("\n".join(score_lines(record)))
    typer.echo(f"scores are in {config.out}; compare two: encbench compare {config.out} OTHER")
