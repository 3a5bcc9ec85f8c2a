"""Minimal pairs: every pair says what it should, and planted encoders score as they must."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scene_parser import parse
from test_probes import Planted, vector

from encbench.data.geneval import CLASSES, COLORS, OPPOSITE, pluralize
from encbench.intervals import mean_of
from encbench.probes.minimal_pairs import KINDS, WORDINGS, MinimalPairsProbe, cases

FOUND = cases(3, per_task=12)
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}


def words(text: str) -> list[str]:
    return text.replace(",", "").split()


def meaning(means) -> frozenset:
    """Equal for clauses that ask for the same picture."""
    things = [(c.label, c.count, c.color) for c in means]
    if means[1].position is None:
        return frozenset(Counter(things).items())
    relation = means[1].position[0]
    one, other = things[1], things[0]
    return frozenset({(one, relation, other), (other, OPPOSITE[relation], one)})


def read_scene(text: str) -> frozenset:
    """The meaning of a text about shapes, by a parser that knows nothing of how it was made."""
    (claims,) = parse(text)
    things = [(p.shape, p.count, p.color) for p in claims.phrases]
    if claims.relation is None:
        return frozenset(Counter(things).items())
    a, relation, b = claims.relation
    one, other = things[a], things[b]
    return frozenset({(one, relation, other), (other, OPPOSITE[relation], one)})


def read_geneval(text: str) -> frozenset:
    """The meaning of a text about COCO's classes."""
    nouns = {pluralize(c): c for c in CLASSES} | {c: c for c in CLASSES}
    nouns |= {f"pair of {c}": c for c in CLASSES} | {f"pairs of {c}": c for c in CLASSES}
    text = re.sub(r"^a (?:photo|picture) of ", "", text)
    relation = next((r for r in OPPOSITE if f" {r} " in text), None)
    things = []
    for part in text.split(f" {relation} " if relation else " and "):
        number, rest = part.split(" ", 1)
        color = next((c for c in COLORS if re.search(rf"\b{c} ", rest + " ")), None)
        if rest in nouns:  # an orange is no color here
            color = None
        noun = re.sub(rf"\b{color} ", "", rest, count=1) if color else rest
        things.append((nouns[noun], NUMBERS[number], color))
    if relation is None:
        return frozenset(Counter(things).items())
    one, other = things
    return frozenset({(one, relation, other), (other, OPPOSITE[relation], one)})


def read(case, text: str) -> frozenset:
    return read_scene(text) if case.source == "scenes" else read_geneval(text)


@pytest.mark.parametrize("case", FOUND, ids=lambda case: case.name)
def test_paraphrases_keep_the_meaning_and_swaps_change_it(case):
    true = read(case, case.base.text)
    assert true == meaning(case.base.means)
    for wording, said in case.paraphrases.items():
        assert said.text != case.base.text
        assert read(case, said.text) == true, wording
    for kind, versions in case.swaps.items():
        (false,) = {read(case, swap.text) for swap in versions.values()}
        assert false != true
        assert false == meaning(versions[""].means)
        assert versions.keys() == {"", *case.paraphrases}
        for wording, said in (("", case.base), *case.paraphrases.items()):
            swap = versions[wording].text
            if kind.endswith("swapped"):  # a bag of words must not see any difference
                assert Counter(words(swap)) == Counter(words(said.text))
            else:
                assert Counter(words(swap)) != Counter(words(said.text))


def test_every_kind_wording_and_source_is_there():
    assert {kind for case in FOUND for kind in case.swaps} == set(KINDS)
    assert {w for case in FOUND if case.source == "scenes" for w in case.paraphrases} == {*WORDINGS}
    assert {case.source for case in FOUND} == {"scenes", "geneval"}
    assert any(case.held_out for case in FOUND)
    assert any(not case.held_out for case in FOUND if case.source == "scenes")
    assert len({case.name for case in FOUND}) == len(FOUND) == 6 * 12


def test_pairs_depend_on_the_seed_alone():
    assert cases.__wrapped__(3, 12) == FOUND
    assert cases(4, per_task=12) != FOUND


