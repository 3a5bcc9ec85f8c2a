"""The pictures of a run: thumbnails of the images in a report, and which encoder retrieved them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import ImageError, RecordError
from .files import read_json, with_current_names, write_json
from .images import is_whole, write_image
from .progress import log
from .schema import check_value, load_dataclass
from .types import ImageRecord, ImageTextDataset

SIDE = 192  # pixels, the longer side of a thumbnail


@dataclass(frozen=True)
class ShownImage:
    """What a report shows of an image; ``thumb`` is a file relative to the run's folder."""

    thumb: str | None
    caption: str = ""
    license: str = ""
    url: str = ""


@dataclass(frozen=True)
class ShownCaption:
    image_id: int


@dataclass(frozen=True)
class Example:
    """A query and what was retrieved for it: the part that says which images are shown."""

    query: ShownCaption
    retrieved: list[ShownCaption]


@dataclass
class GalleryFile:
    """``media/gallery.json``: images by their id, and each encoder's examples by its spec."""

    images: dict[str, ShownImage] = field(default_factory=dict)
    encoders: dict[str, Any] = field(default_factory=dict)


def write_gallery(
    folder: Path, spec: str, examples: Mapping[str, Any] | None, captions: ImageTextDataset | None
) -> None:
    """Add one encoder's examples to ``media/gallery.json`` and make thumbnails of their images.
    Missing or damaged thumbnails are made again.

    Args:
        examples: the series 'gallery' of a record; nothing is done without.

    Raises:
        RecordError: if the examples are not laid out like examples.
        StoreError: if the folder cannot be written.
    """
    if not examples or captions is None:
        return
    path = folder / "media" / "gallery.json"
    gallery = GalleryFile()
    if path.exists():
        try:
            gallery = load_dataclass(GalleryFile, with_current_names(read_json(path)), str(path))
        except RecordError as error:
            log.warning("%s; making it again", error)
    before = asdict(gallery) if path.exists() else {}
    where = f"the examples of {spec}"
    cases = check_value(dict[str, list[Example]], dict(examples), where).values()
    shown = [image for case in cases for e in case for image in (e.query, *e.retrieved)]
    images = {image.image_id: image for image in captions.images}
    texts: dict[int, str] = {}
    for caption in captions.captions:
        texts.setdefault(caption.image_id, caption.text)
    for image_id in sorted({image.image_id for image in shown} & images.keys()):
        image, old = images[image_id], gallery.images.get(str(image_id))
        if old is None or not (old.thumb and is_whole(folder / old.thumb, "JPEG")):
            gallery.images[str(image_id)] = ShownImage(
                _make_thumbnail(folder, image), texts.get(image_id, ""), image.license, image.url
            )
    gallery.encoders[spec] = dict(examples)
    if asdict(gallery) != before:
        write_json(path, asdict(gallery))


def _make_thumbnail(folder: Path, image: ImageRecord) -> str | None:
    if image.path is None:
        return None
    from .vision import open_image

    try:
        small = open_image(image)
    except ImageError:
        return None
    small.thumbnail((SIDE, SIDE))
    name = f"media/{image.image_id}.jpg"
    write_image(folder / name, small, "JPEG", quality=80)
    return name
