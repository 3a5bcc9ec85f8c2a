"""Histograms of cosines, as reports draw them."""

from __future__ import annotations

import numpy as np

EDGES = np.linspace(-1, 1, 101)


def similarity(own: np.ndarray, random: np.ndarray) -> dict[str, list[float]]:
    """Shares of the cosines between texts that belong together, and between random ones, that
    fall between the edges; JSON-ready."""
    return {"edges": EDGES.tolist(), "own": _shares(own), "random": _shares(random)}


def _shares(values: np.ndarray) -> list[float]:
    counts, _ = np.histogram(np.clip(values, -1, 1), EDGES)
    shares: list[float] = (counts / max(1, counts.sum())).tolist()
    return shares
