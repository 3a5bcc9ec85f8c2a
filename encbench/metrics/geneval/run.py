"""The jobs of ``encbench geneval``: choosing prompts; scoring a folder from start to end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...data.geneval import CLASSES, TASKS, GenevalPrompt, generate_prompts, load_geneval
from ...errors import DataError, UsageError
from ...files import read_lines
from ...lock import lock_folder
from ..folder import read_folder
from ..score import score_folder
from .metric import Judgment, build_geneval
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
    expected = load_geneval(prompts) if prompts else None
    folder = read_folder(images, images_per_prompt=images_per_prompt, expected=expected)
    metric = build_geneval(detector, colors, device, overlap_limit=overlap_limit)
    metric.check(folder.prompts)
    with lock_folder(out):
        scoring = score_folder(folder, out, metric, Judgment)
        scores = write_scores(scoring, out, seed=seed)
    if not scores:
        first = scoring.unscored[0].score.problem
        raise DataError(f"none of the images in {images} could be scored: {first}")
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
        labels = [line.strip() for line in read_lines(classes, DataError) if line.strip()]
        if not labels:
            raise DataError(f"{classes} holds no class names")
    return generate_prompts(labels, seed=seed, per_task=wanted)
