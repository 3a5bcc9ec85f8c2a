"""``encbench study``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import SeveralValues

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def study() -> None:
    """A blind pairwise user study: make its page, read the answers."""


@app.command("make", cls=SeveralValues)
def make(
    models: Annotated[
        list[str],
        typer.Option(help="Images of each model.", metavar="NAME=FOLDER..."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for study.html and key.json.")],
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Number of pairs [each two models on each prompt].")
    ] = None,
    question: Annotated[
        str, typer.Option(help="Question above each pair.")
    ] = "Which image fits the description better?",
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts whose ids name the image files.")
    ] = None,
    side: Annotated[int, typer.Option(min=16, help="Longest side of an image in pixels.")] = 512,
    seed: Annotated[int, typer.Option(help="Random seed of pairs, sides and order.")] = 0,
) -> None:
    """Make one static HTML page of image pairs; people answer by keyboard and send back a file."""
    from ..errors import UsageError
    from ..study.page import KEY, PAGE, build_study

    folders = {}
    for text in models:
        name, equals, folder = text.partition("=")
        if not equals or not name or name in folders:
            raise UsageError(f"--models {text}: write each model once, as NAME=FOLDER")
        folders[name] = Path(folder).expanduser()
    count = build_study(
        folders, out, pairs=pairs, question=question, prompts=prompts, side=side, seed=seed
    )
    typer.echo(f"{count:,} pairs are in {out / PAGE}: give it to people")
    typer.echo(f"which model is which is in {out / KEY}: keep it, and read answers by: "
               f"encbench study read {out / KEY} answers-*.json")  # fmt: skip


@app.command("read")
def read(
    key: Annotated[Path, typer.Argument(help="key.json of the study.")],
    answers: Annotated[list[Path], typer.Argument(help="Files that people sent back.")],
    out: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
) -> None:
    """Strengths with intervals, preferences, agreement and ties from the answers of a study."""
    from ..files import write_json
    from ..records import clean
    from ..study.answers import read_study, result_record, study_lines

    found = read_study(key, answers)
    typer.echo("\n".join(study_lines(found)))
    if out is not None:
        write_json(out, clean(result_record(found)))
