"""The plan, and an encoder behind its store: once, resumable, checked, the same on any path."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encbench.encode import SHARD_TOKENS, StoredEncoder, estimated_tokens, plan_encoding
from encbench.encoders import EncoderSpec
from encbench.errors import EncoderOutputError, UsageError
from encbench.store import Store

CPU = torch.device("cpu")
PROMPTS = [f"a {c} {a} number {i}" for i in range(40) for c, a in (("red", "fox"), ("old", "ox"))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=200), max_size=60), st.integers(4, 400))
def test_plan_holds_each_prompt_once_within_its_budget(prompts, budget):
    made = plan_encoding(prompts, budget)
    assert sorted(made.prompts) == sorted(set(prompts))
    assert [i for span in made.shards for i in span] == list(range(len(made.prompts)))
    for span in made.shards:
        longest = max(estimated_tokens(made.prompts[i]) for i in span)
        assert len(span) == 1 or longest * len(span) <= budget


@given(st.lists(st.text(max_size=30), max_size=20), st.randoms())
def test_plan_does_not_depend_on_order(prompts, random):
    other = list(prompts)
    random.shuffle(other)
    assert plan_encoding(prompts) == plan_encoding(other)
    assert plan_encoding(prompts).digest == plan_encoding(other).digest


def test_shards_are_well_filled():
    made = plan_encoding([f"a photo of object number {i}" for i in range(20_000)])
    full = [len(s) * estimated_tokens(made.prompts[s[-1]]) for s in made.shards[:-1]]
    assert min(full) > 0.95 * SHARD_TOKENS


class Counting:
    """An encoder of a file: counts its calls, and does what the test tells it to."""

    def __init__(self) -> None:
        from encbench.types import EncoderCard

        self.card = EncoderCard("python:x", "python", "x", "0", 4, None)
        self.calls: list[list[str]] = []
        self.damage = None

    def encode(self, prompts):
        from encbench.types import TextFeatures

        self.calls.append(list(prompts))
        rows = np.array([[len(p), p.count("a"), p.count("e"), 1] for p in prompts], np.float32)
        tokens = torch.from_numpy(rows)[:, None].repeat(1, 2, 1)
        mask = torch.ones(len(prompts), 2, dtype=torch.bool)
        cut = torch.tensor([len(p) > 14 for p in prompts])
        if self.damage == "nan":
            tokens[0, 0, 0] = float("nan")
        return TextFeatures(tokens, mask, cut, None)


encoder = Counting()


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A stored encoder around a fresh Counting, with shards of a few prompts each."""
    encoder.__init__()
    monkeypatch.setattr("encbench.encode.plan_encoding", lambda prompts: plan_encoding(prompts, 60))

    def make(text: str = "python:test_encode:encoder", **more) -> StoredEncoder:
        return StoredEncoder(EncoderSpec.parse(text), Store(tmp_path / "store"), CPU, **more)

    return make


def test_each_prompt_is_encoded_once_and_given_back_in_order(stored):
    wanted = [[len(p), p.count("a"), p.count("e"), 1] for p in PROMPTS]
    first = stored()
    assert first.embed(PROMPTS + PROMPTS[:3]).tolist() == wanted + wanted[:3]
    encoded = [p for call in encoder.calls for p in call]
    assert sorted(encoded) == sorted(set(PROMPTS))
    again = stored()
    assert again.embed(PROMPTS[::-1]).tolist() == wanted[::-1]
    assert again.truncated(PROMPTS).tolist() == [len(p) > 14 for p in PROMPTS]
    assert [p for call in encoder.calls for p in call] == encoded


def test_several_poolings_in_one_pass(stored):
    made = stored(pools=("mean", "max", "own"))
    made.embed(PROMPTS)
    count = len(encoder.calls)
    made.embed(PROMPTS, "max")
    assert len(encoder.calls) == count
    with pytest.raises(UsageError, match="own"):  # this encoder has no vector of its own
        made.embed(PROMPTS, "own")


def test_a_damaged_shard_is_made_again_alone(stored, caplog):
    made = stored()
    rows = made.embed(PROMPTS)
    count = len(encoder.calls)
    shards = sorted(made._entry(plan_encoding(PROMPTS, 60)).folder.glob("*.mean.safetensors"))
    assert len(shards) > 3
    shards[1].write_bytes(shards[1].read_bytes()[:-1])
    with caplog.at_level("WARNING", logger="encbench"):
        assert torch.equal(stored().embed(PROMPTS), rows)
    assert shards[1].name in caplog.text
    assert len(encoder.calls) == count + 1


