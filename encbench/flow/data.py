"""Images with captions to train on, of any dataset in the registry.

The order of a training follows from its seed alone: :func:`picks` gives the images of a step and
which of their captions are read, whatever the number of processes.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from ..data.datasets import DatasetUse, captions_by_image, load_dataset
from ..errors import DataError, ImageError, ProcessError
from ..files import digest
from ..images import open_image
from ..progress import log
from ..types import ImageRecord, ImageSource, ImageTextDataset
from .config import TrainConfig

IN_MEMORY = 2 << 30  # bytes of a folder's images that are kept as they were read
THREADS = 8


class Picks(NamedTuple):
    """The picks of a step: numbers of images, of one caption for each, and which images are
    mirrored left to right (None: none)."""

    images: Int[np.ndarray, " n"]
    texts: Int[np.ndarray, " n"]
    mirrored: Bool[np.ndarray, " n"] | None = None

    def part(self, where: slice) -> Picks:
        mirrored = None if self.mirrored is None else self.mirrored[where]
        return Picks(self.images[where], self.texts[where], mirrored)

    def mirror(self, pixels: Tensor) -> Tensor:
        """The images with those mirrored that are to be."""
        if self.mirrored is None:
            return pixels
        chosen = torch.from_numpy(self.mirrored).to(pixels.device)[:, None, None, None]
        return torch.where(chosen, pixels.flip(-1), pixels)


class Pairs(NamedTuple):
    """Images, and the numbers of the captions that go with them. An image is its pixels, or its
    latent where that was made before (:mod:`encbench.flow.latents`)."""

    pixels: UInt8[Tensor, "n 3 H W"] | Float[Tensor, "n C H W"]
    texts: Int[np.ndarray, " n"]


@runtime_checkable
class ImageSet(Protocol):
    """Images of one size with captions.

    Attributes:
        name, pin: name of the data, and sha256 of its content.
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
        """What was picked, mirrored where the picks say so; another image with a caption of its
        own where one is unreadable.

        Raises:
            DataError: if too many of the set cannot be read.
        """
        ...


def picks(data: ImageSet, step: int, batch: int, seed: int, flip: bool = False) -> Picks:
    """The batch of a step: every image once before any comes again, in an order of its own in
    each round; a caption at random; with ``flip``, each image mirrored with probability 1/2."""
    count = len(data.of)
    places = np.arange(step * batch, (step + 1) * batch)
    rounds = places // count
    images = np.empty(batch, np.int64)
    for number in np.unique(rounds):
        here = rounds == number
        images[here] = _order(count, seed, int(number))[places[here] % count]
    draw = np.random.default_rng([seed, step, 1]).random(batch)
    texts = [data.of[i][int(u * len(data.of[i]))] for i, u in zip(images, draw, strict=True)]
    mirrored = np.random.default_rng([seed, step, 2]).random(batch) < 0.5 if flip else None
    return Picks(images, np.array(texts, np.int64), mirrored)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, number: int) -> Int[np.ndarray, " count"]:
    return np.random.default_rng([seed, number, 0]).permutation(count)


def load_training_images(config: TrainConfig) -> ImageSet:
    """The images that a configuration names.

    Raises:
        DataError: if they are not there or not usable.
        UsageError: if there is no such dataset or world, or nothing is named.
    """
    use = DatasetUse(
        training=True, count=config.images or None, seed=config.seed, allow_missing=True,
        store=config.store,
    )  # fmt: skip
    dataset = load_dataset(config.dataset, use)
    return training_images(dataset, config.side, config.images, config.max_broken)


folder_images = load_training_images  # its name in scripts written for earlier versions


