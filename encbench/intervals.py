"""Scores with 95 % intervals, by bootstrap over items.

The bootstrap is clustered on items (images, prompts): everything measured on one item stays
together. Several encoders in one table are resampled together, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Float

from .retrieval.metrics import SPAN, scale
from .types import Score

RESAMPLES = 2000
HELD = 4_000_000  # numbers that are kept of one table's resamplings
LEVEL = (2.5, 97.5)


def resampled_means(
    table: Float[np.ndarray, "n C"], seed: int, *, stream: int = 0
) -> Float[np.ndarray, "B C"]:
    """Column means under B resamplings of the rows with replacement; the same rows for all
    columns. ``n`` must be at least 1. Tables of other rows take another ``stream``."""
    count = len(table)
    draws: Iterable[np.ndarray]
    if count * RESAMPLES <= HELD:
        draws = _held_draws(seed, count, stream)
    else:
        draws = _draws(seed, count, stream)
    means = np.empty((RESAMPLES, table.shape[1]))
    for b, counts in enumerate(draws):
        means[b] = counts @ table / count
    return means


def _draws(seed: int, count: int, stream: int) -> Iterator[Float[np.ndarray, " n"]]:
    """How often each of ``count`` rows is in each resampling."""
    rng = np.random.default_rng([seed, count, *([stream] if stream else [])])
    for _ in range(RESAMPLES):
        rows = rng.integers(count, size=count)
        yield np.bincount(rows, minlength=count).astype(np.float64)


@lru_cache(maxsize=8)
def _held_draws(seed: int, count: int, stream: int) -> Float[np.ndarray, "B n"]:
    """The same at once: tables of as many rows are resampled again and again."""
    return np.stack(list(_draws(seed, count, stream)))


def combine(means: Float[np.ndarray, "*B C"]) -> Float[np.ndarray, "*B"]:
    """A score from column means: with one column its mean, with three (value - floor) / (ceiling -
    floor), where 0/0 = 0. See ``types.Measurement``."""
    if means.shape[-1] == 1:
        return means[..., 0]
    value, floor, ceiling = np.moveaxis(means, -1, 0)
    span = ceiling - floor
    scaled: np.ndarray = np.divide(
        value - floor, span, out=np.zeros_like(span), where=np.abs(span) >= SPAN
    )
    return scaled


def mean_of(
    parts: Sequence[Sequence[Float[np.ndarray, " N"] | float]],
) -> Float[np.ndarray, " N"]:
    """One item column for the mean of several scaled scores that are of different items each.

    Args:
        parts: (value, floor, ceiling) of each score: item columns, NaN where an item has none,
            or a number for all of them.

    Returns:
        a column whose mean is the mean of the scores, each (mean value - mean floor) /
        (mean ceiling - mean floor), and whose spread is, to first order, that of this mean (a
        ratio's linearisation), so that it can be resampled like any column.
    """
    columns = []
    for part in parts:
        value, floor, ceiling = np.broadcast_arrays(*part)
        known = np.isfinite(value)
        if not known.any():
            continue
        span = float(np.mean((ceiling - floor)[known]))
        whole = scale(
            float(value[known].mean()), float(floor[known].mean()), float(ceiling[known].mean())
        )
        rest = np.where(known, value - floor - whole * (ceiling - floor), 0.0)
        share = known.mean() * span
        columns.append(whole + (rest / share if abs(span) >= 1e-12 else 0.0 * rest))
    return np.mean(columns, axis=0) if columns else np.full(_length(parts), np.nan)


def _length(parts: Sequence[Sequence[Float[np.ndarray, " N"] | float]]) -> int:
    return max((np.size(column) for part in parts for column in part), default=0)


def estimate_scores(
    items: pd.DataFrame,
    item_scores: Mapping[str, Sequence[str]],
    *,
    seed: int,
    unscored: int = 0,
) -> dict[str, Score]:
    """Scores from item columns, each over the rows where all of its columns have a value.

    Returns:
        for each name its value, number of items and percentile bootstrap interval; names
        without any item are left out.
    """
    groups: dict[bytes, list[str]] = {}
    for name, columns in item_scores.items():
        known = np.isfinite(items[list(columns)].to_numpy(np.float64)).all(axis=1)
        if known.any():
            groups.setdefault(known.tobytes(), []).append(name)
    found: dict[str, Score] = {}
    for known, names in groups.items():
        rows = items[np.frombuffer(known, dtype=bool)]
        columns = list(dict.fromkeys(c for name in names for c in item_scores[name]))
        table = rows[columns].to_numpy(np.float64)
        means = np.vstack([table.mean(axis=0), resampled_means(table, seed)])
        for name in names:
            values = combine(means[:, [columns.index(c) for c in item_scores[name]]])
            low, high = np.percentile(values[1:], LEVEL)
            found[name] = Score(float(values[0]), len(rows), float(low), float(high), unscored)
    return {name: found[name] for name in item_scores if name in found}


def estimate_score(items: pd.DataFrame, columns: Sequence[str], *, seed: int) -> Score:
    """One score, as :func:`scores` makes it; NaN without any item."""
    nothing = Score(float("nan"), 0, float("nan"), float("nan"))
    return estimate_scores(items, {"": columns}, seed=seed).get("", nothing)
