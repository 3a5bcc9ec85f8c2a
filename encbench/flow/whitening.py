"""Whitening of an encoder's features by statistics of the training captions.

A linear layer learns fast along directions of high variance and slowly along the others. So if the
tokens of an encoder vary along few directions, a short training cannot use the rest. Whitening
gives all directions the same variance, y = (x - m) C^(-1/2) (ZCA), where m is the
mean of the features and C their covariance, shrunk towards a multiple of the identity.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from ..errors import EncbenchError
from ..progress import log

LEAST_SHRINKAGE = 1e-3
"""Tokens of one caption depend on each other, and words come again, so Ledoit and Wolf's estimate
for independent rows is too low."""
LEAST_ROWS = 64
MOST_ROWS = 32_768  # statistics of more rows would not be better, but take memory
NOISE = 1e-7  # variance as a share of the largest, or of the squared mean: rounding of float32


class WhiteningError(EncbenchError):
    """Features cannot be whitened by these statistics."""


class Whitening(NamedTuple):
    """Maps x to (x - mean) @ matrix."""

    mean: Float[Tensor, " D"]
    matrix: Float[Tensor, "D D"]

    def apply(self, rows: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return (rows - self.mean) @ self.matrix


def fit_whitening(rows: Float[Tensor, "N D"], what: str) -> Whitening:
    """The ZCA whitening of rows, float32.

    C = (1 - a) S + a mu I, where S is the rows' covariance, mu the mean of its eigenvalues and a
    Ledoit and Wolf's shrinkage (2004), at least :data:`LEAST_SHRINKAGE`. A direction without
    any variance is never enlarged by more than 1 / sqrt(a mu).

    Args:
        what: names the rows in messages, such as "the tokens of zoo:mini-clip".

    Raises:
        WhiteningError: if there are too few rows, fewer than dimensions, or all are equal.
    """
    rows = rows[:: -(-len(rows) // MOST_ROWS)]
    count, width = rows.shape
    advice = "give more captions, or leave the features as they are (--condition-scaling rms)"
    if count < LEAST_ROWS:
        raise WhiteningError(
            f"{what}: {count} are too few to whiten by, at least {LEAST_ROWS} are needed; {advice}"
        )
    if count <= width:
        raise WhiteningError(
            f"{what}: {count} are fewer than needed to whiten {width} dimensions; {advice}"
        )
    exact = rows.double()
    mean = exact.mean(0)
    centered = exact - mean
    middle = float(centered.square().mean())  # of the eigenvalues
    if not middle > NOISE**2 * float(mean.square().mean()):
        problem = (
            "all the same, so there is nothing to whiten" if middle == middle else "not finite"
        )
        raise WhiteningError(
            f"{what} are {problem}; leave them as they are (--condition-scaling rms)"
        )
    variances, axes = torch.linalg.eigh(centered.T @ centered / count)
    variances = variances.clamp(min=0)
    idle = int((variances < NOISE * variances.max()).sum())
    if idle:
        log.warning(
            "%s vary in %d of %d directions only; whitening leaves the others small",
            what, width - idle, width,
        )  # fmt: skip
    estimate = ledoit_wolf_shrinkage(centered.cpu().numpy(), assume_centered=True)
    shrinkage = max(float(estimate), LEAST_SHRINKAGE)
    shrunk = (1 - shrinkage) * variances + shrinkage * middle
    matrix = axes * shrunk.rsqrt() @ axes.T
    return Whitening(mean.float(), matrix.float())
