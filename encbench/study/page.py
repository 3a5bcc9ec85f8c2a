"""The page of a blind study: which of two images of a prompt is better?"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from ..errors import DataError, UsageError
from ..files import digest, write_json, write_text
from ..images import open_image
from ..metrics.folder import ImageFolder, read_images
from ..metrics.prompts import meaning
from ..pages import render_page
from ..types import ImageRecord

PAGE, KEY = "study.html", "key.json"
VERSION = 1
QUALITY = 90  # of the JPEGs in the page


@dataclass(frozen=True)
class Pair:
    """One question of a study.

    Attributes:
        pair_id: names it in the page and in the answers without revealing the models.
        prompt: its text.
        left, right: names of the models whose images are shown there.
    """

    pair_id: str
    prompt: str
    left: str
    right: str


def build_study(
    models: Mapping[str, Path],
    out: Path,
    *,
    pairs: int | None = None,
    question: str = "Which image fits the description better?",
    prompts: Path | None = None,
    side: int = 512,
    seed: int = 0,
) -> int:
    """Write ``study.html``, which is given to people, and ``key.json``, which is not.

    Each pair shows the first image of one prompt by two models. Pairs of models are shown equally
    often; prompts, sides and the order are drawn. The page holds the images themselves under
    names that tell nothing, so it can be mailed; each visitor sees the pairs in an order of
    their own.

    Args:
        models: name -> folder of images; see :func:`~encbench.metrics.folder.read_images`.
        pairs: how many questions; None = every pair of models on every prompt that all have.
        prompts: what files are named by; see there.
        side: longest side of the shown images in pixels.

    Returns:
        the number of pairs.

    Raises:
        UsageError: with fewer than two models.
        DataError: if they share no prompt with an image each, or an image cannot be read.
        StoreError: if the files cannot be written.
    """
    if len(models) < 2:
        raise UsageError("a study needs at least two models: --models A=FOLDER B=FOLDER")
    folders = {name: read_images(path, prompts=prompts) for name, path in models.items()}
    shown = {name: _first_images(folder) for name, folder in folders.items()}
    texts = {
        meaning(prompt): prompt.text for folder in folders.values() for prompt in folder.prompts
    }
    common = sorted(set.intersection(*(set(each) for each in shown.values())))
    if not common:
        raise DataError(f"{', '.join(models)} have images of no common prompt")
    rng = Random(f"study {seed}")
    chosen = _choose(sorted(models), common, pairs, rng)
    study = digest([VERSION, seed, question, sorted(models), [key.decode() for key in common]])[:16]
    rows: list[dict[str, Any]] = []
    key: list[Pair] = []
    images: dict[str, str] = {}
    for number, (prompt, left, right) in enumerate(chosen):
        pair_id = digest([study, number])[:12]
        key.append(Pair(pair_id, texts[prompt], left, right))
        row: dict[str, Any] = {"id": pair_id, "prompt": texts[prompt]}
        for place, model in (("left", left), ("right", right)):
            path = shown[model][prompt]
            name = digest([study, model, prompt.decode()])[:12]
            images.setdefault(name, _as_jpeg(path, side))
            row[place] = name
        rows.append(row)
    rng.shuffle(rows)
    source = files("encbench.study").joinpath("templates", PAGE).read_text("utf-8")
    data = {"version": VERSION, "study": study, "pairs": rows, "images": images}
    write_text(out / PAGE, render_page(source, data=data, question=question))
    write_json(
        out / KEY,
        {
            "version": VERSION,
            "study": study,
            "question": question,
            "models": sorted(models),
            "pairs": [asdict(pair) for pair in key],
        },
    )
    return len(rows)


def _first_images(folder: ImageFolder) -> dict[bytes, Path]:
    """The first image of each prompt that has one."""
    found: dict[bytes, Path] = {}
    for prompt in folder.prompts:
        there = [s.path for s in folder.samples[prompt.prompt_id] if s.path is not None]
        if there:
            found.setdefault(meaning(prompt), there[0])
    return found


def _choose(
    models: Sequence[str], prompts: Sequence[bytes], pairs: int | None, rng: Random
) -> list[tuple[bytes, str, str]]:
    """(prompt, left, right): each two models as often as any other, on prompts drawn without
    repetition until all have been used."""
    both = list(combinations(models, 2))
    wanted = len(both) * len(prompts) if pairs is None else pairs
    if not 1 <= wanted <= len(both) * len(prompts):
        raise UsageError(
            f"--pairs {wanted}: there are {len(both) * len(prompts):,} different pairs of images"
        )
    order = {two: rng.sample(prompts, len(prompts)) for two in both}
    rng.shuffle(both)
    found = []
    for number in range(wanted):
        two = both[number % len(both)]
        left, right = rng.sample(two, 2)
        found.append((order[two][number // len(both)], left, right))
    return found


def _as_jpeg(path: Path, side: int) -> str:
    image = open_image(ImageRecord(0, path.name, path, 0, 0))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
