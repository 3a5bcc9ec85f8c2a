"""Scenes as files: images and COCO's json, which ``encbench.data.coco`` reads.

The class of an object is its color and shape ('red circle'), as in the default data of a run,
with the shape as super-category; an annotation also tells size, place and radius.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from ...errors import DataError, UsageError
from ...files import read_json, write_atomic, write_json
from ...progress import bar
from .captions import Style, caption
from .render import VERSION, boxes, masks, render, to_bytes
from .sampler import sample_scenes
from .splits import SPLITS, Combos, Tier, check_split
from .world import COLORS, SCENES, SHAPES, Scene, World

CHUNK = 128
SIDES = (16, 256)  # pixels: the least and the most that shapes are drawn for
PER_TIER: tuple[tuple[Style, int], ...] = (("short", 0), ("short", 1), ("long", 0))
LABELS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
"""All classes of objects, in the order of their ids (which begin at 1)."""


def make_scenes(
    split: str,
    out: Path,
    *,
    count: int,
    size: int = 128,
    seed: int = 0,
    world: World = SCENES,
    combos: Combos = "seen",
) -> Path:
    """Write a split as PNG images, captions and instances below ``out``.

    ``<split>/000000000001.png`` ..., ``annotations/captions_<split>.json`` and
    ``annotations/instances_<split>.json``, in the wording tiers that the split may be told in.
    The same call resumes after a stop. A file is complete or absent.

    Returns:
        ``out``.

    Raises:
        UsageError: if the split, the number or the size is impossible.
        DataError: if ``out`` holds the same split made by other arguments.
        StoreError: if it cannot be written.
    """
    check_split(split, combos)
    if not SIDES[0] <= size <= SIDES[1]:
        raise UsageError(f"--size must be from {SIDES[0]} to {SIDES[1]} pixels, not {size}")
    if count < 1:
        raise UsageError(f"--count must be at least 1, not {count}")
    settings = {
        "split": split, "count": count, "size": size, "seed": seed, "combos": combos,
        "world": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(world).items()},
        "renderer": VERSION,
    }  # fmt: skip
    out = Path(out)
    note = out / f"scenes-{split}.json"
    if not note.exists():
        write_json(note, settings)
    elif read_json(note) != settings:
        raise DataError(
            f"{out} holds '{split}' made by other settings (see {note.name}); choose another --out"
        )

    tiers = SPLITS[split]
    images: list[dict[str, Any]] = []
    texts: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    with bar(f"drawing {split}", count) as advance:
        for start in range(0, count, CHUNK):
            batch = sample_scenes(
                split, min(CHUNK, count - start), seed=seed, start=start, world=world, combos=combos
            )
            pixels = to_bytes(render(batch, size)).numpy()
            visible = masks(batch, size)
            for i, scene in enumerate(batch):
                key = start + i + 1
                name = f"{key:012d}.png"
                path = out / split / name
                if not path.exists():
                    write_atomic(path, png(pixels[i]))
                images.append(
                    {"id": key, "file_name": name, "width": size, "height": size,
                     "license": 1, "ground": scene.ground}
                )  # fmt: skip
                for tier, style, text in texts_of(scene, tiers):
                    texts.append(
                        {"id": len(texts) + 1, "image_id": key, "caption": text,
                         "tier": tier, "style": style}
                    )  # fmt: skip
                for entry in _instances(scene, visible[i]):
                    instances.append({"id": len(instances) + 1, "image_id": key, **entry})
                advance(1)
    head = {
        "info": {"description": f"encbench scenes, {split}", "settings": settings},
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": ""}],
        "images": images,
    }
    folder = out / "annotations"
    categories = [
        {"id": number, "name": label, "supercategory": label.split()[1]}
        for number, label in enumerate(LABELS, 1)
    ]
    # captions come last: a reader looks for them first
    write_json(
        folder / f"instances_{split}.json",
        {**head, "annotations": instances, "categories": categories},
    )
    write_json(folder / f"captions_{split}.json", {**head, "annotations": texts})
    return out


def texts_of(scene: Scene, tiers: tuple[Tier, ...]) -> Iterator[tuple[Tier, Style, str]]:
    """Two short captions and a long one in each tier."""
    for tier in tiers:
        for style, number in PER_TIER:
            yield tier, style, caption(scene, tier, style, seed=number)


def png(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """An image as the bytes of a PNG file."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, format="PNG", compress_level=4)
    return data.getvalue()


def _instances(scene: Scene, visible: Bool[Tensor, "K H W"]) -> Iterator[dict[str, Any]]:
    from pycocotools import mask as rle

    around = boxes(visible).tolist()
    # run-length codes are taken down the columns of (H, W, objects)
    codes = rle.encode(np.asfortranarray(visible.permute(1, 2, 0).to(torch.uint8).numpy()))
    for k, thing in enumerate(scene.objects):
        x0, y0, x1, y1 = around[k]
        yield {
            "category_id": LABELS.index(f"{thing.color} {thing.shape}") + 1,
            "segmentation": {"size": codes[k]["size"], "counts": codes[k]["counts"].decode()},
            "area": int(visible[k].sum()),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "attributes": asdict(thing),
        }
