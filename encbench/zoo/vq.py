"""``scene-vq``: an image as a small grid of discrete tokens, for ``mini-blip3o``.

A convolutional autoencoder whose bottleneck is rounded: three numbers of eight levels in each of
4 x 4 cells, so one of 512 tokens a cell (finite scalar quantisation, arXiv 2309.15505).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ..data.scenes.render import render
from ..data.scenes.sampler import sample
from ..errors import ModelError
from ..files import read_json, write_json
from .recipe import At, Recipe, Schedule, parameters_of
from .text import SPLIT

SIDE = 32
CELLS = 4  # a side
LEVELS = (8, 8, 8)
CODES = math.prod(LEVELS)
TOKENS = CELLS * CELLS
CHANNELS = (32, 64, 96)


class SceneVQ(nn.Module):
    """``tokens`` of images, and images of tokens by ``decode``."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c = CHANNELS
        dims = len(LEVELS)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, a, 4, 2, 1), nn.GELU(), nn.Conv2d(a, b, 4, 2, 1), nn.GELU(),
            nn.Conv2d(b, c, 4, 2, 1), nn.GELU(), nn.Conv2d(c, dims, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(dims, c, 3, 1, 1), nn.GELU(), nn.ConvTranspose2d(c, b, 4, 2, 1), nn.GELU(),
            nn.ConvTranspose2d(b, a, 4, 2, 1), nn.GELU(), nn.ConvTranspose2d(a, 3, 4, 2, 1),
        )  # fmt: skip

    def quantised(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 4 4"]:
        """The rounded bottleneck, in [-1, 1]; gradients pass the rounding by."""
        levels = torch.tensor(LEVELS)[:, None, None]
        bounded = (torch.tanh(self.encoder(images * 2 - 1)) + 1) / 2 * (levels - 1)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (levels - 1) * 2 - 1

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
        return self.decoder(self.quantised(images)) / 2 + 0.5

    @torch.no_grad()
    def tokens(self, images: Float[Tensor, "N 3 H W"]) -> Int[Tensor, "N 16"]:
        """A number below CODES for each cell, row by row."""
        levels = torch.tensor(LEVELS)[:, None, None]
        digits = ((self.quantised(images) + 1) / 2 * (levels - 1)).round().long()
        one, two, three = digits.unbind(1)
        return ((one * LEVELS[1] + two) * LEVELS[2] + three).flatten(1)

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "N 16"]) -> Float[Tensor, "N 3 H W"]:
        """Images in [0, 1]."""
        one, rest = tokens // (LEVELS[1] * LEVELS[2]), tokens % (LEVELS[1] * LEVELS[2])
        digits = torch.stack([one, rest // LEVELS[2], rest % LEVELS[2]], 1).float()
        levels = torch.tensor(LEVELS)[:, None]
        codes = (digits / (levels - 1) * 2 - 1).unflatten(2, (CELLS, CELLS))
        return (self.decoder(codes) / 2 + 0.5).clamp(0, 1)


class VQRecipe(Recipe):
    """Images are rebuilt by their absolute difference, from scenes that encoders train on."""

    name = "scene-vq"
    objective = "rebuild images from 16 tokens"
    schedule = Schedule(steps=300, batch=64, rate=3e-3, decay=0.0)
    reads_text = False

    def build(self) -> nn.Module:
        return SceneVQ()

    def loss(self, model: Any, at: At) -> Tensor:
        size = self.schedule.batch
        scenes = sample(SPLIT, size, seed=at.seed, start=at.number * size)
        images = render(scenes, SIDE)
        return functional.l1_loss(model(images), images)

    def save(self, model: Any, folder: Path) -> int:
        state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        write_json(
            folder / "config.json",
            {"model_type": "scene_vq", "image_size": SIDE, "cells": CELLS, "levels": list(LEVELS)},
        )
        return parameters_of(model)


def load_vq(folder: Path) -> SceneVQ:
    """The autoencoder of a folder, in eval mode.

    Raises:
        ModelError: if the folder holds another kind of model.
    """
    if read_json(folder / "config.json").get("levels") != list(LEVELS):
        raise ModelError(f"{folder} holds no scene-vq of levels {LEVELS}")
    model = SceneVQ()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval().requires_grad_(False)
