"""Bootstrap intervals: coverage, pairing, scales."""

import numpy as np
import pandas as pd
import pytest

from encbench.intervals import combine, estimate_score, estimate_scores, resampled_means


def test_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        items = pd.DataFrame({"v": rng.normal(3, 2, 60)})
        found = estimate_score(items, ("v",), seed=trial)
        inside += found.low <= 3 <= found.high
    assert 180 <= inside <= 199


def test_columns_are_resampled_together():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=200)
    means = resampled_means(np.stack([noise, noise + 0.1], axis=1), seed=0)
    difference = means[:, 1] - means[:, 0]
    assert difference.std() < 1e-9
    assert means[:, 0].std() > 0.05


def test_same_seed_same_interval_other_seed_another():
    items = pd.DataFrame({"v": np.arange(30.0)})
    assert estimate_score(items, ("v",), seed=1) == estimate_score(items, ("v",), seed=1)
    assert estimate_score(items, ("v",), seed=1).low != estimate_score(items, ("v",), seed=2).low


def test_scale_is_of_means_not_of_items():
    items = pd.DataFrame({"v": [1.0, 3.0], "floor": [0.0, 0.0], "ceiling": [1.0, 9.0]})
    assert estimate_score(items, ("v", "floor", "ceiling"), seed=0).value == pytest.approx(0.4)


def test_nothing_over_nothing_is_zero():
    items = pd.DataFrame({"v": [1.0, 1.0], "floor": [1.0, 1.0], "ceiling": [1.0, 1.0]})
    found = estimate_score(items, ("v", "floor", "ceiling"), seed=0)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert combine(np.array([[0.5, 0.5, 0.5]])).tolist() == [0]


def test_rows_without_a_value_are_left_out_and_names_without_any_dropped():
    items = pd.DataFrame({"a": [1.0, np.nan, 3.0], "b": [np.nan] * 3})
    found = estimate_scores(items, {"a": ("a",), "b": ("b",)}, seed=0, unscored=1)
    assert set(found) == {"a"}
    assert (found["a"].value, found["a"].n, found["a"].unscored) == (2, 2, 1)
