"""WebDataset tars: files of one sample share the name up to its first dot.

A tar is read once, to find where its images stand; this index is kept in the store under the sha256
of the tar. Images are then read by their place, in any order, so a training on tars has the same
order as on files, resumes exactly where it stopped, and processes share it image by image.
See https://github.com/webdataset/webdataset for the format.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError, from_os_error
from ..files import digest, expand_home, parse_json, read_lines, split_lines
from ..listing import IMAGES, is_hidden
from ..progress import bar
from ..schema import check_text, check_value
from ..store import Store, StoreEntry
from ..types import CaptionSet, ImageSource
from .datasets import DatasetFamily, DatasetSpec, DatasetUse, clean_captions, number_pairs
from .hub import cache_dir, digest_each

NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # key and ending of a member
KEYS = ("caption", "captions", "text", "prompt")  # of a .json beside an image, first that is there
BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member of an uncompressed tar, as an :class:`~encbench.types.ImageSource`."""

    tar: Path
    name: str
    start: int
    size: int

    def read_bytes(self) -> bytes:
        """
        Raises:
            OSError: if the tar is not there any more, or is shorter than it was.
        """
        with self.tar.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError("the tar is shorter than when it was indexed")
        return data

    def __str__(self) -> str:
        return f"{self.name} in {self.tar}"


def load_tars(
    source: str, *, image: str = "", caption: str = "", store: Path | None = None
) -> CaptionSet:
    """Read the index of tars; make it if it is not in the store yet.

    Samples without an image or a caption are left out and counted in the notes.

    Args:
        source: a tar, a folder of tars, a pattern with ``*`` or braces such as
            ``shard-{000..127}.tar``, or a .txt with a tar a line (relative to its folder).
        image: ending of the image members, such as jpg; '' for any image.
        caption: ending of the caption members, such as txt (a caption a line), or json:KEY (a text
            or a list of texts); '' for .txt, else .json with one of :data:`KEYS`.
        store: folder of the store that keeps the index.

    Raises:
        DataError: naming the tar, if there is none, one is cut off, damaged or compressed, or no
            sample is whole.
    """
    tars = expand_files(source, ".tar")
    held = Store(store or cache_dir() / "store")
    pairs: list[tuple[str, ImageSource | None, Sequence[str]]] = []
    left: dict[str, list[str]] = {}
    hashes = []
    with bar("reading tars", len(tars)) as advance:
        for tar in tars:
            (content,) = digest_each({tar.name: tar}).values()
            identity = {
                "what": "tar", "version": 1, "sha256": content, "image": image, "caption": caption,
            }  # fmt: skip
            index = _read_index(held.entry(identity), tar)
            if index is None:
                index = _make_index(tar, image, caption)
                _write_index(held.entry(identity), index)
            for name, (start, size), texts in zip(
                index.names, index.places.tolist(), index.captions, strict=True
            ):
                pairs.append((name, TarMember(tar, name, start, size), texts))
            for reason, names in index.left_out.items():
                left.setdefault(reason, []).extend(f"{name} in {tar}" for name in names)
            hashes.append(content)
            advance(1)
    notes = [f"{len(names):,} {why} (first: {names[0]})" for why, names in left.items()]
    if not pairs:
        said = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(
            f"{source} holds no image with a caption{said}; a sample is an image and a .txt of one "
            "name, such as 0001.jpg and 0001.txt; name other endings with ?image=...&caption=..."
        )
    name = tars[0].stem if len(tars) == 1 else tars[0].parent.resolve().name
    return number_pairs(name, digest([hashes, image, caption]), pairs, notes)


@dataclass
class TarIndex:
    """Index of a tar: its samples in order, and the members that were left out.

    Attributes:
        places: start and size of each image in the tar, in bytes.
        left_out: names by reason.
    """

    names: list[str]
    places: Tensor
    captions: list[list[str]]
    left_out: dict[str, list[str]]


@dataclass
class _Sample:
    image: tuple[str, int, int] | None = None
    texts: list[str] = field(default_factory=list)
    member: str = ""  # whose name stands for a sample without an image


def _make_index(path: Path, image: str, caption: str) -> TarIndex:
    left: dict[str, list[str]] = {}
    samples: dict[str, _Sample] = {}
    ending, _, key = caption.partition(":")
    try:
        with tarfile.open(path, "r:") as tar:
            last = None
            for member in tar:
                last = member.name
                name = NAME.fullmatch(last)
                if any(map(is_hidden, last.split("/"))):
                    left.setdefault("hidden files", []).append(last)
                    continue
                if not member.isreg() or name is None:
                    if not member.isdir():
                        left.setdefault("members that are no named file", []).append(last)
                    continue
                kind = name[2].lower()
                is_image = kind == image if image else f".{kind}" in IMAGES
                is_text = kind == ending if ending else kind in ("txt", "json")
                if not is_image and not is_text:
                    continue
                sample = samples.setdefault(name[1], _Sample())
                if is_image and sample.image is None:
                    check_text(last, f"{path}: the name {last!a}", DataError)
                    sample.image = (last, member.offset_data, member.size)
                elif is_image:
                    left.setdefault("further images of a sample", []).append(last)
                elif not sample.texts or kind == "txt":  # of a .txt and a .json, the .txt
                    file = tar.extractfile(member)
                    assert file is not None
                    sample.member = last
                    try:
                        sample.texts = _texts(file.read(), kind, key, f"{last} in {path}")
                    except DataError:
                        left.setdefault("captions that cannot be read", []).append(last)
            _check_end(path, tar.offset, last)
    except tarfile.ReadError as error:
        raise DataError(_unreadable(path, error)) from error
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    whole = []
    for sample in samples.values():
        if sample.image and sample.texts:
            whole.append((sample.image, sample.texts))
        elif sample.image:
            left.setdefault("images without a caption", []).append(sample.image[0])
        elif ending or sample.member.endswith(".txt"):
            left.setdefault("captions without an image", []).append(sample.member)
    said = {f"{why} were left out": names for why, names in left.items()}
    places = torch.tensor([i[1:] for i, _ in whole], dtype=torch.int64).reshape(-1, 2)
    return TarIndex([i[0] for i, _ in whole], places, [texts for _, texts in whole], said)


