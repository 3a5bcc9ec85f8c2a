"""The contact sheet of the docs: ``python -m encbench.data.scenes.sheet docs/figures/scenes.png``.

Every shape in every color, scenes with a caption in each tier, one scene at each resolution
with its masks.
"""

from __future__ import annotations

import argparse
import io
import textwrap
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from ...files import write_atomic
from .captions import Style, caption
from .render import boxes, masks, render, to_bytes
from .sampler import sample_scenes
from .splits import Tier
from .world import COLORS, GROUNDS, SHAPES, Scene, SceneBatch, SceneObject, colors_on

ROWS, COLUMNS = 4, 4
TIERS: tuple[Tier, ...] = ("A", "B", "C")
SIDES = (16, 32, 64, 128, 256)


def _table() -> UInt8[np.ndarray, "H W 3"]:
    """Every shape in every color, each on one of the grounds that it stands out from."""
    side, rows = 48, []
    for i, shape in enumerate(SHAPES):
        row = []
        for j, color in enumerate(COLORS):
            able = [ground for ground in GROUNDS if color in colors_on(ground)]
            thing = SceneObject(shape, color, "large", 0.5, 0.5, 0.4)
            row.append(Scene((thing,), able[(i + j) % len(able)]))
        rows.append(to_bytes(render(SceneBatch.of(row), side)).numpy())
    return np.concatenate([np.concatenate(list(row), 1) for row in rows], 0)


def contact_sheet(path: Path, seed: int = 0) -> None:
    """Draw the sheet as a PNG.

    Raises:
        StoreError: if the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 23), layout="constrained")
    FigureCanvasAgg(figure)
    parts = figure.subfigures(3, 1, height_ratios=(7, 13.2, 3))
    top, middle, bottom = np.ravel(np.array(parts))

    axes = top.subplots()
    axes.imshow(_table(), interpolation="nearest")
    axes.set_xticks(24 + 48 * np.arange(len(COLORS)), list(COLORS))
    axes.set_yticks(24 + 48 * np.arange(len(SHAPES)), SHAPES)
    axes.tick_params(length=0)
    top.suptitle("Every shape in every color (48 px each)")

    batch = sample_scenes("probe-test", ROWS * COLUMNS, seed=seed, combos="both")
    images = to_bytes(render(batch, 128)).numpy()
    panels = middle.subplots(ROWS, COLUMNS).ravel()
    for number, (axes, scene, image) in enumerate(zip(panels, batch, images, strict=True)):
        style: Style = "long" if number >= 2 * COLUMNS else "short"
        tiers = TIERS if style == "short" else TIERS[number % 3 :][:1]
        lines = [f"{tier}: {caption(scene, tier, style, seed=number)}" for tier in tiers]
        axes.imshow(image, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        text = "\n".join(textwrap.fill(line, 46) for line in lines)
        axes.text(0.5, -0.03, text, ha="center", va="top", size=8.5, transform=axes.transAxes)
    middle.suptitle("Scenes at 128 px, with short and long captions in the tiers A, B and C")

    one = batch.take(np.array([int((batch.shape >= 0).sum(1).argmax())]))
    panels = bottom.subplots(1, len(SIDES) + 1)
    for axes, side in zip(panels, SIDES, strict=False):
        axes.imshow(to_bytes(render(one, side)).numpy()[0], interpolation="nearest")
        axes.set_title(f"{side} px", size=9)
        axes.set_axis_off()
    found = masks(one, 128)[0]
    shade = (found * torch.arange(1, len(found) + 1)[:, None, None]).sum(0)
    panels[-1].imshow(shade, cmap="tab10", interpolation="nearest", vmin=0, vmax=9)
    for x0, y0, x1, y1 in boxes(found[found.any((1, 2))]).tolist():
        line = [x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0]
        panels[-1].plot(*(np.array(ends) - 0.5 for ends in line), color="white", lw=1)
    panels[-1].set_title("masks and boxes", size=9)
    panels[-1].set_axis_off()
    bottom.suptitle("One scene at five resolutions (no smoothing)")

    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=80, metadata={"Software": None})
    write_atomic(path, data.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, nargs="?", default=Path("docs/figures/scenes.png"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    contact_sheet(options.path, options.seed)
    print(f"written to {options.path}")
