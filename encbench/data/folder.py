"""A folder of images with captions: a .txt beside each image, or one list of them."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError
from ..files import digest, expand_home, read_json_lines, read_lines
from ..listing import list_images, name_uniquely
from ..schema import check_text, get_field
from ..types import CaptionSet
from .datasets import DatasetFamily, DatasetSpec, DatasetUse, number_pairs

LISTS = ("captions.jsonl", "metadata.jsonl")


def load_folder(folder: Path) -> CaptionSet:
    """Read a folder of images, each with a .txt of its name beside it (a caption a line), or with
    their captions in captions.jsonl (``file_name`` and ``text``, as hub datasets have them).

    Images without a caption are left out and counted, as are hidden files and other formats.

    Raises:
        DataError: naming folder, file and line, if there are none, two files have one .txt, or
            the list is broken.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    notes: list[str] = []
    lists = [folder / name for name in LISTS if (folder / name).is_file()]
    found = _listed(folder, lists[0]) if lists else _beside(folder, notes)
    silent = sum(not texts for texts in found.values())
    if silent:
        notes.append(f"{silent:,} images without a caption were left out")
    found = {path: texts for path, texts in found.items() if texts}
    if not found:
        left_out = f" ({'; '.join(notes)})" if notes else ""
        raise DataError(
            f"{folder} holds no image with a caption{left_out}; put a .txt beside each image, or "
            f"one {LISTS[0]} with 'file_name' and 'text' in each line"
        )
    names = [path.relative_to(folder).as_posix() for path in found]
    sizes = [path.stat().st_size if os.path.isfile(path) else -1 for path in found]  # noqa: PTH113
    pin = digest([names, sizes, list(found.values())])
    name = folder.name or folder.resolve().name
    return number_pairs(name, pin, zip(names, found, found.values(), strict=True), notes)


def _beside(folder: Path, notes: list[str]) -> dict[Path, list[str]]:
    listing = list_images(folder, below=True)
    notes += listing.notes
    name_uniquely(listing.paths, lambda path: path.with_suffix(""))  # they would share one .txt
    found = {}
    for path in listing.paths:
        beside = path.with_suffix(".txt")
        lines = read_lines(beside, DataError) if os.path.isfile(beside) else []  # noqa: PTH113
        found[path] = [line.strip() for line in lines if line.strip()]
    return found


def _listed(folder: Path, path: Path) -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    for where, row in read_json_lines(path, DataError):
        name = get_field(row, "file_name", str, where, DataError)
        key = "caption" if "text" not in row and "caption" in row else "text"
        text = get_field(row, key, str, where, DataError)
        check_text(name, f"{where}: file_name", DataError)
        check_text(text, f"{where}: {key}", DataError)
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name or not name:
            raise DataError(f"{where}: {name!r} does not name a file inside the folder; refused")
        texts = found.setdefault(folder / name, [])
        if text.strip():
            texts.append(text.strip())
    return found


def _load(spec: DatasetSpec, use: DatasetUse) -> CaptionSet:
    return load_folder(expand_home(spec.source))


FAMILY = DatasetFamily(
    name="folder",
    summary="A folder of images with a .txt beside each, or one captions.jsonl.",
    examples=("folder:FOLDER",),
    load=_load,
)