def _texts(data: bytes, kind: str, key: str, where: str) -> list[str]:
    if kind != "json":
        try:
            texts = split_lines(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8 text") from error
    else:
        record = parse_json(data, where, DataError, strict=False)
        found: Any = None
        if isinstance(record, dict):
            found = next((record[k] for k in ([key] if key else KEYS) if k in record), None)
        texts = [found] if isinstance(found, str) else found if isinstance(found, list) else []
        texts = [check_value(str, text, where, DataError) for text in texts]
    return clean_captions(texts, where)


def _check_end(path: Path, offset: int, last: str | None) -> None:
    """A whole tar ends with blocks of zeros; Python's reader stops quietly where they lack."""
    with path.open("rb") as file:
        file.seek(offset - BLOCK if offset else 0)
        blocks = [file.read(BLOCK), file.read(BLOCK)]
    if bytes(BLOCK) not in blocks:
        raise DataError(
            f"{path} is cut off or damaged after {last or 'its beginning'}; copy it again"
        )


def _unreadable(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        packed = file.read(4)
    if packed[:2] == b"\x1f\x8b" or packed[:4] == b"\x28\xb5\x2f\xfd":
        return f"{path} is compressed; unpack it first (gunzip, unzstd): images are read by place"
    return f"{path} is cut off or no tar ({error}); copy it again"


def _read_index(entry: StoreEntry, path: Path) -> TarIndex | None:
    found = entry.read(0, "index")
    if found is None:
        return None
    (places,), info = found[0].values(), found[1]
    value: TarIndex = check_value(TarIndex, {**info, "places": places}, str(path))
    return value


def _write_index(entry: StoreEntry, index: TarIndex) -> None:
    info = {"names": index.names, "captions": index.captions, "left_out": index.left_out}
    entry.write(0, "index", {"places": index.places}, info)


# -------------------------------------------------------------------------- names of many files


def expand_files(source: str, suffix: str) -> list[Path]:
    """The files named by a file, a folder, a pattern with ``*`` or braces, or a .txt with one file
    a line. Files of a folder or pattern are sorted.

    Raises:
        DataError: naming the first that is not there.
    """
    path = expand_home(source)
    if path.suffix == ".txt" and path.is_file():
        lines = [line.strip() for line in read_lines(path, DataError)]
        paths = [path.parent / expand_home(line) for line in lines if line]
    elif path.is_dir():
        paths = sorted(p for p in path.glob(f"*{suffix}") if not is_hidden(p.name))
    elif path.exists():
        paths = [path]
    else:
        paths = []
        for name in expand_braces(str(path)):
            place = Path(name)
            paths += sorted(place.parent.glob(place.name)) if "*" in place.name else [place]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        which = f"{missing[0]} is not there" if missing else f"no file ends with {suffix}"
        raise DataError(f"{source}: {which}; check the path")
    return paths


def expand_braces(text: str) -> list[str]:
    """``a{0..2}``, ``a{000..127}`` and ``a{x,y}`` written out, as shells do."""
    found = re.search(r"\{([^{}]*)\}", text)
    if found is None:
        return [text]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span:
        low, high = int(span[1]), int(span[2])
        width = len(span[1]) if span[1].startswith("0") else 0
        parts = [f"{number:0{width}d}" for number in range(low, high + 1)]
    else:
        parts = found[1].split(",")
    rest = expand_braces(text[found.end() :])
    return [text[: found.start()] + part + end for part in parts for end in rest]


def _load(spec: DatasetSpec, use: DatasetUse) -> CaptionSet:
    return load_tars(
        spec.source,
        image=spec.get("image", "").lower().lstrip("."),
        caption=spec.get("caption", "").lstrip("."),
        store=use.store,
    )


FAMILY = DatasetFamily(
    name="webdataset",
    summary="WebDataset tars: a file, a folder, a pattern with braces or *, or a .txt list.",
    examples=("webdataset:FOLDER", "webdataset:FOLDER/shard-{000..127}.tar?caption=json:caption"),
    load=_load,
    options={
        "image": "ending of the image members, such as jpg (default: any image)",
        "caption": "ending of the caption members: txt (a caption a line) or json:KEY",
    },
)
