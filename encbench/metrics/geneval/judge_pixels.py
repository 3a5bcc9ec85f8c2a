"""Training pixels of the scene judge: effects of sampling, compression and blur, and pictures
without objects. All work is on many pictures at once, drawn from one generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn.functional import interpolate

CLEAR, GONE = 0.78, 0.3
"""Visible shares of an object above which it must be found and below which it must not; between
them the loss ignores it."""


@dataclass(frozen=True)
class Pictures:
    """Images with what is in them.

    Attributes:
        shape: index into SHAPES, -1 for none.
        hue: index into COLORS, -1 for a color that has no name.
        box: center, width and height as fractions of the image.
        share: the share of each object that is still visible.
    """

    images: Float[Tensor, "N 3 S S"]
    shape: Int[Tensor, "N K"]
    hue: Int[Tensor, "N K"]
    box: Float[Tensor, "N K 4"]
    share: Float[Tensor, "N K"]

    def take(self, which: Tensor) -> Pictures:
        return Pictures(*(getattr(self, name)[which] for name in self.__dataclass_fields__))


def rand(*shape: int, draw: Generator) -> Tensor:
    """Uniform from 0 to 1."""
    return torch.rand(*shape, generator=draw)


def normal(*shape: int, draw: Generator) -> Tensor:
    """Standard normal."""
    return torch.randn(*shape, generator=draw)


def chance(n: int, share: float, draw: Generator) -> Bool[Tensor, " N"]:
    """Each true with the probability ``share``."""
    return torch.rand(n, generator=draw) < share


# ---------------------------------------------------------------- what happens to its pixels


def gaussian(width: Float[Tensor, " N"], side: int) -> Float[Tensor, "N S S"]:
    """Matrices that blur one axis by a Gaussian of ``width`` pixels; rows add up to 1."""
    at = torch.arange(side, dtype=torch.float32)
    apart = (at[:, None] - at) / width.clamp(min=1e-3)[:, None, None]
    weights = torch.exp(-0.5 * apart**2)
    return weights / weights.sum(2, keepdim=True)


def box(width: Float[Tensor, " N"], side: int) -> Float[Tensor, "N S S"]:
    """Matrices that average one axis over ``width`` pixels (at least one)."""
    at = torch.arange(side, dtype=torch.float32)
    weights = ((width[:, None, None] + 1) / 2 - (at[:, None] - at).abs()).clamp(0, 1)
    return weights / weights.sum(2, keepdim=True)


def coarsening_matrices(cells: Int[Tensor, " N"], side: int) -> Float[Tensor, "N S S"]:
    """Matrices that shrink one axis to ``cells`` pixels and stretch it again."""
    kinds = {}
    for number in set(cells.tolist()):
        eye = torch.eye(side)[:, None]
        small = interpolate(eye, number, mode="area")
        kinds[number] = interpolate(small, side, mode="linear")[:, 0].T
    return torch.stack([kinds[number] for number in cells.tolist()])


def field(n: int, channels: int, side: int, draw: Generator) -> Float[Tensor, "N c S S"]:
    """Smooth random fields of about unit size, with a few bumps across."""
    bumps = int(torch.randint(2, 7, (), generator=draw))
    rough = normal(n, channels, bumps, bumps, draw=draw)
    return interpolate(rough, (side, side), mode="bicubic", align_corners=True)


def degrade(seen: Pictures, draw: Generator) -> Pictures:
    """Blur, noise, erasure, blends, wrong tones, blocks: each in some pictures, to any degree
    at which a person would still tell the objects."""
    images, share = seen.images, seen.share
    n, _, side, _ = images.shape
    # the picture shines through another: that one's objects don't count, or nothing is asked
    which = chance(n, 0.12, draw)
    other = torch.roll(torch.arange(n), 3)
    weight = torch.where(which, 0.4 * rand(n, draw=draw), 0.0)
    images = images.lerp(images[other], weight[:, None, None, None])
    ghost = share[other] * torch.where(weight > 0.15, (CLEAR + GONE) / 2, 0.0)[:, None]
    shape = torch.cat([seen.shape, torch.where(weight[:, None] > 0.15, seen.shape[other], -1)], 1)
    hue = torch.cat([seen.hue, seen.hue[other]], 1)
    boxes = torch.cat([seen.box, seen.box[other]], 1)
    share = torch.cat([share, ghost.clamp(max=(CLEAR + GONE) / 2)], 1)
    images, share = _erase(images, boxes, share, draw)
    # linear along each axis: blur, a short smear, few pixels
    eye = torch.eye(side).expand(n, side, side)
    across = down = eye
    blur = gaussian(side * 0.05 * rand(n, draw=draw) ** 1.5, side)
    which = chance(n, 0.3, draw)[:, None, None]
    across, down = torch.where(which, blur, across), torch.where(which, blur, down)
    smear = box(side * 0.1 * rand(n, draw=draw), side)
    across = torch.where(chance(n, 0.08, draw)[:, None, None], smear, across)
    down = torch.where(chance(n, 0.08, draw)[:, None, None], smear, down)
    few = coarsening_matrices(torch.randint(20, 48, (n,), generator=draw).clamp(max=side), side)
    which = chance(n, 0.12, draw)[:, None, None]
    across, down = torch.where(which, few, across), torch.where(which, few, down)
    images = down[:, None] @ images @ across[:, None].transpose(2, 3)
    images = _tone(images, draw)
    # noise, white or in blobs
    strength = torch.where(chance(n, 0.3, draw), 0.22 * rand(n, draw=draw) ** 1.5, 0.0)
    noise = normal(n, 3, side, side, draw=draw)
    soft = interpolate(normal(n, 3, side // 2, side // 2, draw=draw), scale_factor=2.0)
    noise = torch.where(chance(n, 0.3, draw)[:, None, None, None], soft, noise)
    images = images + noise * strength[:, None, None, None]
    images = torch.where(chance(n, 0.1, draw)[:, None, None, None], _blocks(images, draw), images)
    return Pictures(images.clamp(0, 1), shape, hue, boxes, share)


def _tone(images: Float[Tensor, "N 3 S S"], draw: Generator) -> Float[Tensor, "N 3 S S"]:
    n = len(images)
    gain = 1 + 0.1 * normal(n, 3, 1, 1, draw=draw)
    lift = 0.05 * normal(n, 3, 1, 1, draw=draw)
    toned = (images * gain + lift).clamp(0, 1)
    mean = toned.mean((2, 3), keepdim=True)
    toned = mean + (toned - mean) * (0.45 + 0.65 * rand(n, 1, 1, 1, draw=draw))
    return torch.where(chance(n, 0.35, draw)[:, None, None, None], toned, images)


def _erase(
    images: Float[Tensor, "N 3 S S"],
    boxes: Float[Tensor, "N K 4"],
    share: Float[Tensor, "N K"],
    draw: Generator,
) -> tuple[Float[Tensor, "N 3 S S"], Float[Tensor, "N K"]]:
    """A box of one color or of noise over the picture; what it hides is taken off by its share
    of the objects' boxes."""
    n, _, side, _ = images.shape
    size = 0.04 + 0.3 * rand(n, 2, draw=draw)
    low = rand(n, 2, draw=draw) * (1 - size)
    line = (torch.arange(side) + 0.5) / side
    inside = [(line >= low[:, i, None]) & (line < (low + size)[:, i, None]) for i in (0, 1)]
    hole = (inside[1][:, :, None] & inside[0][:, None, :])[:, None]
    hole &= chance(n, 0.15, draw)[:, None, None, None]
    fill = rand(n, 3, 1, 1, draw=draw).expand_as(images)
    own = images[:, :, :1, :1].expand_as(images)  # most often the ground
    fill = torch.where(chance(n, 0.5, draw)[:, None, None, None], own, fill)
    rough = rand(n, 3, side, side, draw=draw)
    fill = torch.where(chance(n, 0.25, draw)[:, None, None, None], rough, fill)
    start, end = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    shared = torch.minimum(end, (low + size)[:, None]) - torch.maximum(start, low[:, None])
    hidden = (shared.clamp(min=0) / boxes[..., 2:].clamp(min=1e-6)).prod(2)
    hidden = hidden * hole.flatten(1).any(1)[:, None]
    return torch.where(hole, fill, images), share * (1 - hidden)


