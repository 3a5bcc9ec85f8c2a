"""``encbench data``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..options import check_options, option
from .options import add_command

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def data() -> None:
    """Download public datasets, or render scenes."""


@dataclass(frozen=True)
class FetchConfig:
    name: str = option(MISSING, "coco, dpg, dpg-questions or geneval.", argument=True)
    to: Path = option(MISSING, "Folder to put it in.")
    split: str = option("val2017", "COCO: val2017 or train2017.")


@add_command(app, "fetch", FetchConfig, toml=False)
def fetch(
    config: FetchConfig,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Download a dataset after printing its size. To resume after a stop, run it again."""
    from ..data.fetch import fetch_dataset

    def confirm(text: str) -> bool:
        typer.echo(text)
        return yes or typer.confirm("Go on?", default=True)

    name = config.name
    folder = fetch_dataset(name, config.to, split=config.split, confirm=confirm)
    if name == "geneval":
        use = f"lay out its folders by: encbench geneval prompts --from {folder} --out IMAGES"
    elif name == "dpg-questions":
        use = f"score images by: encbench score IMAGES --metrics dpg:{folder} --prompts {folder}"
    else:
        use = f"use it by --{name} {folder}"
    typer.echo(f"{name} is at {folder}; {use}")


@dataclass(frozen=True)
class MakeConfig:
    name: str = option(MISSING, "scenes.", choices=("scenes",), argument=True)
    split: str = option(MISSING, "probe-test, generator-train, ...: docs/scenes.md.")
    out: Path = option(MISSING, "Folder to write it to, in COCO's layout.")
    count: int = option(1000, "Number of images.")
    size: int = option(128, "Side of an image in pixels, 16 to 256.")
    seed: int = option(0, "Random seed of the scenes.")
    world: str = option("scenes", "scenes or scenes-easy.")
    combos: str = option(
        "seen", "Combinations shown: seen, or in test splits held-out or both.",
        choices=("seen", "held-out", "both"),
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_options(self)


@add_command(app, "make", MakeConfig, toml=False)
def make(config: MakeConfig) -> None:
    """Render scenes with captions and instances in COCO's layout. Can be resumed."""
    from ..data.scenes.coco import make_scenes
    from ..data.scenes.world import get_world

    split = config.split
    folder = make_scenes(
        split, config.out, count=config.count, size=config.size, seed=config.seed,
        world=get_world(config.world), combos=config.combos,  # type: ignore[arg-type]
    )  # fmt: skip
    typer.echo(f"{split} is at {folder}; use it with --coco {folder}")
