"""The jobs of ``encbench geneval``: choosing prompts; scoring a folder from start to end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ...data.geneval import CLASSES, TASKS, GenevalPrompt, generate_prompts, load_geneval
from ...encoders import family_of
from ...encoders.spec import EncoderSpec
from ...errors import DataError, UsageError
from ...lock import lock_folder
from .folder import read_folder
from .score import score_folder
from .text import score_lines, write_scores


def score_images(
    images: Path,
    out: Path,
    *,
    detector: str,
    colors: str,
    overlap_limit: float = 1.0,
    prompts: Path | None = None,
    images_per_prompt: int | None = None,
    device: str = "auto",
    seed: int = 0,
) -> list[str]:
    """Score a folder and write everything to ``out``; the table in lines.

    Args:
        detector: see :func:`~encbench.metrics.geneval.detect.load_detector`.
        colors: an encoder's spec, loaded only if a color is needed; 'none' = no classifier.
        prompts: file of the prompts that should be there.

    Raises:
        EncbenchError: in one line; DataError also if not a single image can be scored.
    """
    from .colors import load_colors
    from .detect import load_detector

    expected = load_geneval(prompts) if prompts else None
    folder = read_folder(images, images_per_prompt=images_per_prompt, expected=expected)
    if colors == "none":
        colors, loader = "", None
    else:
        family_of(EncoderSpec.parse(colors))  # a wrong spec is told before anything is computed
        loader = partial(load_colors, colors, device)
    with lock_folder(out):
        scoring = score_folder(
            folder,
            out,
            load_detector(detector, device),
            loader,
            colors_name=colors,
            overlap_limit=overlap_limit,
        )
        scores = write_scores(scoring, out, seed=seed)
    if not scores:
        first = next(i for r in scoring.results for i in r.images if i.verdict is None)
        raise DataError(f"not one image in {images} could be scored: {first.problem}")
    return score_lines(scores, scoring)


def choose_prompts(
    source: Path | None, *, classes: Path | None = None, per_task: str = "20", seed: int = 0
) -> list[GenevalPrompt]:
    """Prompts from a file, or drawn as a command line says it.

    Args:
        source: file in the published form; None = draw them.
        classes: file with one class name a line; None = GenEval's 80.
        per_task: a number for every task, or 'single_object=80,counting=40'.

    Raises:
        UsageError: if ``per_task`` is neither, or both a file and classes are given.
        DataError: if a file is missing or broken.
    """
    if source is not None:
        if classes is not None:
            raise UsageError("prompts are either taken from a file or drawn for classes, not both")
        return load_geneval(source)
    pairs = [part.partition("=") for part in per_task.split(",")]
    if per_task.isdecimal():
        wanted = dict.fromkeys(TASKS, int(per_task))
    elif all(value.strip().isdecimal() for _, _, value in pairs):
        wanted = {task.strip(): int(value) for task, _, value in pairs}
    else:
        raise UsageError(f"per-task '{per_task}' is neither a number nor like single_object=80,...")
    labels: Sequence[str] = CLASSES
    if classes is not None:
        try:
            text = classes.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise DataError(f"cannot read {classes}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{classes} is no UTF-8 text (byte {error.start:,})") from error
        labels = [line.strip() for line in text.splitlines() if line.strip()]
        if not labels:
            raise DataError(f"{classes} holds no class names")
    return generate_prompts(labels, seed=seed, per_task=wanted)
