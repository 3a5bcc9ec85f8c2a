"""COCO captions and instances in the 2017 layout, read by pycocotools.

``annotations/captions_<split>.json``, ``annotations/instances_<split>.json`` (optional) and
``<split>/<file_name>``, as https://cocodataset.org/#format-data describes them.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import category, normalize

from ..errors import DataError, from_os_error
from ..files import digest_files, expand_home, read_json
from ..listing import is_hidden
from ..schema import INT64, check_text, describe_value
from ..types import Caption, CaptionSet, ImageRecord, Instance
from .datasets import DatasetFamily, DatasetSpec, DatasetUse

SITE = "http://images.cocodataset.org"
FETCH = "run 'encbench data fetch coco --to FOLDER'"


def load_coco(
    root: Path, *, split: str | None = None, allow_missing_images: bool = False
) -> CaptionSet:
    """Read one split.

    Empty captions are left out and counted in the notes; caption texts are as in the file.

    Args:
        root: folder that holds ``annotations``.
        split: e.g. 'val2017'; None where there is only one captions file.
        allow_missing_images: accept images whose files are not there (their path is None)
            and count them in the notes.

    Raises:
        DataError: in one line, naming the file, if something is missing, broken, unsafe or of
            another split.
    """
    captions_file, split = _captions_file(Path(root), split)
    instances_file = captions_file.with_name(f"instances_{split}.json")
    captions = _read(captions_file, ("images", "annotations"), ("id", "image_id", "caption"))
    notes: list[str] = []

    texts = []
    for entry in captions.anns.values():
        if entry["image_id"] not in captions.imgs:
            raise DataError(
                f"{captions_file}: caption {entry['id']} belongs to image {entry['image_id']}, "
                "which the file does not list"
            )
        text, where = entry["caption"], f"{captions_file}: caption {entry['id']}"
        if not isinstance(text, str):
            raise DataError(f"{where} must be a text, not {describe_value(text)}")
        check_text(text, where, DataError)
        if text.strip():
            texts.append(Caption(entry["id"], entry["image_id"], text))
    empty = len(captions.anns) - len(texts)
    if empty:
        notes.append(f"{empty:,} empty captions of {captions_file.name} were left out")
    if not texts:
        raise DataError(f"{captions_file} holds no captions")

    names = {
        key: safe_name(image.get("file_name"), "file_name", f"{captions_file}: image {key}")
        for key, image in captions.imgs.items()
    }
    source = f"they come from {SITE}/zips/{split}.zip ({FETCH})"
    paths = find_images(
        Path(root) / split, names, captions_file, source, allow_missing_images, notes
    )
    objects, labels = _instances(instances_file, captions.imgs.keys(), notes)
    licenses = _licenses(captions.dataset.get("licenses"))
    images = tuple(
        ImageRecord(
            image_id=key,
            file_name=names[key],
            path=paths[key],
            width=_pixels(image.get("width")),
            height=_pixels(image.get("height")),
            instances=objects.get(key),
            license=licenses.get(str(image.get("license")), ""),
            url=_text(image.get("flickr_url")) or _text(image.get("coco_url")),
        )
        for key, image in sorted(captions.imgs.items())
    )
    read = [captions_file, *([instances_file] if instances_file.is_file() else [])]
    return CaptionSet(
        name=f"coco-{split}",
        pin=digest_files(read),
        images=images,
        captions=tuple(sorted(texts, key=lambda caption: caption.caption_id)),
        labels=labels,
        notes=tuple(notes),
    )


def _licenses(entries: Any) -> dict[str, str]:
    entries = entries if isinstance(entries, list) else []
    listed = [entry for entry in entries if isinstance(entry, dict)]
    return {str(entry.get("id")): _text(entry.get("name")) for entry in listed}


def _text(value: Any) -> str:
    """A text that only informs; '' where the file has none."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _pixels(size: Any) -> int:
    """A width or height; 0 where the file has none."""
    return size if type(size) is int and 0 <= size in INT64 else 0


def _captions_file(root: Path, split: str | None) -> tuple[Path, str]:
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; check the path, or {FETCH}")
    folder = root / "annotations"
    found = sorted(folder.glob("captions_*.json"))
    there = ", ".join(path.name for path in found)
    if not found:
        raise DataError(
            f"no captions_<split>.json in {folder}; {FETCH}, or take it from "
            f"{SITE}/annotations/annotations_trainval2017.zip"
        )
    if split is None:
        if len(found) > 1:
            raise DataError(
                f"{folder} holds several splits ({there}); choose one with --coco-split"
            )
        split = found[0].stem.removeprefix("captions_")
    path = folder / f"captions_{split}.json"
    if path not in found:
        raise DataError(f"no captions_{split}.json in {folder}; there: {there}")
    return path, split


