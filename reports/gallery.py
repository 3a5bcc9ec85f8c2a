"""Queries and what each encoder retrieved for them, ready to be shown."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import text
from .load import Run

LARGEST = 2_000_000  # bytes; a thumbnail is far smaller, so this is something else
SHOWN = 3  # cases each way, and retrieved images a case


@dataclass(frozen=True)
class Picture:
    """An image that may be shown: ``name`` is its id in the page, ``data`` a data URI or ''
    where there is no file."""

    name: str
    image_id: str
    data: str = ""
    width: int = 0
    height: int = 0
    caption: str = ""
    license: str = ""
    url: str = ""


@dataclass(frozen=True)
class GalleryTile:
    """One tile: a picture, the caption in question, and a line of numbers below."""

    picture: Picture
    caption: str
    numbers: str = ""


@dataclass(frozen=True)
class GalleryCase:
    query: GalleryTile
    retrieved: tuple[GalleryTile, ...]


@dataclass(frozen=True)
class Wall:
    """One encoder's cases."""

    spec: str
    name: str
    control: bool
    best: tuple[GalleryCase, ...]
    worst: tuple[GalleryCase, ...]


@dataclass(frozen=True)
class Gallery:
    walls: tuple[Wall, ...] = ()
    pictures: tuple[Picture, ...] = field(default=())


def gallery_cases(run: Run) -> Gallery:
    """The gallery of a run; empty where it has none. Entries without the needed parts, and
    files that are no images or lie outside the run's media folder, are left out."""
    entries = _mapping(run.gallery.get("images"))
    used: dict[str, Picture] = {}

    def picture(image_id: str) -> Picture:
        if image_id not in used:
            used[image_id] = _picture(
                run.folder, len(used), image_id, _mapping(entries.get(image_id))
            )
        return used[image_id]

    walls = []
    encoders = _mapping(run.gallery.get("encoders"))
    for row in (*run.candidates, *run.controls):
        cases = _mapping(encoders.get(row.spec))
        best, worst = (_cases(cases.get(side), picture) for side in ("best", "worst"))
        if best or worst:
            walls.append(Wall(row.spec, text.clean_text(row.name), row.control, best, worst))
    return Gallery(tuple(walls), tuple(used.values()))


def _cases(cases: Any, picture: Any) -> tuple[GalleryCase, ...]:
    made = []
    for case in _list(cases)[:SHOWN]:
        query = _mapping(case.get("query"))
        score = text.number(case.get("score"), 2)
        tiles = []
        for found in _list(case.get("retrieved"))[:SHOWN]:
            numbers = f"text {text.number(found.get('cosine'), 2)}"
            if text.is_number(found.get("similarity")):
                numbers += f" · image {text.number(found.get('similarity'), 2)}"
            tiles.append(_shown(found, picture, numbers))
        if query and tiles:
            made.append(GalleryCase(_shown(query, picture, f"score {score}"), tuple(tiles)))
    return tuple(made)


def _shown(entry: Mapping[str, Any], picture: Any, numbers: str) -> GalleryTile:
    image = picture(str(entry.get("image_id", "")))
    caption = text.clean_text(str(entry.get("caption") or image.caption))
    return GalleryTile(image, caption, numbers)


def _picture(folder: Path, number: int, image_id: str, entry: Mapping[str, Any]) -> Picture:
    url = str(entry.get("url") or "")
    parts = urlsplit(url) if url.isprintable() and "[" not in url else urlsplit("")
    data, width, height = _data_uri(folder, entry.get("thumb"))
    return Picture(
        name=f"image-{number}",
        image_id=text.clean_text(image_id),
        data=data,
        width=width,
        height=height,
        caption=text.clean_text(str(entry.get("caption") or "")),
        license=text.clean_text(str(entry.get("license") or "")),
        url=url if parts.scheme in ("http", "https") and parts.netloc else "",
    )


def _data_uri(folder: Path, thumb: Any) -> tuple[str, int, int]:
    """A thumbnail as a data URI with its size in pixels; ('', 0, 0) where it is not usable."""
    from PIL import Image, UnidentifiedImageError

    nothing = ("", 0, 0)
    if not isinstance(thumb, str):
        return nothing
    media = (folder / "media").resolve()
    try:
        path = (folder / thumb).resolve()
        if not path.is_relative_to(media) or path.stat().st_size > LARGEST:
            return nothing
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
            kind, size = image.format, image.size
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return nothing
    if kind not in ("JPEG", "PNG", "WEBP"):
        return nothing
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}", *size


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []
