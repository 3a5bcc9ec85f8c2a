"""Weights that come with encbench: a folder with a manifest, checked before anything is read.

``manifest.json`` holds the sha256 of every other file of the folder, and what is known about
how they were made (recipe, seed, scores).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import ModelError
from .files import digest_file, read_json, with_current_names, write_json
from .schema import get_field

MANIFEST = "manifest.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_manifest(folder: Path, about: Mapping[str, Any]) -> Path:
    """Write the manifest of all files in a folder, those in folders below it included.

    Raises:
        StoreError: if it cannot be written.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    sums = {p.relative_to(folder).as_posix(): digest_file(p) for p in files}
    write_json(folder / MANIFEST, {"files": sums, "about": dict(about)})
    return folder / MANIFEST


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder: 'files' (name -> sha256) and 'about'.

    Raises:
        ModelError: naming it, if it is missing or damaged.
    """
    path = folder / MANIFEST

    def damaged(text: str) -> ModelError:
        return ModelError(f"{text}; {_AGAIN}")

    found = with_current_names(read_json(path, damaged))
    kinds = {"files": dict[str, str], "about": dict[str, Any]}
    return {key: get_field(found, key, kind, str(path), damaged) for key, kind in kinds.items()}


def shipped(folder: Path, shared: Path | None = None) -> Path:
    """The folder, once every file that its manifest names is there and unchanged.

    Args:
        shared: folder of the tokenizer (:data:`TOKENIZER`), where that is not this one.

    Raises:
        ModelError: naming the file that is missing or differs.
    """
    for name, expected in read_manifest(folder)["files"].items():
        home = shared if shared is not None and name in TOKENIZER else folder
        path = home / name
        if not path.is_file():
            raise ModelError(f"{path} is missing; {_AGAIN}")
        if digest_file(path) != expected:
            raise ModelError(f"{path} is not the file that was shipped (sha256 differs); {_AGAIN}")
    return folder


_AGAIN = "install encbench again"
