"""The reader: what carries nothing gets nothing, what holds everything gets nearly all."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from encbench.context import Context
from encbench.data.geneval import CLASSES, COLORS, Clause, GenevalPrompt, prompt_text
from encbench.data.scenes.default import scene_captions
from encbench.encoders.control import hashed_vector
from encbench.flow.features import Bank, PromptFeatures, Widths
from encbench.probes import reader
from encbench.probes.reader import Layout
from encbench.probes.reader_network import HEADS, QUERIES, WIDTH, Reader, gather_batch
from encbench.probes.statements import (
    HELD_OUT,
    OTHER_WORDS,
    SEEN,
    SYNONYMS,
    coco,
    language_for,
    shapes,
)
from encbench.types import CaptionSet, Measurement

DIM = 48


class Pretend(Context):
    """A context with features by a function of the statement."""

    def __init__(self, encode, seed: int = 0) -> None:
        self.captions = self.prompts = self.reencoder = self.card = None
        self.options = {}
        language = shapes(seed, reader.CAPTIONS)
        known = [*language.captions, *(p for ps in language.prompts.values() for p in ps)]
        self.statements = {s.text: s for s in known}
        self.encode = encode

    def condition(self, texts):
        return [self.encode(self.statements[text]) for text in texts], None

    def truncated(self, texts):
        return torch.tensor([len(text) > 50 for text in texts])


def constant(statement: GenevalPrompt) -> torch.Tensor:
    return hashed_vector("same", size=DIM)[None]


def random(statement: GenevalPrompt) -> torch.Tensor:
    return hashed_vector("random", statement.text, size=DIM)[None]


def bag(statement: GenevalPrompt) -> torch.Tensor:
    """A vector for each word, in alphabetical order."""
    rows = [hashed_vector("word", word, size=DIM) for word in sorted(statement.text.split())]
    return torch.stack(rows)


def shuffled(statement: GenevalPrompt) -> torch.Tensor:
    """The attributes of another statement."""
    known = shapes(0, reader.CAPTIONS).captions
    return attributes(known[int(1e6 * abs(float(random(statement)[0, 0]))) % len(known)])


def attributes(statement: GenevalPrompt) -> torch.Tensor:
    """A vector for each clause, each of its attributes, and each pair; no words."""
    rows = []
    for clause in statement.include:
        rows.append(hashed_vector("thing", clause.label, clause.color, size=DIM))
        if clause.position is not None:
            relation, target = clause.position
            other = statement.include[target].label
            rows.append(hashed_vector("stands", clause.label, relation, other, size=DIM))
    number = sum(clause.count for clause in statement.include)
    return torch.stack([*rows, hashed_vector("number", number, size=DIM)])


def measure(encode, seed: int = 0) -> Measurement:
    return reader.ReaderProbe().run(Pretend(encode, seed), seed=seed)


def values(found: Measurement) -> dict[str, float]:
    return {name: score.value for name, score in found.scores.items()}


@pytest.fixture
def one_reader(monkeypatch):
    """A quarter of the price."""
    monkeypatch.setattr(reader, "SEEDS", 1)


@pytest.fixture
def few_steps(monkeypatch):
    """For what no number of steps changes."""
    monkeypatch.setattr(reader, "STEPS", (10, 40))


# ------------------------------------------------------------------------------------- laws


def test_what_knows_nothing_of_the_prompt_gets_chance(few_steps) -> None:
    floor = values(measure(constant))
    assert floor["binding"] == 0.5  # each of these prompts is asked with its colors exchanged
    assert floor["everything"] < 0.13
    assert floor["everything"] == floor["other-words"]
    assert floor["spectral-entropy"] == floor["readable-entropy"] == 0
    for other in (random, shuffled):
        found = values(measure(other))
        assert found["everything"] < 0.16
        assert found["binding"] == pytest.approx(0.5, abs=0.15)


def test_bag_of_words_names_colors_and_shapes_but_not_which_on_which(one_reader) -> None:
    found = values(measure(bag))
    assert found["objects"] > 0.9
    assert found["colors"] > 0.9
    assert found["binding"] == pytest.approx(0.5, abs=0.02)
    assert found["other-words"] < 0.2  # it knows none of these words
    assert found["held-out"] > 0.5  # but all words of these


def test_planted_attributes_are_all_read(one_reader) -> None:
    found = values(measure(attributes))
    assert found["everything@400"] > 0.9
    assert found["binding"] > 0.9
    steps = [found[f"everything@{n}"] for n in reader.STEPS]
    assert found["everything"] == pytest.approx(np.mean(steps))
    assert steps[0] < steps[-1]


def test_noise_is_remembered_but_does_not_count_as_readable(one_reader) -> None:
    noise, planted = values(measure(random)), values(measure(attributes))
    assert noise["everything"] > 0.3  # prompts that are captions, too
    assert noise["spectral-entropy"] > planted["spectral-entropy"]
    assert noise["readable-entropy"] < 0.2 * planted["readable-entropy"]


def slow(statement: GenevalPrompt) -> torch.Tensor:
    """The attributes, hidden below one large direction that says nothing."""
    rows = attributes(statement)
    noise = torch.stack(
        [hashed_vector("noise", statement.text, i, size=1) for i in range(len(rows))]
    )
    return 0.02 * rows + (4 + 3 * noise) * hashed_vector("large", size=DIM)


def test_whitening_makes_slow_features_as_easy_as_plain_ones(one_reader, monkeypatch) -> None:
    monkeypatch.setattr(reader, "STEPS", (150,))
    plain = values(measure(slow))["everything"]
    found = reader.WhitenedReaderProbe().run(Pretend(slow), seed=0)
    assert values(found)["everything"] > plain + 0.3
    assert not any("read as they are" in note for note in found.notes)


def test_what_cannot_be_whitened_is_read_as_it_is(few_steps) -> None:
    found = reader.WhitenedReaderProbe().run(Pretend(constant), seed=0)
    assert found.scores == measure(constant).scores
    assert any("all the same" in note and "read as they are" in note for note in found.notes)


def test_same_seed_same_scores_and_intervals_hold_them(few_steps) -> None:
    first, again, other = measure(bag), measure(bag), measure(bag, seed=1)
    assert first.scores == again.scores
    assert first.items.equals(again.items)
    assert first.scores != other.scores
    assert any("of" in note and "cut" in note for note in first.notes)
    for score in first.scores.values():
        assert score.low <= score.value <= score.high
    assert first.scores["everything"].low < first.scores["everything"].high


def test_limit_makes_it_smaller(few_steps) -> None:
    found = reader.ReaderProbe().run(Pretend(attributes), seed=0, limit=12)
    assert found.scores["everything"].n == 12 + reader.SEEDS
    tasks = Counter(item.split()[1] for item in found.items.item if item.startswith(SEEN))
    assert tasks["color_attr"] == 2  # tasks in turn


# ------------------------------------------------------------------------------ its pieces


def test_interval_is_that_of_prompts_within_tasks_and_of_readers() -> None:
    rng = np.random.default_rng(0)
    tasks = ["a"] * 40 + ["b"] * 10
    chance = rng.random(50) + np.linspace(-0.2, 0.2, 4)[:, None]
    right = (rng.random((4, 50)) < chance).astype(float)
    column = reader._column(right, tasks)
    by_task = [right[:, :40], right[:, 40:]]
    assert column.mean() == pytest.approx(np.mean([part.mean() for part in by_task]))
    of_prompts = sum(part.mean(0).var() / part.shape[1] / 4 for part in by_task)
    of_readers = np.mean([part.mean(1) for part in by_task], axis=0).var(ddof=1) / 4
    assert column.var() / len(column) == pytest.approx(of_prompts + of_readers)


def test_entropy_is_that_of_the_variances_of_captions_mean_tokens() -> None:
    """Known where variances are known; the captions' parts are its derivative by their weights."""
    base = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    corners = torch.cat([base, -base])  # three directions of equal variance
    texts = [PromptFeatures(torch.stack([row, row]), None) for row in corners]
    found = reader.spectrum(Bank.of(texts))
    assert found.entropy == pytest.approx(np.log(3))
    assert reader.spectrum(Bank.of(texts[:2] * 3)).entropy < np.log(2)
    rng = np.random.default_rng(0)
    spread = torch.tensor([3.0, 1, 1, 0.5])

    def draw(count: int) -> list[PromptFeatures]:
        rows = torch.from_numpy(rng.normal(size=(count, 1, 4))).float() * spread + 4
        return [PromptFeatures(row, None) for row in rows]

    captions = draw(4000)
    whole = reader.spectrum(Bank.of(captions))
    assert whole.parts.mean() == pytest.approx(0, abs=1e-8)
    again = [reader.spectrum(Bank.of(draw(4000))).entropy for _ in range(60)]
    error = whole.parts.std() / np.sqrt(len(captions))
    assert error == pytest.approx(np.std(again), rel=0.35)


