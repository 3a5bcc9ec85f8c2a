"""Scores with 95 % intervals, by bootstrap over items.

An item is what was drawn (an image, a prompt); everything measured on it stays together, so
the bootstrap is clustered on it. Several encoders in one table are resampled together, so
differences are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from .retrieval.metrics import scale
from .types import Score

RESAMPLES = 2000
LEVEL = (2.5, 97.5)


def resampled_means(
    table: Float[np.ndarray, "n C"], seed: int, resamples: int = RESAMPLES
) -> Float[np.ndarray, "B C"]:
    """Column means under B resamplings of the rows with replacement; the same rows for all
    columns. ``n`` must be at least 1."""
    rng = np.random.default_rng([seed, len(table)])
    means = np.empty((resamples, table.shape[1]))
    for b in range(resamples):
        counts = np.bincount(rng.integers(len(table), size=len(table)), minlength=len(table))
        means[b] = counts @ table / len(table)
    return means


def combine(means: Float[np.ndarray, "*B C"]) -> Float[np.ndarray, "*B"]:
    """The score that follows from column means: of one column the mean itself, of three
    (value - floor) / (ceiling - floor) with 0/0 = 0. See ``types.Measurement``."""
    if means.shape[-1] == 1:
        return means[..., 0]
    value, floor, ceiling = np.moveaxis(means, -1, 0)
    flat = [
        scale(*row) for row in zip(np.ravel(value), np.ravel(floor), np.ravel(ceiling), strict=True)
    ]
    return np.reshape(np.array(flat), value.shape)


def score(items: pd.DataFrame, columns: Sequence[str], *, seed: int, unscored: int = 0) -> Score:
    """A score from item columns, over the rows where all of them have a value.

    Returns:
        value, number of items and the percentile bootstrap interval; NaN without any item.
    """
    table = items[list(columns)].to_numpy(np.float64)
    table = table[np.isfinite(table).all(axis=1)]
    if not len(table):
        return Score(float("nan"), 0, float("nan"), float("nan"), unscored)
    value = float(combine(table.mean(axis=0)[None])[0])
    low, high = np.percentile(combine(resampled_means(table, seed)), LEVEL)
    return Score(value, len(table), float(low), float(high), unscored)


def scores(
    items: pd.DataFrame,
    item_scores: Mapping[str, Sequence[str]],
    *,
    seed: int,
    unscored: int = 0,
) -> dict[str, Score]:
    """:func:`score` for each name; names without any item are left out."""
    made = {n: score(items, c, seed=seed, unscored=unscored) for n, c in item_scores.items()}
    return {name: found for name, found in made.items() if found.n}
