"""Exact search: FAISS against numpy, ties, exclusion."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encbench.errors import MissingLibraryError
from encbench.retrieval.metrics import (
    mean_similarity_at,
    random_similarity,
    recall_at,
    retrieved_similarities,
    scale,
)
from encbench.retrieval.search import DECIMALS, nearest, normalize, tie_keys


def brute(queries, gallery, k, seed, query_ids, gallery_ids, exclude):
    """The same by sorting a whole table in float64."""
    table = normalize(queries).astype(np.float64) @ normalize(gallery).astype(np.float64).T
    table = np.round(table, DECIMALS)
    found = []
    for row, scores in enumerate(table):
        keys = tie_keys(seed, query_ids[row : row + 1], gallery_ids[None])[0]
        kept = [i for i in range(len(gallery)) if exclude is None or i != exclude[row]]
        found.append(sorted(kept, key=lambda i: (-scores[i], keys[i]))[:k])
    return np.array(found), table


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(3, 60),
    width=st.sampled_from([1, 4, 16]),
    k=st.integers(1, 8),
    distinct=st.integers(1, 60),
    seed=st.integers(0, 10_000),
)
def test_equals_an_exact_numpy_search(count, width, k, distinct, seed):
    """With any number of ties: the same neighbors in the same order. Rows of +1 and -1 of these
    widths have cosines that float32 holds exactly, so both sides see the same ties."""
    k = min(k, count - 1)
    rng = np.random.default_rng(seed)
    gallery = rng.choice([-1.0, 1.0], (distinct, width))[rng.integers(distinct, size=count)]
    gallery = gallery.astype(np.float32)
    ids = rng.permutation(1000)[:count].astype(np.int64)
    own = np.arange(count)
    found, cosines = nearest(
        gallery, gallery, k, seed=seed, query_ids=ids, gallery_ids=ids, exclude=own
    )
    wanted, table = brute(gallery, gallery, k, seed, ids, ids, own)
    assert (found == wanted).all()
    np.testing.assert_allclose(cosines, np.take_along_axis(table, wanted, 1), atol=1.1e-6)


def test_equals_numpy_on_real_sized_random_vectors():
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((3000, 64)).astype(np.float32)
    queries = rng.standard_normal((200, 64)).astype(np.float32)
    q, g = np.arange(200), np.arange(3000)
    found, _ = nearest(queries, gallery, 10, seed=1, query_ids=q, gallery_ids=g)
    table = normalize(queries) @ normalize(gallery).T
    wanted = np.argsort(-table, axis=1)[:, :10]
    different = found != wanted
    gap = np.abs(
        np.take_along_axis(table, found, 1)[different]
        - np.take_along_axis(table, wanted, 1)[different]
    )
    assert (gap < 2e-6).all()
    assert different.mean() < 0.001


def test_a_constant_encoder_retrieves_at_random():
    """All equal, more of them than any first look at the index shows: uniform over the gallery."""
    count = 400
    gallery = np.ones((count, 8), np.float32)
    ids = np.arange(count, dtype=np.int64)
    found, _ = nearest(gallery, gallery, 5, seed=3, query_ids=ids, gallery_ids=ids, exclude=ids)
    assert (found != ids[:, None]).all()
    assert all(len(set(row)) == 5 for row in found.tolist())
    counts = np.bincount(found.ravel(), minlength=count)
    assert counts.max() < 25  # in the order of the index the first five would come 400 times
    assert np.abs(np.corrcoef(found[:, 0], ids)[0, 1]) < 0.2


def test_ties_do_not_depend_on_the_order_of_the_gallery_or_the_batch():
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 2, (80, 3)).astype(np.float32)
    ids = np.arange(80, dtype=np.int64) * 7
    found, _ = nearest(rows, rows, 6, seed=2, query_ids=ids, gallery_ids=ids)
    order = rng.permutation(80)
    other, _ = nearest(
        rows[:10], rows[order], 6, seed=2, query_ids=ids[:10], gallery_ids=ids[order]
    )
    assert (ids[found[:10]] == ids[order][other]).all()


def test_zero_vectors_have_cosine_zero():
    gallery = np.array([[1, 0], [0, 0], [-1, 0]], np.float32)
    ids = np.arange(3)
    found, cosines = nearest(gallery[:1], gallery, 3, seed=0, query_ids=ids[:1], gallery_ids=ids)
    assert found.tolist() == [[0, 1, 2]]
    assert cosines.tolist() == [[1, 0, -1]]


@pytest.mark.parametrize(("k", "exclude"), [(4, None), (3, np.array([0, 1, 2])), (0, None)])
def test_k_larger_than_the_gallery_is_refused(k, exclude):
    rows, ids = np.eye(3, dtype=np.float32), np.arange(3)
    with pytest.raises(ValueError, match=f"k = {k} neighbors cannot be drawn"):
        nearest(rows, rows, k, seed=0, query_ids=ids, gallery_ids=ids, exclude=exclude)


def test_metrics_by_hand():
    similarities = np.array([[1.0, 0.5, 0.0], [0.2, 0.4, 0.6]])
    at = mean_similarity_at(similarities, (1, 2, 3))
    np.testing.assert_allclose(at[2], [0.75, 0.3])
    np.testing.assert_allclose(at[3], [0.5, 0.4])
    hits = recall_at(np.array([[False, True], [False, False]]), (1, 2))
    assert hits[1].tolist() == [0, 0]
    assert hits[2].tolist() == [1, 0]
    vectors = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    np.testing.assert_allclose(random_similarity(vectors, np.array([0, 1])), [-0.5, 0])
    found = retrieved_similarities(vectors, np.array([0]), np.array([[1, 2]]))
    assert found.tolist() == [[0, -1]]
    assert scale(0.5, 0.2, 0.8) == pytest.approx(0.5)
    assert scale(0.3, 0.3, 0.3) == 0


def test_without_faiss_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    rows, ids = np.eye(3, dtype=np.float32), np.arange(3)
    with pytest.raises(MissingLibraryError, match='pip install "faiss-cpu"'):
        nearest(rows, rows, 1, seed=0, query_ids=ids, gallery_ids=ids)


@pytest.mark.parametrize("scale", [1e30, 1e25, 1e18, 1e-18, 1e-25, 1e-30])
def test_length_does_not_matter_however_extreme(scale):
    rows = np.random.default_rng(0).standard_normal((50, 16)).astype(np.float32)
    scaled = rows * np.float32(scale)
    scaled[3], rows[3] = 0, 0
    mixed = np.concatenate([rows[:25], scaled[25:]])
    for other in (scaled, mixed):
        np.testing.assert_allclose(normalize(other), normalize(rows), atol=1e-6)
    ids = np.arange(50)
    own = nearest(rows, rows, 3, seed=0, query_ids=ids, gallery_ids=ids)[0]
    assert (nearest(scaled, mixed, 3, seed=0, query_ids=ids, gallery_ids=ids)[0] == own).all()


def test_ordinary_lengths_keep_every_digit():
    rows = np.random.default_rng(1).standard_normal((50, 16)).astype(np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    assert (normalize(rows) == rows / lengths).all()
    assert (normalize(rows * np.float32(2.0**80)) == rows / lengths).all()
    assert (normalize(rows * np.float32(2.0**-80)) == rows / lengths).all()
