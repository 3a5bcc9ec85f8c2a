"""Captions of scenes: every claim holds, by a parser of its own; tiers share no words."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest
from scene_parser import Claims, Phrase, parse

from encbench.data.scenes.captions import STYLES, caption
from encbench.data.scenes.render import boxes, masks
from encbench.data.scenes.sampler import sample_scenes
from encbench.data.scenes.world import EASY, SCENES

COUNT = 400
TIERS = ("A", "B", "C")
FUNCTION_WORDS = {
    "a", "an", "the", "of", "and", "on", "in", "is", "are", "it", "there", "to", "that", "which",
    "with", "has", "have", "been", "by", "at", "this", "another", "can", "be", "no", "one",
    "they", "them", "may", "up",
}  # fmt: skip
SHRINK, BAR = 0.1, 0.5  # of the official position rule


def holds(relation: str, one: list[float], other: list[float]) -> bool:
    """GenEval's position rule on boxes, from the facts of its paper and evaluator."""
    center = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (one, other)]
    offset = [a - b for a, b in zip(*center, strict=True)]
    sides = [one[2] - one[0] + other[2] - other[0], one[3] - one[1] + other[3] - other[1]]
    distance = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    x, y = (
        max(abs(o) - SHRINK * s, 0) * (1 if o > 0 else -1) / distance
        for o, s in zip(offset, sides, strict=True)
    )
    return {"left of": x < -BAR, "right of": x > BAR, "above": y < -BAR, "below": y > BAR}[relation]


def matching(phrase: Phrase, scene) -> list[int]:
    return [
        k
        for k, thing in enumerate(scene.objects)
        if thing.shape == phrase.shape
        and phrase.color in (None, thing.color)
        and phrase.size in (None, thing.size)
    ]


def board(thing) -> tuple[int, int]:
    return (sum(thing.x > e for e in (0.38, 0.62)), sum(thing.y > e for e in (0.38, 0.62)))


def check(text: str, style: str, scene, pixel_boxes: list[list[float]]) -> list[Claims]:
    claims = parse(text)
    told: list[int] = []
    last: list[int] = []
    for sentence in claims:
        if sentence.ground:
            assert sentence.ground == scene.ground, text
        if sentence.total:
            assert sentence.total == len(scene.objects), text
        if sentence.complete:
            assert sorted(told) == list(range(len(scene.objects))), text
        for phrase in sentence.phrases:
            able = matching(phrase, scene)
            if style == "short":
                assert len(able) == phrase.count, text
            elif phrase.kind == "the":
                assert len(able) == 1, text
            else:
                able = [k for k in able if sentence.size in (None, scene.objects[k].size)]
                assert (phrase.kind == "another") == any(k in told for k in able), text
                able = [k for k in able if k not in told]
                able = [k for k in able if board(scene.objects[k]) == sentence.place]
                assert able, text
                told.append(able[0])
                last = able[:1]
        if sentence.size and not sentence.phrases:
            assert [scene.objects[k].size for k in last] == [sentence.size], text
        if sentence.relation:
            a, relation, b = sentence.relation
            for x in matching(sentence.phrases[a], scene):
                for y in matching(sentence.phrases[b], scene):
                    assert holds(relation, pixel_boxes[x], pixel_boxes[y]), text
    if style == "long":
        assert sorted(told) == list(range(len(scene.objects))), text
    return claims


@pytest.fixture(scope="module")
def scenes():
    batch = sample_scenes("probe-test", COUNT, seed=7, combos="both")
    return list(batch), boxes(masks(batch, 256)).tolist()


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("style", STYLES)
def test_every_claim_holds(scenes, tier, style):
    kinds = Counter()
    for number, (scene, found) in enumerate(zip(*scenes, strict=True)):
        for seed in (number, number + 1):
            text = caption(scene, tier, style, seed=seed)
            claims = check(text, style, scene, found)
            kinds["relations"] += any(c.relation for c in claims)
            kinds["grounds"] += any(c.ground for c in claims)
            kinds["several"] += any(p.count > 1 for c in claims for p in c.phrases)
            kinds["colors"] += any(p.color for c in claims for p in c.phrases)
            kinds["sizes"] += any(p.size or c.size for c in claims for p in c.phrases)
            if style == "long":
                assert 4 <= len(claims) <= 6, text
                assert claims[0].ground, text
                assert claims[0].total, text
    least = COUNT // 10
    assert all(kinds[kind] > least for kind in ("relations", "grounds", "colors", "sizes")), kinds
    assert (kinds["several"] > least) == (style == "short")


def test_the_checker_finds_false_captions(scenes):
    """Long captions of the next scene are false of this one."""
    batch, found = scenes
    for number in range(100):
        text = caption(batch[number + 1], "B", "long")
        with pytest.raises(AssertionError):
            check(text, "long", batch[number], found[number])


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a orange star", "a photo of two red circle", "two red circles is above a star",
        "a photo of a purple dog", "a hourglass", "a photo of a star beside a ring",
    ],
)  # fmt: skip
def test_the_parser_refuses_bad_grammar_and_unknown_words(text):
    with pytest.raises(AssertionError):
        parse(text)


def vocabulary(tier: str) -> set[str]:
    words = set()
    for world in (SCENES, EASY):
        for scene in sample_scenes("probe-test", 300, seed=3, world=world, combos="both"):
            for style in STYLES:
                for seed in range(3):
                    text = caption(scene, tier, style, seed=seed).lower()
                    words |= set(re.findall(r"[a-z]+", text))
    return words - FUNCTION_WORDS


def test_tiers_share_no_content_word():
    words = {tier: vocabulary(tier) for tier in TIERS}
    assert all(len(found) > 40 for found in words.values())
    for one, other in combinations(TIERS, 2):
        assert not words[one] & words[other], (one, other)


def test_captions_depend_on_nothing_but_their_arguments():
    """In another process with another hash seed; and other seeds give other texts."""
    code = (
        "from encbench.data.scenes.captions import *\n"
        "from encbench.data.scenes.sampler import sample_scenes\n"
        "for scene in sample_scenes('probe-fit', 40, seed=1):\n"
        "    for tier in 'ABC':\n"
        "        for style in STYLES: print(caption(scene, tier, style, seed=5))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONHASHSEED": "123", "PATH": ""},
    )  # fmt: skip
    batch = sample_scenes("probe-fit", 40, seed=1)
    here = [
        caption(scene, tier, style, seed=5) for scene in batch for tier in TIERS for style in STYLES
    ]
    assert there.stdout.splitlines() == here
    scene = batch.scene(1)
    assert len({caption(scene, "A", "short", seed=seed) for seed in range(20)}) > 4
