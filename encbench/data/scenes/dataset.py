"""The embedded scenes as a dataset: drawn files for probes, drawn in memory for training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import UInt8
from torch import Tensor

from ...errors import UsageError
from ...files import digest
from ...types import Caption, CaptionSet, ImageRecord
from ..datasets import DatasetFamily, DatasetSpec, DatasetUse
from .captions import Draw, caption
from .default import IMAGES, scene_captions
from .render import VERSION, render, to_bytes
from .sampler import sample_scenes
from .world import SCENES, SceneBatch, World, get_world

SPLIT = "generator-train"


@dataclass(frozen=True)
class SceneDataset(CaptionSet):
    """Scenes of the training split with captions in tier A only, drawn at the requested size."""

    scenes: SceneBatch | None = None
    settings: list[object] = field(default_factory=list)

    def draw(self, side: int) -> UInt8[Tensor, "N 3 H W"]:
        """All images in memory, ``side`` pixels wide and high."""
        assert self.scenes is not None
        return draw_scenes(self.scenes, side)

    def pin_at(self, side: int) -> str:
        """sha256 of everything that images of this size and their captions depend on."""
        version, split, world, count, *rest = self.settings
        return digest([version, split, world, count, side, *rest])


def training_scenes(
    world: World, count: int, *, captions: int = 2, long_share: float = 0.25, seed: int = 0
) -> SceneDataset:
    """Scenes to train on.

    Args:
        captions: different draws for each scene.
        long_share: the chance of each to be a long one.
    """
    batch = sample_scenes(SPLIT, count, seed=seed, world=world)
    texts = []
    for number, scene in enumerate(batch):
        draw = Draw(seed * 0x9E3779B97F4A7C15 + number)
        texts += [
            caption(scene, "A", "long" if draw.random() < long_share else "short", seed=k)
            for k in range(captions)
        ]
    settings: list[object] = [VERSION, SPLIT, asdict(world), count, captions, long_share, seed]
    return SceneDataset(
        name=world.name,
        pin=digest(settings),
        images=tuple(ImageRecord(i + 1, f"{i + 1:06d}.png", None, 0, 0) for i in range(count)),
        captions=tuple(Caption(n + 1, n // captions + 1, t) for n, t in enumerate(texts)),
        scenes=batch,
        settings=settings,
    )


def draw_scenes(scenes: SceneBatch, side: int) -> UInt8[Tensor, "N 3 H W"]:
    """All scenes as images in memory, so many at a time that little more than that is needed."""
    images = torch.empty(len(scenes), 3, side, side, dtype=torch.uint8)
    step = max(1, (1 << 24) // side**2)
    for start in range(0, len(scenes), step):
        drawn = to_bytes(render(scenes.take(slice(start, start + step)), side))
        images[start : start + step] = drawn.permute(0, 3, 1, 2)
    return images


def _load(spec: DatasetSpec, use: DatasetUse) -> CaptionSet:
    world = get_world(spec.source or SCENES.name)
    if not use.training:
        return scene_captions(use.seed, use.count or IMAGES, world=world)
    if not use.count:
        raise UsageError("the number of scenes must be at least 1; give --images")
    try:
        captions, long_share = int(spec.get("captions") or 2), float(spec.get("long") or 0.25)
    except ValueError as error:
        raise UsageError(f"'{spec}': captions and long must be numbers") from error
    if captions < 1 or not 0 <= long_share <= 1:
        raise UsageError(f"'{spec}': captions must be at least 1, and long from 0 to 1")
    return training_scenes(
        world, use.count, captions=captions, long_share=long_share, seed=use.seed
    )


FAMILY = DatasetFamily(
    name="scenes",
    summary="Embedded scenes of colored shapes, exact and without downloads.",
    examples=("scenes", "scenes:scenes-easy", "scenes:scenes-grid?captions=2&long=0.25"),
    load=_load,
    options={
        "captions": "training: captions of each scene (2)",
        "long": "training: share of the captions that are long (0.25)",
    },
)
