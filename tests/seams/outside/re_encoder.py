"""A re-encoder: an image's mean color."""

import numpy as np
import torch

from encbench.data.hub import ResolvedModel
from encbench.images import open_image
from encbench.types import ReEncoderCard
from encbench.vision import ReEncoderFamily


class MeanColor:
    def __init__(self, spec):
        self.card = ReEncoderCard(str(spec), "mean-color-1", dim=3, license="MIT")

    def encode(self, images):
        rows = [np.asarray(open_image(image), np.float32).mean((0, 1)) for image in images]
        return torch.from_numpy(np.stack(rows))


FAMILY = ReEncoderFamily(
    name="mean-color",
    summary="An image's mean color.",
    examples=("mean-color",),
    needs="pixels",
    resolve=lambda spec: ResolvedModel(None, "mean-color-1", "MIT"),
    load=lambda spec, resolved, device: MeanColor(spec),
)
