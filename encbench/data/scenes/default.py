"""The default data of a run: scenes with captions, and long captions.

An object's class is its color and shape together ('red circle'), so that the ``labels``
re-encoder calls two images alike if they show the same colors on the same shapes: an encoder
that confuses which color goes with which shape retrieves images that share nothing.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from ...files import digest, replace_on_success
from ...types import Caption, CaptionSet, ImageRecord, ImageTextDataset, Instance, Prompt, PromptSet
from ..datasets import DatasetSpec, PromptFamily
from ..dpg import prompts_pin
from ..hub import cache_dir
from .captions import Style, caption
from .coco import LABELS, png
from .render import VERSION, boxes, masks, render, to_bytes
from .sampler import sample_scenes
from .splits import Tier
from .world import SCENES, SceneBatch, World

IMAGES = 400
PROMPTS = 150
SIDE = 128  # pixels
FIVE: tuple[tuple[Tier, Style], ...] = (
    ("A", "short"), ("A", "long"), ("B", "short"), ("B", "long"), ("C", "short"),
)  # fmt: skip
NOTE = "made by rule: it shows how the tool works on a small exact world, not on photographs"


def scene_captions(
    seed: int = 0, images: int = IMAGES, *, files: bool = True, world: World = SCENES
) -> CaptionSet:
    """Scenes of the 'probe-test' split, seen and held-out, five captions each.

    Args:
        files: draw the images into the cache folder unless they are there; without, their
            paths are None (for text and ``labels`` only).

    Raises:
        StoreError: if the cache folder cannot be written.
    """
    batch = scene_batch(images, seed, world)
    texts, pin = _texts(batch)
    folder = _draw(batch, cache_dir() / "scenes" / pin[:16]) if files else None
    visible = masks(batch, SIDE)
    around, areas = boxes(visible).tolist(), visible.sum((2, 3)).tolist()
    records = []
    for i, scene in enumerate(batch):
        instances = tuple(
            Instance(f"{o.color} {o.shape}", float(areas[i][k]), tuple(around[i][k]))
            for k, o in enumerate(scene.objects)
        )
        name = f"{i + 1:06d}.png"
        path = folder / name if folder else None
        records.append(ImageRecord(i + 1, name, path, SIDE, SIDE, instances, license="Apache-2.0"))
    captions = tuple(
        Caption(number + 1, number // len(FIVE) + 1, text) for number, text in enumerate(texts)
    )
    return CaptionSet(world.name, pin, tuple(records), captions, LABELS, (NOTE,))


def scene_batch(images: int = IMAGES, seed: int = 0, world: World = SCENES) -> SceneBatch:
    """The scenes of :func:`scene_captions`; image i shows scene i - 1."""
    return sample_scenes("probe-test", images, seed=seed, world=world, combos="both")


def is_default(captions: ImageTextDataset) -> bool:
    """Whether captions are those of :func:`scene_captions` with its default seed, so that
    :func:`scene_batch` says what is true of its images."""
    return captions.name == SCENES.name and captions.pin == _default_pin(len(captions.images))


@cache
def _default_pin(images: int) -> str:
    return _texts(scene_batch(images))[1]


def _texts(batch: SceneBatch) -> tuple[list[str], str]:
    """Five captions of each scene, and the pin of scenes and captions."""
    texts = [caption(scene, tier, style) for scene in batch for tier, style in FIVE]
    return texts, digest([VERSION, SIDE, [asdict(scene) for scene in batch], texts])


def scene_prompts_long(seed: int = 0, prompts: int = PROMPTS) -> PromptSet:
    """Long captions of crowded scenes, other ones than those of :func:`scene_captions`."""
    world = replace(SCENES, counts=(3, 4))
    batch = sample_scenes(
        "probe-test", prompts, seed=seed, start=1_000_000, world=world, combos="both"
    )
    found = tuple(
        Prompt(f"scene{i}", caption(scene, ("A", "B", "C")[i % 3], "long"))
        for i, scene in enumerate(batch)
    )
    return PromptSet("scenes-long", prompts_pin(found), found, (NOTE,))


def _draw(batch: SceneBatch, folder: Path) -> Path:
    """All images in a folder that appears when the last one is written."""
    if folder.is_dir():
        return folder
    with replace_on_success(folder) as drawn:
        drawn.mkdir()
        for i, pixels in enumerate(to_bytes(render(batch, SIDE)).numpy()):
            (drawn / f"{i + 1:06d}.png").write_bytes(png(pixels))
    return folder


def _load_prompts(spec: DatasetSpec) -> PromptSet:
    return scene_prompts_long()


PROMPTS_LONG = PromptFamily(
    name="scenes",
    summary="Long captions of embedded scenes with three and four objects.",
    examples=("scenes",),
    load=_load_prompts,
)
