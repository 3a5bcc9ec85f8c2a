"""Exact nearest neighbors by cosine, with FAISS, and ties broken at random.

FAISS returns equal scores in the order of the index, so a constant encoder would retrieve the first
vectors of the gallery for every query. Here, cosines that agree to :data:`DECIMALS` decimals are
ties, ordered by a permutation of the gallery that is drawn for each query from the seed. So a
constant encoder retrieves at random.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from ..errors import MissingLibraryError

DECIMALS = 6
BLOCK = 64  # queries at a time where whole rows of scores are needed
TINY, HUGE = 1e-15, 1e15  # lengths whose squares are well inside float32
SLACK = 16  # neighbors beyond k, so that most ties at the edge are seen whole


def normalize(rows: Float[np.ndarray, "N P"]) -> Float[np.ndarray, "N P"]:
    """Rows of length 1, float32. A zero row stays zero: its cosine with anything counts as 0.

    Rows whose squares would leave float32's range, in either direction, are brought near length 1
    by a power of two first, which changes no digit of them.
    """
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    extreme = np.flatnonzero(~((lengths > TINY) & (lengths < HUGE)))
    if len(extreme):
        rows = rows.copy()
        largest = np.abs(rows[extreme]).max(axis=1, initial=0)
        rows[extreme] = np.ldexp(rows[extreme], -np.frexp(largest)[1][:, None])
        lengths[extreme] = np.linalg.norm(rows[extreme], axis=1, keepdims=True)
    units: np.ndarray = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return units


def tie_keys(
    seed: int, queries: Int[np.ndarray, " Q"], gallery: Int[np.ndarray, "Q K"]
) -> np.ndarray:
    """A pseudo-random 64-bit key for each (query, gallery id): sorting by it is a seeded
    permutation for each query. It depends on the ids alone, not on order or batch.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014), applied twice.
    """
    with np.errstate(over="ignore"):
        base = np.uint64(seed & 0xFFFFFFFFFFFFFFFF) * np.uint64(0x9E3779B97F4A7C15)
        return _mix(_mix(queries.astype(np.uint64) + base)[:, None] + gallery.astype(np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def nearest(
    queries: Float[np.ndarray, "Q P"],
    gallery: Float[np.ndarray, "N P"],
    k: int,
    *,
    seed: int,
    query_ids: Int[np.ndarray, " Q"],
    gallery_ids: Int[np.ndarray, " N"],
    exclude: Int[np.ndarray, " Q"] | None = None,
) -> tuple[Int[np.ndarray, "Q K"], Float[np.ndarray, "Q K"]]:
    """The k nearest gallery rows of each query by cosine, best first.

    Args:
        queries: vectors of any length; compared by cosine.
        gallery: likewise.
        k: how many.
        seed: of the permutations that break ties.
        query_ids: stable ids, so that a tie breaks the same way in any batch.
        gallery_ids: likewise.
        exclude: for each query the gallery row (its index) that must not be retrieved;
            -1 for none.

    Returns:
        indices into the gallery and cosines rounded to six decimals, (Q, k) each.

    Raises:
        ValueError: if k is larger than the gallery, less what is excluded.
        MissingLibraryError: without faiss (its two wheels get lost when one replaces the other).
    """
    try:
        import faiss
    except ImportError as error:
        needed = MissingLibraryError("faiss", "faiss-cpu", "exact search")
        raise needed from error

    count = len(gallery)
    room = count - (0 if exclude is None or (exclude < 0).all() else 1)
    if not 1 <= k <= room:
        raise ValueError(f"k = {k} neighbors cannot be drawn from a gallery of {room}")
    queries, gallery = normalize(queries), normalize(gallery)
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)
    skipped = np.full(len(queries), -1) if exclude is None else exclude

    reach = min(count, k + 1 + SLACK)
    scores, found = index.search(queries, reach)
    scores = np.round(scores, DECIMALS)
    indices = np.empty((len(queries), k), np.int64)
    cosines = np.empty((len(queries), k), np.float32)

    def settle(
        rows: np.ndarray, scores: np.ndarray, found: np.ndarray, skipped: np.ndarray
    ) -> None:
        keys = tie_keys(seed, query_ids[rows], gallery_ids[found])
        scores = np.where(found == skipped[:, None], -np.inf, scores)
        order = np.lexsort((keys, -scores), axis=1)[:, :k]
        indices[rows] = np.take_along_axis(found, order, 1)
        cosines[rows] = np.take_along_axis(scores, order, 1)

    # Row k of those seen, counted from 0, is the worst that can be kept when one is excluded:
    # if the last one seen scores less, every tie at the edge has been seen.
    settled = (reach == count) | (scores[:, -1] < scores[:, min(k, reach - 1)])
    rows = np.flatnonzero(settled)
    settle(rows, scores[rows], found[rows], skipped[rows])
    tied = np.flatnonzero(~settled)
    everything = np.arange(count)
    for start in range(0, len(tied), BLOCK):
        rows = tied[start : start + BLOCK]
        table = np.round(queries[rows] @ gallery.T, DECIMALS)
        settle(rows, table, np.broadcast_to(everything, table.shape), skipped[rows])
    return indices, cosines
