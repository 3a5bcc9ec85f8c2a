"""Public names of encoders in local folders: the name of the folder and its content hash.

Records, predictions, verdicts and reports hold these. Where the folder lies is kept beside them,
in ``encoders.json`` of the run's folder, which only this machine needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from ..files import expand_home, read_json, write_json
from ..schema import check_value
from ..specs import Spec, is_on_disk
from .spec import EncoderSpec

S = TypeVar("S", bound=Spec)
PLACES = "encoders.json"
GENERIC = ("model", "checkpoint", "weights", "final", "text_encoder", "snapshot")
"""Folder names that say nothing about their content."""


def public_spec(spec: S, revision: str = "") -> S:
    """The spec without the path of an absolute folder or file: its own name, pinned to the
    content hash ``revision`` where that is known."""
    if isinstance(spec, EncoderSpec) and spec.shuffled is not None:
        inner = public_spec(spec.shuffled, revision)
        return dataclasses.replace(spec, source=f"shuffle({inner})")
    if isinstance(spec, EncoderSpec) and spec.pair is not None:
        inside = [public_spec(part) for part in spec.pair]
        source = "+".join(f"({part})" for part in inside)
        if source == spec.source:
            return spec
        return dataclasses.replace(spec, source=source, revision=revision[:12] or spec.revision)
    path, colon, attribute = spec.source, "", ""
    if spec.family == "python":
        path, colon, attribute = spec.source.rpartition(":")
    options = {name: folder_name(value) for name, value in spec.options if _is_place(value)}
    if not _is_absolute(path) and not options:
        return spec
    source = folder_name(path) + colon + attribute if _is_absolute(path) else spec.source
    spec = spec.with_options(**options)
    return dataclasses.replace(spec, source=source, revision=revision[:12] or spec.revision)


def hide_folder(text: str, spec: EncoderSpec) -> str:
    """A text about an encoder without the absolute folder that its own folder lies in."""
    for part in spec.pair or ():
        text = hide_folder(text, part)
    for path in (spec.source, *(value for _, value in spec.options if _is_place(value))):
        if _is_absolute(path):
            text = text.replace(f"{expand_home(path).parent}/", "")
    return text


def _is_absolute(path: str) -> bool:
    return expand_home(path).is_absolute()


def _is_place(option: str) -> bool:
    """Whether an option's value is a path of this machine, not a text that begins with a slash."""
    return is_on_disk(option) and _is_absolute(option)


def folder_name(path: str) -> str:
    """The last part of a path that is a telling name."""
    parts = [part for part in Path(path).parts if part not in ("/", "..", ".")]
    telling = [part for part in parts if part not in GENERIC]
    return (telling or parts or ["unnamed"])[-1]


def save_place(folder: Path, public: EncoderSpec, spec: EncoderSpec) -> None:
    """Write to a run's folder where the encoder of a public name is on this machine."""
    known = read_places(folder)
    if public != spec and known.get(str(public)) != str(spec):
        write_json(folder / PLACES, {**known, str(public): str(spec)})


def read_places(folder: Path) -> Mapping[str, str]:
    """Specs to load by public names; empty where no encoder lay in a local folder.

    Raises:
        RecordError: if the file is damaged.
    """
    path = folder / PLACES
    if not path.exists():
        return {}
    places: dict[str, str] = check_value(dict[str, str], read_json(path), str(path))
    return places
