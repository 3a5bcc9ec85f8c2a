"""FID (arXiv 1706.08500): the Frechet distance of Inception features to a reference set's."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from ..errors import DataError
from ..types import MetricSpec
from ..vision import ReEncoderSpec
from . import MetricFamily
from .inception import OPTIONS, InceptionMetric, moments, require_reference

SPEC = MetricSpec("fid", "FID", "squared Frechet distance", direction="lower", whole_set=True)
FORMS = "FOLDER of images, or an .npz with mu and sigma"


class _Reference(NamedTuple):
    mean: Float[np.ndarray, " F"]
    trace: float
    root: Float[np.ndarray, "F F"]  # of the covariance


class FidMetric(InceptionMetric):
    """See the module. Values of fewer images than features are biased upwards: compare only sets
    of equal size."""

    def reduce(self, features: Float[np.ndarray, "N F"]) -> float:
        """|m - n|^2 + tr(A + B - 2 (A B)^(1/2)), with the trace of the root by the eigenvalues of
        B^(1/2) A B^(1/2), which are those of A B.

        Raises:
            DataError: with fewer than 2 images.
        """
        if len(features) < 2:
            raise DataError(f"FID needs 2 images, and there are {len(features)}")
        mean, covariance = moments(features)
        reference = self._reference
        inner = torch.from_numpy(reference.root @ covariance @ reference.root)
        roots = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
        shift = float(((mean - reference.mean) ** 2).sum())
        return shift + float(np.trace(covariance)) + reference.trace - 2 * float(roots)

    @cached_property
    def _reference(self) -> _Reference:
        assert self.reference_path is not None
        if self.reference_path.is_dir():
            if len(self.reference) < 2:
                raise DataError(f"the reference set {self.reference_path} needs 2 images")
            mean, covariance = moments(self.reference)
        else:
            mean, covariance = self._published()
        values, vectors = torch.linalg.eigh(torch.from_numpy(covariance))
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return _Reference(mean, float(np.trace(covariance)), root.numpy())

    def _published(self) -> tuple[Float[np.ndarray, " F"], Float[np.ndarray, "F F"]]:
        path = self.reference_path
        assert path is not None
        try:
            with np.load(path, allow_pickle=False) as found:
                mean, covariance = found["mu"].astype(np.float64), found["sigma"].astype(np.float64)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path} is no .npz with mu and sigma ({error})") from error
        width = self.head.shape[1]
        if mean.shape != (width,) or covariance.shape != (width, width):
            raise DataError(f"{path}: mu and sigma must be of {width} features, not {mean.shape}")
        return mean, covariance


def _load(spec: ReEncoderSpec, device: torch.device) -> FidMetric:
    require_reference(spec, FORMS)
    return FidMetric(SPEC, spec, device, "pool")


FAMILY = MetricFamily(
    summary="FID to a reference set, by the published Inception (arXiv 1706.08500)",
    load=_load,
    examples=("fid:FOLDER", "fid:STATISTICS.npz?resize=clean"),
    options=OPTIONS,
    spec=SPEC,
)
