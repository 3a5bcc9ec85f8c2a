"""Sample grids: the same prompts and noise at several numbers of steps."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from ..images import write_image
from .meanflow import Condition, sample_flow
from .sample import noise_of

STEPS = (1, 2, 4, 16)
LEAST = 96  # pixels of an image in the grid, at least
MARGIN = 6
LABEL = 150  # pixels for a prompt


@torch.no_grad()
def write_grid(
    path: Path | None,
    net: Any,
    space: Any,
    cond: Condition,
    prompts: Sequence[str],
    *,
    seed: int = 0,
) -> UInt8[np.ndarray, "H W 3"]:
    """Sample a network, a row for each prompt and a column for each number of steps, and write a
    PNG, unless the path is None.

    Raises:
        StoreError: if it cannot be written.
    """
    noise = torch.stack([noise_of(seed + i, space.shape) for i in range(len(prompts))])
    noise = noise.to(cond.tokens.device)
    columns = []
    for steps in STEPS:
        made = space.decode(sample_flow(net, cond, noise, steps)).float().clamp(0, 1)
        columns.append((made * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    heads = [f"{steps} step{'s' * (steps > 1)}" for steps in STEPS]
    grid = draw_grid(np.stack(columns, 1), list(prompts), heads)
    if path is not None:
        write_image(path, grid)
    return np.asarray(grid)


def draw_grid(
    images: UInt8[np.ndarray, "rows columns H W 3"], rows: Sequence[str], columns: Sequence[str]
) -> Image.Image:
    """Images in rows and columns, with what each row and column is; small ones enlarged by a
    whole number."""
    height, width = images.shape[2:4]
    scale = max(1, -(-LEAST // width))
    high, wide = height * scale + MARGIN, width * scale + MARGIN
    canvas = Image.new("RGB", (LABEL + wide * len(columns), 20 + high * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, head in enumerate(columns):
        draw.text((LABEL + column * wide, 4), head, fill="black")
    for row, prompt in enumerate(rows):
        lines = textwrap.wrap(prompt, 23)
        most = max(1, high // 12 - 1)
        if len(lines) > most:
            lines = [*lines[: most - 1], lines[most - 1][:20] + "..."]
        draw.text((4, 20 + row * high), "\n".join(lines), fill="black", spacing=1)
        for column in range(len(columns)):
            image = Image.fromarray(images[row, column]).resize(
                (width * scale, height * scale), Image.Resampling.NEAREST
            )
            canvas.paste(image, (LABEL + column * wide, 20 + row * high))
    return canvas
