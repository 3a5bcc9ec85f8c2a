"""Flickr30k and Flickr8k captions in Karpathy's splits (``dataset_flickr30k.json``).

The file lists ``images``, each with ``filename``, ``split`` and ``sentences`` of a ``raw`` text
(Karpathy and Fei-Fei, arXiv 1412.2306).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files import digest_file, expand_home, read_json
from ..schema import get_field
from ..types import CaptionSet
from .coco import find_images, safe_name
from .datasets import DatasetFamily, DatasetSpec, DatasetUse, clean_captions, number_pairs

FOLDERS = ("flickr30k-images", "flickr30k_images", "images", "Images", ".")
SOURCE = "https://cs.stanford.edu/people/karpathy/deepimagesent/"


def load_karpathy(root: Path, split: str, *, allow_missing_images: bool = False) -> CaptionSet:
    """Read one split.

    Args:
        root: folder with one ``dataset_*.json``, and the images in it or in ``flickr30k-images``
            or ``images``.
        split: 'train', 'val' or 'test'.
        allow_missing_images: accept images whose files are not there, and count them in the notes.

    Raises:
        DataError: in one line, naming the file, if something is missing, broken or unsafe.
    """
    found = sorted(root.glob("dataset_*.json"))
    if len(found) != 1:
        there = "several" if found else "no"
        raise DataError(f"{there} dataset_*.json in {root}; it needs the one of {SOURCE}")
    path, notes = found[0], list[str]()
    listed = get_field(read_json(path, DataError), "images", list, str(path), DataError)
    rows = []
    for number, entry in enumerate(listed):
        where = f"{path}: number {number} of its images"
        if get_field(entry, "split", str, where, DataError) == split:
            name = safe_name(entry.get("filename"), "filename", where)
            rows.append((name, _captions(entry, where)))
    if not rows:
        splits = sorted({entry["split"] for entry in listed})
        raise DataError(f"{path} has no split '{split}'; there: {', '.join(splits) or 'none'}")
    silent = sum(not texts for _, texts in rows)
    if silent:
        notes.append(f"{silent:,} images without a caption were left out")
    rows = [row for row in rows if row[1]]
    folder = next(root / name for name in FOLDERS if (root / name).is_dir())
    names = dict(enumerate(name for name, _ in rows))
    files = find_images(folder, names, path, f"see {SOURCE}", allow_missing_images, notes)
    pairs = [(name, files[i], texts) for i, (name, texts) in enumerate(rows)]
    name = f"{path.stem.removeprefix('dataset_')}-{split}"
    return number_pairs(name, digest_file(path), pairs, notes)


def _captions(entry: Any, where: str) -> list[str]:
    texts = [
        get_field(sentence, "raw", str, f"{where}: a sentence", DataError)
        for sentence in get_field(entry, "sentences", list, where, DataError)
    ]
    return clean_captions(texts, where)


def _load(spec: DatasetSpec, use: DatasetUse) -> CaptionSet:
    split = spec.get("split", "train" if use.training else "test")
    root = expand_home(spec.source)
    return load_karpathy(root, split, allow_missing_images=use.allow_missing)


FAMILY = DatasetFamily(
    name="flickr30k",
    summary="Flickr30k in Karpathy's splits: dataset_flickr30k.json and its images.",
    examples=("flickr30k:FOLDER", "flickr30k:FOLDER?split=val"),
    load=_load,
    options={"split": "train (default for training), val or test (default for probes)"},
)