def training_images(
    dataset: ImageTextDataset, side: int, count: int = 0, max_broken: int = 0
) -> ImageSet:
    """A dataset as a training reads it: drawn in memory, or read from files as needed.

    Args:
        side: images are cropped to their middle square and scaled to this.
        count: use the first so many images with a caption; 0 for all.
        max_broken: how many may be unreadable.

    Raises:
        DataError: if no image has a caption.
    """
    texts = {i: [c.text for c in listed] for i, listed in captions_by_image(dataset).items()}
    if isinstance(dataset, Drawn):
        numbered, of = _numbered([texts[image.image_id] for image in dataset.images])
        return ImagesInMemory(
            dataset.name, dataset.pin_at(side), numbered, of, dataset.draw(side),
            tuple(dataset.notes),
        )  # fmt: skip
    found = [(i.path, texts[i.image_id]) for i in dataset.images if i.image_id in texts]
    usable = [(path, listed) for path, listed in found if path is not None][: count or None]
    if not usable:
        raise DataError(f"{dataset.name} has no image that exists and has a caption")
    paths = [path for path, _ in usable]
    pin = digest([dataset.pin, [path.name for path in paths], side])
    listed = [captions for _, captions in usable]
    return Files(dataset.name, pin, paths, listed, side, max_broken, dataset.notes)


@runtime_checkable
class Drawn(ImageTextDataset, Protocol):
    """A dataset that draws its images at the size asked for."""

    def draw(self, side: int) -> UInt8[Tensor, "N 3 H W"]: ...

    def pin_at(self, side: int) -> str:
        """sha256 of what images at this size and captions follow from."""
        ...


# ------------------------------------------------------------------------------ in memory


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
        return Pairs(picks.mirror(self.images[where]), picks.texts)

    def to(self, device: torch.device) -> ImagesInMemory:
        return replace(self, images=self.images.to(device))


