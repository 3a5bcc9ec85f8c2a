"""Images of prompts, written in GenEval's layout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL.Image import Image

from ...data.geneval import GenevalPrompt, to_metadata
from ...errors import DataError, EncbenchError, RecordError
from ...files import digest, read_json, write_atomic, write_json
from ...images import write_image
from ...progress import bar
from ..folder import METADATA, SAMPLES

IMAGES_PER_PROMPT = 4
RECORD = "generation.json"

Sampler = Callable[[Sequence[str], Sequence[int]], Sequence[Image]]
"""``sample(prompts, seeds)``: one image for each prompt. All the randomness of an image must
come from its own seed (one generator for each), so that it does not depend on its batch."""


def sample_seed(seed: int, prompt_id: int, number: int) -> int:
    """The seed of one image, from 0 to 2**63 - 1."""
    made = hashlib.sha256(f"geneval {seed} {prompt_id} {number}".encode()).digest()
    return int.from_bytes(made[:8]) >> 1


def write_prompts(prompts: Sequence[GenevalPrompt], out: Path) -> None:
    """A folder for each prompt, with its metadata and no images yet.

    Raises:
        DataError: if the folder is of other prompts already.
        StoreError: if it cannot be written.
    """
    for prompt in prompts:
        path = out / f"{prompt.prompt_id:05d}" / METADATA
        line = metadata_line(prompt)
        if path.exists() and path.read_bytes() != line:
            raise DataError(f"{path} belongs to another prompt; choose another folder than {out}")
        if not path.exists():
            write_atomic(path, line)
        (path.parent / SAMPLES).mkdir(exist_ok=True)


def metadata_line(prompt: GenevalPrompt) -> bytes:
    """The one line of ``metadata.jsonl``, keys in the published order."""
    return (json.dumps(to_metadata(prompt), ensure_ascii=False) + "\n").encode()


def generate_images(
    prompts: Sequence[GenevalPrompt],
    sample: Sampler,
    out: Path,
    *,
    seed: int,
    model: str,
    images_per_prompt: int = IMAGES_PER_PROMPT,
    batch: int = 32,
    share: tuple[int, int] = (0, 1),
) -> int:
    """Sample the images that are missing. The same call resumes after a stop.

    Args:
        sample: see :data:`Sampler`.
        seed: all images follow from it.
        model: identifies the sampler, e.g. a hash of its weights and settings. Images of two
            samplers are never mixed in one folder.
        batch: images at a time; changes none of them.
        share: (i, n) makes every n-th image only, from the i-th on; for several processes.

    Returns:
        how many images were made.

    Raises:
        DataError: if the folder holds images of other prompts, another seed or model.
        EncbenchError: if ``sample`` does not return one image for each prompt.
        StoreError: if the folder cannot be written.
    """
    about = {
        "model": model,
        "seed": seed,
        "prompts": digest([to_metadata(prompt) for prompt in prompts]),
    }
    record = out / RECORD
    if record.exists():
        try:
            held = read_json(record)
        except RecordError as error:
            raise DataError(f"{error}, or choose another folder") from error
        differing = [
            key for key in about if not isinstance(held, dict) or held.get(key) != about[key]
        ]
        if differing:
            raise DataError(f"{out} holds images of another {differing[0]}; choose another folder")
    write_prompts(prompts, out)
    write_json(record, about)
    every = [
        (prompt, number, out / f"{prompt.prompt_id:05d}" / SAMPLES / f"{number:04d}.png")
        for prompt in prompts
        for number in range(images_per_prompt)
    ]
    todo = [one for one in every[share[0] :: share[1]] if not one[2].exists()]
    with bar("sampling", len(todo)) as advance:
        for start in range(0, len(todo), batch):
            part = todo[start : start + batch]
            seeds = [sample_seed(seed, prompt.prompt_id, number) for prompt, number, _ in part]
            images = sample([prompt.text for prompt, _, _ in part], seeds)
            if len(images) != len(part):
                raise EncbenchError(
                    f"the sampler of {model} returned {len(images)} images for {len(part)} prompts"
                )
            for (_, _, path), image in zip(part, images, strict=True):
                write_image(path, image)
            advance(len(part))
    return len(todo)
