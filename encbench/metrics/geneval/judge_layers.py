"""Training pictures of the scene judge: scenes as layers, with errors like those of generators.

Each object is a layer of its own, so that what is left of it after cutting, fading and covering
is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

from ...data.scenes.render import render
from ...data.scenes.world import COLORS, EXTENTS, GROUNDS, SHAPES, SceneBatch
from .judge_pixels import CLEAR, GONE, Pictures, chance, field, gaussian, normal, rand

_BLACK = GROUNDS["black"][0] / 255  # white objects on black give alphas


@dataclass(frozen=True)
class Layers:
    """N pictures of up to K objects, later ones on top.

    Attributes:
        alpha: how much of each pixel an object covers.
        color, ground: as they are painted.
        shape: index into SHAPES, -1 for none.
        hue: index into COLORS, -1 for a color that has no name.
        box: center, width and height as fractions of the image.
        share: the share of each object that is still visible.
    """

    alpha: Float[Tensor, "N K S S"]
    color: Float[Tensor, "N K 3"]
    ground: Float[Tensor, "N 3"]
    shape: Int[Tensor, "N K"]
    hue: Int[Tensor, "N K"]
    box: Float[Tensor, "N K 4"]
    share: Float[Tensor, "N K"]


def layers(batch: SceneBatch, side: int) -> Layers:
    """Scenes as layers."""
    n, k = batch.shape.shape
    shape = torch.from_numpy(batch.shape).long()
    reach = np.array(list(EXTENTS.values()), np.float32)[batch.shape] * batch.radius[..., None]
    box = np.concatenate([np.stack([batch.x, batch.y], -1), 2 * reach], -1).astype(np.float32)
    colors = torch.tensor(list(COLORS.values())) / 255
    grounds = torch.tensor(list(GROUNDS.values())) / 255
    hue = torch.from_numpy(batch.color).long()
    return Layers(
        alpha=_alpha(batch, side), color=colors[hue], shape=shape, hue=hue,
        ground=grounds[torch.from_numpy(batch.ground).long()], box=torch.from_numpy(box),
        share=torch.ones(n, k),
    )  # fmt: skip


def _alpha(batch: SceneBatch, side: int) -> Float[Tensor, "N K S S"]:
    """The cover of each object alone: rendered white on black, one to an image."""
    n, k = batch.shape.shape
    there = np.nonzero(batch.shape.reshape(-1) >= 0)[0]
    white, black = list(COLORS).index("white"), list(GROUNDS).index("black")
    one = {name: getattr(batch, name).reshape(-1, 1)[there] for name in ("x", "y", "radius")}
    kinds = {name: getattr(batch, name).reshape(-1, 1)[there] for name in ("shape", "size")}
    alone = SceneBatch(
        **one, **kinds, color=np.full((len(there), 1), white),
        ground=np.full(len(there), black),
    )  # fmt: skip
    alpha = torch.zeros(n * k, side, side)
    seen = render(alone, side)[:, 0]
    alpha[torch.from_numpy(there)] = (seen - _BLACK) / (1 - _BLACK)
    return alpha.view(n, k, side, side)


def paint(made: Layers) -> Pictures:
    """Layers to images."""
    side = made.alpha.shape[-1]
    images = made.ground[:, :, None, None].expand(-1, -1, side, side)
    left = made.alpha.flatten(2).sum(2)
    clear = torch.ones_like(made.alpha[:, :1])
    for k in reversed(range(made.alpha.shape[1])):  # what covers it comes later
        here = made.alpha[:, k : k + 1]
        left[:, k] = (here * clear).flatten(1).sum(1) / left[:, k].clamp(min=1e-6)
        clear = clear * (1 - here)
    for k in range(made.alpha.shape[1]):
        here = made.alpha[:, k : k + 1]
        images = images * (1 - here) + made.color[:, k, :, None, None] * here
    return Pictures(images, made.shape, made.hue, made.box, made.share * left)


# ------------------------------------------------------------------- what is in the picture


def disturb(made: Layers, batch: SceneBatch, draw: Generator) -> Layers:
    """Make objects incomplete, between two shapes, wrong in color, moved or covered."""
    n, k = made.shape.shape
    made = _recolor(_morph(made, batch, draw), draw)
    alpha, share = made.alpha, made.share
    # cut by a line or a ball at a random place in or near the object
    cut = chance(n, 0.25, draw)[:, None] & (rand(n, k, draw=draw) < 0.5)
    alpha, share = _cut(alpha, share, made.box, cut, draw)
    # faded, as objects are that a model is not sure of
    fade = chance(n, 0.15, draw)[:, None] & (rand(n, k, draw=draw) < 0.5)
    kept = torch.where(fade, rand(n, k, draw=draw), 1.0)
    made = replace(made, alpha=alpha * kept[:, :, None, None], share=share * kept)
    # objects of another picture over these
    more = chance(n, 0.12, draw)
    other = torch.roll(torch.arange(n), 1)
    added = {name: getattr(made, name)[other].clone() for name in ("shape", "hue", "share")}
    added["shape"][~more] = -1
    over = made.alpha[other] * more[:, None, None, None]
    made = Layers(
        alpha=torch.cat([made.alpha, over], 1),
        color=torch.cat([made.color, made.color[other]], 1),
        ground=made.ground,
        box=torch.cat([made.box, made.box[other]], 1),
        **{name: torch.cat([getattr(made, name), part], 1) for name, part in added.items()},
    )
    return _warp(made, draw)


def _recolor(made: Layers, draw: Generator) -> Layers:
    """Most colors a little off; in some pictures any colors, which have no names then."""
    n, k, _ = made.color.shape
    off = chance(n, 0.6, draw)[:, None, None]
    light = 1 + 0.15 * normal(n, k, 1, draw=draw)
    color = (made.color * light + 0.04 * normal(n, k, 3, draw=draw)).clamp(0, 1)
    color = torch.where(off, color, made.color)
    ground = (made.ground + 0.05 * normal(n, 3, draw=draw)).clamp(0, 1)
    ground = torch.where(off[:, 0], ground, made.ground)
    strange = chance(n, 0.15, draw)
    any_ground = rand(n, 3, draw=draw)
    any_color = rand(n, k, 3, draw=draw)
    near = (any_color - any_ground[:, None]).abs().amax(2, keepdim=True) < 0.35
    any_color = torch.where(near, (any_ground[:, None] + 0.5) % 1, any_color)
    return replace(
        made,
        color=torch.where(strange[:, None, None], any_color, color),
        ground=torch.where(strange[:, None], any_ground, ground),
        hue=torch.where(strange[:, None], -1, made.hue),
    )


def _morph(made: Layers, batch: SceneBatch, draw: Generator) -> Layers:
    """Rounded shapes, and shapes on the way to another; past a quarter of it nothing is asked."""
    n = len(made.alpha)
    side = made.alpha.shape[-1]
    rows = chance(n, 0.2, draw).nonzero()[:, 0]
    if not len(rows):
        return made
    part = batch.take(rows.numpy())
    step = torch.randint(1, len(SHAPES), part.shape.shape, generator=draw).numpy()
    other = replace(part, shape=np.where(part.shape >= 0, (part.shape + step) % len(SHAPES), -1))
    way = torch.where(chance(len(rows), 0.5, draw), 0.5 * rand(len(rows), draw=draw), 0.0)
    mixed = made.alpha[rows].lerp(_alpha(other, side), way[:, None, None, None])
    width = (0.008 + 0.022 * rand(len(rows), draw=draw)) * side
    smooth = gaussian(width, side)[:, None]
    soft = smooth @ mixed @ smooth.transpose(2, 3)
    hard = 1 + 3 * rand(len(rows), 1, 1, 1, draw=draw)
    alpha, share = made.alpha.clone(), made.share.clone()
    alpha[rows] = ((soft - 0.5) * hard + 0.5).clamp(0, 1)
    share[rows] *= torch.where(way > 0.25, (CLEAR + GONE) / 2, 1.0)[:, None]
    return replace(made, alpha=alpha, share=share)


def _cut(
    alpha: Float[Tensor, "N K S S"],
    share: Float[Tensor, "N K"],
    box: Float[Tensor, "N K 4"],
    which: Bool[Tensor, "N K"],
    draw: Generator,
) -> tuple[Float[Tensor, "N K S S"], Float[Tensor, "N K"]]:
    n, k, side, _ = alpha.shape
    line = (torch.arange(side) + 0.5) / side
    reach = box[..., 2:].amax(2) / 2
    angle = 2 * math.pi * rand(n, k, draw=draw)
    across = line[None, None, None, :] - box[..., 0, None, None]
    down = line[None, None, :, None] - box[..., 1, None, None]
    along = across * angle.cos()[..., None, None] + down * angle.sin()[..., None, None]
    at = reach * (2.2 * rand(n, k, draw=draw) - 1.1)
    half = ((at[..., None, None] - along) * side + 0.5).clamp(0, 1)
    far = reach * 1.2
    x, y = (far * (2 * rand(n, k, draw=draw) - 1) for _ in range(2))
    hole = reach * (0.2 + 0.9 * rand(n, k, draw=draw))
    away = ((across - x[..., None, None]) ** 2 + (down - y[..., None, None]) ** 2).sqrt()
    ball = ((away - hole[..., None, None]) * side + 0.5).clamp(0, 1)
    keep = torch.where(chance(n, 0.5, draw)[:, None, None, None], half, ball)
    keep = torch.where(which[..., None, None], keep, 1.0)
    rest = (alpha * keep).flatten(2).sum(2) / alpha.flatten(2).sum(2).clamp(min=1e-6)
    return alpha * keep, share * rest


def _warp(made: Layers, draw: Generator) -> Layers:
    """Zoom, shift, tilt and a smooth distortion."""
    n, side = len(made.alpha), made.alpha.shape[-1]
    rows = chance(n, 0.4, draw).nonzero()[:, 0]
    m = len(rows)
    if not m:
        return made
    zoom = torch.exp(0.16 * (2 * rand(m, 2, draw=draw) - 1))
    zoom[:, 1] = zoom[:, 0] * torch.exp(0.05 * normal(m, draw=draw))
    shift = 0.05 * (2 * rand(m, 2, draw=draw) - 1)
    tilt = 0.12 * normal(m, draw=draw)
    turn = torch.stack([tilt.cos(), tilt.sin(), -tilt.sin(), tilt.cos()], 1).view(m, 2, 2)
    line = (torch.arange(side) + 0.5) / side - 0.5
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    wobble = field(m, 2, side, draw) * (0.035 * rand(m, 1, 1, 1, draw=draw) ** 2)
    # where each pixel comes from: source = turn (here - shift) / zoom + wobble
    source = (grid - shift[:, None, None]) @ turn[:, None] / zoom[:, None, None]
    source = source + wobble.permute(0, 2, 3, 1)
    moved = grid_sample(
        made.alpha[rows], source * 2, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    grown = zoom.prod(1)[:, None]
    before = made.alpha[rows].flatten(2).sum(2)
    left = moved.flatten(2).sum(2) / (before * grown).clamp(min=1e-6)
    alpha, box, share = made.alpha.clone(), made.box.clone(), made.share.clone()
    alpha[rows] = moved
    there = (box[rows, :, :2] - 0.5) * zoom[:, None] @ turn.transpose(1, 2)
    box[rows] = torch.cat([there + shift[:, None] + 0.5, box[rows, :, 2:] * zoom[:, None]], 2)
    share[rows] *= left.clamp(max=1)
    return replace(made, alpha=alpha, box=box, share=share)
