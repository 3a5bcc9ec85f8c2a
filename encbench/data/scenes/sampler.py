"""The seeded sampler: scene number i of a split is the same, however many are drawn.

Its randomness is a hash of (split, seed, scene, attempt, draw), so that nothing is drawn in a
row: any slice of a split can be had at once, and a scene that is rejected draws again by itself.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64

from ...errors import DataError
from .splits import Combos, check_split, held_out_pairs, held_out_triples
from .world import (
    COLORS,
    GROUNDS,
    HOLDS,
    MARGIN,
    MAX_OBJECTS,
    SCENES,
    SHAPES,
    SIZES,
    SceneBatch,
    World,
    colors_on,
    strengths,
)

GAP = 0.03  # least free space between two boxes; half as much at the border
TRIES = 12  # places tried for an object before the scene draws anew
ATTEMPTS = 500
ALIKE = 0.3  # share of scenes in which all objects are alike, for counting
COPY = 0.12  # chance elsewhere that an object is like the one before it
GRID = 1024  # places are multiples of 1 / GRID, and the split's number / (8 * GRID) on top
CHUNK = 16384


def sample_scenes(
    split: str,
    count: int,
    *,
    seed: int = 0,
    start: int = 0,
    world: World = SCENES,
    combos: Combos = "seen",
) -> SceneBatch:
    """Scenes ``start`` to ``start + count`` of a split.

    No two boxes touch. In training splits no held-out combination occurs, not even a relation
    that nearly holds; elsewhere ``combos`` says whether none ('seen'), at least one
    ('held-out') or any ('both') may. How many objects a scene has does not depend on that.

    Raises:
        UnknownNameError: if there is no such split.
        UsageError: if a training split is asked for held-out combinations.
        DataError: if the world is too crowded or too narrow to draw from.
    """
    number = check_split(split, combos)
    text = f"scenes {split} {seed}"
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    parts = [
        _draw(key, np.arange(first, min(first + CHUNK, start + count)), world, combos, number)
        for first in range(start, start + count, CHUNK)
    ]
    if not parts:
        return SceneBatch.of([])
    names = SceneBatch.__dataclass_fields__
    return SceneBatch(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def _draw(
    key: int, index: Int[np.ndarray, " N"], world: World, combos: Combos, number: int
) -> SceneBatch:
    """Draw until every scene of the chunk is accepted."""
    n, k = len(index), MAX_OBJECTS
    count_u, ground_u, alike_u = _uniform(key, index, 0, 3, stream=0).T
    count = _choose(count_u, np.array(world.counts))
    ground = _choose(ground_u, np.array([list(GROUNDS).index(g) for g in world.grounds]))
    alike = alike_u < ALIKE
    batch = SceneBatch(
        shape=np.full((n, k), -1), color=np.full((n, k), -1), size=np.full((n, k), -1),
        x=np.zeros((n, k), np.float32), y=np.zeros((n, k), np.float32),
        radius=np.zeros((n, k), np.float32), ground=ground,
    )  # fmt: skip
    open_ = np.arange(n)
    for attempt in range(ATTEMPTS):
        trial, placed = _attempt(
            key,
            index[open_],
            attempt,
            count[open_],
            ground[open_],
            alike[open_],
            world,
            combos,
            number,
        )
        good = placed & _wanted(trial, combos)
        for name in ("shape", "color", "size", "x", "y", "radius"):
            getattr(batch, name)[open_[good]] = getattr(trial, name)[good]
        open_ = open_[~good]
        if not len(open_):
            return batch
    raise DataError(
        f"the world '{world.name}' has no {combos} scenes of {count[open_[0]]} objects on these "
        "backgrounds; give it fewer objects, smaller sizes, or more shapes and colors"
    )


def _attempt(
    key: int,
    index: Int[np.ndarray, " N"],
    attempt: int,
    count: Int[np.ndarray, " N"],
    ground: Int[np.ndarray, " N"],
    alike: Bool[np.ndarray, " N"],
    world: World,
    combos: Combos,
    number: int,
) -> tuple[SceneBatch, Bool[np.ndarray, " N"]]:
    """One try at every scene, and which of them found a place for all their objects."""
    n, k = len(index), MAX_OBJECTS
    u = _uniform(key, index, attempt, 5 * k, stream=1).reshape(n, 5, k)
    there = np.arange(k) < count[:, None]
    shape = _choose(u[:, 0], np.array([SHAPES.index(s) for s in world.shapes]))
    color = _color(u[:, 1], shape, ground, world, combos)
    size = _choose(u[:, 2], np.array([list(SIZES).index(s) for s in world.sizes]))
    for j in range(1, k):
        same = alike | (u[:, 3, j] < COPY)
        shape[same, j], color[same, j] = shape[same, j - 1], color[same, j - 1]
    low, high = np.array(list(SIZES.values()))[size].transpose(2, 0, 1)
    radius = low + u[:, 4] * (high - low)

    x, y = np.zeros((n, k)), np.zeros((n, k))
    placed = np.ones(n, bool)
    cells = np.argsort(_uniform(key, index, attempt, 4, stream=2), axis=1)
    for j in range(min(k, max(world.counts))):
        tries = _uniform(key, index, attempt, 2 * TRIES, stream=3 + j).reshape(n, 2, TRIES)
        edge = radius[:, j, None] + GAP
        if world.layout == "grid":
            room = np.maximum(0.25 + GAP / 2 - edge - 1 / GRID, 0)
            cx = (cells[:, j, None] % 2 + 0.5) / 2 + (2 * tries[:, 0] - 1) * room
            cy = (cells[:, j, None] // 2 + 0.5) / 2 + (2 * tries[:, 1] - 1) * room
        else:
            cx = edge + tries[:, 0] * (1 - 2 * edge)
            cy = edge + tries[:, 1] * (1 - 2 * edge)
        cx = np.floor(cx * GRID) / GRID + number / (8 * GRID)
        cy = np.floor(cy * GRID) / GRID
        free = np.ones((n, TRIES), bool)
        for i in range(j):
            apart = radius[:, i, None] + radius[:, j, None] + GAP
            free &= (np.abs(cx - x[:, i, None]) > apart) | (np.abs(cy - y[:, i, None]) > apart)
        first = free.argmax(1)
        x[:, j], y[:, j] = cx[np.arange(n), first], cy[np.arange(n), first]
        placed &= free.any(1) | ~there[:, j]

    def index_of(values: np.ndarray) -> np.ndarray:
        return np.where(there, values, -1)

    def length_of(values: np.ndarray) -> np.ndarray:
        return np.where(there, values, 0).astype(np.float32)

    trial = SceneBatch(
        index_of(shape), index_of(color), index_of(size),
        length_of(x), length_of(y), length_of(radius), ground,
    )  # fmt: skip
    return trial, placed


def _wanted(batch: SceneBatch, combos: Combos) -> Bool[np.ndarray, " N"]:
    if combos == "both":
        return np.ones(len(batch), bool)
    seen = ~_shows_held_out(batch)
    return seen if combos == "seen" else ~seen


def _shows_held_out(batch: SceneBatch) -> Bool[np.ndarray, " N"]:
    """As ``splits.held_out``, for all scenes at once."""
    there = batch.shape >= 0
    pairs = np.zeros((len(COLORS), len(SHAPES)), bool)
    for color, shape in held_out_pairs():
        pairs[list(COLORS).index(color), SHAPES.index(shape)] = True
    found: np.ndarray = (pairs[batch.color, batch.shape] & there).any(1)
    # towards[axis, a, b]: shape a left of, or above, shape b is held out
    towards = np.zeros((2, len(SHAPES), len(SHAPES)), bool)
    for one, relation, other in held_out_triples():
        towards[int(relation == "above"), SHAPES.index(one), SHAPES.index(other)] = True
    strength = strengths(batch)
    for axis in (0, 1):
        before = strength[..., axis] < MARGIN - HOLDS
        held = towards[axis][batch.shape[:, :, None], batch.shape[:, None]]
        found |= (before & held).any((1, 2))
    return found


def _color(
    u: Float[np.ndarray, "N K"],
    shape: Int[np.ndarray, "N K"],
    ground: Int[np.ndarray, " N"],
    world: World,
    combos: Combos,
) -> Int[np.ndarray, "N K"]:
    """Colors of the world that stand out from each scene's ground.

    Where only seen ones will do, held-out ones are not drawn in the first place (unless there
    is no other): rejecting them with the whole scene would cost half of all scenes of four.
    """
    table, many = _usable(world, combos)
    rows = np.broadcast_to(ground[:, None], shape.shape)
    drawn: np.ndarray = table[rows, shape, (u * many[rows, shape]).astype(np.int64)]
    return drawn


@cache
def _usable(
    world: World, combos: Combos
) -> tuple[Int[np.ndarray, "grounds shapes colors"], Int[np.ndarray, "grounds shapes"]]:
    """Colors that a shape may have on a ground, and how many they are."""
    table = np.zeros((len(GROUNDS), len(SHAPES), len(COLORS)), np.int64)
    many = np.zeros((len(GROUNDS), len(SHAPES)), np.int64)
    for g, name in enumerate(GROUNDS):
        able = [c for c in COLORS if c in world.colors and c in colors_on(name)]
        if not able and name in world.grounds:
            raise DataError(f"no color of '{world.name}' stands out from a {name} background")
        for s, kind in enumerate(SHAPES):
            seen = [c for c in able if combos != "seen" or (c, kind) not in held_out_pairs()]
            usable = [list(COLORS).index(c) for c in seen or able]
            table[g, s, : len(usable)], many[g, s] = usable, len(usable)
    return table, many


def _choose(u: Float[np.ndarray, "*N"], options: Int[np.ndarray, " M"]) -> Int[np.ndarray, "*N"]:
    return options[(u * len(options)).astype(np.int64)]


def _uniform(
    key: int, index: Int[np.ndarray, " N"], attempt: int, draws: int, *, stream: int
) -> Float[np.ndarray, "N draws"]:
    """Numbers in [0, 1) that depend on the arguments only, by the SplitMix64 finaliser
    (Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        row = _mix(np.uint64(key) + _mix(index.astype(np.uint64)))
        row = _mix(row + np.uint64(attempt * 64 + stream))
        column = np.arange(1, draws + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (_mix(row[:, None] + column) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: UInt64[np.ndarray, "*N"]) -> UInt64[np.ndarray, "*N"]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = z ^ (z >> np.uint64(31))
    return mixed
