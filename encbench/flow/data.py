"""Images with captions to train on: embedded scenes, COCO, or any folder.

The order of a training follows from its seed alone: :func:`picks` gives the images of a step and
which of their captions are read, whatever the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from ..data.coco import load_coco
from ..data.scenes.captions import Draw, caption
from ..data.scenes.render import VERSION, render, to_bytes
from ..data.scenes.sampler import sample_scenes
from ..data.scenes.world import SceneBatch, World, get_world
from ..errors import DataError, ImageError, UsageError
from ..files import digest
from ..progress import log
from ..types import ImageRecord
from ..vision import open_image
from .config import TrainConfig

SPLIT = "generator-train"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LISTS = ("captions.jsonl", "metadata.jsonl")
IN_MEMORY = 2 << 30  # bytes of a folder's images that are kept as they were read
THREADS = 8


class Picks(NamedTuple):
    """What a step looks at: numbers of images, and of one caption for each."""

    images: Int[np.ndarray, " n"]
    texts: Int[np.ndarray, " n"]

    def part(self, where: slice) -> Picks:
        return Picks(self.images[where], self.texts[where])


class Pairs(NamedTuple):
    """Images, and the numbers of the captions that go with them."""

    pixels: UInt8[Tensor, "n 3 H W"]
    texts: Int[np.ndarray, " n"]


@runtime_checkable
class ImageSet(Protocol):
    """Images of one size with captions.

    Attributes:
        name, pin: what it is, and a sha256 of what it holds.
        texts: all different captions.
        of: for each image, the numbers of its captions in ``texts``.
        notes: what a reader must know, in words.
    """

    name: str
    pin: str
    texts: tuple[str, ...]
    of: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]

    def read(self, picks: Picks) -> Pairs:
        """What was picked; another image with a caption of its own where one is unreadable.

        Raises:
            DataError: if too many of the set cannot be read.
        """
        ...


def picks(data: ImageSet, step: int, batch: int, seed: int) -> Picks:
    """The batch of a step: every image once before any comes again, in an order of its own in
    each round; a caption at random."""
    count = len(data.of)
    places = np.arange(step * batch, (step + 1) * batch)
    rounds = places // count
    images = np.empty(batch, np.int64)
    for number in np.unique(rounds):
        here = rounds == number
        images[here] = _order(count, seed, int(number))[places[here] % count]
    draw = np.random.default_rng([seed, step, 1]).random(batch)
    texts = [data.of[i][int(u * len(data.of[i]))] for i, u in zip(images, draw, strict=True)]
    return Picks(images, np.array(texts, np.int64))


@lru_cache(maxsize=4)
def _order(count: int, seed: int, number: int) -> Int[np.ndarray, " count"]:
    return np.random.default_rng([seed, number, 0]).permutation(count)


def load_training_images(config: TrainConfig) -> ImageSet:
    """The images that a configuration names.

    Raises:
        DataError: if they are not there or not usable.
        UsageError: if there is no such world, or nothing is named.
    """
    if config.folder is not None:
        return folder_images(config)
    if config.coco is not None:
        return coco_images(config)
    if not config.images:
        raise UsageError("no images are named: give --folder or --coco, or --images for scenes")
    return scene_images(
        get_world(config.world),
        config.images,
        config.side,
        captions=config.captions,
        long_share=config.long_share,
        seed=config.seed,
    )


# ---------------------------------------------------------------------------------- scenes


@dataclass
class ImagesInMemory:
    """Images held in memory; see :class:`ImageSet`."""

    name: str
    pin: str
    texts: tuple[str, ...]
    of: tuple[tuple[int, ...], ...]
    images: UInt8[Tensor, "N 3 H W"]
    notes: tuple[str, ...] = ()

    def read(self, picks: Picks) -> Pairs:
        where = torch.from_numpy(picks.images).to(self.images.device)
        return Pairs(self.images[where], picks.texts)


def scene_images(
    world: World,
    count: int,
    side: int,
    *,
    captions: int = 2,
    long_share: float = 0.25,
    seed: int = 0,
) -> ImagesInMemory:
    """Scenes of the training split, told in tier A only, held in memory.

    Args:
        captions: different draws for each scene.
        long_share: the chance of each to be a long one.
    """
    batch = sample_scenes(SPLIT, count, seed=seed, world=world)
    images = draw_scenes(batch, side)
    listed = []
    for number, scene in enumerate(batch):
        draw = Draw(seed * 0x9E3779B97F4A7C15 + number)
        told = [
            caption(scene, "A", "long" if draw.random() < long_share else "short", seed=k)
            for k in range(captions)
        ]
        listed.append(told)
    texts, of = _numbered(listed)
    pin = digest([VERSION, SPLIT, asdict(world), count, side, captions, long_share, seed])
    return ImagesInMemory(world.name, pin, texts, of, images)


def draw_scenes(scenes: SceneBatch, side: int) -> UInt8[Tensor, "N 3 H W"]:
    """All scenes as images in memory, so many at a time that little more than that is needed."""
    images = torch.empty(len(scenes), 3, side, side, dtype=torch.uint8)
    step = max(1, (1 << 24) // side**2)
    for start in range(0, len(scenes), step):
        drawn = to_bytes(render(scenes.take(slice(start, start + step)), side))
        images[start : start + step] = drawn.permute(0, 3, 1, 2)
    return images


def _numbered(
    listed: Sequence[Sequence[str]],
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Each different text once, and the numbers in place of the texts."""
    number: dict[str, int] = {}
    of = tuple(tuple(number.setdefault(text, len(number)) for text in row) for row in listed)
    return tuple(number), of


# ----------------------------------------------------------------------------------- files


