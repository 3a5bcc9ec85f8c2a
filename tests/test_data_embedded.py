"""The embedded text set: the same bytes always, good English, a fair little benchmark."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest

from encbench.data import embedded
from encbench.data.embedded import embedded_captions, embedded_prompts


def test_same_seed_same_bytes() -> None:
    # golden: a change here changes everybody's embedded results, so say so in the changelog
    captions = "b961a44f48e69d1ed1ff372c7f1e52aaafb713b3d891e506216bd981582225f6"
    prompts = "e6327cf687d6c55cdf77f8638647f78b28387dd4356e77d7340240b655758597"
    assert (embedded_captions().pin, embedded_prompts().pin) == (captions, prompts)
    assert embedded_captions(0) == embedded_captions()
    assert embedded_prompts(0) == embedded_prompts()
    assert embedded_captions(1).pin != embedded_captions().pin
    assert embedded_prompts(1).pin != embedded_prompts().pin


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shape_of_the_captions(seed: int) -> None:
    found = embedded_captions(seed)
    assert len(found.images) == 300
    assert all(image.path is None and image.instances is None for image in found.images)
    owners = Counter(caption.image_id for caption in found.captions)
    assert owners == {image.image_id: 5 for image in found.images}
    assert [c.caption_id for c in found.captions] == list(range(1, 1501))
    assert len({caption.text for caption in found.captions}) > 1490
    assert all(3 <= len(caption.text.split()) <= 30 for caption in found.captions)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shape_of_the_prompts(seed: int) -> None:
    prompts = embedded_prompts(seed).prompts
    assert len({prompt.prompt_id for prompt in prompts}) == 150
    assert len({prompt.text for prompt in prompts}) == 150
    for prompt in prompts:
        assert 60 <= len(prompt.text.split()) <= 90
        assert 4 <= prompt.text.count(".") <= 6


def test_grammar() -> None:
    texts = [caption.text for caption in embedded_captions().captions]
    texts += [prompt.text for prompt in embedded_prompts().prompts]
    forms = [
        form for table in (embedded.ANIMALS, embedded.THINGS) for form in sum(table.values(), ())
    ]
    one, many = ("|".join(form.split("/")[number] for form in forms) for number in (0, 1))
    some = "two|three|four|pair of|couple of"
    wrong = {
        "article before a vowel": r"\ba [aeiou]",
        "article before a consonant": r"\ban [^aeiou]",
        "several of a singular": rf"\b(?:{some}) (?:[\w-]+ ){{1,2}}(?:{one})\b",
        "one of a plural": rf"\ban? (?!pair|couple|view|picture)(?:[\w-]+ ){{0,2}}(?:{many})\b",
        "several is": rf"\b(?:{some}) [\w -]+?(?:{many}) (?:that )?is\b",
        "one are": rf"\ban? (?!pair|couple|view|picture)[\w -]+?(?:{one}) (?:that )?are\b",
        "gap": "  ",
    }
    for text in texts:
        assert re.fullmatch(r"(?:[A-Z][a-z, -]+\. )*[A-Z][a-z, -]+\.", text), text
        for what, pattern in wrong.items():
            assert not re.search(pattern, text, re.IGNORECASE), (what, text)


def test_no_two_images_show_the_same_scene_and_many_have_a_twin() -> None:
    scenes = embedded._scenes(Random("captions 0"), 300)
    assert len({scene.meaning for scene in scenes}) == 300
    twins = 0
    for one, other in pairwise(scenes):
        colours = sorted((one.first.colour, one.second.colour))
        same_things = (one.first.what, one.second.what) == (other.first.what, other.second.what)
        twins += same_things and sorted((other.first.colour, other.second.colour)) == colours
    assert twins > 50


def _recall(rows: np.ndarray, owners: np.ndarray, k: int) -> float:
    """How often one of the k nearest captions is of the same image."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similar = rows @ rows.T
    np.fill_diagonal(similar, -np.inf)
    nearest = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    return float((owners[nearest] == owners[:, None]).any(1).mean())


def test_it_is_a_fair_little_benchmark(minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sklearn.feature_extraction.text import CountVectorizer

    captions = embedded_captions().captions[:500]
    texts = [caption.text for caption in captions]
    owners = np.array([caption.image_id for caption in captions])
    rows = SentenceTransformer(str(minilm), device="cpu").encode(texts, show_progress_bar=False)
    shuffled = rows[np.random.default_rng(0).permutation(len(rows))]
    words = CountVectorizer(token_pattern=r"[\w-]+").fit_transform(texts).toarray().astype(float)
    assert 0.3 < _recall(rows, owners, 1) < 0.9
    assert 0.1 < _recall(words, owners, 1) < 0.4
    assert _recall(words, owners, 10) < 0.9 < _recall(rows, owners, 10)
    assert _recall(shuffled, owners, 1) < 0.02
