"""Decodability: floors and ceilings, what a bag of words can and cannot, images."""

import numpy as np
import pytest
import torch
from scene_parser import parse
from test_probes import Planted, vector

from encbench.data.scenes.default import is_default, scene_batch, scene_captions
from encbench.data.scenes.world import OPPOSITE
from encbench.probes import decodability
from encbench.probes.decodability import (
    ATTRIBUTES,
    VIEWS,
    DecodabilityProbe,
    fit_ridge,
    pool_tokens,
    probe_captions,
)

LIMIT = 100


class Tokens(Planted):
    """A context around a function from text to token vectors; pooled, their mean."""

    def __init__(self, encode, **more):
        super().__init__(lambda text: encode(text).mean(axis=0), **more)
        self._encode = encode

    def tokens(self, prompts):
        return [torch.from_numpy(self._encode(p).astype(np.float32)) for p in prompts]


def words(text: str) -> np.ndarray:
    return np.stack([vector("word", w, width=160) for w in text.replace(",", "").split()])


def run(encode, limit=LIMIT, seed=1, **more):
    return DecodabilityProbe().run(Tokens(encode, **more), seed=seed, limit=limit)


def oracle(text: str) -> np.ndarray:
    """Everything that a caption says, straight from its text: one token for what each phrase
    says, one for the relation, one for the number of things."""
    (claims,) = parse(text)
    rows = []
    for phrase in claims.phrases:
        rows += [vector("shape", phrase.shape, width=96)]
        if phrase.color:
            rows += [vector("color", phrase.color, width=96)]
            rows += [vector("pair", phrase.color, phrase.shape, width=96)]
    if claims.relation:
        a, relation, b = claims.relation
        rows += [vector("stands", claims.phrases[a].shape, relation, width=96)]
        rows += [vector("stands", claims.phrases[b].shape, OPPOSITE[relation], width=96)]
    rows += [vector("count", sum(p.count for p in claims.phrases), width=96)]
    return np.stack(rows)


@pytest.fixture(scope="module")
def ideal():
    """True attributes as one vector."""
    said = {
        c.text: row
        for split, n in decodability._sizes(LIMIT)
        for c, row in zip(
            probe_captions(split, 1, n),
            decodability._targets(probe_captions(split, 1, n)),
            strict=True,
        )
    }
    return run(lambda text: said[text][None]).scores


def test_the_ends_of_every_scale(ideal):
    nothing = run(lambda text: np.ones((3, 16))).scores
    for view in VIEWS:
        assert ideal[view].value > 0.9
        assert nothing[view].value == nothing[view].low == nothing[view].high == 0
        for attribute in ATTRIBUTES:
            assert ideal[f"{attribute}/{view}"].value > 0.85
            assert nothing[f"{attribute}/{view}"].value == 0
    random = run(lambda text: vector(text, width=48)[None]).scores
    assert random["pooled"].low < 0.1
    assert abs(random["pooled"].value) < 0.2


def test_a_bag_of_words_gets_objects_but_not_what_goes_with_what():
    found = run(words, limit=None).scores
    for view in VIEWS:
        assert found[f"objects/{view}"].low > 0.9
        assert found[f"colors/{view}"].low > 0.9
        assert found[f"binding/{view}"].low < 0 < found[f"binding/{view}"].high
        assert found[f"relation/{view}"].high < 0.6


def test_tokens_that_know_their_neighbors_bind():
    """A noun's token that is a vector of its own for each color it comes with."""

    def bound(text: str) -> np.ndarray:
        split = text.split()
        return np.stack([vector(a, b, width=48) for a, b in zip(["", *split], split, strict=False)])

    found = run(bound, limit=None).scores
    assert found["binding/tokens"].low > 0.3


def test_pooling_of_tokens():
    made = [torch.randn(n, 6, generator=torch.Generator().manual_seed(n)) for n in (1, 4, 9)]
    rows = pool_tokens(made)
    for row, tokens in zip(rows, made, strict=True):
        assert row[:6] == pytest.approx(tokens.mean(0).numpy(), abs=1e-6)
        assert row[6:12] == pytest.approx(tokens.amax(0).numpy(), abs=1e-6)
        alone = pool_tokens([tokens.flip(0)])[0]
        assert alone == pytest.approx(row, abs=1e-6)  # the order of tokens says nothing
    assert rows.shape == (3, 12 + decodability.RANDOM)
    zero = pool_tokens([torch.zeros(2, 6)])
    assert (zero == 0).all()


def test_read_out_is_ridge_and_answers_the_mean_where_nothing_varies():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 8))
    y = x @ rng.standard_normal((8, 3)) + 1
    assert fit_ridge(x[:150], y[:150], x[150:]) == pytest.approx(y[150:], abs=0.1)
    still = np.full((200, 8), 3.0) + 1e-7 * x  # float noise is nothing
    assert fit_ridge(still[:150], y[:150], still[150:]) == pytest.approx(
        np.tile(y[:150].mean(0), (50, 1))
    )


def test_fit_and_test_share_no_caption_and_labels_are_what_is_said():
    fit, test = probe_captions("probe-fit", 0, 300), probe_captions("probe-test", 0, 300)
    assert fit[:10] == probe_captions("probe-fit", 0, 10)
    for caption in (*fit, *test):
        (claims,) = parse(caption.text)
        phrases = [(p.shape, p.color, p.count) for p in claims.phrases]
        told = [(g.shape, g.color, g.count) for g in caption.groups]
        assert sorted(map(str, phrases)) == sorted(map(str, told))
        if claims.relation is None:
            assert caption.relation is None
        else:
            a, relation, b = claims.relation
            assert caption.relation is not None
            either = {
                (phrases[a][0], relation, phrases[b][0]),
                (phrases[b][0], OPPOSITE[relation], phrases[a][0]),
            }
            assert (told[0][0], caption.relation, told[1][0]) in either


def test_the_same_gives_the_same_and_intervals_hold_their_values():
    one, two = run(words), run(words)
    assert one.items.equals(two.items)
    assert one.scores == two.scores
    for row in one.scores.values():
        assert row.low <= row.value <= row.high
    assert not run(words, seed=2).items.equals(one.items)


@pytest.fixture(scope="module")
def scenes():
    data = scene_captions(images=150, files=False)
    batch = scene_batch(150)
    truth = decodability._scene_attributes(batch)
    return data, truth


def test_images_are_predicted_from_what_determines_them(scenes):
    data, truth = scenes
    of = {c.text: c.image_id - 1 for c in data.captions}

    def sees(text: str) -> np.ndarray:
        return truth[of[text]][None] if text in of else np.zeros((1, truth.shape[1]))

    more = {"data": data, "reencode": lambda image: truth[image.image_id - 1][:40]}
    found = run(sees, limit=100, **more).scores
    nothing = run(lambda text: np.ones((1, 4)), limit=100, **more).scores
    bag = run(words, limit=100, **more).scores
    assert found["image/pooled"].value > 0.8
    assert found["image-scaled/pooled"].value == pytest.approx(1, abs=0.2)
    for name in ("image/pooled", "image-scaled/tokens"):
        assert nothing[name].value == pytest.approx(0, abs=1e-9)
    assert bag["image/pooled"].value < found["image/pooled"].value - 0.2
    assert nothing["image/attributes"].value > 0.8


def test_without_images_it_says_so(scenes):
    data, _ = scenes
    alone = run(words, limit=20)
    assert any("no images" in note for note in alone.notes)
    assert "image/pooled" not in alone.scores
    assert is_default(data)
    assert not is_default(scene_captions(seed=1, images=150, files=False))
