"""``mini-dinov3``: views of a scene are told alike, without captions (DINO, arXiv 2104.14294).

A student matches the prototype assignments of a teacher, its own slow average; the teacher's are
balanced over the batch by Sinkhorn-Knopp, and KoLeo spreads the student's vectors, both as in
DINOv2 and DINOv3. A view is drawn, not cropped alone: the same objects at other places, on
another ground.
"""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from ..data.scenes.render import render
from ..data.scenes.sampler import sample_scenes
from ..data.scenes.world import COLORS, GROUNDS, SceneBatch, colors_on
from .recipe import Schedule, StepContext, ZooRecipe, parameters_of, save_halved

SPLIT = "reencoder-train"
SIDE, PATCH = 32, 4
WIDTH, DEPTH, HEADS = 96, 3, 4
PROTOTYPES, BOTTLENECK = 256, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STUDENT_HEAT, TEACHER_HEAT = 0.1, 0.05
SLOW = (0.98, 0.999)  # the teacher's momentum at first and at last
SPREAD = 0.1  # KoLeo's weight
LEAST_ZOOM = 0.85
NOISE = 0.03
SIZES = (0.9, 1.1)  # how much smaller or larger an object may be drawn


class Student(nn.Module):
    """The vision transformer with DINO's head: three layers, a unit vector, prototypes."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.head = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, BOTTLENECK)
        )
        self.prototypes = nn.utils.parametrizations.weight_norm(
            nn.Linear(BOTTLENECK, PROTOTYPES, bias=False)
        )
        self.prototypes.parametrizations.weight.original0.data.fill_(1)
        self.prototypes.parametrizations.weight.original0.requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class tokens and prototype scores."""
        tokens = self.vit(pixel_values=pixels).last_hidden_state[:, 0]
        return tokens, self.prototypes(functional.normalize(self.head(tokens), dim=1))


class StudentTeacher(nn.Module):
    """Student and teacher; only the student is trained."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        self.teacher = copy.deepcopy(student).requires_grad_(False)


class DinoRecipe(ZooRecipe):
    """Self-distillation on scenes of the split 'reencoder-train'."""

    name = "mini-dinov3"
    objective = "self-distillation of images"
    schedule = Schedule(steps=700, batch=64, rate=2e-3, warmup=0.1, decay=0.04)

    def build(self) -> nn.Module:
        import transformers

        config = transformers.DINOv3ViTConfig(
            image_size=SIDE,
            patch_size=PATCH,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            num_register_tokens=2,
            pos_embed_rescale=None,
        )
        return StudentTeacher(Student(transformers.DINOv3ViTModel(config)))

    def loss(self, model: Any, at: StepContext) -> Tensor:
        size = self.schedule.batch
        scenes = sample_scenes(SPLIT, size, seed=at.seed, start=at.number * size)
        views = [view(scenes, at, which) for which in (0, 1)]
        with torch.no_grad():
            wanted = [balanced(model.teacher(pixels)[1] / TEACHER_HEAT) for pixels in views]
        total = torch.zeros(())
        for which, pixels in enumerate(views):
            tokens, scores = model.student(pixels)
            said = functional.log_softmax(scores / STUDENT_HEAT, dim=1)
            total = total - (wanted[1 - which] * said).sum(1).mean() / 2
            total = total + SPREAD * koleo(tokens) / 2
        return total

    def after(self, model: Any, at: StepContext) -> None:
        first, last = SLOW
        keep = last - (last - first) * (1 + math.cos(math.pi * at.progress)) / 2
        with torch.no_grad():
            for slow, fast in zip(
                model.teacher.parameters(), model.student.parameters(), strict=True
            ):
                slow.lerp_(fast, 1 - keep)

    def save(self, model: Any, folder: Path) -> int:
        import transformers

        vit = model.teacher.vit
        save_halved(vit, folder)
        transformers.DINOv3ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(
            folder
        )
        return parameters_of(vit)


def view(scenes: SceneBatch, at: StepContext, which: int) -> Float[Tensor, "N 3 H W"]:
    """The objects of scenes elsewhere, a little nearer, mirrored or not, with noise.

    Half of the views keep the places; in the others the whole layout is mirrored or turned and
    objects change places with each other. The ground is any from which all of them stand out.
    Shapes and colors stay, sizes nearly.
    """
    draw = np.random.default_rng([at.seed, at.number, which])
    moved = elsewhere(scenes, draw)
    generator = at.generator(which)
    pixels = render(moved, SIDE)
    n = len(scenes)
    zoom = LEAST_ZOOM + (1 - LEAST_ZOOM) * torch.rand(n, generator=generator)
    shift = (2 * torch.rand(n, 2, generator=generator) - 1) * (1 - zoom)[:, None]
    mirrored = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = zoom * mirrored, zoom, shift
    grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    pixels = functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    strength = NOISE * torch.rand(n, 1, 1, 1, generator=generator)
    pixels = pixels + strength * torch.randn(pixels.shape, generator=generator)
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def elsewhere(scenes: SceneBatch, draw: np.random.Generator) -> SceneBatch:
    """The same objects on any ground that they stand out from, at nearly their sizes; half of
    the scenes have them at other places."""
    n, k = scenes.shape.shape
    x, y = scenes.x.copy(), scenes.y.copy()
    there = np.greater_equal(scenes.shape, 0)
    move = draw.random(n) < 0.5
    for flip, values in ((draw.random(n) < 0.5, x), (draw.random(n) < 0.5, y)):
        flipped = np.logical_and(flip, move)[:, None] & there
        values[flipped] = 1 - values[flipped]
    turned = (draw.random(n) < 0.5) & move
    x[turned], y[turned] = y[turned], x[turned]
    # objects are in the first places of their rows, so the others are sorted to the end
    order = np.argsort(np.where(there, draw.random((n, k)), 2.0), axis=1)
    order[~move] = np.arange(k)
    rows = np.arange(n)[:, None]
    able = (_stands_out()[:, scenes.color] | ~there).all(2)  # grounds by scenes
    ground = np.where(able, draw.random(able.shape), -1.0).argmax(0)
    scale = SIZES[0] + (SIZES[1] - SIZES[0]) * draw.random((n, k))
    return SceneBatch(
        scenes.shape, scenes.color, scenes.size, x[rows, order], y[rows, order],
        (scenes.radius * scale).astype(np.float32), ground,
    )  # fmt: skip


@cache
def _stands_out() -> Bool[np.ndarray, "grounds colors"]:
    """Which colors an object may have on which ground."""
    return np.array([[color in colors_on(ground) for color in COLORS] for ground in GROUNDS])


def balanced(scores: Float[Tensor, "N K"], rounds: int = 3) -> Float[Tensor, "N K"]:
    """Assignments whose rows sum to 1 and whose prototypes are used alike (Sinkhorn-Knopp)."""
    found = (scores - scores.max()).exp().T
    found = found / found.sum()
    for _ in range(rounds):
        found = found / found.sum(1, keepdim=True).clamp_min(1e-12) / found.shape[0]
        found = found / found.sum(0, keepdim=True).clamp_min(1e-12) / found.shape[1]
    return (found * found.shape[1]).T


def koleo(vectors: Float[Tensor, "N D"]) -> Tensor:
    """Minus the mean log distance of each unit vector to its nearest other one (KoLeo)."""
    unit = functional.normalize(vectors, dim=1)
    with torch.no_grad():
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    return -torch.log((unit - unit[nearest]).norm(dim=1) + 1e-6).mean()
