"""Conditions from the ground truth of a scene instead of from a caption.

The small backbone that confirmations begin with is trained on these, never on any encoder, so
that no encoder has an advantage. There is one vector for each kind of object that is mentioned
(shape, color, size, count), one for a relation with both of its objects, and in full descriptions
one for each object with its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.scenes.captions import Group, describe_scene
from ..data.scenes.dataset import SPLIT, draw_scenes
from ..data.scenes.sampler import sample_scenes
from ..data.scenes.world import (
    COLORS,
    MAX_OBJECTS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    World,
    board_position,
)
from ..files import digest
from ..flow.data import ImagesInMemory
from ..flow.features import Bank, PromptFeatures

SPEC = "scene-attributes"  # in place of an encoder's spec in the backbone's own record
DESCRIPTIONS = 4  # of each scene

_KINDS = ("group", "object", "relation")
_FIELDS: dict[str, tuple[str | int, ...]] = {
    "kind": _KINDS,
    "shape": SHAPES,
    "color": tuple(COLORS),
    "size": tuple(SIZES),
    "count": tuple(range(1, MAX_OBJECTS + 1)),
    "relation": RELATIONS,
    "other shape": SHAPES,
    "other color": tuple(COLORS),
    "column": (0, 1, 2),
    "row": (0, 1, 2),
}
_START = {
    name: sum(len(values) for values in list(_FIELDS.values())[:number])
    for number, name in enumerate(_FIELDS)
}
WIDTH = sum(len(values) for values in _FIELDS.values())


def _vector(**said: str | int | None) -> Float[Tensor, " D"]:
    """One-hot for each field that is given, zeros elsewhere."""
    made = torch.zeros(WIDTH)
    for name, value in said.items():
        if value is not None:
            name = name.replace("_", " ")
            made[_START[name] + _FIELDS[name].index(value)] = 1
    return made


def _groups(groups: Sequence[Group], relation: str | None) -> list[Tensor]:
    made = [
        _vector(kind="group", shape=g.shape, color=g.color, size=g.size, count=g.count)
        for g in groups
    ]
    if relation is not None:
        one, other = groups[:2]
        made.append(
            _vector(
                kind="relation", shape=one.shape, color=one.color, relation=relation,
                other_shape=other.shape, other_color=other.color,
            )
        )  # fmt: skip
    return made


def scene_condition(scene: Scene, number: int) -> PromptFeatures:
    """One description of a scene: the content of its short caption of this number, or (one in four)
    every object with its place."""
    if number % 4 == 3:
        made = []
        for thing in scene.objects:
            column, row = board_position(thing)
            made.append(
                _vector(
                    kind="object", shape=thing.shape, color=thing.color, size=thing.size,
                    column=column, row=row,
                )
            )  # fmt: skip
        return PromptFeatures(torch.stack(made), None)
    said = describe_scene(scene, "A", seed=number)
    return PromptFeatures(torch.stack(_groups(said.groups, said.relation)), None)


def attribute_scenes(
    world: World, count: int, side: int, *, seed: int = 0
) -> tuple[ImagesInMemory, Bank]:
    """Scenes of the training split with their descriptions, held in memory.

    Returns:
        the images, and the descriptions' vectors by number.
    """
    batch = sample_scenes(SPLIT, count, seed=seed, world=world)
    images = draw_scenes(batch, side)
    texts = [scene_condition(scene, k) for scene in batch for k in range(DESCRIPTIONS)]
    of = tuple(tuple(range(i * DESCRIPTIONS, (i + 1) * DESCRIPTIONS)) for i in range(count))
    names = tuple(f"scene {i}, description {k}" for i in range(count) for k in range(DESCRIPTIONS))
    pin = digest([SPEC, WIDTH, world.name, count, side, DESCRIPTIONS, seed])
    return ImagesInMemory(f"{world.name} by attributes", pin, names, of, images), Bank.of(texts)
