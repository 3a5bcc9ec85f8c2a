"""``encbench study``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

import typer

from ..errors import UsageError
from ..options import check_options, option
from .options import add_command

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def study() -> None:
    """A blind pairwise user study: make its page, read the answers."""


@dataclass(frozen=True)
class MakeConfig:
    out: Path = option(MISSING, "Folder for study.html and key.json.")
    models: tuple[str, ...] = option(
        (), "Folder of images of each model.", metavar="NAME=FOLDER..."
    )
    pairs: int | None = option(
        None, "Number of pairs.", least=1, shown="each two models on each prompt"
    )
    question: str = option("Which image fits the description better?", "Question above each pair.")
    prompts: Path | None = option(
        None, "Prompts whose ids name the image files, as in encbench score."
    )
    side: int = option(512, "Longest side of a shown image in pixels.", least=16)
    seed: int = option(0, "Random seed of pairs, sides and order.", least=0)

    def __post_init__(self) -> None:
        check_options(self)


@add_command(app, "make", MakeConfig, toml=False)
def make(config: MakeConfig) -> None:
    """Make one static HTML page of image pairs; people answer by keyboard and send back a file."""
    from ..files import expand_home
    from ..study.page import KEY, PAGE, build_study

    folders = {}
    for text in config.models:
        name, equals, folder = text.partition("=")
        if not equals or not name or name in folders:
            raise UsageError(f"--models {text}: write each model once, as NAME=FOLDER")
        folders[name] = expand_home(folder)
    count = build_study(
        folders, config.out, pairs=config.pairs, question=config.question,
        prompts=config.prompts, side=config.side, seed=config.seed,
    )  # fmt: skip
    typer.echo(f"{count:,} pairs are in {config.out / PAGE}: send it to the participants")
    typer.echo(
        f"which model is which is in {config.out / KEY}: keep it, and read the answers with: "
        "encbench "
        f"study read {config.out / KEY} answers-*.json"
    )


@dataclass(frozen=True)
class ReadConfig:
    key: Path = option(MISSING, "key.json of the study.", argument=True)
    answers: tuple[Path, ...] = option(MISSING, "Files that people sent back.", argument=True)
    out: Path | None = option(None, "JSON file for the result.")


@add_command(app, "read", ReadConfig, toml=False)
def read(config: ReadConfig) -> None:
    """Print strengths with intervals, preferences, agreement and ties from a study's answers."""
    from ..files import write_json
    from ..records import clean
    from ..study.answers import read_study, result_record, study_lines

    found = read_study(config.key, config.answers)
    typer.echo("\n".join(study_lines(found)))
    if config.out is not None:
        write_json(config.out, clean(result_record(found)))