@pytest.mark.parametrize(
    ("share", "new", "moves"), [(0.4, 0.8, (1, 0)), (0.8, 0.3, (0, 1)), (0.4, None, (1, 0))]
)
def test_readable_entropy_is_a_product_with_the_spread_of_both(share, new, moves) -> None:
    rng = np.random.default_rng(0)

    def column(mean: float, count: int) -> np.ndarray:
        rows = rng.normal(size=count) * 0.1
        return mean + rows - rows.mean()

    own, other = column(share, 100), np.empty(0) if new is None else column(new, 40)
    groups = 2 * column(0, 50)
    parts = reader._readable(own, other, 2.0, groups)
    assert [len(part) for part in parts] == [100, len(other), 50]
    both = np.concatenate(parts)
    lower = share if moves[0] else new
    assert both.mean() == pytest.approx(lower * 2.0)
    error = lower**2 * groups.var() / 50
    for move, rows in zip(moves, (own, other), strict=True):
        error += move * 2**2 * rows.var() / len(rows) if len(rows) else 0
    assert both.var() / len(both) == pytest.approx(error, rel=1e-4)


def test_attention_is_multi_head_attention() -> None:
    """Against torch's own, on texts of different lengths; packing changes nothing."""
    torch.manual_seed(0)
    texts = [PromptFeatures(torch.randn(n, 6), torch.randn(5)) for n in (3, 1, 7)]
    bank, net = Bank.of(texts), Reader(Widths(6, 5), 11)
    net.text.tokens.scale.uniform_(0.5, 2)
    whole = gather_batch(bank, np.array([[2, 0, 1]]))
    found = net(*(part[0] for part in whole))
    each, many = WIDTH // HEADS, QUERIES
    for row, number in zip(found, (2, 0, 1), strict=True):
        tokens = net.text.tokens(bank.text(number).tokens)
        heads = [
            layer.view(-1, HEADS, each).transpose(0, 1)
            for layer in (net.query(net.queries), net.key(tokens), net.value(tokens))
        ]
        seen = functional.scaled_dot_product_attention(*heads).transpose(0, 1).reshape(many, -1)
        pooled = net.text.pooled(bank.text(number).pooled)
        torch.testing.assert_close(row, net.head(torch.cat([net.out(seen).flatten(), pooled])))


