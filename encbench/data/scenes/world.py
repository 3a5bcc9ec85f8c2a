"""What a scene may hold: shapes, colors, sizes, grounds and relations, with their geometry.

Places are fractions of the image: x to the right, y downwards, both from 0 to 1. An object's
place is the center of its box; its radius is the scale of its shape, whose box reaches
``EXTENTS[shape] * radius`` from the center to each side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from ...errors import UnknownNameError

# Half width and half height of each shape's box at radius 1. The order is that of the indices
# in a SceneBatch and in weights trained on scenes, so append only.
EXTENTS: dict[str, tuple[float, float]] = {
    "circle": (1.0, 1.0),
    "square": (1.0, 1.0),
    "triangle": (1.0, 0.9),
    "star": (0.9986, 0.9498),
    "cross": (0.95, 0.95),
    "ring": (1.0, 1.0),
    "heart": (1.0, 0.9142),
    "diamond": (0.75, 1.0),
    "crescent": (0.625, 1.0),
    "arrow": (1.0, 0.85),
    "hourglass": (0.8, 0.95),
    "semicircle": (1.0, 0.5),
}
SHAPES = tuple(EXTENTS)

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 25, 30),
    "orange": (255, 140, 0),
    "yellow": (255, 225, 25),
    "green": (25, 145, 50),
    "blue": (25, 90, 235),
    "purple": (145, 30, 165),
    "pink": (255, 130, 190),
    "brown": (120, 70, 30),
    "black": (12, 12, 12),
    "white": (255, 255, 255),
}
"""GenEval's ten colors, as sRGB bytes."""

GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (12, 12, 12),
    "gray": (150, 150, 150),
    "cream": (250, 236, 200),
    "navy": (18, 30, 82),
}

SIZES: dict[str, tuple[float, float]] = {
    "small": (0.100, 0.112),
    "medium": (0.142, 0.155),
    "large": (0.190, 0.205),
}
"""Range of radii, in image widths; the gaps between them keep the words apart."""

RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

MAX_OBJECTS = 4
NEAR = 35.0  # CIE76 color difference under which an object is too near its ground's color
SHRINK = 0.1  # of both boxes' sizes, taken off an offset before it counts (GenEval's rule)
HOLDS = 0.5  # share of the distance that the rest of the offset must exceed (GenEval's rule)
MARGIN = 0.05  # stated only above HOLDS + MARGIN; counts as absent only below HOLDS - MARGIN
EDGES = (0.38, 0.62)  # of the places 'left', 'middle', 'right' and 'top', 'middle', 'bottom'


@dataclass(frozen=True)
class SceneObject:
    """One object: what it is, and where its box has its center; lengths in image widths."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) as fractions of the image."""
        wide, high = (extent * self.radius for extent in EXTENTS[self.shape])
        return self.x - wide, self.y - high, self.x + wide, self.y + high


@dataclass(frozen=True)
class Scene:
    """Objects, the first one drawn first, on a ground of one color."""

    objects: tuple[SceneObject, ...]
    ground: str


@dataclass(frozen=True)
class World:
    """What the sampler draws from. Vary one by ``dataclasses.replace``.

    Attributes:
        name: as in ``--world``.
        shapes, colors, sizes, grounds: the keys of this module's tables.
        counts: how many objects; all are equally likely.
        layout: 'free' anywhere in the image, 'grid' each in its own cell of a loose 2 x 2 grid.
    """

    name: str
    shapes: tuple[str, ...] = SHAPES
    colors: tuple[str, ...] = tuple(COLORS)
    sizes: tuple[str, ...] = tuple(SIZES)
    grounds: tuple[str, ...] = tuple(GROUNDS)
    counts: tuple[int, ...] = (1, 2, 3, 4)
    layout: Literal["free", "grid"] = "free"


SCENES = World("scenes")
EASY = World(
    "scenes-easy",
    shapes=("circle", "square", "triangle", "star"),
    colors=("red", "yellow", "green", "blue", "purple", "white"),
    sizes=("medium", "large"),
    grounds=("black", "gray"),
    counts=(1, 2),
)
GRID = World(
    "scenes-grid",
    shapes=EASY.shapes,
    colors=EASY.colors,
    sizes=("large",),
    grounds=EASY.grounds,
    layout="grid",
)
"""One to four large objects, each in its own cell: a world that a small model learns in minutes."""
WORLDS = {world.name: world for world in (SCENES, EASY, GRID)}


def get_world(name: str) -> World:
    """A world by its name.

    Raises:
        UnknownNameError: with the known names.
    """
    if name not in WORLDS:
        raise UnknownNameError("world", name, WORLDS)
    return WORLDS[name]


