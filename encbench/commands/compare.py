"""``encbench compare``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

import typer

from ..options import check_options, option
from .options import add_command

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class CompareConfig:
    first: Path = option(MISSING, "Folder written by encbench score.", argument=True)
    second: Path = option(MISSING, "Folder written by encbench score.", argument=True)
    seed: int = option(0, "Random seed of the bootstrap.", least=0)

    def __post_init__(self) -> None:
        check_options(self)


@add_command(app, "compare", CompareConfig, toml=False)
def compare(config: CompareConfig) -> None:
    """Compare two scored folders by every metric that both have, paired by prompt."""
    from ..metrics.run import compare_all

    typer.echo("\n".join(compare_all(config.first, config.second, seed=config.seed)))
