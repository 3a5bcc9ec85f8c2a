"""Queries with the images that each encoder retrieved for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import text
from .load import Run
from .pictures import ImageFile, read_image

LARGEST = 2_000_000  # bytes; a thumbnail is far smaller, so a larger file is not one
MOST = 3  # cases each way, and retrieved images a case


@dataclass(frozen=True)
class Picture:
    """An image that may be shown: ``name`` is its id in the page; no ``image`` where there is
    no usable file."""

    name: str
    image_id: str
    image: ImageFile | None
    caption: str
    license: str
    url: str


@dataclass(frozen=True)
class GalleryTile:
    """One tile: a picture, the caption in question, and a line of numbers below."""

    picture: Picture
    caption: str
    numbers: str


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
    pictures: tuple[Picture, ...] = ()


def load_gallery(run: Run) -> Gallery:
    """The gallery of a run; empty where it has none.

    The cases come from the records, so none is lost with ``media/gallery.json``, which holds the
    images. Entries without the needed parts, and files that are no images or lie outside the
    run's media folder, are left out.
    """
    entries = _mapping(run.gallery.get("images"))
    used: dict[str, Picture] = {}

    def picture(image_id: str) -> Picture:
        if image_id not in used:
            entry = _mapping(entries.get(image_id))
            used[image_id] = _picture(run.folder, f"image-{len(used)}", image_id, entry)
        return used[image_id]

    walls = []
    listed = _mapping(run.gallery.get("encoders"))
    for row in (*run.candidates, *run.controls):
        records = (run.record(row.spec, probe) for probe in run.probes)
        series = [_mapping(r.series.get("gallery")) for r in records if r]
        cases = next(filter(None, series), {}) or _mapping(listed.get(row.spec))
        best, worst = (_cases(cases.get(side), picture) for side in ("best", "worst"))
        if best or worst:
            walls.append(Wall(row.spec, text.clean_text(row.name), row.control, best, worst))
    return Gallery(tuple(walls), tuple(used.values()))


def _cases(cases: Any, picture: Callable[[str], Picture]) -> tuple[GalleryCase, ...]:
    complete = []
    for case in _list(cases)[:MOST]:
        query = _mapping(case.get("query"))
        tiles = []
        for item in _list(case.get("retrieved"))[:MOST]:
            numbers = f"text {text.number(item.get('cosine'), 2)}"
            if text.is_number(item.get("similarity")):
                numbers += f" · image {text.number(item.get('similarity'), 2)}"
            tiles.append(_tile(item, picture, numbers))
        if query and tiles:
            score = text.number(case.get("score"), 2)
            complete.append(GalleryCase(_tile(query, picture, f"score {score}"), tuple(tiles)))
    return tuple(complete)


def _tile(entry: Mapping[str, Any], picture: Callable[[str], Picture], numbers: str) -> GalleryTile:
    image = picture(str(entry.get("image_id", "")))
    return GalleryTile(image, text.clean_text(entry.get("caption") or image.caption), numbers)


def _picture(folder: Path, name: str, image_id: str, entry: Mapping[str, Any]) -> Picture:
    url = str(entry.get("url") or "")
    parts = urlsplit(url) if url.isprintable() and "[" not in url else urlsplit("")
    thumb = entry.get("thumb")
    inside = isinstance(thumb, str) and thumb.startswith("media/")
    return Picture(
        name=name,
        image_id=text.clean_text(image_id),
        image=read_image(folder / "media", thumb.removeprefix("media/"), LARGEST)
        if isinstance(thumb, str) and inside
        else None,
        caption=text.clean_text(entry.get("caption") or ""),
        license=text.clean_text(entry.get("license") or ""),
        url=url if parts.scheme in ("http", "https") and parts.netloc else "",
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list) else []
