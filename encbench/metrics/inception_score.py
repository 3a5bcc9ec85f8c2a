"""The Inception score (arXiv 1606.03498): how sure and how varied the classes of images are."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from ..errors import DataError, UsageError
from ..types import MetricSpec
from ..vision import ReEncoderSpec
from . import MetricFamily
from .inception import OPTIONS, InceptionMetric

SPEC = MetricSpec("is", "Inception score", "exp of mean KL divergence", whole_set=True)
SPLITS = 10  # as published: the mean over ten parts of the shuffled set


class InceptionScore(InceptionMetric):
    """See the module."""

    def reduce(self, features: Float[np.ndarray, "N F"]) -> float:
        """Mean over the splits of exp(mean KL(p(class | image) || p(class))).

        Raises:
            DataError: with fewer images than splits.
        """
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

        if len(features) < SPLITS:
            raise DataError(f"the Inception score needs {SPLITS} images, not {len(features)}")
        logits = torch.from_numpy(np.array(features))
        return float(isc_features_to_metric(logits, SPLITS)[KEY_METRIC_ISC_MEAN])


def _load(spec: ReEncoderSpec, device: torch.device) -> InceptionScore:
    if spec.source:
        raise UsageError(f"'{spec}': the Inception score has no reference set; write is")
    return InceptionScore(SPEC, spec, device, "logits")


FAMILY = MetricFamily(
    summary="Inception score, by the published Inception (arXiv 1606.03498)",
    load=_load,
    examples=("is", "is?weights=FOLDER"),
    options=OPTIONS,
    spec=SPEC,
)
