"""The reader: what carries nothing gets nothing, what holds everything gets nearly all."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encbench.context import Context
from encbench.data.geneval import GenevalPrompt
from encbench.encoders.control import hashed_vector
from encbench.probes import reader
from encbench.probes.statements import shapes

DIM = 48


class Pretend(Context):
    """A context with features by a function of the statement."""

    def __init__(self, encode) -> None:
        self.captions = self.prompts = self.reencoder = self.card = None
        self.options = {}
        language = shapes(0, reader.CAPTIONS)
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


@pytest.fixture(scope="module", autouse=True)
def two_readers():
    """Enough for what is tested here, at half the price."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "SEEDS", 2)
        yield


def measure(encode, seed: int = 0) -> dict[str, float]:
    found = reader.ReaderProbe().run(Pretend(encode), seed=seed)
    return {name: score.value for name, score in found.scores.items()}


@pytest.fixture(scope="module")
def floor() -> dict[str, float]:
    return measure(constant)


def test_constant_gets_chance(floor) -> None:
    assert floor["everything"] < 0.13
    assert floor["binding"] == 0.5  # each of these prompts is asked with its colors exchanged
    assert floor["everything"] == floor["other-words"]


def test_random_and_shuffled_encoders_get_chance(floor) -> None:
    assert measure(random)["everything"] < floor["everything"] + 0.06


def test_bag_of_words_names_colors_and_shapes_but_not_which_on_which() -> None:
    found = measure(bag)
    assert found["objects"] > 0.9
    assert found["colors"] > 0.9
    assert found["binding"] == pytest.approx(0.5, abs=0.02)
    assert found["other-words"] < 0.2  # it knows none of these words
    assert found["held-out"] > 0.5  # but all words of these


def test_planted_attributes_are_all_read() -> None:
    found = measure(attributes)
    assert found["everything@400"] > 0.9
    assert found["binding"] > 0.9
    assert found["everything"] == pytest.approx(
        np.mean([found[f"everything@{n}"] for n in reader.STEPS])
    )
