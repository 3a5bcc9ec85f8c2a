"""Probes on planted encoders: what must score 0, what 1, and what must not matter."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from encbench.errors import DataError
from encbench.probes.ablation import AblationProbe
from encbench.probes.diagnostics import DiagnosticsProbe, effective_rank
from encbench.probes.retrieval import RetrievalProbe, draw_queries
from encbench.probes.whitening import centered, whitened
from encbench.types import (
    Caption,
    CaptionSet,
    EncoderCard,
    ImageRecord,
    Instance,
    Prompt,
    PromptSet,
    ReEncoderCard,
)

TOPICS = 12


def vector(*parts: object, width: int = 32) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8])
    return np.random.default_rng(seed).standard_normal(width).astype(np.float32)


def captions(images: int = 60, each: int = 3, with_images: bool = True) -> CaptionSet:
    """Images of a dozen topics; captions name the topic and the image."""
    instances = (Instance("thing", 1.0, (0.0, 0.0, 1.0, 1.0)),) if with_images else None
    return CaptionSet(
        name="made",
        pin="0",
        images=tuple(
            ImageRecord(i, f"{i}.jpg", None, 8, 8, instances=instances) for i in range(images)
        ),
        captions=tuple(
            Caption(10 * i + j, i, f"topic {i % TOPICS} image {i} wording {j}")
            for i in range(images)
            for j in range(each)
        ),
    )


WORDS = "amber bridge castle desert engine forest garden harbour island jungle kettle ladder"


def long_prompts(count: int = 40) -> PromptSet:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS.split(), 12)) + f" number{i}." for i in range(count)]
    return PromptSet("made", "0", tuple(Prompt(str(i), t) for i, t in enumerate(texts)))


class Planted:
    """A context around a function from text to vector."""

    def __init__(self, embed, *, data=None, prompts=None, reencode=None, cut=None, **options):
        self.card = EncoderCard("x:y", "x", "y", "0", 32, 77, parameters=5)
        self.captions, self.prompts, self.options = data, prompts, options
        self.reencoder = ReEncoderCard("r", "0", 32, needs="instances") if reencode else None
        self._embed, self._reencode, self._cut = embed, reencode, cut or (lambda text: False)

    def prepare(self, whole, *shortened):
        assert all(any(w.startswith(s) for w in whole) for part in shortened for s in part)

    def embed(self, prompts):
        return torch.from_numpy(np.stack([self._embed(p) for p in prompts]).astype(np.float32))

    def tokens(self, prompts):
        return [row[None] for row in self.embed(prompts)]

    def condition(self, prompts):
        return self.tokens(prompts), None

    def embed_joint(self, prompts):
        return None

    def embed_images(self, images):
        raise AssertionError("no joint space")

    def reencode(self, images):
        return torch.from_numpy(np.stack([self._reencode(i) for i in images]).astype(np.float32))

    def truncated(self, prompts):
        return torch.tensor([self._cut(p) for p in prompts])

    def throughput(self, prompts):
        return {"prompts_per_second": 100.0}


def by_topic(image: ImageRecord) -> np.ndarray:
    return vector("topic", image.image_id % TOPICS) + 0.3 * vector("image", image.image_id)


def knows_topic(text: str) -> np.ndarray:
    return vector("t", text.split()[1]) + 0.2 * vector(text)


def retrieval(embed, **more):
    context = Planted(embed, data=captions(), reencode=by_topic, **more)
    return RetrievalProbe().run(context, seed=0)


def test_retrieval_scale_has_its_ends_where_they_should_be():
    best = retrieval(knows_topic).scores
    nothing = retrieval(lambda text: np.ones(32)).scores
    random = retrieval(lambda text: vector("random", text)).scores
    assert best["scaled@2"].value > 0.85
    for floor in (nothing, random):
        assert floor["scaled@2"].low < 0.1
        assert floor["scaled@2"].high < 0.35
        assert floor["published@2"].value == pytest.approx(floor["floor"].value, abs=0.15)
    for k in (1, 2, 5, 10):
        assert best[f"published@{k}"].value <= best[f"ceiling@{k}"].value + 1e-6
        assert best[f"published@{k}"].low <= best[f"published@{k}"].value


def test_a_copy_of_the_images_reaches_the_ceiling():
    oracle = retrieval(lambda text: by_topic(captions().images[int(text.split()[3])]))
    for k in (1, 2, 5, 10):
        assert oracle.scores[f"scaled@{k}"].value == pytest.approx(1, abs=1e-6)


def test_own_image_is_never_retrieved():
    found = retrieval(lambda text: vector("image", text.split()[3]))
    for example in found.series["gallery"]["worst"] + found.series["gallery"]["best"]:
        own = example["query"]["image_id"]
        assert own not in [row["image_id"] for row in example["retrieved"]]


def test_recall_is_right_where_captions_of_an_image_agree_and_needs_no_images():
    data = captions(with_images=False)
    knows = Planted(lambda text: vector("image", text.split()[3]), data=data)
    found = RetrievalProbe().run(knows, seed=0)
    assert found.main_metric == "recall@2"
    assert found.scores["recall@1"].value == 1
    assert not any(name.startswith("published") for name in found.scores)
    blind = Planted(lambda text: np.ones(32), data=data)
    assert RetrievalProbe().run(blind, seed=0).scores["recall@2"].value < 0.1


def test_the_sample_is_seeded_and_does_not_depend_on_other_images():
    data = captions()
    whole = draw_queries(data, data.images, 1000, seed=4)
    part = draw_queries(data, data.images[::2], 1000, seed=4)
    chosen = {c.image_id: c.caption_id for c in whole.captions}
    assert all(chosen[c.image_id] == c.caption_id for c in part.captions)
    assert len(draw_queries(data, data.images, 7, seed=4).queries) == 7
    other = draw_queries(data, data.images, 7, seed=5).queries.tolist()
    assert draw_queries(data, data.images, 7, seed=4).queries.tolist() != other


def test_k_beyond_the_gallery_and_missing_data_are_one_line():
    with pytest.raises(DataError, match="k = 60 is larger than the gallery of made, which has 59"):
        retrieval(knows_topic, ks=(60,))
    with pytest.raises(DataError, match="needs captions"):
        RetrievalProbe().run(Planted(knows_topic), seed=0)


def test_an_image_that_cannot_be_read_is_unscored_and_counted():
    def some(image: ImageRecord) -> np.ndarray:
        return np.full(32, np.nan) if image.image_id in (3, 4) else by_topic(image)

    context = Planted(knows_topic, data=captions(), reencode=some)
    found = RetrievalProbe().run(context, seed=0)
    assert found.scores["scaled@2"].unscored == 2
    assert found.scores["scaled@2"].n == 58
    assert any("could not be read" in note for note in found.notes)


def bag(text: str) -> np.ndarray:
    return np.mean([vector(w.strip(".").lower()) for w in text.split()] or [np.zeros(32)], axis=0)


def ablation(embed, **more):
    return AblationProbe().run(Planted(embed, prompts=long_prompts(), **more), seed=0)


def test_a_constant_has_one_as_published_and_nothing_calibrated():
    found = ablation(lambda text: np.full(32, 0.3)).scores
    assert found["published"].value == 1
    for name in ("calibrated", "calibrated/centered", "calibrated/whitened", "monotonicity"):
        assert found[name].value == 0, name
        assert (found[name].low, found[name].high) == (0, 0), name
    assert found["identification"].value < 0.1


def test_hashes_of_the_prompt_score_nothing():
    found = ablation(lambda text: vector(text)).scores
    assert abs(found["published"].value) < 0.1
    assert abs(found["calibrated"].value) < 0.1
    assert found["identification"].value < 0.1
    assert abs(found["monotonicity"].value) < 0.2


def test_bag_of_words_notices_what_is_gone():
    found = ablation(bag).scores
    assert found["calibrated"].value > 0.4
    assert found["identification"].value > 0.6  # half of the prompts lose the word that tells them
    assert found["monotonicity"].value > 0.8
    assert found["calibrated"].low < found["calibrated"].value < found["calibrated"].high


def test_an_offset_lifts_the_published_score_but_not_the_calibrated_one():
    plain = ablation(bag).scores
    lifted = ablation(lambda text: bag(text) + 3).scores
    assert lifted["published"].value > plain["published"].value + 0.1
    centered_ = (lifted["calibrated/centered"].value, plain["calibrated/centered"].value)
    assert centered_[0] == pytest.approx(centered_[1], abs=0.01)
    assert lifted["baseline"].value > 0.9


def test_truncated_prompts_are_told_and_left_out_apart():
    cut = {p.text for p in long_prompts().prompts[:10]}
    found = ablation(bag, cut=lambda text: text in cut)
    assert found.scores["published/untruncated"].n == 30
    assert found.scores["published"].n == 40
    assert any("10 of 40 prompts do not fit" in note for note in found.notes)


def test_empty_and_single_word_prompts_are_unscored_and_counted():
    odd = PromptSet("odd", "0", (*long_prompts().prompts, Prompt("e", " "), Prompt("w", "word")))
    found = AblationProbe().run(Planted(bag, prompts=odd), seed=0)
    assert found.scores["calibrated"].unscored == 2
    assert found.scores["calibrated"].n == 40
    few = PromptSet("few", "0", (Prompt("a", "one two"), Prompt("b", "")))
    with pytest.raises(DataError, match="fewer than two prompts"):
        AblationProbe().run(Planted(bag, prompts=few), seed=0)


def test_zero_vectors_count_as_nothing_and_are_told():
    found = ablation(lambda text: np.zeros(32))
    assert found.scores["published"].value == 0
    assert found.scores["calibrated"].value == 0
    assert any("zero vector" in note for note in found.notes)


def test_curves_cover_the_axes_asked_for():
    found = ablation(bag, shares=(0.3, 0.5, 0.7), units=("words",), places=("anywhere", "end"))
    keys = {(c["unit"], c["place"]): c["shares"] for c in found.series["curves"]}
    assert keys == {("words", "anywhere"): [0.3, 0.5, 0.7], ("words", "end"): [0.3, 0.5, 0.7]}
    curve = found.series["curves"][0]
    assert curve["cosine"] == sorted(curve["cosine"], reverse=True)


def test_order_of_prompts_does_not_matter():
    turned = replace(long_prompts(), prompts=long_prompts().prompts[::-1])
    a = ablation(bag).scores
    b = AblationProbe().run(Planted(bag, prompts=turned), seed=0).scores
    for name in ("published", "calibrated", "monotonicity"):
        assert a[name].value == pytest.approx(b[name].value, abs=1e-6)


def test_whitening_is_by_the_shrunken_covariance():
    rng = np.random.default_rng(0)
    for count, width in ((500, 6), (20, 60)):
        fit = (rng.standard_normal((count, width)) * rng.uniform(0.2, 3, width) + 5).astype("f4")
        fresh = rng.standard_normal((7, width)).astype(np.float32)
        mean = fit.mean(axis=0, dtype=np.float64)
        covariance, _ = ledoit_wolf(fit - mean, assume_centered=True)
        values, axes = np.linalg.eigh(covariance)
        wanted = (fresh - mean) @ (axes / np.sqrt(values)) @ axes.T
        np.testing.assert_allclose(whitened(fit)(fresh), wanted, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(centered(fit)(fit).mean(axis=0), 0, atol=1e-4)


def test_diagnostics_by_hand():
    assert effective_rank(np.eye(4, dtype=np.float32)) == pytest.approx(3, abs=1e-5)
    assert effective_rank(np.ones((5, 3), np.float32)) == 0
    line = np.outer(np.arange(5), np.ones(3)).astype(np.float32)
    assert effective_rank(line) == pytest.approx(1, abs=1e-3)
    flat = Planted(lambda text: np.ones(32) + 0.01 * vector(text), data=captions())
    wide = Planted(vector, data=captions(), cut=lambda text: "wording 0" in text)
    flat, wide = (DiagnosticsProbe().run(c, seed=0) for c in (flat, wide))
    assert flat.scores["anisotropy"].value > 0.99
    assert abs(wide.scores["anisotropy"].value) < 0.05
    assert wide.scores["effective-rank"].value > 25
    assert wide.scores["truncation"].value == pytest.approx(1 / 3)
    assert wide.series["cost"]["parameters"] == 5
