"""The one way to list users' files: hidden files and folders are left out and counted, and two
names for one thing are refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from .errors import DataError

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
"""Endings of the image files that are read."""
OTHER_IMAGES = (
    ".apng", ".arw", ".cr2", ".cr3", ".dds", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif",
    ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jxl", ".nef", ".npy", ".pbm", ".pdf", ".pgm",
    ".pnm", ".ppm", ".psd", ".raw", ".svg", ".tga", ".xcf",
)  # fmt: skip
"""Endings that are reported as left out where images are looked for."""
K = TypeVar("K")


class Listing(NamedTuple):
    """Files in the order of their paths, and in words what was left out."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...]


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's or a program's own: ``._x.png`` and ``__MACOSX`` of
    macOS, ``.ipynb_checkpoints`` of Jupyter, ``@eaDir`` of a disk station, and all that begin
    with a dot."""
    return name.startswith(".") or name in ("__MACOSX", "@eaDir")


def list_files(
    folder: Path, suffixes: Sequence[str], *, others: Sequence[str] = (), below: bool = False
) -> Listing:
    """A folder's files with certain endings (in small or capital letters).

    Args:
        suffixes: endings with the dot, in small letters.
        others: endings of files that are not read but reported.
        below: look into folders below, too (not through links).

    Raises:
        DataError: if the folder is not there or may not be read.
    """
    paths: list[Path] = []
    hidden, strange, unread, links = [], [], [], []

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror}") from error

    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    for place, folders, names in os.walk(folder, onerror=refuse):
        here = Path(place)
        out_of_sight = any(map(is_hidden, here.relative_to(folder).parts))
        for name in folders + names:
            path, suffix = here / name, Path(name).suffix.lower()
            if suffix not in suffixes and suffix not in others:
                continue
            if out_of_sight or is_hidden(name):
                hidden.append(path)
            elif suffix in others:
                unread.append(path)
            elif os.path.isfile(path):  # noqa: PTH113  Path.is_file raises on some names
                paths.append(path)
            else:
                strange.append(path)
        if not below:
            break
        links += [here / name for name in folders if (here / name).is_symlink()]
    reasons = (
        (hidden, "hidden files"),
        (strange, "folders, broken links or devices with a file's name"),
        (unread, "files of a format that is not read"),
        (links, "links to folders, which are not followed,"),
    )
    notes = [
        f"{len(left):,} {what} were left out (first: {min(left).relative_to(folder)})"
        for left, what in reasons
        if left
    ]
    return Listing(tuple(sorted(paths)), tuple(notes))


def list_images(folder: Path, *, below: bool = False) -> Listing:
    """A folder's image files; see :func:`list_files`."""
    return list_files(folder, IMAGES, others=OTHER_IMAGES, below=below)


def name_uniquely(paths: Iterable[Path], key: Callable[[Path], K]) -> dict[K, Path]:
    """Files by what their names mean, e.g. a number.

    Raises:
        DataError: naming both files, if two names mean the same: nobody can tell which is meant.
    """
    found: dict[K, Path] = {}
    for path in paths:
        other = found.setdefault(key(path), path)
        if other != path:
            raise DataError(f"{other} and {path.name} stand for the same item; remove one")
    return found


def number_names(paths: Iterable[Path]) -> tuple[dict[int, Path], list[Path]]:
    """Files or folders by the number that their names are ('00012', '12.png'), in its order, and
    those whose names are no number.

    Raises:
        DataError: naming both, if two names are one number ('1' and '00001').
    """
    paths = list(paths)
    numbered = [path for path in paths if path.stem.isdecimal() and len(path.stem) < 19]
    found = name_uniquely(numbered, lambda path: int(path.stem))
    return dict(sorted(found.items())), [path for path in paths if path not in set(numbered)]
