"""KID (arXiv 1801.01401): squared maximum mean discrepancy of Inception features."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float

from ..errors import DataError
from ..types import MetricSpec
from ..vision import ReEncoderSpec
from . import MetricFamily
from .inception import OPTIONS, InceptionMetric, require_reference

SPEC = MetricSpec("kid", "KID", "squared MMD", direction="lower", whole_set=True)
BLOCK = 1024


class KidMetric(InceptionMetric):
    """The unbiased estimate over all pairs of images; the mean over random subsets of 1,000 that
    papers report estimates the same number, less exactly."""

    def reduce(self, features: Float[np.ndarray, "N F"]) -> float:
        """Mean kernel within the set (without pairs of an image with itself), plus that within
        the reference set, minus twice that between them; kernel (x.y / F + 1)^3.

        Raises:
            DataError: with fewer than 2 images.
        """
        if len(features) < 2:
            raise DataError(f"KID needs at least 2 images, not {len(features)}")
        between = self._sum(features, self.reference) / (len(features) * len(self.reference))
        return self._within(features) + self._reference_within - 2 * between

    @cached_property
    def _reference_within(self) -> float:
        if len(self.reference) < 2:
            raise DataError(f"the reference set {self.reference_path} needs 2 images")
        return self._within(self.reference)

    def _within(self, features: Float[np.ndarray, "N F"]) -> float:
        own = 0.0
        for i in range(0, len(features), BLOCK):
            block = self._block(features, i)
            own += float((((block**2).sum(1) / block.shape[1] + 1) ** 3).sum())
        return (self._sum(features, features) - own) / (len(features) * (len(features) - 1))

    def _sum(self, first: Float[np.ndarray, "N F"], second: Float[np.ndarray, "M F"]) -> float:
        """Of the kernel over all pairs, block by block."""
        total = 0.0
        for i in range(0, len(first), BLOCK):
            a = self._block(first, i)
            for j in range(0, len(second), BLOCK):
                products = a @ self._block(second, j).T / a.shape[1] + 1
                total += float((products**3).sum())
        return total

    def _block(self, features: Float[np.ndarray, "N F"], start: int) -> torch.Tensor:
        block = torch.from_numpy(np.array(features[start : start + BLOCK], np.float64))
        return block if self.device.type == "mps" else block.to(self.device)  # it has no float64


def _load(spec: ReEncoderSpec, device: torch.device) -> KidMetric:
    require_reference(spec, "FOLDER of images")
    return KidMetric(SPEC, spec, device, "pool")


FAMILY = MetricFamily(
    summary="KID to a reference set, over all pairs (arXiv 1801.01401)",
    load=_load,
    examples=("kid:FOLDER",),
    options=OPTIONS,
    spec=SPEC,
)
