"""The scene world: colors, relations, the sampler and the splits."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encbench.data import geneval
from encbench.data.scenes.sampler import GAP, sample_scenes
from encbench.data.scenes.splits import (
    SPLITS,
    TESTS,
    check_split,
    held_out,
    held_out_pairs,
    held_out_triples,
    triple,
)
from encbench.data.scenes.world import (
    COLORS,
    EASY,
    EXTENTS,
    GROUNDS,
    NEAR,
    RELATIONS,
    SCENES,
    SHAPES,
    SIZES,
    SceneBatch,
    colors_on,
    difference,
    get_world,
    strengths,
    true_relations,
)
from encbench.errors import DataError, EncbenchError, UsageError

TRAINING = [split for split in SPLITS if split not in TESTS]
GRID = dataclasses.replace(EASY, name="grid", counts=(1, 2, 3, 4), layout="grid", sizes=("large",))
WORLDS = [SCENES, EASY, GRID]


def arrays(batch: SceneBatch) -> list[np.ndarray]:
    return [getattr(batch, f.name) for f in dataclasses.fields(batch)]


def same(one: SceneBatch, other: SceneBatch) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(arrays(one), arrays(other), strict=True))


# -------------------------------------------------------------------------------- the world


def test_it_is_as_large_as_it_claims():
    assert len(SHAPES) >= 12
    assert tuple(COLORS) == geneval.COLORS
    assert RELATIONS == ("left of", "right of", "above", "below")
    assert set(RELATIONS) == set(geneval.RELATIONS)
    assert SCENES.counts == (1, 2, 3, 4)
    assert (len(EASY.shapes), len(EASY.colors), EASY.counts) == (4, 6, (1, 2))
    assert get_world("scenes-easy") is EASY
    with pytest.raises(EncbenchError, match="scenes-easy"):
        get_world("scenes-eazy")


def test_colors_are_far_apart_and_stand_out_from_their_ground():
    assert difference((0, 0, 0), (255, 255, 255)) == pytest.approx(100, abs=0.1)
    assert min(difference(COLORS[a], COLORS[b]) for a, b in combinations(COLORS, 2)) > NEAR
    for ground in GROUNDS:
        assert ground not in colors_on(ground)
        assert len(colors_on(ground)) >= 8
    assert "white" not in colors_on("cream")


def test_sizes_do_not_meet():
    ends = [end for ends in SIZES.values() for end in ends]
    assert ends == sorted(ends)
    assert all(
        b - a > 0.02
        for (_, a), (b, _) in zip(SIZES.values(), list(SIZES.values())[1:], strict=False)
    )


def test_relations_of_objects_and_of_batches_agree():
    batch = sample_scenes("probe-test", 200, combos="both")
    table = strengths(batch)
    for i, scene in enumerate(batch):
        for (a, one), (b, other) in product(enumerate(scene.objects), repeat=2):
            if a != b:
                for least in (0.45, 0.5, 0.55):
                    x, y = table[i, a, b]
                    said = {
                        "left of": x < -least, "right of": x > least,
                        "above": y < -least, "below": y > least,
                    }  # fmt: skip
                    assert true_relations(one, other, least) == [r for r in said if said[r]]


def test_arrays_and_objects_are_the_same_scenes():
    batch = sample_scenes("geneval", 50, combos="both")
    assert same(SceneBatch.of(list(batch)), batch)
    assert len(SceneBatch.of([])) == 0


# ------------------------------------------------------------------------------- the sampler


@settings(max_examples=15, deadline=None)
@given(
    split=st.sampled_from(list(SPLITS)), seed=st.integers(0, 2**31), start=st.integers(0, 10**9),
    cut=st.integers(0, 40), world=st.sampled_from(WORLDS),
)  # fmt: skip
def test_any_slice_is_the_same_scenes(split, seed, start, cut, world):
    whole = sample_scenes(split, 40, seed=seed, start=start, world=world)
    parts = [
        sample_scenes(split, cut, seed=seed, start=start, world=world),
        sample_scenes(split, 40 - cut, seed=seed, start=start + cut, world=world),
    ]
    assert same(whole.take(slice(0, cut)), parts[0])
    assert same(whole.take(slice(cut, 40)), parts[1])


def test_golden():
    """A change here changes every result on scenes: raise versions and say so in the changelog."""
    scene = sample_scenes("generator-train", 4, seed=0).scene(3)
    assert [(o.size, o.color, o.shape) for o in scene.objects] == GOLDEN[0]
    assert [round(v, 4) for o in scene.objects for v in (o.x, o.y, o.radius)] == GOLDEN[1]


GOLDEN = (
    [
        ("large", "green", "circle"),
        ("small", "green", "circle"),
        ("medium", "green", "circle"),
        ("small", "green", "circle"),
    ],
    [
        0.5883,
        0.6396,
        0.1914,
        0.5834,
        0.1885,
        0.1036,
        0.1967,
        0.3301,
        0.1508,
        0.1674,
        0.8574,
        0.1033,
    ],
)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
@pytest.mark.parametrize("combos", ["seen", "held-out", "both"])
def test_what_is_drawn(world, combos):
    batch = sample_scenes("probe-test", 1500, seed=5, world=world, combos=combos)
    counts = Counter(len(scene.objects) for scene in batch)
    assert set(counts) == set(world.counts)
    assert all(abs(n - 1500 / len(counts)) < 110 for n in counts.values())
    for scene in batch:
        assert scene.ground in world.grounds
        for thing in scene.objects:
            assert thing.shape in world.shapes
            assert thing.size in world.sizes
            assert thing.color in set(world.colors) & colors_on(scene.ground)
            assert SIZES[thing.size][0] <= thing.radius <= SIZES[thing.size][1]
            assert min(thing.box) > GAP / 2
            assert max(thing.box) < 1 - GAP / 2
        for one, other in combinations(scene.objects, 2):
            (a0, b0, a1, b1), (c0, d0, c1, d1) = one.box, other.box
            assert max(c0 - a1, a0 - c1, d0 - b1, b0 - d1) > GAP / 2
            assert true_relations(one, other, 0.5)  # of two objects apart, something can be said
        if world.layout == "grid":
            cells = [(thing.x > 0.5, thing.y > 0.5) for thing in scene.objects]
            assert len(set(cells)) == len(cells)
    kinds = {(o.shape, o.color) for scene in batch for o in scene.objects}
    assert len(kinds) > 0.6 * len(world.shapes) * len(world.colors)


def test_counting_scenes_are_common_enough():
    scenes = list(sample_scenes("generator-train", 2000))
    alike = Counter(
        len(s.objects) for s in scenes if len({(o.shape, o.color) for o in s.objects}) == 1
    )
    assert all(alike[count] > 100 for count in (2, 3, 4))


def test_a_world_that_cannot_be_drawn_says_so():
    no_color = dataclasses.replace(SCENES, name="pale", colors=("white",), grounds=("white",))
    with pytest.raises(DataError, match="no color of 'pale'"):
        sample_scenes("geneval", 1, world=no_color)
    held = next(iter(sorted(held_out_pairs())))
    narrow = dataclasses.replace(
        SCENES, name="narrow", colors=held[:1], shapes=held[1:], grounds=("gray",)
    )
    with pytest.raises(DataError, match="narrow"):
        sample_scenes("generator-train", 1, world=narrow)


# -------------------------------------------------------------------------------- the splits


def test_splits_share_no_scene():
    """By construction: the places of all objects carry the split; here also by look."""
    seen: dict[tuple[bytes, ...], str] = {}
    for split in SPLITS:
        for seed in (0, 1):
            batch = sample_scenes(split, 1000, seed=seed, world=EASY)
            there = batch.shape >= 0
            number = list(SPLITS).index(split)
            assert ((batch.x[there] * 8192).astype(int) % 8 == number).all()
            for scene in batch:
                assert seen.setdefault(scene, f"{split} {seed}") == f"{split} {seed}"
    assert len(SPLITS) <= 8


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_nothing_held_out_is_in_a_training_split(world):
    for split in TRAINING:
        assert not any(map(held_out, sample_scenes(split, 400, seed=9, world=world)))
    for split in TESTS:
        assert not any(map(held_out, sample_scenes(split, 400, world=world, combos="seen")))
        assert all(map(held_out, sample_scenes(split, 400, world=world, combos="held-out")))
        both = [bool(held_out(s)) for s in sample_scenes(split, 400, world=world, combos="both")]
        assert 20 < sum(both) < 380


@pytest.mark.parametrize("split", TRAINING)
@pytest.mark.parametrize("combos", ["held-out", "both"])
def test_a_training_split_cannot_be_asked_for_more(split, combos):
    with pytest.raises(UsageError, match=split):
        sample_scenes(split, 1, combos=combos)


def test_tiers_of_splits():
    assert SPLITS["generator-train"] == ("A",)
    assert SPLITS["encoder-train"] == ("A", "B")
    assert not any("C" in SPLITS[split] for split in TRAINING)
    with pytest.raises(UsageError, match="tier B"):
        check_split("generator-train", tiers=["B"])
    with pytest.raises(EncbenchError, match="generator-train"):
        check_split("generator-trian")


def test_held_out_leaves_something_of_everything():
    pairs, triples = held_out_pairs(), held_out_triples()
    assert len(pairs) == 20
    assert set(Counter(color for color, _ in pairs).values()) == {2}
    assert Counter(shape for _, shape in pairs).keys() == set(SHAPES)
    assert len(triples) == 24
    for place in (0, 2):
        assert set(Counter((t[1], t[place]) for t in triples).values()) == {1}
    assert all(one != other for one, _, other in triples)
    assert [p for p in pairs if p[0] in EASY.colors and p[1] in EASY.shapes]
    assert [t for t in triples if {t[0], t[2]} <= set(EASY.shapes)]
    assert triple("star", "right of", "ring") == triple("ring", "left of", "star")
    assert triple("star", "below", "ring") == triple("ring", "above", "star")


def test_extents_name_the_shapes_in_order():
    assert tuple(EXTENTS) == SHAPES
