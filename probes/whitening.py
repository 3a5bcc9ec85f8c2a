"""Centering and shrinkage whitening, fitted on one set of vectors, applied to another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf_shrinkage

Rows = Float[np.ndarray, "N P"]


def centered(fit: Float[np.ndarray, "M P"]) -> Callable[[np.ndarray], np.ndarray]:
    """Takes the mean of ``fit`` off its argument."""
    mean = fit.mean(axis=0, dtype=np.float64)
    return lambda rows: _rest(rows, mean)


def whitened(fit: Float[np.ndarray, "M P"]) -> Callable[[np.ndarray], np.ndarray]:
    """Maps rows by the inverse square root of the shrunken covariance of ``fit``.

    The shrinkage a is Ledoit and Wolf's (2004): C = (1 - a) S + a mu I with mu = trace(S) / P.
    C is never formed: outside the span of ``fit`` it is a mu I, inside it follows from a
    singular value decomposition, so P may be much larger than M.
    """
    mean = fit.mean(axis=0, dtype=np.float64)
    inner = _rest(fit, mean).astype(np.float64)
    shrinkage = float(ledoit_wolf_shrinkage(inner, assume_centered=True))
    _, singular, axes = np.linalg.svd(inner, full_matrices=False)
    spread = singular**2 / len(inner)
    mu = spread.sum() / inner.shape[1]
    if mu < 1e-20:  # all vectors are the same: nothing to whiten
        return lambda rows: _rest(rows, mean)
    outside = 1 / np.sqrt(max(shrinkage, 1e-6) * mu)
    inside = 1 / np.sqrt((1 - shrinkage) * spread + max(shrinkage, 1e-6) * mu)

    def change(rows: np.ndarray) -> np.ndarray:
        rest = _rest(rows, mean).astype(np.float64)
        changed: np.ndarray = (rest * outside + (rest @ axes.T * (inside - outside)) @ axes).astype(
            np.float32
        )
        return changed

    return change


def _rest(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Deviations from the mean; float noise, relative to the mean, counts as zero."""
    rest = rows - mean
    noise = 1e-6 * np.linalg.norm(mean.astype(np.float64))
    rest[np.linalg.norm(rest.astype(np.float64), axis=1) <= noise] = 0
    centered: np.ndarray = rest.astype(np.float32)
    return centered
