"""A judge without training for images of the easy world: nearest color, best template.

Each pixel is given to the nearest of the world's colors and grounds. For every color, shape and
place of a fine raster, the overlap (intersection over union) of that color's pixels with the
shape's own mask there, both inside a window around it, is the score of an object.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional as F

from encbench.data.scenes.render import masks
from encbench.data.scenes.world import COLORS, GROUNDS, Scene, SceneBatch, SceneObject, World
from encbench.types import Detection

RADIUS = 0.1975  # of the one size of the world 'scenes-grid'


class TemplateJudge:
    """A detector for the world 'scenes-grid'; scores are overlaps, those from .6 up count fully."""

    def __init__(self, world: World, side: int = 32, least: float = 0.6) -> None:
        self.side, self.least = side, least
        self.labels = world.shapes
        self.colors = list(world.colors)
        palette = [COLORS[c] for c in world.colors] + [GROUNDS[g] for g in world.grounds]
        self.palette = torch.tensor(palette, dtype=torch.float32)
        middle = [
            Scene((SceneObject(shape, "red", "large", 0.5, 0.5, RADIUS),), "black")
            for shape in world.shapes
        ]
        window = 2 * int(np.ceil(RADIUS * side)) + 3
        start = (side - window) // 2
        drawn = masks(SceneBatch.of(middle), side)[:, 0].float()
        self.templates = drawn[:, start : start + window, start : start + window]

    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        pixels = torch.stack(
            [torch.from_numpy(np.asarray(i.convert("RGB")).copy()) for i in images]
        )
        return self.detect_tensor(pixels.permute(0, 3, 1, 2).float() / 255)

    def detect_tensor(self, images: Tensor) -> list[list[Detection]]:
        """Of (N, 3, H, W) in [0, 1]."""
        flat = images.mul(255).permute(0, 2, 3, 1)[..., None, :]
        nearest = (flat - self.palette).norm(dim=-1).argmin(-1)
        planes = torch.stack([nearest == k for k in range(len(self.colors))], 1).float()
        n, k, side, _ = planes.shape
        kinds, window = self.templates.shape[:2]
        pad = window // 2
        planes = planes.reshape(n * k, 1, side, side)
        both = F.conv2d(planes, self.templates[:, None], padding=pad)
        inside = F.conv2d(planes, torch.ones(1, 1, window, window), padding=pad)
        area = self.templates.sum((1, 2))[None, :, None, None]
        overlap = (both / (inside + area - both)).reshape(n, k, kinds, side, side)
        return [self._objects(one) for one in overlap]

    def _objects(self, overlap: Tensor) -> list[Detection]:
        overlap = overlap.clone()
        reach = self.side // 4
        found: list[Detection] = []
        while len(found) < 6:
            best = int(overlap.argmax())
            score = float(overlap.flatten()[best])
            if score < self.least:
                break
            k, s, y, x = np.unravel_index(best, overlap.shape)
            half = RADIUS * self.side
            box = (x + 0.5 - half, y + 0.5 - half, x + 0.5 + half, y + 0.5 + half)
            found.append(
                Detection(self.labels[s], tuple(map(float, box)), 1.0, color=self.colors[k])
            )
            rows = slice(max(0, y - reach), y + reach + 1)
            columns = slice(max(0, x - reach), x + reach + 1)
            overlap[:, :, rows, columns] = 0
        return found
