"""How well a score from before training ranks the trained models: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..errors import EncbenchError
from ..intervals import LEVEL
from ..types import Estimate
from .rules import rank_statistic, seed_correlation, spearman

LEAST = 4  # encoders, under which an order says nothing


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of one predictor with trained scores.

    Attributes:
        name: of the predictor.
        encoders, sets: how many encoders, and sets of weights they come from.
        pooled: over all, with its 95 % interval by bootstrap over sets of weights.
        within: size-weighted mean within strata; NaN without a stratum of two.
        lowest, highest: with one encoder left out.
        chance: the 97.5th percentile of random orders.
        linear: Pearson's correlation over all.
    """

    name: str
    encoders: int
    sets: int
    pooled: Estimate
    within: float
    lowest: float
    highest: float
    chance: float
    linear: float


def measure_agreement(
    name: str,
    predicted: Float[np.ndarray, " E"],
    actual: Float[np.ndarray, " E"],
    *,
    sets: Sequence[str],
    strata: Sequence[str],
    seed: int = 0,
    draws: int = 2000,
) -> Agreement:
    """Compare a predictor with trained scores.

    Args:
        sets: each encoder's set of weights; encoders of one set are drawn together.
        strata: each encoder's stage of training.

    Raises:
        EncbenchError: with fewer than four encoders, or values that are no numbers.
    """
    count = len(predicted)
    if count < LEAST:
        raise EncbenchError(f"{name}: {count} encoders; a rank correlation needs {LEAST}")
    if not (np.isfinite(predicted).all() and np.isfinite(actual).all()):
        raise EncbenchError(f"{name}: a score is not a number; remove that encoder")
    rng = np.random.default_rng([seed, count])
    names = sorted(set(sets))
    members = [np.flatnonzero([s == name for s in sets]) for name in names]
    drawn = []
    for _ in range(draws):
        places = np.concatenate([members[k] for k in rng.integers(len(names), size=len(names))])
        if len(set(places.tolist())) > 2:
            drawn.append(float(spearman(predicted[places], actual[places])))
    low, high = np.percentile(drawn, LEVEL) if drawn else (np.nan, np.nan)
    others = [np.arange(count) != k for k in range(count)]
    without = [float(spearman(predicted[keep], actual[keep])) for keep in others]
    shuffled = rng.permuted(np.tile(actual, (draws, 1)), axis=1)
    return Agreement(
        name,
        count,
        len(names),
        Estimate(float(spearman(predicted, actual)), float(low), float(high)),
        float(rank_statistic(predicted, actual, strata)),
        min(without),
        max(without),
        float(np.percentile(spearman(predicted, shuffled), LEVEL[1])),
        _pearson(predicted, actual),
    )


def _pearson(first: Float[np.ndarray, " E"], second: Float[np.ndarray, " E"]) -> float:
    """0 where one side is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def seed_ceiling(scores: Float[np.ndarray, "E S"]) -> float | None:
    """The correlation that a perfect predictor of true scores can be expected to reach with means
    over S seeds: the root of their reliability (Spearman 1910, Brown 1910)."""
    between = seed_correlation(scores)
    if between is None or between <= 0:
        return None
    seeds = scores.shape[1]
    return float(np.sqrt(seeds * between / (1 + (seeds - 1) * between)))
