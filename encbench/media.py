"""The pictures of a run: thumbnails of the images that a report shows, and who retrieved them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import ImageError, RecordError
from .files import read_json, write_atomic, write_json
from .progress import log
from .types import CaptionSet, ImageRecord

SIDE = 192  # pixels, the longer side of a thumbnail


def write_gallery(
    folder: Path, spec: str, examples: Mapping[str, Any], captions: CaptionSet
) -> None:
    """Add one encoder's examples to ``media/gallery.json``, with thumbnails of what they show.

    Raises:
        StoreError: if the folder cannot be written.
    """
    path = folder / "media" / "gallery.json"
    gallery: dict[str, Any] = {"images": {}, "encoders": {}}
    if path.exists():
        try:
            gallery = read_json(path)
        except RecordError as error:
            log.warning("%s: made again", error)
    by_id = {image.image_id: image for image in captions.images}
    first: dict[int, str] = {}
    for caption in captions.captions:
        first.setdefault(caption.image_id, caption.text)
    for image_id in sorted(set(_shown(examples))):
        if str(image_id) not in gallery["images"]:
            image = by_id[image_id]
            gallery["images"][str(image_id)] = {
                "thumb": _thumbnail(folder, image),
                "caption": first.get(image_id, ""),
                "license": image.license,
                "url": image.url,
            }
    gallery["encoders"][spec] = dict(examples)
    write_json(path, gallery)


def _shown(examples: Mapping[str, Any]) -> Iterable[int]:
    for rows in examples.values():
        for row in rows:
            yield row["query"]["image_id"]
            yield from (found["image_id"] for found in row["retrieved"])


def _thumbnail(folder: Path, image: ImageRecord) -> str | None:
    if image.path is None:
        return None
    from .vision import open_image

    try:
        small = open_image(image)
    except ImageError:
        return None
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    name = f"media/{image.image_id}.jpg"
    write_atomic(folder / name, buffer.getvalue())
    return name
