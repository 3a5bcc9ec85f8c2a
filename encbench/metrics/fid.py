"""FID (arXiv 1706.08500): the Frechet distance of Inception features to a reference set's."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from ..errors import DataError, first_line
from ..types import MetricSpec
from ..vision import ReEncoderSpec
from . import MetricFamily
from .inception import OPTIONS, InceptionMetric, moments, require_reference

SPEC = MetricSpec("fid", "FID", "squared Frechet distance", direction="lower", whole_set=True)
FORMS = "FOLDER of images, or an .npz with mu and sigma"


class _Reference(NamedTuple):
    mean: Float[np.ndarray, " F"]
    covariance: Float[np.ndarray, "F F"]


class FidMetric(InceptionMetric):
    """See the module. Values of fewer images than features are biased upwards: compare only sets
    of equal size."""

    def reduce(self, features: Float[np.ndarray, "N F"]) -> float:
        """|m - n|^2 + tr(A + B - 2 (A B)^(1/2)), with the trace of the root by the eigenvalues of
        a symmetric matrix that has those of A B: B^(1/2) A B^(1/2), or X B X' where A = X' X has
        fewer images than features.

        Raises:
            DataError: with fewer than 2 images.
        """
        if len(features) < 2:
            raise DataError(f"FID needs at least 2 images, not {len(features)}")
        reference = self._reference
        if len(features) < len(reference.mean):
            mean = features.mean(0, np.float64)
            rows = (features - mean) / np.sqrt(len(features) - 1)
            inner, trace = rows @ reference.covariance @ rows.T, float((rows**2).sum())
        else:
            mean, covariance = moments(features)
            inner, trace = self._root @ covariance @ self._root, float(np.trace(covariance))
        symmetric = torch.from_numpy((inner + inner.T) / 2)
        roots = float(torch.linalg.eigvalsh(symmetric).clamp(min=0).sqrt().sum())
        shift = float(((mean - reference.mean) ** 2).sum())
        return shift + trace + float(np.trace(reference.covariance)) - 2 * roots

    @cached_property
    def _reference(self) -> _Reference:
        assert self.reference_path is not None
        if self.reference_path.is_dir():
            if len(self.reference) < 2:
                raise DataError(f"the reference set {self.reference_path} needs 2 images")
            return _Reference(*moments(self.reference))
        return read_statistics(self.reference_path, self.head.shape[1])

    @cached_property
    def _root(self) -> Float[np.ndarray, "F F"]:
        """Of the reference set's covariance."""
        values, vectors = torch.linalg.eigh(torch.from_numpy(self._reference.covariance))
        root: Float[np.ndarray, "F F"] = (
            (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        ).numpy()
        return root


def read_statistics(path: Path, width: int) -> _Reference:
    """Mean and covariance of ``width`` features from an .npz with ``mu`` and ``sigma``.

    Raises:
        DataError: in one line, if it is missing, damaged or of other features.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path")
    try:
        with np.load(path, allow_pickle=False) as found:
            mean, covariance = found["mu"].astype(np.float64), found["sigma"].astype(np.float64)
    except Exception as error:  # a damaged archive makes NumPy raise a dozen kinds
        raise DataError(f"{path} is not an .npz with mu and sigma ({first_line(error)})") from error
    if mean.shape != (width,) or covariance.shape != (width, width):
        raise DataError(f"{path}: mu and sigma must be of {width} features, not {mean.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{path}: mu or sigma holds values that are no numbers; make it again")
    return _Reference(mean, covariance)


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