class Files:
    """Images read from their files when they are needed, and kept while there is memory.

    An image that cannot be read is named in the log and counted, and the next one in the set
    stands in for it, so that the rest of the training stays as it was.

    Args:
        paths: of the images.
        listed: their captions, at least one each.
        side: images are cropped to their middle square and scaled to this.
        max_broken: how many may be unreadable.
    """

    def __init__(
        self,
        name: str,
        pin: str,
        paths: Sequence[Path],
        listed: Sequence[Sequence[str]],
        side: int,
        max_broken: int,
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.pin, self.notes = name, pin, tuple(notes)
        self.paths, self.side, self.max_broken = list(paths), side, max_broken
        self.texts, self.of = _numbered(listed)
        self.broken: dict[int, str] = {}
        fits = len(self.paths) * 3 * side * side <= IN_MEMORY
        self._kept: dict[int, Tensor] | None = {} if fits else None
        self._pool = ThreadPoolExecutor(THREADS)

    def read(self, picks: Picks) -> Pairs:
        found = list(self._pool.map(self._read, picks.images.tolist()))
        texts = [
            text if here == wanted else self.of[here][0]
            for (here, _), wanted, text in zip(found, picks.images, picks.texts, strict=True)
        ]
        return Pairs(torch.stack([pixels for _, pixels in found]), np.array(texts, np.int64))

    def _read(self, number: int) -> tuple[int, UInt8[Tensor, "3 H W"]]:
        for tried in range(len(self.paths)):
            here = (number + tried) % len(self.paths)
            if here in self.broken:
                continue
            if self._kept is not None and here in self._kept:
                return here, self._kept[here]
            try:
                pixels = load_image(self.paths[here], self.side)
            except ImageError as error:
                self._count(here, str(error))
                continue
            if self._kept is not None:
                self._kept[here] = pixels
            return here, pixels
        raise DataError(f"no image of {self.name} can be read")

    def _count(self, number: int, problem: str) -> None:
        self.broken[number] = problem
        if len(self.broken) > self.max_broken:
            raise DataError(
                f"{len(self.broken)} images of {self.name} cannot be read, and --max-broken allows "
                f"{self.max_broken}; the last: {problem}"
            )
        log.warning("%s: left out (broken image %d)", problem, len(self.broken))


def load_image(path: Path, side: int) -> UInt8[Tensor, "3 H W"]:
    """An image's middle square, scaled to ``side`` pixels.

    Raises:
        ImageError: naming the file, if it cannot be read.
    """
    opened = open_image(ImageRecord(0, path.name, path, 0, 0))
    fitted = ImageOps.fit(opened, (side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).contiguous()


def coco_images(config: TrainConfig) -> Files:
    """COCO's images that are there, with all their captions.

    Raises:
        DataError: in one line, if the folder is not COCO's or holds no image.
    """
    assert config.coco is not None
    read = load_coco(config.coco, split=config.coco_split, allow_missing_images=True)
    told: dict[int, list[str]] = {}
    for one in read.captions:
        told.setdefault(one.image_id, []).append(one.text)
    usable = [i for i in read.images if i.path is not None and i.image_id in told]
    usable = usable[: config.images or None]
    if not usable:
        raise DataError(f"{config.coco} holds no image of {read.name} with a caption")
    paths = [i.path for i in usable if i.path is not None]
    listed = [told[i.image_id] for i in usable]
    pin = digest([read.pin, [path.name for path in paths], config.side])
    return Files(read.name, pin, paths, listed, config.side, config.max_broken, read.notes)


def folder_images(config: TrainConfig) -> Files:
    """A folder of images, each with a .txt of its name beside it (a caption a line), or with
    their captions in captions.jsonl (``file_name`` and ``text``, as hub data sets have them).

    Raises:
        DataError: naming folder, file and line, if there are none or the list is broken.
    """
    assert config.folder is not None
    folder = config.folder
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    lists = [folder / name for name in LISTS if (folder / name).is_file()]
    found = _listed(folder, lists[0]) if lists else _beside(folder)
    notes = []
    silent = sum(not told for _, told in found)
    if silent:
        notes.append(f"{silent:,} images without a caption were left out")
    found = [(path, told) for path, told in found if told][: config.images or None]
    if not found:
        raise DataError(
            f"{folder} holds no image with a caption; put a .txt beside each image, or one "
            f"{LISTS[0]} with 'file_name' and 'text' in each line"
        )
    names = [path.relative_to(folder).as_posix() for path, _ in found]
    sizes = [path.stat().st_size if path.is_file() else -1 for path, _ in found]
    listed = [told for _, told in found]
    pin = digest([names, sizes, listed, config.side])
    paths = [path for path, _ in found]
    return Files(folder.name, pin, paths, listed, config.side, config.max_broken, notes)


def _beside(folder: Path) -> list[tuple[Path, list[str]]]:
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            text = path.with_suffix(".txt")
            lines = _text(text).splitlines() if text.is_file() else []
            found.append((path, [line.strip() for line in lines if line.strip()]))
    return found


def _listed(folder: Path, path: Path) -> list[tuple[Path, list[str]]]:
    told: dict[str, list[str]] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}, is not valid JSON: {error}") from error
        name = row.get("file_name") if isinstance(row, dict) else None
        text = (row.get("text") or row.get("caption")) if isinstance(row, dict) else None
        if not isinstance(name, str) or not isinstance(text, str):
            raise DataError(f"{path}, line {number}, lacks 'file_name' or 'text' (both are texts)")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path}, line {number}: {name} lies outside the folder; refused")
        told.setdefault(name, [])
        if text.strip():
            told[name].append(text.strip())
    return [(folder / name, texts) for name, texts in told.items()]


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text (byte {error.start:,})") from error
