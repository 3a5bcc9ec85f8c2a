"""``encbench geneval``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import typer

from ..device import DEVICE_HELP
from ..options import check_options, option
from .answers import PrintJson, print_json
from .options import add_command

app = typer.Typer(no_args_is_help=True, add_completion=False)
BOOTSTRAP = "Random seed of the bootstrap."


@app.callback()
def geneval() -> None:
    """Draw GenEval prompts, score images by GenEval, compare two models, show a gallery."""


@dataclass(frozen=True)
class PromptsConfig:
    out: Path = option(MISSING, "A .jsonl file, or a folder to lay out for images.")
    source: Path | None = option(
        None, "File of prompts to take, such as the published one.", flag="--from", shown="drawn"
    )
    classes: Path | None = option(
        None, "File of class names, one a line.", shown="GenEval's 80 classes"
    )
    per_task: str = option("20", "How many to draw: a number, or single_object=80,counting=40,...")
    seed: int = option(0, "Random seed of the draw.")


@add_command(app, "prompts", PromptsConfig, toml=False)
def prompts(config: PromptsConfig) -> None:
    """Draw prompts in GenEval's grammar, or lay out folders for given ones."""
    from ..data.geneval import write_geneval
    from ..metrics.geneval.generate import write_prompts
    from ..metrics.geneval.run import choose_prompts

    chosen = choose_prompts(
        config.source, classes=config.classes, per_task=config.per_task, seed=config.seed
    )
    if config.out.suffix == ".jsonl":
        write_geneval(chosen, config.out)
    else:
        write_prompts(chosen, config.out)
    typer.echo(f"{len(chosen):,} prompts are in {config.out}")


@dataclass(frozen=True)
class ScoreConfig:
    images: Path = option(MISSING, "Folder in GenEval's layout.", argument=True)
    out: Path = option(MISSING, "Folder for verdicts and scores.")
    detector: str = option(
        "mask2former",
        "mask2former[:FOLDER or hub id][?batch=8&dtype=...&pickle=true]; scenes, the judge of "
        "embedded scenes (with --colors none); or python:MODULE:NAME, called with the device. "
        "See: encbench list detectors.",
    )
    colors: str = option(
        "clip:ViT-L-14/openai", "CLIP that names colors, as an encoder's spec; or none."
    )
    overlap_limit: float = option(
        1.0, "Drop the lower-scoring box above this IoU.", least=0, most=1
    )
    prompts: Path | None = option(None, "File of all prompts, to report which have no images.")
    images_per_prompt: int | None = option(
        None, "Images that each prompt should have.", least=1, shown="as many as any prompt has"
    )
    device: str = option("auto", DEVICE_HELP)
    seed: int = option(0, BOOTSTRAP)

    def __post_init__(self) -> None:
        check_options(self)


@add_command(app, "score", ScoreConfig, toml=False)
def score(config: ScoreConfig) -> None:
    """Score all images of a folder by GenEval. To resume after a stop, run it again."""
    from .. import distributed

    distributed.run_command(lambda: _score(config))


def _score(config: ScoreConfig) -> None:
    from ..metrics.geneval.run import score_images

    typer.echo("\n".join(score_images(**vars(config))))
    typer.echo(
        f"scores are in {config.out}; look at the images with: encbench geneval gallery "
        f"{config.out}"
    )


@dataclass(frozen=True)
class CompareConfig:
    first: Path = option(MISSING, "Folder of scores.", argument=True)
    second: Path = option(MISSING, "Folder of scores.", argument=True)
    detectors: bool = option(
        False, "Compare two detectors on the same images: how often do they agree?"
    )
    seed: int = option(0, BOOTSTRAP)


@add_command(app, "compare", CompareConfig, toml=False)
def compare(config: CompareConfig, json: PrintJson = False) -> None:
    """Compare two models on the same prompts, with paired intervals, or two detectors."""
    from ..metrics.geneval.metric import SPEC, Judgment
    from ..metrics.geneval.tables import agree
    from ..metrics.geneval.text import agreement_lines, comparison_lines
    from ..metrics.score import load_scoring
    from ..metrics.tables import compare_scorings

    found: Any
    one, two = (load_scoring(folder, Judgment) for folder in (config.first, config.second))
    if config.detectors:
        same = agree(one, two, seed=config.seed)
        kind, found, lines = "agreement", same, agreement_lines(same)
    else:
        change = compare_scorings(one, two, SPEC, seed=config.seed)
        kind, found, lines = "comparison", change, comparison_lines(change)
    if json:
        print_json(kind, found)
    else:
        typer.echo("\n".join(lines))


@dataclass(frozen=True)
class GalleryConfig:
    scores: Path = option(MISSING, "Folder of scores.", argument=True)
    out: Path | None = option(None, "Folder for the page.", shown="the folder of scores")
    seed: int = option(0, BOOTSTRAP)


@add_command(app, "gallery", GalleryConfig, toml=False)
def gallery(config: GalleryConfig) -> None:
    """Write one HTML page with images, boxes, verdicts and reasons; it opens without a server."""
    from ..metrics.geneval.gallery import build_image_gallery
    from ..metrics.geneval.metric import Judgment
    from ..metrics.score import load_scoring

    scoring = load_scoring(config.scores, Judgment)
    path = build_image_gallery(scoring, config.out or config.scores, seed=config.seed)
    typer.echo(f"open {path}")
