"""``encbench data``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def data() -> None:
    """Fetch public data sets, pinned, verified and resumable; make scenes."""


@app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="coco, dpg or geneval.")],
    to: Annotated[Path, typer.Option(help="Folder to put it in.")],
    split: Annotated[str, typer.Option(help="COCO: val2017 or train2017.")] = "val2017",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Download a data set, after telling its size. Started again, it goes on where it was."""
    from ..data.fetch import fetch_dataset
    from ..progress import show_log

    show_log()

    def confirm(text: str) -> bool:
        typer.echo(text)
        return yes or typer.confirm("Go on?", default=True)

    folder = fetch_dataset(name, to, split=split, confirm=confirm)
    if name == "geneval":
        use = f"lay out its folders by: encbench geneval prompts --from {folder} --out IMAGES"
    else:
        use = f"use it by --{name} {folder}"
    typer.echo(f"{name} is at {folder}; {use}")


@app.command("make")
def make(
    name: Annotated[str, typer.Argument(help="scenes.")],
    split: Annotated[str, typer.Option(help="probe-test, generator-train, ...: docs/scenes.md.")],
    out: Annotated[Path, typer.Option(help="Folder to write it to, in COCO's layout.")],
    count: Annotated[int, typer.Option(help="How many images.")] = 1000,
    size: Annotated[int, typer.Option(help="Their side in pixels, 16 to 256.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the scenes.")] = 0,
    world: Annotated[str, typer.Option(help="scenes or scenes-easy.")] = "scenes",
    combos: Annotated[
        str, typer.Option(help="Combinations shown: seen, or in test splits held-out or both.")
    ] = "seen",
) -> None:
    """Write rendered scenes with captions and instances, as COCO has them. Resumable."""
    from typing import get_args

    from ..data.scenes.coco import make_scenes
    from ..data.scenes.splits import Combos
    from ..data.scenes.world import get_world
    from ..errors import UnknownNameError
    from ..progress import show_log

    show_log()
    if name != "scenes":
        raise UnknownNameError("data set to make", name, ["scenes"])
    if combos not in get_args(Combos):
        raise UnknownNameError("kind of combination", combos, get_args(Combos))
    shown: Combos = combos  # type: ignore[assignment]
    folder = make_scenes(
        split, out, count=count, size=size, seed=seed, world=get_world(world), combos=shown
    )
    typer.echo(f"{split} is at {folder}; use it by --coco {folder}")