def test_work_done_before_a_failure_is_kept(stored):
    encoder.damage = None
    made = stored()
    work = plan_encoding(PROMPTS, 60)
    original = encoder.encode

    def dies(prompts):
        if len(encoder.calls) == 3:
            raise KeyboardInterrupt
        return original(prompts)

    encoder.encode = dies
    try:
        with pytest.raises(KeyboardInterrupt):
            made.embed(PROMPTS)
    finally:
        del encoder.encode
    encoder.calls.clear()
    stored().embed(PROMPTS)
    assert len(encoder.calls) == len(work.shards) - 3


def test_nan_is_refused_by_name_and_nothing_of_it_is_stored(stored):
    encoder.damage = "nan"
    made = stored()
    with pytest.raises(EncoderOutputError, match="python:test_encode:encoder"):
        made.embed(PROMPTS)
    assert not list(made._entry(plan_encoding(PROMPTS, 60)).folder.glob("*.safetensors"))


def test_shuffle_permutes_the_vectors_of_the_list(stored):
    plain = stored().embed(PROMPTS)
    shuffled = stored("control:shuffle(python:test_encode:encoder)", seed=1)
    rows = shuffled.embed(PROMPTS)
    assert sorted(rows.tolist()) == sorted(plain.tolist())
    assert not torch.equal(rows, plain)
    assert torch.equal(
        stored("control:shuffle(python:test_encode:encoder)", seed=1).embed(PROMPTS), rows
    )
    other = stored("control:shuffle(python:test_encode:encoder)", seed=2).embed(PROMPTS)
    assert not torch.equal(other, rows)
    assert shuffled.card.control
    assert shuffled.card.spec == "control:shuffle(python:test_encode:encoder)"


def test_tokens_are_those_of_real_positions(stored):
    tokens = stored().tokens(PROMPTS)
    assert [t.shape for t in tokens] == [(2, 4)] * len(PROMPTS)
    assert [t[0, 0].item() for t in tokens] == [len(p) for p in PROMPTS]


def test_shuffle_permutes_tokens_as_it_does_vectors(stored):
    shuffled = stored("control:shuffle(python:test_encode:encoder)", seed=1)
    tokens, rows = shuffled.tokens(PROMPTS), shuffled.embed(PROMPTS)
    assert torch.equal(torch.stack([t.mean(0) for t in tokens]), rows)


def test_tokens_need_not_be_stored_and_vectors_are_in_the_same_pass(stored):
    made = stored()
    tokens = made.tokens(PROMPTS, keep=False)
    folder = made._entry(plan_encoding(PROMPTS, 60)).folder
    assert not list(folder.glob("*.tokens.*"))
    assert list(folder.glob("*.mean.*"))
    encoder.calls.clear()
    rows = made.embed(PROMPTS)
    assert not encoder.calls
    assert torch.equal(torch.stack([t.mean(0) for t in tokens]), rows)
    assert all(map(torch.equal, made.tokens(PROMPTS), tokens))


ANSWERS = """
import torch
from encbench.types import EncoderCard, TextFeatures
class Mine:
    card = EncoderCard('x', 'x', 'x', 'x', dim=4, max_tokens=None)
    calls = 0
    def encode(self, prompts):
        self.calls += 1
        n = len(prompts)
        base = torch.tensor([[len(p), p.count('a'), 1.0, 2.0] for p in prompts]) * SCALE
        tokens = base[:, None] + CHANGE
        return TextFeatures(tokens, torch.ones(n, 1).bool(), torch.zeros(n).bool())
"""


@pytest.mark.parametrize("scale", ["1.0", "1e20", "1e-20"])
@pytest.mark.parametrize(
    ("change", "fails", "warns"),
    [
        ("0", False, False),
        ("1e-7 * SCALE * torch.rand(n, 1, 4)", False, False),
        ("SCALE * torch.rand(n, 1, 4)", True, False),
        ("0.01 * SCALE * torch.randn(n, 1, 4)", True, False),
        ("SCALE * (self.calls > 3)", True, False),
        ("0.01 * SCALE * n", False, True),
        ("0.1 * base.mean(0)", False, True),
        ("base.amax(0) - base[:, None]", False, True),
    ],
)
def test_random_answers_fail_and_those_that_depend_on_neighbors_are_told(
    tmp_path, change, fails, warns, scale
):
    file = tmp_path / "mine.py"
    file.write_text(ANSWERS.replace("CHANGE", change).replace("SCALE", scale))
    made = StoredEncoder(EncoderSpec.parse(f"python:{file}:Mine"), Store(tmp_path / "store"), CPU)
    if fails:
        with pytest.raises(EncoderOutputError, match="other features the second time"):
            made.about  # noqa: B018
    else:
        assert bool(made.about.notes) == warns
