"""Latents of a dataset, made once by an autoencoder and kept in the store.

A latent is found by content. Its entry in the store follows from the hash of the autoencoder, the
size and crop of the images and whether they are mirrored; its key is the sha256 of the pixels. So
the same images in files, in tars or in a larger dataset share one latent.

Several processes share the work, also without a common launch: each locks a part of the images in
the store and skips the parts that another one holds. A part is written completely or not at all, so
a killed process loses only the part it was making.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from ..data.tars import TarMember
from ..errors import FolderInUseError, ImageError
from ..files import digest
from ..lock import lock_folder
from ..progress import bar, log
from ..store import Store, StoreEntry
from ..types import ImageSource
from .config import TrainConfig
from .data import IN_MEMORY, THREADS, Files, ImageSet, Pairs, Picks, load_image
from .spaces import LatentSpace

PART = 128  # images that are encoded, locked and written together
CROP = "middle square, Lanczos"
WAIT = 0.5  # seconds until a process looks again for parts that others were making
KIND = "latents"
DECODER = {"decoder": f"Pillow {PIL.__version__}"}


def with_latents(config: TrainConfig, data: ImageSet, space: Any) -> ImageSet:
    """Replace the images of a training by their latents; missing ones are made. Images stay as they
    are without an autoencoder or a store, or if no image is used twice. The latents equal, bit by
    bit, those from encoding each batch.

    Raises:
        DataError: if too many images cannot be read.
        StoreError: if the store cannot be read or written, or the disk is full.
    """
    if not isinstance(space, LatentSpace) or config.store is None:
        return data
    if config.steps * config.batch <= len(data.of):
        log.info("%s: no image comes twice, so latents are not kept in the store", data.name)
        return data
    return LatentCache(data, space, config.store, flip=config.flip).fill()


class Part(NamedTuple):
    """What is known of some images: the key of each ('' if it is broken), and what is wrong with
    broken ones, by their number."""

    keys: list[str]
    problems: dict[int, str]


class Shelf:
    """All latents of one autoencoder for images of one size and crop, by their keys."""

    def __init__(self, entry: StoreEntry) -> None:
        self.entry = entry
        self.places: dict[str, tuple[int, int]] = {}  # shard and row
        self._known: set[int] = set()
        self._open: dict[int, Any] = {}

    def look(self) -> None:
        """Look for new shards in the store; only their headers are read."""
        for shard in self.entry.shards(KIND):
            if shard not in self._known:
                note = self.entry.note(shard, KIND)
                if note is None:
                    self.entry.path(shard, KIND).unlink(missing_ok=True)
                    continue
                self._add(shard, note["images"])

    def holds(self, keys: Sequence[str]) -> bool:
        return all(key in self.places for key in keys)

    def put(self, keys: Sequence[str], latents: Tensor) -> None:
        """Write a shard, whose number follows from its keys."""
        shard = int(digest(keys)[:15], 16)
        self.entry.write(shard, KIND, {KIND: latents}, {"images": list(keys)})
        self._add(shard, keys)

    def check(self, keys: Sequence[str], into: dict[str, Tensor] | None = None) -> bool:
        """Read the shards of keys whole, into a dictionary if one is given; what is damaged is
        named in the log and removed. Returns whether all is there."""
        wanted = set(keys)
        whole = True
        for shard in sorted({self.places[key][0] for key in wanted}):
            read = self.entry.read(shard, KIND)
            if read is None:
                whole = False
                self.entry.path(shard, KIND).unlink(missing_ok=True)
                self._known.discard(shard)
                self.places = {k: v for k, v in self.places.items() if v[0] != shard}
            elif into is not None:
                rows = zip(read[1]["images"], read[0][KIND], strict=True)
                into.update((key, row) for key, row in rows if key in wanted)
        return whole

    def row(self, key: str) -> Tensor:
        """One latent, from the disk."""
        shard, row = self.places[key]
        if shard not in self._open:
            file: Any = safe_open(self.entry.path(shard, KIND), framework="pt")
            self._open[shard] = file.get_slice(KIND)
        latent: Tensor = self._open[shard][row : row + 1][0]
        return latent

    def _add(self, shard: int, keys: Sequence[str]) -> None:
        self._known.add(shard)
        self.places.update((key, (shard, row)) for row, key in enumerate(keys))


class LatentCache:
    """Makes the latents of a dataset that the store lacks.

    Args:
        flip: also of the mirrored images.
    """

    def __init__(self, data: ImageSet, space: LatentSpace, store: Path, *, flip: bool) -> None:
        self.data, self.space, self.store, self.made = data, space, Store(store), 0
        self.looks = {"version": 1, "side": space.side, "crop": CROP}
        identity = {"what": "latents of images", **self.looks, **space.identity}
        self.shelves = [
            Shelf(self.store.entry({**identity, "mirrored": mirrored}))
            for mirrored in ([False, True] if flip else [False])
        ]

    def fill(self) -> Latents:
        """Wait until all processes together have made all latents; returns them."""
        for shelf in self.shelves:
            shelf.look()
        while True:
            parts = self._make()
            broken = {number: text for part in parts for number, text in part.problems.items()}
            if isinstance(self.data, Files):
                self.data.leave_out(broken)
            keys = [key for part in parts for key in part.keys]
            found = self._read(keys)
            if found is not None:
                return found

    def _make(self) -> list[Part]:
        count = len(self.data.of)
        spans = [range(start, min(start + PART, count)) for start in range(0, count, PART)]
        parts: dict[int, Part] = {}
        with bar(f"latents of {self.data.name}", count) as advance:
            while len(parts) < len(spans):
                for number, span in enumerate(spans):
                    if number not in parts and (part := self._part(span)) is not None:
                        parts[number] = part
                        advance(len(span))
                if len(parts) < len(spans):
                    time.sleep(WAIT)
        if self.made:
            folder = self.shelves[0].entry.folder.parent.parent
            log.info("%s: latents of %s images are made: %s", self.data.name, self.made, folder)
        return [parts[number] for number in range(len(spans))]

    def _part(self, span: range) -> Part | None:
        """A part that is whole in the store, made if need be; None if another process makes it."""
        files = digest(_signs(self.data, span))
        entry = self.store.entry({**self.looks, **DECODER, "what": "keys", "files": files})
        held = self._held(entry, span)
        if held is not None:
            return held
        try:
            with lock_folder(entry.folder, "part"):
                for shelf in self.shelves:
                    shelf.look()
                return self._held(entry, span) or self._encode(entry, span)
        except FolderInUseError:
            return None

    def _held(self, entry: StoreEntry, span: range) -> Part | None:
        note = entry.note(0, "keys")
        if note is None or len(note["keys"]) != len(span):
            return None
        keys = [key for key in note["keys"] if key]
        for shelf in self.shelves:
            if not shelf.holds(keys):
                shelf.look()  # another process may have made them just now
            if not shelf.holds(keys):
                return None
        return Part(note["keys"], {span[int(i)]: text for i, text in note["problems"].items()})

    def _encode(self, entry: StoreEntry, span: range) -> Part:
        pixels, problems = _decode(self.data, span)
        keys = ["" if image is None else _key(image) for image in pixels]
        for mirrored, shelf in enumerate(self.shelves):
            rows = zip(keys, pixels, strict=True)
            new = {k: image for k, image in rows if image is not None and k not in shelf.places}
            if new:
                images = torch.stack(list(new.values())).to(self.space.device)
                latents = self.space.encode((images.flip(-1) if mirrored else images) / 255)
                shelf.put(list(new), latents.cpu())
                self.made += len(new)
        found = {str(i - span.start): text for i, text in problems.items()}
        entry.write(0, "keys", {}, {"keys": keys, "problems": found})
        return Part(keys, problems)

    def _read(self, keys: list[str]) -> Latents | None:
        """None if something is damaged and has to be made again."""
        good = [number for number, key in enumerate(keys) if key]
        after = np.searchsorted(good, np.arange(len(keys)))  # the next good one, round the end
        stand_in = np.array(good)[after % len(good)]
        size = 4 * int(np.prod(self.space.shape)) * len(keys) * len(self.shelves)
        common = (self.data.name, self.data.pin, self.data.texts, self.data.of, self.data.notes)
        if size > IN_MEMORY:
            if not all(shelf.check([keys[i] for i in good]) for shelf in self.shelves):
                return None
            return LatentsOnDisk(*common, stand_in, keys, self.shelves)
        tensors = []
        for shelf in self.shelves:
            rows: dict[str, Tensor] = {}
            if not shelf.check([keys[i] for i in good], rows):
                return None
            empty = torch.zeros(self.space.shape)
            tensors.append(torch.stack([rows[key] if key else empty for key in keys]))
        return LatentsInMemory(*common, stand_in, torch.stack(tensors))


@dataclass
class Latents(ABC):
    """Images as their latents; see :class:`~encbench.flow.data.ImageSet`.

    Attributes:
        stand_in: for each image its own number, or that of the next one if it is broken.
    """

    name: str
    pin: str
    texts: tuple[str, ...]
    of: tuple[tuple[int, ...], ...]
    notes: tuple[str, ...]
    stand_in: Int[np.ndarray, " N"]

    def read(self, picks: Picks) -> Pairs:
        here = self.stand_in[picks.images]
        own = here == picks.images
        texts = [
            text if is_own else self.of[image][0]
            for text, image, is_own in zip(picks.texts, here, own, strict=True)
        ]
        mirrored = np.zeros(len(here), bool) if picks.mirrored is None else picks.mirrored
        return Pairs(self.rows(mirrored.astype(np.int64), here), np.array(texts, np.int64))

    @abstractmethod
    def rows(self, mirrored: Int[np.ndarray, " n"], images: Int[np.ndarray, " n"]) -> Tensor:
        """Latents by their numbers; of the mirrored image where ``mirrored`` is 1."""


@dataclass
class LatentsInMemory(Latents):
    """Latents that are all held in memory: plain ones, and mirrored ones if those are wanted."""

    latents: Float[Tensor, "F N C H W"]

    def rows(self, mirrored: Int[np.ndarray, " n"], images: Int[np.ndarray, " n"]) -> Tensor:
        where = (torch.from_numpy(each).to(self.latents.device) for each in (mirrored, images))
        return self.latents[tuple(where)]

    def to(self, device: torch.device) -> LatentsInMemory:
        return replace(self, latents=self.latents.to(device))


@dataclass
class LatentsOnDisk(Latents):
    """Latents that are too large for memory: read one by one from the store."""

    keys: list[str]
    shelves: list[Shelf]

    def rows(self, mirrored: Int[np.ndarray, " n"], images: Int[np.ndarray, " n"]) -> Tensor:
        pairs = zip(mirrored, images, strict=True)
        return torch.stack([self.shelves[m].row(self.keys[i]) for m, i in pairs])


def _decode(data: ImageSet, span: range) -> tuple[list[Tensor | None], dict[int, str]]:
    """Images of one size, and what is wrong with those that cannot be read."""
    if not isinstance(data, Files):
        numbers = np.arange(span.start, span.stop)
        first = np.array([data.of[i][0] for i in span])
        return list(data.read(Picks(numbers, first)).pixels.cpu()), {}
    problems: dict[int, str] = {}

    def decode(number: int) -> Tensor | None:
        try:
            return load_image(data.files[number], data.side)
        except ImageError as error:
            problems[number] = str(error)
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(decode, span)), problems


def _key(pixels: Tensor) -> str:
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


def _signs(data: ImageSet, span: range) -> list[Any]:
    """What images are known by without reading them: their file's path, size and time of change,
    or the dataset's pin, which holds their content."""
    if not isinstance(data, Files):
        return [data.pin, span.start, span.stop]
    return [_sign(data.files[number], data.pin) for number in span]


def _sign(source: ImageSource, pin: str) -> list[Any]:
    file = source.tar if isinstance(source, TarMember) else source
    if not isinstance(file, Path):
        return [pin, str(source)]
    try:
        found = file.stat()
    except OSError:
        return [str(source), "not there"]
    place = [source.start] if isinstance(source, TarMember) else []
    return [str(file.absolute()), *place, found.st_size, found.st_mtime_ns]
