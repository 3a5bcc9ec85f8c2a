"""A second look at each object that the scene judge found: is it there, and what color has it?

The shape that was named is laid over the pixels at the box that was found, and colors inside
and outside follow by least squares. From these numbers, which say nothing about the shape, one
small network names the color, so that a color is named as well on shapes it was never seen
with (held-out combinations), and another one says how likely the object is what it was called.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from ...data.scenes.render import DISTANCES
from ...data.scenes.world import COLORS, EXTENTS

CELLS = 24  # a side of the patch that is looked at
WIDE = 1.3  # of the box, so that some ground is seen, too
COLOR_NUMBERS, SCORE_NUMBERS = 9, 4
WIDTH = 32  # of the hidden layers
LIKELY = 1e-4  # probabilities are kept this far from 0 and 1


class SecondLook(nn.Module):
    """The two small networks. Of some thousand weights, fitted after the detector."""

    def __init__(self) -> None:
        super().__init__()
        self.color = nn.Sequential(
            nn.Linear(COLOR_NUMBERS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, len(COLORS))
        )
        self.score = nn.Sequential(nn.Linear(SCORE_NUMBERS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))

    def forward(
        self, seen: Float[Tensor, "n 11"], likely: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n 10"], Float[Tensor, " n"]]:
        """Logits of the colors, and of the object being what it was called.

        Args:
            seen: from :func:`look`.
            likely: the detector's probability.
        """
        odds = torch.logit(likely, eps=LIKELY)[:, None] / 4
        colors, pixels = seen[:, :COLOR_NUMBERS], seen[:, COLOR_NUMBERS:]
        score = self.score(torch.cat([odds, pixels, odds * pixels[:, :1]], 1))
        return self.color(colors), score[:, 0]


def measure_objects(
    images: Float[Tensor, "N 3 S S"],
    image: Int[Tensor, " n"],
    shape: Int[Tensor, " n"],
    box: Float[Tensor, "n 4"],
) -> Float[Tensor, "n 11"]:
    """Measure n objects in the pixels: mean color well inside, color inside and outside by least
    squares (from -.5 to .5), share of the variance that the shape explains, and contrast.

    Args:
        image: which of the images each object is in.
        box: (x0, y0, x1, y1) as fractions of the image.
    """
    cover, deep = (each.to(images.device)[shape] for each in _templates())
    center, size = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]) * WIDE
    line = (torch.arange(CELLS, device=images.device) + 0.5) / CELLS - 0.5
    x = center[:, 0, None] + line * size[:, 0, None]
    y = center[:, 1, None] + line * size[:, 1, None]
    grid = torch.stack(
        [x[:, None, :].expand(-1, CELLS, -1), y[:, :, None].expand(-1, -1, CELLS)], -1
    )
    patch = grid_sample(
        images[image], grid * 2 - 1, padding_mode="border", align_corners=False
    ).flatten(2)
    cover, deep = cover.flatten(1), deep.flatten(1)
    mean, middle = patch.mean(2), cover.mean(1)
    off = (cover - middle[:, None])[:, None]
    spread = (off**2).mean(2)
    slope = ((patch - mean[..., None]) * off).mean(2) / spread
    inside, outside = mean + slope * (1 - middle[:, None]), mean - slope * middle[:, None]
    own = (patch * deep[:, None]).sum(2)
    variance = ((patch - mean[..., None]) ** 2).mean((1, 2))
    explained = (slope**2).mean(1) * spread[:, 0] / (variance + 1e-5)
    contrast = slope.norm(dim=1)
    colors = torch.cat([own, inside.clamp(-0.5, 1.5), outside.clamp(-0.5, 1.5)], 1) - 0.5
    return torch.cat([colors, explained[:, None], contrast[:, None]], 1)


@cache
def _templates() -> tuple[Float[Tensor, "shapes c c"], Float[Tensor, "shapes c c"]]:
    """Of each shape in its widened box: how much of each cell it covers, and weights of cells
    by their depth inside it, which add up to 1."""
    line = ((torch.arange(CELLS) + 0.5) / CELLS * 2 - 1) * WIDE
    cover, deep = [], []
    for name, (wide, high) in EXTENTS.items():
        x = (line * wide)[None, :].expand(CELLS, CELLS).clone()
        y = (line * high)[:, None].expand(CELLS, CELLS).clone()
        depth = -DISTANCES[name](x, y)
        for ends, reach in ((x, wide), (y, high)):  # points end at the box
            depth = torch.minimum(depth, reach - ends.abs())
        cover.append((depth * 6 + 0.5).clamp(0, 1))  # as soft as some pixels make it
        weights = depth.clamp(0, 0.3) ** 2
        deep.append(weights / weights.sum())
    return torch.stack(cover), torch.stack(deep)
