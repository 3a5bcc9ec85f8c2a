"""The controls carry exactly the information that they are said to carry."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from encbench.encoders import EncoderSpec, load_encoder
from encbench.encoders.control import (
    CONTROLS,
    FAMILY,
    NAMES,
    hashed_vector,
    positions,
    shuffle_rows,
    split_words,
)
from encbench.encoders.pooling import pool
from encbench.errors import EncbenchError, ModelError, UnknownNameError, UsageError

PROMPTS = [
    "a brown dog bites a red cat",
    "A RED cat bites a brown dog.",
    "a brown dog",
    "",
    "\U0001f600 !!!",
]


def mean(spec: str, prompts: list[str] = PROMPTS) -> Tensor:
    return pool(load_encoder(spec, "cpu").encode(prompts), "mean")


def test_constant_is_exactly_constant() -> None:
    rows = mean("control:constant", [*PROMPTS, "word " * 20_000])
    assert len(rows.unique(dim=0)) == 1
    assert rows[0].abs().sum() > 0


def test_random_tells_prompts_apart_and_nothing_else() -> None:
    prompts = [f"a dog number {i}" for i in range(400)]
    rows = torch.nn.functional.normalize(mean("control:random", prompts))
    cosines = (rows @ rows.T)[~torch.eye(400, dtype=torch.bool)]
    assert cosines.abs().max() < 0.3
    assert abs(cosines.mean()) < 0.005
    torch.testing.assert_close(
        mean("control:random", prompts[5:6]), mean("control:random", prompts)[5:6]
    )


def test_bag_of_words_forgets_order_case_and_punctuation() -> None:
    rows = mean("control:bag-of-words")
    torch.testing.assert_close(rows[0], rows[1])
    assert torch.cosine_similarity(rows[0], rows[2], dim=0) > 0.5
    by_hand = torch.stack([hashed_vector("word", 0, w, size=512) for w in ("a", "brown", "dog")])
    torch.testing.assert_close(rows[2], by_hand.mean(0))


def test_word_position_knows_order_but_no_context() -> None:
    rows = load_encoder("control:word-position", "cpu").encode(PROMPTS)
    pooled = pool(rows, "mean")
    torch.testing.assert_close(pooled[0], pooled[1])  # a sum of both parts hides which goes where
    # 'brown' is the second word of both the first and the third prompt, whatever follows
    torch.testing.assert_close(rows.tokens[0, 1], rows.tokens[2, 1])
    assert not torch.allclose(rows.tokens[0, 0], rows.tokens[0, 4])  # 'a' at two positions
    expected = hashed_vector("word", 0, "brown", size=512) + positions(2, 512)[1]
    torch.testing.assert_close(rows.tokens[0, 1], expected)


def test_random_transformer_mixes_context_in() -> None:
    rows = load_encoder("control:random-transformer", "cpu").encode(PROMPTS)
    assert not torch.allclose(rows.tokens[0, 1], rows.tokens[2, 1], atol=1e-2)
    pooled = pool(rows, "mean")
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-2)
    layers = [f"control:random-transformer?layer={x}" for x in ("0", "1", "2", "normavg")]
    found = [load_encoder(spec, "cpu").encode(PROMPTS).tokens for spec in layers]
    torch.testing.assert_close(
        found[0], load_encoder("control:word-position", "cpu").encode(PROMPTS).tokens
    )
    torch.testing.assert_close(found[2], rows.tokens)
    expected = sum(torch.nn.functional.layer_norm(x, (512,)) for x in found[1:3]) / 2
    torch.testing.assert_close(found[3], expected)
    with pytest.raises(UsageError, match="3 hidden states"):
        load_encoder("control:random-transformer?layer=3", "cpu").encode(PROMPTS)


def test_hashed_entries_are_uniform_with_unit_variance() -> None:
    drawn = hashed_vector("test", size=100_000).double()
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.var() - 1) < 0.02
    assert drawn.abs().max() <= 3**0.5
    assert abs((drawn.abs() < 3**0.5 / 2).double().mean() - 0.5) < 0.01
    assert not torch.equal(hashed_vector("a", "b", size=8), hashed_vector("ab", size=8))


def test_known_values_on_every_machine() -> None:
    """Written down once: a change here means that FAMILY.version must be raised."""
    expected = torch.tensor([-1.6939026, 1.1315535, 1.0050732, -1.4257036])
    torch.testing.assert_close(hashed_vector("word", 0, "dog", size=4), expected, atol=1e-6, rtol=0)


def test_another_process_gives_the_same_bytes() -> None:
    code = (
        "import hashlib, sys; from encbench.encoders import load_encoder\n"
        "for name in sys.argv[1:]:\n"
        "    t = load_encoder('control:' + name, 'cpu').encode(['a dog', 'b', '']).tokens\n"
        "    print(hashlib.sha256(t.numpy().tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *NAMES],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "123"},
        check=True,
    )
    here = [load_encoder(spec, "cpu").encode(["a dog", "b", ""]).tokens for spec in CONTROLS]
    assert done.stdout.split() == [
        hashlib.sha256(tokens.numpy().tobytes()).hexdigest() for tokens in here
    ]


@pytest.mark.parametrize("name", NAMES)
def test_seed_and_dim(name: str) -> None:
    base = load_encoder(f"control:{name}", "cpu")
    other = load_encoder(f"control:{name}?seed=1&dim=64", "cpu")
    again = load_encoder(f"control:{name}?seed=0", "cpu")
    assert other.card.dim == other.encode(PROMPTS).tokens.shape[2] == 64
    wide = load_encoder(f"control:{name}?seed=1", "cpu")
    assert not torch.allclose(wide.encode(PROMPTS).tokens, base.encode(PROMPTS).tokens)
    assert torch.equal(again.encode(PROMPTS).tokens, base.encode(PROMPTS).tokens)
    assert base.card.revision == again.card.revision != other.card.revision
    assert load_encoder(f"control:{name}@{base.card.revision[:12]}", "cpu")


@pytest.mark.parametrize("name", ["bag-of-words", "word-position", "random-transformer"])
def test_truncation(name: str) -> None:
    encoder = load_encoder(f"control:{name}?max_length=3", "cpu")
    features = encoder.encode(["one two three", "one two three four"])
    assert features.truncated.tolist() == [False, True]
    assert features.mask.sum(1).tolist() == [3, 3]
    torch.testing.assert_close(features.tokens[0], features.tokens[1])
    assert load_encoder(f"control:{name}", "cpu").card.max_tokens == 512


def test_table_of_vectors_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encbench.encoders.control.TABLE_ROWS", 100)
    encoder = load_encoder("control:random", "cpu")
    first = encoder.encode(["the very first"]).tokens
    for start in range(0, 5000, 50):
        encoder.encode([str(i) for i in range(start, start + 50)])
    assert len(encoder._table) <= 1024  # type: ignore[attr-defined]
    torch.testing.assert_close(encoder.encode(["the very first"]).tokens, first)
    many = encoder.encode([str(i) for i in range(3000)])
    assert len(many.tokens.flatten(1).unique(dim=0)) == 3000


def test_words() -> None:
    assert split_words("The dog's BONE, isn't 2 big_red!") == [
        "the",
        "dog's",
        "bone",
        "isn't",
        "2",
        "big",
        "red",
    ]
    assert split_words("\U0001f600 !!!") == ["\U0001f600", "!!!"]
    assert split_words("caf\u00e9 \u732b") == ["caf\u00e9", "\u732b"]
    assert split_words("  ") == []


@pytest.mark.parametrize(
    ("spec", "says", "kind"),
    [
        ("control:bag-of-wrods", "did you mean bag-of-words", UnknownNameError),
        ("control:constant?dim=7", "dim=7 of .* multiple of 8", UsageError),
        ("control:constant?dim=0", "dim=0", UsageError),
        ("control:constant?seed=x", "seed=x", UsageError),
        ("control:random?max_length=5", "reads the whole prompt", UsageError),
        ("control:bag-of-words?layer=1", "has no layers", UsageError),
        ("control:random@123", "has revision", ModelError),
        ("control:shuffle(control:random)", "permutes the rows .* after encoding", EncbenchError),
    ],
)
def test_bad_specs(spec: str, says: str, kind: type[EncbenchError]) -> None:
    with pytest.raises(kind, match=says) as caught:
        load_encoder(spec, "cpu")
    assert "\n" not in str(caught.value)


def test_no_end_of_text_and_no_vector_of_its_own() -> None:
    features = load_encoder("control:bag-of-words", "cpu").encode(PROMPTS)
    for how in ("eos", "own"):
        with pytest.raises(UsageError, match=f"pool={how}"):
            pool(features, how)


def test_list_of_controls_is_complete() -> None:
    assert tuple(EncoderSpec.parse(spec).source for spec in CONTROLS) == NAMES
    assert FAMILY.control


# ----------------------------------------------------------------------------- shuffling


def test_shuffle_permutes_rows() -> None:
    rows = torch.randn(50, 3)
    mixed = shuffle_rows(rows, seed=0)
    assert not torch.equal(mixed, rows)
    assert torch.equal(mixed.sort(0).values, rows.sort(0).values)
    matched = (mixed[:, None] == rows[None]).all(2)
    assert (matched.sum(0) == 1).all()
    assert (matched.sum(1) == 1).all()
    assert matched.diagonal().sum() < 8


def test_shuffle_follows_its_seed() -> None:
    rows = torch.arange(30.0)[:, None]
    assert torch.equal(shuffle_rows(rows, 3), shuffle_rows(rows.clone(), 3))
    assert not torch.equal(shuffle_rows(rows, 3), shuffle_rows(rows, 4))
    assert torch.equal(shuffle_rows(rows[:1], 3), rows[:1])
    assert shuffle_rows(rows[:0], 3).shape == (0, 1)
