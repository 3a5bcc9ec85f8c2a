"""``scene-vq``: an image as a small grid of discrete tokens, for ``mini-blip3o``.

An image of 32 x 32 pixels is cut into 4 x 4 patches, and each is told by the nearest of 512
patches (vector quantization). The codebook is fitted by k-means, whose loss is the mean squared
distance of a patch to its nearest code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ..data.scenes.render import render
from ..data.scenes.sampler import sample_scenes
from ..errors import ModelError
from ..files import write_json
from ..schema import read_model_config
from .recipe import Schedule, StepContext, ZooRecipe, parameters_of
from .text import SPLIT

SIDE = 32
CELLS = 4  # a side
PATCH = SIDE // CELLS
CODES = 512
TOKENS = CELLS * CELLS
SHOWING = 0.02  # least standard deviation of a patch that shows more than the ground
FIRST = 1_000_000  # of the scenes that the first codes are taken from


class SceneVQ(nn.Module):
    """``tokens`` of images, and images of tokens by ``decode``."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.zeros(CODES, 3 * PATCH * PATCH))

    def distances(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "M K"]:
        """Squared distances of all patches to all codes, in squared pixel values."""
        patches = patches_of(images)
        crossed = patches @ self.codes.T
        return patches.square().sum(1, keepdim=True) - 2 * crossed + self.codes.square().sum(1)

    @torch.no_grad()
    def tokens(self, images: Float[Tensor, "N 3 H W"]) -> Int[Tensor, "N 16"]:
        """A number below CODES for each patch, row by row."""
        numbers: Tensor = self.distances(images).argmin(1).unflatten(0, (-1, TOKENS))
        return numbers

    @torch.no_grad()
    def decode(self, tokens: Int[Tensor, "N 16"]) -> Float[Tensor, "N 3 H W"]:
        """Images in [0, 1]."""
        patches = self.codes[tokens].clamp(0, 1)
        return functional.fold(patches.mT, SIDE, PATCH, stride=PATCH)


def patches_of(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "M D"]:
    """All patches of images, one after the other."""
    return functional.unfold(images, PATCH, stride=PATCH).mT.flatten(0, 1)


class VQRecipe(ZooRecipe):
    """K-means by gradient descent, on scenes that encoders train on."""

    name = "scene-vq"
    objective = "nearest of 512 patches"
    schedule = Schedule(steps=150, batch=256, rate=1e-2, decay=0.0, beta2=0.9)

    def build(self) -> nn.Module:
        """The first codes are patches that show something, of scenes that are not trained on."""
        model = SceneVQ()
        patches = patches_of(render(sample_scenes(SPLIT, 256, start=FIRST), SIDE))
        telling = patches[patches.unflatten(1, (3, -1)).std(2).amax(1) > SHOWING]
        chosen = torch.randperm(len(telling))[:CODES]
        model.codes.data.copy_(telling[chosen])
        return model

    def loss(self, model: Any, at: StepContext) -> Tensor:
        size = self.schedule.batch
        scenes = sample_scenes(SPLIT, size, seed=at.seed, start=at.number * size)
        found: Tensor = model.distances(render(scenes, SIDE)).amin(1).mean()
        return found

    def save(self, model: Any, folder: Path) -> int:
        state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        write_json(
            folder / "config.json",
            {"model_type": "scene_vq", "image_size": SIDE, "patch_size": PATCH, "codes": CODES},
        )
        return parameters_of(model)


def load_vq(folder: Path) -> SceneVQ:
    """The codebook of a folder, in eval mode.

    Raises:
        ModelError: if the folder holds another kind of model.
    """
    if read_model_config(folder).get("codes") != CODES:
        raise ModelError(f"{folder} holds no scene-vq of {CODES} codes")
    model = SceneVQ()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval().requires_grad_(False)