def run(embed, limit=None, seed=3):
    return MinimalPairsProbe().run(Planted(embed), seed=seed, limit=limit)


@pytest.fixture(scope="module")
def oracle():
    """An encoder that knows every prompt's meaning and nothing of its wording."""
    known = {}
    for case in cases(3):
        for version in (
            case.base,
            *case.paraphrases.values(),
            *(v for versions in case.swaps.values() for v in versions.values()),
        ):
            known[version.text] = meaning(version.means)
    return lambda text: vector(sorted(map(repr, known[text])))


def test_floor_and_ceiling(oracle):
    best = run(oracle)
    nothing = run(lambda text: np.ones(32))
    for name, row in best.scores.items():
        assert row.value == pytest.approx(1), name
    for name, row in nothing.scores.items():
        assert row.value == (0.5 if name.startswith("accuracy") else 0), name
        assert row.low == row.value == row.high
    random = run(lambda text: vector("random", text)).scores["scaled"]
    assert random.low < 0 < random.high


def bag(text: str) -> np.ndarray:
    return np.sum([vector("word", w) for w in words(text)], axis=0)


def test_a_bag_of_words_ties_on_what_is_exchanged_and_sees_what_is_replaced():
    found = run(bag).scores
    for kind in KINDS:
        if kind.endswith("swapped"):
            assert found[f"accuracy/{kind}"].value == 0.5
    assert found["swapped"].value == pytest.approx(0)
    assert found["accuracy/color-replaced"].low > 0.6
    assert found["hard"].value < 0  # its own words are nearer than any other wording


def test_a_limit_looks_at_so_many_prompts_and_the_same_gives_the_same():
    few = run(bag, limit=7)
    assert len(few.items) == 7
    assert run(bag, limit=7).items.equals(few.items)
    for row in few.scores.values():
        assert row.low <= row.value <= row.high


def test_intervals_are_as_wide_as_so_few_prompts_make_them():
    """An encoder that reads a random half of the texts."""
    found = run(lambda text: bag(text) if hash_of(text) else np.ones(32)).scores
    known = found["accuracy/count-replaced"]
    assert 0.03 < known.high - known.low < 0.3


def hash_of(text: str) -> bool:
    return float(vector("known", text)[0]) > 0


def test_a_zero_vector_is_told():
    (note,) = run(lambda text: np.zeros(8), limit=5).notes
    assert "zero vector" in note


def test_the_mean_of_scaled_scores_is_one_column():
    rng = np.random.default_rng(0)
    one = rng.random(50)
    two = np.where(np.arange(50) < 20, rng.random(50), np.nan)
    column = mean_of([(one, 0.2, 1.0), (two, 0.5, 1.0)])
    expected = ((one.mean() - 0.2) / 0.8 + (np.nanmean(two) - 0.5) / 0.5) / 2
    assert column.mean() == pytest.approx(expected)
    # its spread is that of the two means together
    draws = []
    for _ in range(4000):
        rows = rng.integers(50, size=50)
        draws.append(((one[rows].mean() - 0.2) / 0.8 + (np.nanmean(two[rows]) - 0.5) / 0.5) / 2)
    assert column.std() / 50**0.5 == pytest.approx(np.std(draws), rel=0.1)
    assert np.isnan(mean_of([(np.full(3, np.nan), 0.0, 1.0)])).all()
    assert (mean_of([(np.ones(3), 1.0, 1.0)]) == 0).all()  # 0/0 is 0


def test_replacing_keeps_everything_else():
    for case in FOUND:
        for kind, versions in case.swaps.items():
            if kind.endswith("replaced"):
                changed = versions[""].means
                field = {"color": "color", "count": "count", "relation": "position"}[
                    kind.removesuffix("-replaced")
                ]
                differ = [
                    i
                    for i, (a, b) in enumerate(zip(case.base.means, changed, strict=True))
                    if a != b
                ]
                assert len(differ) == 1
                a, b = case.base.means[differ[0]], changed[differ[0]]
                assert replace(a, **{field: getattr(b, field)}) == b