@dataclass(frozen=True)
class SceneBatch:
    """N scenes as arrays, K = 4 places for objects each; -1 marks a place that holds none.

    Attributes:
        shape, color, size: indices into SHAPES, COLORS and SIZES.
        x, y, radius: of each object; 0 where there is none.
        ground: indices into GROUNDS.
    """

    shape: Int[np.ndarray, "N K"]
    color: Int[np.ndarray, "N K"]
    size: Int[np.ndarray, "N K"]
    x: Float[np.ndarray, "N K"]
    y: Float[np.ndarray, "N K"]
    radius: Float[np.ndarray, "N K"]
    ground: Int[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.ground)

    def __iter__(self) -> Iterator[Scene]:
        return (self.scene(i) for i in range(len(self)))

    def scene(self, index: int) -> Scene:
        shape, color, size = (a[index].tolist() for a in (self.shape, self.color, self.size))
        x, y, radius = (a[index].tolist() for a in (self.x, self.y, self.radius))
        objects = tuple(
            SceneObject(SHAPES[shape[k]], _COLORS[color[k]], _SIZES[size[k]], x[k], y[k], radius[k])
            for k in range(len(shape))
            if shape[k] >= 0
        )
        return Scene(objects, _GROUNDS[self.ground[index]])

    def take(self, which: slice | Int[np.ndarray, " M"]) -> SceneBatch:
        """Some of the scenes, in the order asked for."""
        return SceneBatch(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    @staticmethod
    def of(scenes: Sequence[Scene]) -> SceneBatch:
        """Scenes as arrays; none may hold more than four objects."""
        n = len(scenes)
        index = {name: np.full((n, MAX_OBJECTS), -1) for name in ("shape", "color", "size")}
        place = {name: np.zeros((n, MAX_OBJECTS), np.float32) for name in ("x", "y", "radius")}
        for i, scene in enumerate(scenes):
            for k, thing in enumerate(scene.objects):
                index["shape"][i, k] = SHAPES.index(thing.shape)
                index["color"][i, k] = _COLORS.index(thing.color)
                index["size"][i, k] = _SIZES.index(thing.size)
                for name, values in place.items():
                    values[i, k] = getattr(thing, name)
        ground = np.array([_GROUNDS.index(scene.ground) for scene in scenes], np.int64)
        return SceneBatch(**index, **place, ground=ground)


_COLORS, _SIZES, _GROUNDS = tuple(COLORS), tuple(SIZES), tuple(GROUNDS)


# ------------------------------------------------------------------------------- relations


def strengths(batch: SceneBatch) -> Float[np.ndarray, "N K K 2"]:
    """How far object i is right of (last axis 0) and below (1) object j, from -1 to 1.

    GenEval's rule on true boxes: the offset of the centers, shrunk towards zero by a tenth of
    both boxes' sizes, over the distance of the centers. A relation holds beyond HOLDS. 0 where
    one of the two is missing.
    """
    center = np.stack([batch.x, batch.y], -1).astype(np.float64)
    reach = _EXTENTS[batch.shape] * batch.radius[..., None].astype(np.float64)
    offset = center[:, :, None] - center[:, None]
    slack = SHRINK * 2 * (reach[:, :, None] + reach[:, None])
    shrunk = np.sign(offset) * np.maximum(np.abs(offset) - slack, 0)
    distance = np.sqrt((offset**2).sum(-1, keepdims=True))
    there = batch.shape >= 0
    both = (there[:, :, None] & there[:, None])[..., None]
    return np.where(both & (distance > 0), shrunk / np.maximum(distance, 1e-9), 0.0)


_EXTENTS = np.array(list(EXTENTS.values()))


def true_relations(
    one: SceneObject, other: SceneObject, least: float = HOLDS + MARGIN
) -> list[str]:
    """The relations of ``one`` to ``other`` that hold with a margin."""
    dx, dy = one.x - other.x, one.y - other.y
    distance = math.sqrt(dx * dx + dy * dy)
    (w1, h1), (w2, h2) = EXTENTS[one.shape], EXTENTS[other.shape]
    wide = SHRINK * 2 * (w1 * one.radius + w2 * other.radius)
    high = SHRINK * 2 * (h1 * one.radius + h2 * other.radius)
    bar = least * distance
    found = []
    if abs(dx) - wide > bar:
        found.append("left of" if dx < 0 else "right of")
    if abs(dy) - high > bar:
        found.append("above" if dy < 0 else "below")
    return found


def board_position(thing: SceneObject) -> tuple[int, int]:
    """Column and row of an object's center on a 3 x 3 board: (0, 0) is top left."""
    low, high = EDGES
    return (thing.x > low) + (thing.x > high), (thing.y > low) + (thing.y > high)


# --------------------------------------------------------------------------------- colors


def _lab(rgb: Sequence[int]) -> Float[np.ndarray, " 3"]:
    """CIE L*a*b* (D65) of an sRGB color, as IEC 61966-2-1 and CIE 15 define them."""
    share = np.array(rgb, np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ linear
        / [0.9505, 1.0, 1.089]
    )
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(one: Sequence[int], other: Sequence[int]) -> float:
    """CIE76 difference of two sRGB colors: about 2 is just visible, black to white is 100."""
    return float(np.linalg.norm(_lab(one) - _lab(other)))


@cache
def colors_on(ground: str) -> frozenset[str]:
    """Colors that an object on this ground may have: those that stand out from it."""
    return frozenset(c for c, rgb in COLORS.items() if difference(rgb, GROUNDS[ground]) >= NEAR)