def _read(path: Path, keys: Sequence[str], entry_keys: Sequence[str]) -> Any:
    """A file as an indexed ``pycocotools.coco.COCO``, checked as far as its index needs.

    pycocotools reports neither broken files nor duplicate ids and prints as it reads, so the
    file is parsed here and handed over.
    """
    from pycocotools.coco import COCO

    content = read_json(path, lambda text: DataError(f"{text}; get it again: {FETCH}"))
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in keys):
        has = _keys(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{path} is not a COCO file: it needs {', '.join(keys)} and has {has}")
    for key in keys:
        _check_entries(path, key, content[key], entry_keys if key == "annotations" else ("id",))

    coco = COCO()
    coco.dataset = content
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _check_entries(path: Path, key: str, entries: list[Any], needed: Sequence[str]) -> None:
    numbers = [name for name in needed if name.endswith("id")]
    seen: set[int] = set()
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: number {number} of its {key} is not an object")
        for name in needed:
            if name not in entry:
                raise DataError(
                    f"{path}: number {number} of its {key} has no '{name}' (it has "
                    f"{_keys(entry)}); is this the right kind of file?"
                )
        for name in numbers:
            if type(entry[name]) is not int or entry[name] not in INT64:
                raise DataError(
                    f"{path}: {name} of number {number} of its {key} must be a whole number of at "
                    f"most 64 bits, not {describe_value(entry[name])}"
                )
        if entry["id"] in seen:
            raise DataError(f"{path} has the id {entry['id']} twice among its {key}")
        seen.add(entry["id"])


def _keys(record: Mapping[str, Any]) -> str:
    return ", ".join(map(ascii, record)) or "nothing"


def safe_name(name: Any, key: str, where: str) -> str:
    """An image's file name, refused where it would lead out of the image folder.

    Raises:
        DataError: beginning with ``where`` and naming the key.
    """
    if not isinstance(name, str) or not name:
        raise DataError(f"{where} has no {key}")
    check_text(name, f"{where}: {key}", DataError)
    parts = PurePosixPath(name).parts
    if any(category(character) == "Cc" for character in name):
        problem = "holds a control character"
    elif "\\" in name or (os.name == "nt" and ":" in name):
        problem = "is a path of Windows; write folders with /"
    elif PurePosixPath(name).is_absolute() or ".." in parts:
        problem = "leads out of the image folder"
    else:
        return name
    raise DataError(f"{where} has the {key} {name!r}, which {problem}; refused")


def find_images(
    folder: Path,
    names: Mapping[int, str],
    list_file: Path,
    source: str,
    allow_missing: bool,
    notes: list[str],
) -> dict[int, Path | None]:
    """Where the image files are that a list names; None for one that is not there, which is noted.

    Args:
        list_file: what names them, for the message.
        source: where they come from, for the message.

    Raises:
        DataError: if images are missing and that is not allowed, or all there are others.
    """
    # one listing in place of a question for each of up to 118,287 files; macOS writes accents
    # apart from their letters, so a name may be there in another form
    try:
        there = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    except OSError as error:
        raise DataError(str(from_os_error(error, f"listing {folder}"))) from error
    forms = {normalize("NFC", name): name for name in there}
    paths: dict[int, Path | None] = {}
    for key, name in names.items():
        name = name if name in there else forms.get(normalize("NFC", name), name)
        found = name in there if "/" not in name else os.path.isfile(folder / name)  # noqa: PTH113
        paths[key] = folder / name if found else None
    missing = sorted(key for key, path in paths.items() if path is None)
    strangers = sorted(
        name
        for name in there
        if name.lower().endswith((".jpg", ".jpeg", ".png")) and not is_hidden(name)
    )
    if len(missing) == len(names) and strangers:
        raise DataError(
            f"the images in {folder} (first: {strangers[0]}) are not those of "
            f"{list_file.name} (first: {names[min(names)]}): captions and images come "
            "from different splits"
        )
    if missing:
        what = f"{len(missing):,} of {len(names):,} images are missing in {folder}"
        first = names[missing[0]]
        if not allow_missing:
            raise DataError(
                f"{what} (first: {first}); {source}, or add --allow-missing-images "
                "to use the images that can be read"
            )
        notes.append(f"{what} (first: {first})")
    return paths


def _instances(
    path: Path, known: Iterable[int], notes: list[str]
) -> tuple[dict[int, tuple[Instance, ...]], tuple[str, ...]]:
    """Objects by image id for the images that the file lists, and all class names."""
    if not path.is_file():
        return {}, ()
    keys = ("images", "annotations", "categories")
    coco = _read(path, keys, ("id", "image_id", "category_id", "area", "bbox"))
    known = set(known)
    listed = set(coco.imgs) | {entry["image_id"] for entry in coco.anns.values()}
    others = sorted(listed - known)
    if others and len(others) == len(listed):
        raise DataError(
            f"{path} belongs to other images: none of its {len(listed):,} is in "
            f"{path.name.replace('instances', 'captions')} (first: {others[0]})"
        )
    if others:
        notes.append(
            f"{path.name} is of {len(others):,} further images, which have no captions here and "
            "were left out"
        )
    found: dict[int, list[Instance]] = {key: [] for key in coco.imgs if key in known}
    names = {key: _text(entry.get("name")) or str(key) for key, entry in coco.cats.items()}
    for entry in coco.anns.values():
        if entry["image_id"] not in known:
            continue
        try:
            if not isinstance(entry["bbox"], list):
                raise TypeError
            x, y, width, height = map(float, entry["bbox"])
            label, area = names[entry["category_id"]], float(entry["area"])
            possible = area >= 0 and all(map(math.isfinite, (area, x, y, width, height)))
        except (KeyError, TypeError, ValueError, OverflowError):
            possible = False
        if not possible:
            raise DataError(
                f"{path}: instance {entry['id']} has an unknown category or an impossible box or "
                "area"
            )
        found.setdefault(entry["image_id"], []).append(
            Instance(label, area, (x, y, x + width, y + height))
        )
    return {key: tuple(objects) for key, objects in found.items()}, tuple(
        names[key] for key in sorted(names)
    )


def _load(spec: DatasetSpec, use: DatasetUse) -> CaptionSet:
    return load_coco(
        expand_home(spec.source),
        split=spec.get("split"),
        allow_missing_images=use.allow_missing,
    )


FAMILY = DatasetFamily(
    name="coco",
    summary="COCO captions and instances in the 2017 layout.",
    examples=("coco:FOLDER", "coco:FOLDER?split=val2017"),
    load=_load,
    options={"split": "which captions_<split>.json, where the folder holds several"},
)
