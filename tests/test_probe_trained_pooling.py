"""Trained pooling: nothing for what knows nothing, nearly all for planted attributes."""

from __future__ import annotations

import numpy as np
import pytest
from test_probe_reader import Pretend, attributes, constant, random

from encbench.data.geneval import Clause, GenevalPrompt, prompt_text
from encbench.probes.statements import SEEN, coco, shapes
from encbench.probes.trained_pooling import CAPTIONS, CHOICES, TrainedPoolingProbe, statements


class PretendPairs(Pretend):
    """Knows the statements, too."""

    def __init__(self, encode) -> None:
        super().__init__(encode)
        language = shapes(0, CAPTIONS)
        for caption in language.captions:
            text = prompt_text(caption.include)
            self.statements.setdefault(text, GenevalPrompt(0, "", text, caption.include))
        for prompt in language.prompts[SEEN]:
            for clause, text in said(prompt, language):
                self.statements.setdefault(text, GenevalPrompt(0, "", text, (clause,)))


def said(prompt, language):
    """Clauses behind a prompt's statements, by their texts."""
    known = {}
    for label in language.labels:
        for count in range(1, 5):
            for color in (None, *language.colors):
                clause = Clause(label, count, color)
                known[prompt_text([clause])] = clause
    return [(known[text], text) for text in statements(prompt, language, 0)]


@pytest.mark.parametrize("made", [shapes, coco])
def test_one_statement_is_true_and_three_are_not(made):
    language, swapped = made(0, 100), 0
    for prompt in language.prompts[SEEN]:
        four = statements(prompt, language, 0)
        assert len(set(four)) == CHOICES
        first = prompt.include[0]
        assert four[0] == prompt_text([Clause(first.label, first.count, first.color)])
        if prompt.task == "color_attr":
            swapped += prompt.include[1].color in four[1]
        assert four == statements(prompt, language, 0)
    assert swapped


def test_a_constant_gets_nothing_and_noise_gets_chance():
    found = TrainedPoolingProbe().run(PretendPairs(constant), seed=0, limit=40).scores
    assert found["statements"].value == 0  # all four are equally near
    found = TrainedPoolingProbe().run(PretendPairs(random), seed=0, limit=40).scores
    assert found["statements"].value == pytest.approx(1 / CHOICES, abs=0.2)


def test_planted_attributes_are_matched_and_seeds_repeat():
    first = TrainedPoolingProbe().run(PretendPairs(attributes), seed=0, limit=40)
    assert first.scores["statements"].value > 0.6
    assert first.scores["statements"].low <= first.scores["statements"].value
    assert first.scores["statements"].n == 40
    few, again = (
        TrainedPoolingProbe().run(PretendPairs(attributes), seed=0, limit=8) for _ in range(2)
    )
    assert np.array_equal(few.items["statements"], again.items["statements"])
