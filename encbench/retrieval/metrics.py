"""Retrieval metrics as pure functions over rankings and similarities."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

SPAN = 1e-12  # below it, a score has no room between floor and ceiling


def mean_similarity_at(
    similarities: Float[np.ndarray, "Q K"], ks: tuple[int, ...]
) -> dict[int, Float[np.ndarray, " Q"]]:
    """Mean similarity of the first k retrieved, for each query and each k.

    Source: the average of EMF (arXiv 2604.18168, section 3.3), with its k left open.
    """
    sums = np.cumsum(similarities, axis=1, dtype=np.float64)
    return {k: sums[:, k - 1] / k for k in ks}


def recall_at(
    hits: Bool[np.ndarray, "Q K"], ks: tuple[int, ...]
) -> dict[int, Float[np.ndarray, " Q"]]:
    """1 where at least one of the first k retrieved is right, else 0, as in image-text
    retrieval's R@k."""
    found = np.logical_or.accumulate(hits, axis=1)
    return {k: found[:, k - 1].astype(np.float64) for k in ks}


def retrieved_similarities(
    vectors: Float[np.ndarray, "N P"],
    queries: Int[np.ndarray, " Q"],
    retrieved: Int[np.ndarray, "Q K"],
) -> Float[np.ndarray, "Q K"]:
    """Cosine of each query's own row with the rows retrieved for it. Rows have length 1."""
    cosines: np.ndarray = np.einsum("qp,qkp->qk", vectors[queries], vectors[retrieved])
    return cosines


def random_similarity(
    vectors: Float[np.ndarray, "N P"], queries: Int[np.ndarray, " Q"]
) -> Float[np.ndarray, " Q"]:
    """Each query row's mean cosine with all other rows: what random retrieval expects, exactly.

    Rows have length 1 (or 0).
    """
    rows = vectors.astype(np.float64)
    own = rows[queries]
    total = rows.sum(axis=0)
    means: np.ndarray = (own @ total - (own * own).sum(axis=1)) / (len(rows) - 1)
    return means


def scale(value: float, floor: float, ceiling: float) -> float:
    """(value - floor) / (ceiling - floor), where 0/0 is 0: an encoder without information scores
    0."""
    span = ceiling - floor
    return 0.0 if abs(span) < SPAN else (value - floor) / span
