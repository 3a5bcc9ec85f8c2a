"""``encbench geneval``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def geneval() -> None:
    """GenEval: prompts, verdicts and scores of images, comparisons, a gallery."""


@app.command("prompts")
def prompts(
    out: Annotated[Path, typer.Option(help="A .jsonl file, or a folder to lay out for images.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Prompts to take, e.g. the published file; else drawn."),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line [GenEval's 80].")
    ] = None,
    per_task: Annotated[
        str, typer.Option(help="How many to draw: a number, or single_object=80,counting=40,...")
    ] = "20",
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
) -> None:
    """Draw prompts in GenEval's grammar, or lay out folders for given ones."""
    from ..data.geneval import write_geneval
    from ..metrics.geneval.generate import write_prompts
    from ..metrics.geneval.run import choose_prompts

    chosen = choose_prompts(source, classes=classes, per_task=per_task, seed=seed)
    if out.suffix == ".jsonl":
        write_geneval(chosen, out)
    else:
        write_prompts(chosen, out)
    typer.echo(f"{len(chosen):,} prompts are in {out}")


@app.command("score")
def score(
    images: Annotated[Path, typer.Argument(help="Folder in GenEval's layout.")],
    out: Annotated[Path, typer.Option(help="Folder for verdicts and scores.")],
    detector: Annotated[
        str,
        typer.Option(
            help="mask2former[:FOLDER or hub id][?batch=8&dtype=...&pickle=true]; scenes, the "
            "judge of embedded scenes (with --colors none); or python:MODULE:NAME, called with "
            "the device."
        ),
    ] = "mask2former",
    colors: Annotated[
        str, typer.Option(help="CLIP that names colors, as an encoder's spec; or none.")
    ] = "clip:ViT-L-14/openai",
    overlap_limit: Annotated[
        float, typer.Option(min=0, max=1, help="Overlap from which the lesser object goes.")
    ] = 1.0,
    prompts: Annotated[
        Path | None, typer.Option(help="The prompts that should be there, to tell what is missing.")
    ] = None,
    images_per_prompt: Annotated[
        int | None, typer.Option(min=1, help="How many there should be [as many as any has].")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Detect, judge and score all images of a folder. Started again, it goes on where it was."""
    from ..metrics.geneval.run import score_images
    from ..progress import show_log

    show_log()
    lines = score_images(
        images,
        out,
        detector=detector,
        colors=colors,
        overlap_limit=overlap_limit,
        prompts=prompts,
        images_per_prompt=images_per_prompt,
        device=device,
        seed=seed,
    )
    typer.echo("\n".join(lines))
    typer.echo(f"scores are in {out}; look at the images by: encbench geneval gallery {out}")


@app.command("compare")
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of scores.")],
    second: Annotated[Path, typer.Argument(help="Folder of scores.")],
    detectors: Annotated[
        bool,
        typer.Option("--detectors", help="Two detectors on the same images: do they agree?"),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Two models on the same prompts, with paired intervals; or two detectors."""
    from ..metrics.geneval.metric import SPEC, Judgment
    from ..metrics.geneval.tables import agree
    from ..metrics.geneval.text import agreement_lines, comparison_lines
    from ..metrics.score import load_scoring
    from ..metrics.tables import compare_scorings

    one, two = load_scoring(first, Judgment), load_scoring(second, Judgment)
    if detectors:
        lines = agreement_lines(agree(one, two, seed=seed))
    else:
        lines = comparison_lines(compare_scorings(one, two, SPEC, seed=seed))
    typer.echo("\n".join(lines))


@app.command("gallery")
def gallery(
    scores: Annotated[Path, typer.Argument(help="Folder of scores.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the page [that one].")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """One HTML page with images, boxes, verdicts and reasons; it opens without a server."""
    from ..metrics.geneval.gallery import build_image_gallery
    from ..metrics.geneval.metric import Judgment
    from ..metrics.score import load_scoring

    path = build_image_gallery(load_scoring(scores, Judgment), out or scores, seed=seed)
    typer.echo(f"open {path}")
