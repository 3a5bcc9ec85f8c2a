"""All images of a scored folder on one HTML page, the worst prompts first.

The page holds text, boxes, style and script; the images stay where they are and are named by
relative paths, since thousands of them would not fit into one page. So the page opens offline
as long as it and the images keep their places relative to each other.
"""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...data.geneval import TASKS
from ...errors import DataError
from ...files import write_text
from ...pages import render_page
from ..score import ImageResult, PromptResult, Scoring
from ..tables import task_scores
from .metric import SPEC
from .tables import judgment_of, prompt_of
from .verdict import keep_objects

NAME = "gallery.html"
HUES = (0, 210, 120, 40, 280, 170, 320, 70)  # of boxes, one a class


def build_image_gallery(scoring: Scoring, out: Path, *, seed: int = 0) -> Path:
    """Write the page.

    Args:
        out: folder for ``gallery.html``.

    Raises:
        DataError: if the images are no longer where they were scored.
        StoreError: if the page cannot be written.
    """
    out, root = Path(out).resolve(), scoring.images.resolve()
    if not root.is_dir():
        raise DataError(f"the images are no longer at {root}; score them again where they are")
    source = files("encbench.metrics.geneval").joinpath("templates", NAME).read_text("utf-8")
    order = sorted(scoring.results, key=_worst_first)
    place = Path(os.path.relpath(root, out))
    rendered = render_page(
        source,
        scoring=scoring,
        tasks=[task for task in TASKS if any(r.prompt.task == task for r in order)],
        scores=task_scores(scoring.results, SPEC, seed=seed),
        prompts=[
            {
                "id": result.prompt.prompt_id,
                "task": result.prompt.task,
                "text": result.prompt.text,
                "right": round(sum(result.values)),
                "scored": len(result.values),
                "images": [_show_image(image, result, scoring, place) for image in result.images],
            }
            for result in order
        ],
    )
    write_text(out / NAME, rendered)
    return out / NAME


def _worst_first(result: PromptResult) -> tuple[float, int, int]:
    values = result.values
    share = sum(values) / len(values) if values else 2.0  # unscored ones come last
    return share, TASKS.index(result.prompt.task), result.prompt.prompt_id


def _show_image(
    image: ImageResult, result: PromptResult, scoring: Scoring, root: Path
) -> dict[str, Any]:
    judgment, prompt = judgment_of(image), prompt_of(result)
    verdict = judgment.verdict
    limit = float(scoring.setting("overlap_limit", "1"))
    kept = keep_objects(judgment.objects, prompt.task, limit)
    asked = {clause.label for clause in (*prompt.include, *prompt.exclude)}
    used = {i for clause in (verdict.clauses if verdict else ()) for i in clause.objects}
    boxes = []
    for number, label in enumerate(sorted(asked)):
        for place in kept.get(label, []):
            found = judgment.objects[place]
            x0, y0, x1, y1 = found.box
            boxes.append(
                {
                    "x": x0,
                    "y": y0,
                    "width": max(x1 - x0, 0.0),
                    "height": max(y1 - y0, 0.0),
                    "hue": HUES[number % len(HUES)],
                    "used": place in used,
                    "says": " ".join(filter(None, (found.color, label, f"{found.score:.2f}"))),
                }
            )
    return {
        "source": quote((root / image.file).as_posix()) if image.sha256 else "",
        "file": image.file,
        "width": image.size[0],
        "height": image.size[1],
        "state": "unscored" if verdict is None else "right" if verdict.correct else "wrong",
        "reason": (verdict.reason if verdict else judgment.problem).split("\n"),
        "boxes": boxes,
        "others": sorted({label for label in kept if label not in asked}),
    }