def test_judged_like_geneval_by_the_highest_outputs() -> None:
    layout = Layout(["cat", "dog", "cow"], ["red", "blue"])
    pair = GenevalPrompt(0, "color_attr", "", (Clause("cat", 1, "red"), Clause("dog", 1, "blue")))
    place = GenevalPrompt(1, "position", "", (Clause("cat"), Clause("dog", 1, None, ("above", 0))))
    count = GenevalPrompt(2, "counting", "", (Clause("cow", 3),))
    prompts = [pair, place, count]
    swap = replace(pair, include=(Clause("cat", 1, "blue"), Clause("dog", 1, "red")))
    below = replace(place, include=(Clause("cat"), Clause("dog", 1, None, ("below", 0))))
    right = layout.targets(prompts)[None].repeat(2, 0)
    right[1] = layout.targets([swap, below, replace(count, include=(Clause("cow", 2),))])
    found = layout.judge(right, prompts)
    assert found["everything"].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert found["objects"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert found["binding"][:, 0].tolist() == [1, 0]
    assert found["relation"][:, 1].tolist() == [1, 0]
    assert np.isnan(found["binding"][:, 1:]).all()
    assert layout.judge(np.zeros_like(right), prompts)["everything"].sum() == 0  # ties lose
    assert layout.judge(right, prompts, pairs=False)["everything"][1].tolist() == [1, 1, 0]
    turned = GenevalPrompt(3, "", "", (Clause("dog"), Clause("cat", 1, None, ("below", 0))))
    assert (layout.targets([turned]) == layout.targets([place])).all()  # one meaning


@pytest.mark.parametrize("language", [shapes, coco])
def test_prompts_ask_for_what_captions_may_say(language) -> None:
    found = language(0, 300)
    assert len(found.captions) == 300
    assert language(0, 100).captions == found.captions[:100]
    texts = {caption.text for caption in language(1, 300).captions}
    assert len(texts & {caption.text for caption in found.captions}) < 250
    seen, other = found.prompts[SEEN], found.prompts[OTHER_WORDS]
    assert [p.include for p in seen] == [p.include for p in other]
    assert not {p.text for p in seen} & {p.text for p in other}
    assert all(p.text == prompt_text(p.include) for p in seen)
    pairs = {(c.color, c.label) for p in (*found.captions, *seen) for c in p.include}
    colored = [p for p in found.prompts[HELD_OUT] if p.task == "colors"]
    assert colored
    assert not pairs & {(c.color, c.label) for p in colored for c in p.include}
    meanings = {frozenset((c.label, c.color) for c in p.include) for p in seen}
    for prompt in seen:
        if prompt.task == "color_attr":
            one, two = prompt.include
            assert frozenset({(one.label, two.color), (two.label, one.color)}) in meanings
    Layout(found.labels, found.colors).targets(found.captions)  # knows every word


def test_other_words_share_no_noun_with_the_class() -> None:
    assert set(SYNONYMS) == set(CLASSES)
    assert len(set(SYNONYMS.values())) == len(CLASSES)
    kept = {name for name, other in SYNONYMS.items() if name.split()[-1] in other.split()}
    assert not kept
    assert not set(COLORS) & {word for other in SYNONYMS.values() for word in other.split()} - {
        "orange", "green"  # what a carrot and broccoli look like
    }  # fmt: skip


def test_chosen_by_the_run_s_data() -> None:
    assert language_for(None) is shapes
    assert language_for(scene_captions(images=1, files=False)) is shapes
    photos = CaptionSet("coco-val2017", "", (), (), labels=("person", "stop sign"))
    assert language_for(photos) is coco
