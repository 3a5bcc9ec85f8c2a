"""Laws of pooling and of choosing a layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from encbench.encoders.pooling import EndedFeatures, pool, select_layer
from encbench.encoders.spec import POOLINGS
from encbench.errors import UsageError
from encbench.types import TextFeatures


def make(
    lengths: list[int], dim: int = 5, left: bool = False, extra: int = 0, seed: int = 0
) -> EndedFeatures:
    """Random features of prompts of these lengths, with large numbers in the padding."""
    width = max(lengths) + extra
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.full((len(lengths), width, dim), 1e4)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        span = slice(width - length, width) if left else slice(0, length)
        tokens[row, span] = torch.randn(length, dim, generator=draw)
        mask[row, span] = True
    pooled = torch.randn(len(lengths), dim + 2, generator=draw)
    return EndedFeatures(tokens, mask, torch.zeros(len(lengths), dtype=torch.bool), pooled)


some_lengths = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(lengths=some_lengths, extra=st.integers(0, 3))
def test_masked_poolings_see_real_tokens_only_on_whichever_side_padding_is(
    lengths: list[int], extra: int
) -> None:
    right, padded = make(lengths), make(lengths, extra=extra)
    left = make(lengths, left=True, extra=extra)
    for how in ("mean", "max", "last", "eos", "own"):
        torch.testing.assert_close(pool(padded, how), pool(right, how))
        torch.testing.assert_close(pool(left, how), pool(right, how))


@settings(max_examples=30, deadline=None)
@given(lengths=some_lengths)
def test_each_pooling_is_its_definition_row_by_row(lengths: list[int]) -> None:
    features = make(lengths, extra=1)
    rows = [features.tokens[i][features.mask[i]] for i in range(len(lengths))]
    expected = {
        "mean": torch.stack([row.mean(0) for row in rows]),
        "max": torch.stack([row.max(0).values for row in rows]),
        "last": torch.stack([row[-1] for row in rows]),
        "eos": torch.stack([row[-1] for row in rows]),
        "mean-padded": features.tokens.mean(1),
        "own": features.pooled,
    }
    assert set(expected) == set(POOLINGS)
    for how, value in expected.items():
        torch.testing.assert_close(pool(features, how), value, msg=how)


def test_result_is_float32_and_accumulated_in_it() -> None:
    tokens = torch.ones(1, 3000, 2, dtype=torch.bfloat16)  # bfloat16 cannot count to 3000
    one = torch.ones(1, 3000, dtype=torch.bool)
    features = TextFeatures(tokens, one, torch.tensor([False]))
    for how in ("mean", "mean-padded", "max", "last"):
        pooled = pool(features, how)
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled, torch.ones(1, 2), atol=0, rtol=0)


def test_infinity_in_padding_does_not_leak() -> None:
    features = make([2, 4])
    features.tokens[~features.mask] = torch.inf
    assert pool(features, "mean").isfinite().all()
    assert pool(features, "max").isfinite().all()


def test_equal_rows_have_exactly_equal_means() -> None:
    features = make([3])
    many = TextFeatures(
        features.tokens.expand(7, -1, -1), features.mask.expand(7, -1), torch.zeros(7).bool()
    )
    assert len(pool(many, "mean").unique(dim=0)) == 1


def test_what_features_lack_is_a_usage_error() -> None:
    ended = make([2, 3])
    plain = TextFeatures(ended.tokens, ended.mask, ended.truncated)
    with pytest.raises(UsageError, match=r"pool=eos needs .* pool=last"):
        pool(plain, "eos")
    with pytest.raises(UsageError, match=r"pool=own.*pool=mean"):
        pool(plain, "own")
    with pytest.raises(UsageError, match="unknown pool 'median'; known: mean"):
        pool(plain, "median")


# ------------------------------------------------------------------------------- layers


@pytest.fixture
def states() -> list[torch.Tensor]:
    return list(torch.randn(4, 2, 3, 8, generator=torch.Generator().manual_seed(0)))


def test_named_layers(states: list[torch.Tensor]) -> None:
    last = functional.layer_norm(states[-1], (8,)) * 3  # a final norm that states[-1] lacks
    assert select_layer(states, last, "last") is last
    assert select_layer([], last, "last") is last
    assert select_layer(states, last, "penultimate") is states[2]
    for index in (0, 1, 2, 3, -2, -4):
        assert select_layer(states, last, str(index)) is states[index]


def test_normavg_is_the_mean_of_normalized_layers_without_embeddings(
    states: list[torch.Tensor],
) -> None:
    found = select_layer(states, states[-1], "normavg")
    by_hand = [
        (s - s.mean(-1, keepdim=True)) / (s.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        for s in states[1:]
    ]
    torch.testing.assert_close(found, torch.stack(by_hand).mean(0))
    scaled = [states[0] * 50, states[1] * 20, states[2] + 7, states[3]]
    # neither the embeddings nor a layer's scale and offset matter (up to the norm's epsilon)
    torch.testing.assert_close(
        select_layer(scaled, states[-1], "normavg"), found, atol=1e-4, rtol=1e-4
    )


def test_normavg_keeps_the_dtype(states: list[torch.Tensor]) -> None:
    low = [s.bfloat16() for s in states]
    assert select_layer(low, low[-1], "normavg").dtype == torch.bfloat16


@pytest.mark.parametrize("layer", ["4", "-5", "99"])
def test_index_out_of_range_says_how_many_there_are(states: list[torch.Tensor], layer: str) -> None:
    with pytest.raises(UsageError, match=rf"layer={layer}: .* 4 hidden states, 0 .* to 3"):
        select_layer(states, states[-1], layer)


@pytest.mark.parametrize("layer", ["penultimate", "normavg", "1"])
def test_encoder_of_one_layer(states: list[torch.Tensor], layer: str) -> None:
    with pytest.raises(UsageError, match=f"layer={layer}: .* layer=last"):
        select_layer(states[:1], states[0], layer)
