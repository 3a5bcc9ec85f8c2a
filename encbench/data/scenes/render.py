"""The renderer: scenes to tensors, anti-aliased, at any resolution, on any device.

Each shape is a signed distance function in its own coordinates (radius 1, center of its box at
the origin, y downwards), after the constructions in Inigo Quilez, '2D distance functions'
(https://iquilezles.org/articles/distfunctions2d/): exact where it counts, within a pixel of the
outline. A pixel's coverage is half minus the distance in pixels, clamped to [0, 1].

Only additions, products, quotients, roots, comparisons and copies are used, which IEEE 754
rounds in one way: an image's bits do not depend on the batch it is in. (Fused multiply-adds,
``lerp`` and trigonometry differ between the vectorized part of a kernel and its tail.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from .world import COLORS, EXTENTS, GROUNDS, SHAPES, SceneBatch

VERSION = 1  # raised when the same scene would give other pixels
# pixels of images rendered at once: on a CPU, intermediate results stay in its cache
CHUNK_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 25}

Distance = Callable[[Tensor, Tensor], Tensor]


def _length(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt_()


def _box(x: Tensor, y: Tensor, wide: float, high: float) -> Tensor:
    """Distance to a rectangle, for x and y that are not negative."""
    return torch.maximum(x - wide, y - high)


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return _length(x, y).sub_(1.0)


def _square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()).sub_(1.0)


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    # corners (0, -.9) and (+-1, .9): the side's normal is (1.8, -1) / sqrt(4.24)
    side = x.abs().mul_(0.874157).sub_((y + 0.9).mul_(0.485643))
    return torch.maximum(side, y - 0.9)


def _star(x: Tensor, y: Tensor) -> Tensor:
    """Five points at distance 1.05 from a center just below the origin, notches at .47."""
    x, y = x.abs(), 0.10027 - y  # upwards, from the star's own center
    # fold the ten-fold symmetry into the wedge between the upper point and the notch beside it
    for a, b in ((0.809017, -0.587785), (-0.809017, -0.587785)):
        over = (x * a + y * b).clamp_(min=0).mul_(2)
        x, y = x - over * a, y - over * b
    x = x.abs()
    # the line from the point (0, 1.05) to the notch (.47 sin 36, .47 cos 36)
    return x * 0.926870 + (y - 1.05).mul_(0.375383)


def _cross(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.abs(), y.abs()
    return _box(torch.maximum(x, y), torch.minimum(x, y), 0.95, 0.34)


def _ring(x: Tensor, y: Tensor) -> Tensor:
    return _length(x, y).sub_(0.75).abs_().sub_(0.25)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """A square standing on its corner, with half a disc on each upper side; box 2 x 1.83."""
    x, y = x.abs().mul_(0.603553), (0.914214 - y).mul_(0.603553)
    disc = _length(x - 0.25, y - 0.75).sub_(0.353553)
    square = (x - y).mul_(0.707107)
    return torch.where(x + y > 1, disc, square).mul_(1.656854)


def _diamond(x: Tensor, y: Tensor) -> Tensor:
    return x.abs().mul_(0.8).add_(y.abs().mul_(0.6)).sub_(0.6)


def _crescent(x: Tensor, y: Tensor) -> Tensor:
    """A disc less a disc of .85, .45 to the right; its horns are cut where they get too thin
    for small images to show."""
    disc = x - 0.375
    moon = torch.maximum(_length(disc, y).sub_(1.0), 0.85 - _length(disc - 0.45, y))
    return torch.maximum(moon, x - 0.625)


def _arrow(x: Tensor, y: Tensor) -> Tensor:
    """To the right: a head from x = -.05 on and a shaft."""
    y = y.abs()
    # corners (1, 0) and (-.05, .85): the side's normal is (.85, 1.05) / sqrt(1.825)
    head = torch.maximum((x - 1).mul_(0.629198).add_(y * 0.777245), -0.05 - x)
    shaft = _box((x + 0.45).abs_(), y, 0.55, 0.3)
    return torch.minimum(head, shaft)


def _hourglass(x: Tensor, y: Tensor) -> Tensor:
    """Two triangles, tip to tip, with a waist of .16."""
    y = y.abs()
    # |x| = .08 + .72 / .95 |y|, with the normal (.95, -.72) / sqrt(1.4209)
    side = (x.abs() - 0.08).mul_(0.796970).sub_(y * 0.604019)
    return torch.maximum(side, y - 0.95)


def _semicircle(x: Tensor, y: Tensor) -> Tensor:
    y = y - 0.5
    return torch.maximum(_length(x, y).sub_(1.0), y)


DISTANCES: dict[str, Distance] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross,
    "ring": _ring, "heart": _heart, "diamond": _diamond, "crescent": _crescent, "arrow": _arrow,
    "hourglass": _hourglass, "semicircle": _semicircle,
}  # fmt: skip
"""Signed distance of each shape in units of its radius; negative inside."""


class _Coverage:
    """How much of each pixel each object covers, in a window around the object.

    Objects are in the order of their scenes. Windows are alike in size, as wide as the largest
    object, and lie inside the image; what a pixel's value is does not depend on its window.
    """

    def __init__(self, batch: SceneBatch, size: int, device: torch.device) -> None:
        self.count = len(batch)
        scene, slot = np.nonzero(batch.shape >= 0)
        kinds = batch.shape[scene, slot]
        self.scene, self.slot, self.color = (
            torch.from_numpy(a).to(device) for a in (scene, slot, batch.color[scene, slot])
        )
        x, y, radius = (
            torch.from_numpy(np.ascontiguousarray(a[scene, slot], dtype=np.float32)).to(device)
            for a in (batch.x, batch.y, batch.radius)
        )
        # half a pixel more than the box on each side, and one lost by rounding
        side = min(size, int(np.ceil(2 * batch.radius.max(initial=0) * size)) + 3)
        x0 = (x * size - side / 2).round().clamp(0, size - side)
        y0 = (y * size - side / 2).round().clamp(0, size - side)
        step = torch.arange(side, device=device, dtype=torch.float32) + 0.5
        scale = radius * size
        across = ((x0[:, None] + step) - (x * size)[:, None]) / scale[:, None]
        down = ((y0[:, None] + step) - (y * size)[:, None]) / scale[:, None]
        self.values = torch.empty(len(scene), side, side, device=device)
        for number, name in enumerate(SHAPES):
            which = torch.from_numpy(np.nonzero(kinds == number)[0]).to(device)
            if len(which):
                shape = (len(which), side, side)
                distance = DISTANCES[name](
                    across[which][:, None, :].expand(shape), down[which][:, :, None].expand(shape)
                )
                inside = distance.mul_(scale[which][:, None, None]).neg_().add_(0.5)
                # a point would reach beyond its box, since distances there are to its sides
                for axis, ends in ((1, across[which]), (2, down[which])):
                    edge = (EXTENTS[name][axis - 1] - ends.abs()) * scale[which][:, None] + 0.5
                    inside = torch.minimum(inside, edge.unsqueeze(axis), out=inside)
                self.values[which] = inside.clamp_(0, 1)
        reach = torch.arange(side, device=device)
        rows = (y0.long()[:, None] + reach) * size
        self.pixels = (rows[:, :, None] + (x0.long()[:, None] + reach)[:, None, :]).flatten(1)

    def at(self, slot: int) -> Int[Tensor, " n"]:
        """The objects in one place of their scenes, at most one for each scene."""
        return (self.slot == slot).nonzero()[:, 0]


def render(
    batch: SceneBatch, size: int, device: str | torch.device = "cpu"
) -> Float[Tensor, "N 3 H W"]:
    """Images of ``size`` x ``size`` pixels, float32 in [0, 1].

    An image depends on its scene and the size alone. Later objects cover earlier ones.
    """
    device = torch.device(device)
    images = torch.empty(len(batch), 3, size, size, device=device)
    for part in _chunks(len(batch), size, device):
        _paint(batch.take(part), size, images[part])
    return images


def _paint(batch: SceneBatch, size: int, images: Float[Tensor, "N 3 H W"]) -> None:
    device = images.device
    colors = torch.tensor(list(COLORS.values()), device=device) / 255.0
    grounds = torch.tensor(list(GROUNDS.values()), device=device) / 255.0
    ground = grounds[torch.from_numpy(batch.ground).to(device)]
    images.copy_(ground[:, :, None, None].expand_as(images))
    coverage = _Coverage(batch, size, device)
    canvas = images.view(len(batch), 3, size * size).view(-1)
    plane = torch.arange(3, device=device)[:, None] * (size * size)
    for slot in range(batch.shape.shape[1]):
        which = coverage.at(slot)
        if len(which):
            start = coverage.scene[which] * (3 * size * size)
            pixels = start[:, None, None] + plane + coverage.pixels[which][:, None, :]
            there = canvas[pixels]
            share = coverage.values[which].flatten(1)[:, None, :]
            color = colors[coverage.color[which]][:, :, None]
            # written so that a pixel fully covered has the color exactly
            canvas[pixels] = there * (1 - share) + color * share


def masks(batch: SceneBatch, size: int) -> Bool[Tensor, "N K H W"]:
    """The visible part of each object: pixels that it covers by half or more and no later
    object does. All False where a scene has no such object."""
    device = torch.device("cpu")
    places = batch.shape.shape[1]
    found = torch.zeros(len(batch), places, size, size, dtype=torch.bool, device=device)
    for part in _chunks(len(batch), size, device):
        coverage = _Coverage(batch.take(part), size, device)
        rows = torch.zeros(coverage.count * places, size * size, dtype=torch.bool, device=device)
        own = coverage.scene * places + coverage.slot
        rows[own[:, None], coverage.pixels] = (coverage.values >= 0.5).flatten(1)
        found[part] = rows.view(-1, places, size, size)
    for slot in range(places - 1):
        found[:, slot] &= ~found[:, slot + 1 :].any(1)
    return found


def boxes(masks: Bool[Tensor, "*N H W"]) -> Float[Tensor, "*N 4"]:
    """(x0, y0, x1, y1) in pixels around each mask, the upper ends exclusive; 0 for an empty one."""
    ends = []
    for axis in (-2, -1):  # across, then down
        line = masks.any(axis)
        at = torch.arange(line.shape[-1], device=masks.device)
        last = torch.where(line, at + 1, 0).amax(-1)
        first = torch.where(line, at, line.shape[-1]).amin(-1)
        ends.append((torch.where(line.any(-1), first, 0), last))
    (x0, x1), (y0, y1) = ends
    return torch.stack([x0, y0, x1, y1], -1).float()


def to_bytes(images: Float[Tensor, "N 3 H W"]) -> UInt8[Tensor, "N H W 3"]:
    """Images as bytes, the way image files hold them."""
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _chunks(count: int, size: int, device: torch.device) -> list[slice]:
    step = max(1, CHUNK_PIXELS.get(device.type, 1 << 18) // (size * size))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]