def _blocks(images: Float[Tensor, "N 3 S S"], draw: Generator) -> Float[Tensor, "N 3 S S"]:
    """Blocks of 8 x 8 pixels with few cosines left, as JPEG makes them."""
    n, _, side, _ = images.shape
    at = torch.arange(8)
    cosines = torch.cos((2 * at + 1) * at[:, None] * math.pi / 16) * 0.5
    cosines[0] *= math.sqrt(0.5)
    whole = torch.block_diag(*[cosines] * (side // 8))
    step = (0.02 + 0.18 * rand(n, 1, 1, 1, draw=draw)) * (1 + (at[:, None] + at) / 4).repeat(
        side // 8, side // 8
    )
    found = whole @ images @ whole.T
    pixels: Tensor = whole.T @ ((found / step).round() * step) @ whole
    return pixels


# -------------------------------------------------------------- pictures without any object


def nothing(seen: Float[Tensor, "M 3 S S"], count: int, draw: Generator) -> Pictures:
    """Images in which nobody would name an object: blank, noise, smooth colors, blobs, bars,
    scenes smeared or averaged beyond recognition.

    Args:
        seen: scenes to smear and average; at least 8.
    """
    side = seen.shape[-1]
    n = count
    base = rand(n, 3, 1, 1, draw=draw).expand(n, 3, side, side)
    strength = rand(n, 1, 1, 1, draw=draw)
    noise = base + normal(n, 3, side, side, draw=draw) * strength
    cells = 2 ** int(torch.randint(2, 5, (), generator=draw))
    patches = base + normal(n, 3, cells, cells, draw=draw).repeat_interleave(
        side // cells, 2
    ).repeat_interleave(side // cells, 3) * (0.3 * strength)
    clouds = base + field(n, 3, side, draw) * (0.4 * strength)
    color = rand(n, 3, 1, 1, draw=draw)
    # between 0.3 and 1.2 sigma: islands of any outline
    level = 0.3 + 0.9 * rand(n, 1, 1, 1, draw=draw)
    blobs = base.lerp(color, ((field(n, 1, side, draw) - level) * 8).clamp(0, 1))
    long = torch.where(
        chance(n, 0.5, draw)[:, None], torch.tensor([1.0, 0.1]), torch.tensor([0.1, 1.0])
    )
    size = (0.2 + 0.6 * rand(n, 1, draw=draw)) * long
    low = rand(n, 2, draw=draw) * (1 - size)
    line = (torch.arange(side) + 0.5) / side
    inside = [(line >= low[:, i, None]) & (line < (low + size)[:, i, None]) for i in (0, 1)]
    bars = torch.where((inside[1][:, :, None] & inside[0][:, None, :])[:, None], color, base)
    rows = torch.randint(len(seen), (n,), generator=draw)
    smear = box(side * (0.5 + 0.7 * rand(n, draw=draw)), side)
    eye = torch.eye(side).expand(n, side, side)
    flat = chance(n, 0.5, draw)[:, None, None]
    across, down = torch.where(flat, smear, eye), torch.where(flat, eye, smear)
    soft = gaussian(side * (0.01 + 0.03 * rand(n, draw=draw)), side)
    smeared = (down @ soft)[:, None] @ seen[rows] @ (across @ soft)[:, None].transpose(2, 3)
    melted = gaussian(side * (0.12 + 0.15 * rand(n, draw=draw)), side)[:, None]
    melted = melted @ seen[rows] @ melted.transpose(2, 3)
    mixed = torch.stack([torch.randperm(len(seen), generator=draw)[:8] for _ in range(n)])
    mean = seen[mixed].mean(1)
    kinds = torch.stack([base, noise, patches, clouds, blobs, bars, smeared, melted, mean], 1)
    kind = torch.randint(kinds.shape[1], (n,), generator=draw)
    images = kinds[torch.arange(n), kind]
    faint = normal(n, 3, side, side, draw=draw) * (0.08 * rand(n, 1, 1, 1, draw=draw))
    images = torch.where(chance(n, 0.4, draw)[:, None, None, None], images + faint, images)
    none = torch.full((n, 1), -1)
    return Pictures(images.clamp(0, 1), none, none, torch.zeros(n, 1, 4), torch.zeros(n, 1))
