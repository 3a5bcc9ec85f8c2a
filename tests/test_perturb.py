"""Perturbations are pure functions with laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from encbench.probes.perturb import bare, choose_kept, is_content, remove, rng_for, split, swap_word

TEXT = "A red fox, quick and sly, jumps over seven lazy dogs. The dogs sleep on. Nobody cares!"
words = st.lists(st.text("abcdefgh,.", min_size=1, max_size=8), min_size=1, max_size=30)


@given(
    words, st.floats(0.01, 0.99), st.sampled_from(["anywhere", "start", "end"]), st.integers(0, 99)
)
def test_removing_words(parts, share, place, seed):
    """What stays is a subsequence, never empty, of the size asked for."""
    text = " ".join(parts)
    short = remove(text, share, "words", place, np.random.default_rng(seed))
    if len(parts) == 1:
        assert short is None
        return
    stay = short.split()
    gone = min(len(parts) - 1, max(1, round(share * len(parts))))
    assert len(stay) == len(parts) - gone
    rest = iter(parts)
    assert all(word in rest for word in stay)
    if place == "start":
        assert stay == parts[gone:]
    if place == "end":
        assert stay == parts[: len(parts) - gone]


def test_sentences():
    assert split(TEXT, "sentences") == [
        "A red fox, quick and sly, jumps over seven lazy dogs.",
        "The dogs sleep on.",
        "Nobody cares!",
    ]
    assert remove(TEXT, 0.4, "sentences", "end", rng_for(0)) == TEXT.removesuffix(" Nobody cares!")
    assert remove("One sentence only.", 0.5, "sentences", "anywhere", rng_for(0)) is None


def test_randomness_is_an_argument():
    again = [remove(TEXT, 0.5, "words", "anywhere", rng_for(1, "id")) for _ in range(2)]
    assert again[0] == again[1]
    others = {remove(TEXT, 0.5, "words", "anywhere", rng_for(s, "id")) for s in range(20)}
    assert len(others) == 20


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_impossible_shares_are_refused(share):
    with pytest.raises(ValueError, match="share removed"):
        choose_kept(10, share, "anywhere", rng_for(0))


def test_each_word_is_as_likely_to_go():
    counts = np.zeros(10)
    for seed in range(2000):
        for i in choose_kept(10, 0.3, "anywhere", np.random.default_rng(seed)):
            counts[i] += 1
    assert np.abs(counts / 2000 - 0.7).max() < 0.04


def test_swapping_changes_one_content_word_where_allowed():
    vocabulary = ["castle", "violin"]
    before = TEXT.split()
    for seed in range(30):
        after = swap_word(TEXT, [0, 2, 4, 5, 6], vocabulary, rng_for(seed)).split()
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert len(changed) == 1
        assert changed[0] in (2, 4, 6) or is_content(before[changed[0]])
        assert bare(after[changed[0]]) in vocabulary
    assert swap_word("Castle, castle", [0], ["castle"], rng_for(0)) is None
    assert swap_word("it is on", [0, 1, 2], vocabulary, rng_for(0)) is None
    assert swap_word("Palace, yes", [0], ["tower"], rng_for(0)) == "Tower, yes"
    assert swap_word('"walls" yes', [0], ["tower"], rng_for(0)) == '"tower" yes'