def _numbered(
    listed: Sequence[Sequence[str]],
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """Each different text once, and the numbers in place of the texts."""
    number: dict[str, int] = {}
    of = tuple(tuple(number.setdefault(text, len(number)) for text in row) for row in listed)
    return tuple(number), of


# ----------------------------------------------------------------------------------- files


class Loaded(NamedTuple):
    """What a process that reads images hands over: the pairs, and which images were broken."""

    pairs: Pairs
    broken: dict[int, str]


class Files:
    """Images read from their files when they are needed, and kept while there is memory.

    An image that cannot be read is named in the log and counted, and the next one in the set
    stands in for it, so that the rest of the training stays as it was.

    Args:
        files: of the images.
        listed: their captions, at least one each.
        side: images are cropped to their middle square and scaled to this.
        max_broken: how many may be unreadable.
    """

    def __init__(
        self,
        name: str,
        pin: str,
        files: Sequence[ImageSource],
        listed: Sequence[Sequence[str]],
        side: int,
        max_broken: int,
        notes: Sequence[str] = (),
    ) -> None:
        self.name, self.pin, self.notes = name, pin, tuple(notes)
        self.files, self.side, self.max_broken = list(files), side, max_broken
        self.texts, self.of = _numbered(listed)
        self.broken: dict[int, str] = {}
        self._kept = _Kept(len(self.files), side) if len(files) * 3 * side**2 <= IN_MEMORY else None

    def read(self, picks: Picks) -> Pairs:
        with ThreadPoolExecutor(THREADS) as pool:
            return self.take(self.load(picks, pool.map))

    def __getitem__(self, picks: Picks) -> Loaded:
        """As a worker of a DataLoader calls it."""
        return self.load(picks, map)

    def load(self, picks: Picks, map_over: Callable[..., Iterable[Any]]) -> Loaded:
        """Read images without counting the broken ones; that is for :meth:`take`, which sees what
        all processes found."""
        broken: dict[int, str] = {}
        found = list(map_over(partial(self._read, broken), picks.images.tolist()))
        texts = [
            text if here == wanted else self.of[here][0]
            for (here, _), wanted, text in zip(found, picks.images, picks.texts, strict=True)
        ]
        pixels = torch.stack([pixels for _, pixels in found])
        return Loaded(Pairs(picks.mirror(pixels), np.array(texts, np.int64)), broken)

    def take(self, loaded: Loaded) -> Pairs:
        """
        Raises:
            DataError: if too many images are broken.
        """
        self.leave_out(loaded.broken)
        return loaded.pairs

    def leave_out(self, broken: Mapping[int, str]) -> None:
        """Name broken images in the log and count them, each once.

        Raises:
            DataError: if there are too many.
        """
        for number, problem in sorted(broken.items()):
            if number in self.broken:
                continue
            self.broken[number] = problem
            if len(self.broken) == len(self.files):
                raise DataError(f"no image of {self.name} can be read; the last: {problem}")
            if len(self.broken) > self.max_broken:
                raise DataError(
                    f"{len(self.broken)} images of {self.name} cannot be read, and --max-broken "
                    f"allows {self.max_broken}; the last: {problem}"
                )
            log.warning("%s: left out (broken image %d)", problem, len(self.broken))

    def _read(self, broken: dict[int, str], number: int) -> tuple[int, UInt8[Tensor, "3 H W"]]:
        count = len(self.files)
        for tried in range(min(count, self.max_broken + 1)):
            here = (number + tried) % count
            if here in self.broken:
                continue
            if self._kept is not None and (pixels := self._kept.get(here)) is not None:
                return here, pixels
            try:
                pixels = load_image(self.files[here], self.side)
            except ImageError as error:
                broken[here] = str(error)
                continue
            if self._kept is not None:
                self._kept.put(here, pixels)
            return here, pixels
        return number, torch.zeros(3, self.side, self.side, dtype=torch.uint8)  # take() will raise


class _Kept:
    """Decoded images in memory that workers share, if they are forked: what one has read, none
    reads again. (/dev/shm is too small for this in most containers.)"""

    def __init__(self, count: int, side: int) -> None:
        self.shape = (count, 3, side, side)
        self._map()

    def _map(self) -> None:
        count, size = self.shape[0], math.prod(self.shape)
        self.there = np.frombuffer(mmap.mmap(-1, count), np.bool_)
        self.pixels = np.frombuffer(mmap.mmap(-1, size), np.uint8).reshape(self.shape)

    def get(self, number: int) -> Tensor | None:
        return torch.from_numpy(self.pixels[number].copy()) if self.there[number] else None

    def put(self, number: int, pixels: Tensor) -> None:
        self.pixels[number] = pixels.numpy()
        self.there[number] = True

    def __getstate__(self) -> dict[str, Any]:
        return {"shape": self.shape}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a worker that was not forked
        self.shape = state["shape"]
        self._map()


def load_batches(
    data: ImageSet, chosen: Iterable[Picks], workers: int, *, pin: bool = False
) -> Generator[Pairs, None, None]:
    """Read batches in order, ahead of the consumer.

    Args:
        workers: processes that read images from files; 0 reads in threads when a batch is asked
            for. The batches are the same, whatever their number.
        pin: hand over memory that a GPU copies from without waiting.

    Raises:
        DataError: if too many images cannot be read.
        ProcessError: if a worker was killed.
    """
    if not workers or not isinstance(data, Files):
        for picks in chosen:
            yield data.read(picks)
        return
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        data,  # type: ignore[arg-type]  # its __getitem__ takes a batch's picks
        batch_size=None,
        sampler=chosen,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        multiprocessing_context="fork" if sys.platform == "linux" else None,
    )
    batches = iter(loader)
    try:
        for loaded in batches:
            yield data.take(loaded)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ProcessError(
            "a process that reads images was killed, perhaps for lack of memory; run the same "
            f"command again with fewer --workers (now {workers})"
        ) from error
    finally:
        del batches  # ends the workers


def _as_it_is(value: Any) -> Any:
    return value


def load_image(path: ImageSource, side: int) -> UInt8[Tensor, "3 H W"]:
    """An image's middle square, scaled to ``side`` pixels.

    Raises:
        ImageError: naming the file, if it cannot be read.
    """
    opened = open_image(ImageRecord(0, path.name, path, 0, 0))
    fitted = ImageOps.fit(opened, (side, side), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1).contiguous()
