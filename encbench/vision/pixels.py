"""``pixels``: a small RGB thumbnail beside a color histogram. A baseline without weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Resampling
from torch import Tensor

from ..data.hub import ResolvedModel
from ..errors import UsageError
from ..files import digest
from ..types import ImageRecord, ReEncoderCard
from . import ReEncoderFamily, ReEncoderSpec, in_batches, open_image

VERSION = 1
SIDE = 8  # pixels of the thumbnail
BINS = 4  # of each color channel
REVISION = digest(["pixels", VERSION, SIDE, BINS])


class PixelReEncoder:
    """Where which colors are, and how much of each there is; both parts weigh the same.

    The thumbnail (SIDE x SIDE x 3) is centered on mid-gray and brought to length 1 (a mid-gray
    one stays zero). The histogram (BINS^3 colors) holds the square roots of the shares of
    pixels, which has length 1 as it is.
    """

    def __init__(self, spec: ReEncoderSpec) -> None:
        dim = SIDE * SIDE * 3 + BINS**3
        self.card = ReEncoderCard(str(spec), REVISION, dim, license="Apache-2.0")

    def encode(self, images: Sequence[ImageRecord]) -> Float[Tensor, "N P"]:
        """Thumbnail and histogram of each image.

        Raises:
            ImageError: naming the file, if one cannot be read.
        """
        rows = [row for batch in in_batches(_features, images, 64) for row in batch]
        stacked = np.stack(rows) if rows else np.zeros((0, self.card.dim), np.float32)
        return torch.from_numpy(stacked)


def _features(image: ImageRecord) -> Float[np.ndarray, " P"]:
    opened = open_image(image)
    small = np.asarray(opened.resize((SIDE, SIDE), Resampling.BOX), np.float32) / 255 - 0.5
    thumbnail = small.ravel() / max(float(np.linalg.norm(small)), 1e-6)
    colors = np.asarray(opened).reshape(-1, 3).astype(np.int64) * BINS // 256
    counts = np.bincount(colors @ [BINS * BINS, BINS, 1], minlength=BINS**3)
    return np.concatenate([thumbnail, np.sqrt(counts / counts.sum())]).astype(np.float32)


def _resolve(spec: ReEncoderSpec) -> ResolvedModel:
    if spec.source or spec.revision:
        raise UsageError(f"'{spec}': pixels takes no source or revision; write just 'pixels'")
    return ResolvedModel(None, REVISION, "Apache-2.0")


FAMILY = ReEncoderFamily(
    name="pixels",
    summary="thumbnail and color histogram; a baseline without weights",
    examples=("pixels",),
    needs="pixels",
    resolve=_resolve,
    load=lambda spec, resolved, device: PixelReEncoder(spec),
    version=VERSION,
)
