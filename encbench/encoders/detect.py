"""The family of a bare hub id, folder or GGUF file, found by its config.

Nothing that comes with a model is run; of a hub repository its small config files are downloaded.
"""

from __future__ import annotations

import dataclasses
import shlex
from functools import cache
from pathlib import Path

from .. import registry
from ..data.hub import resolve_model
from ..errors import ModelError
from ..files import expand_home
from ..progress import log
from ..schema import read_model_config
from ..specs import is_on_disk
from . import EncoderFamily
from .gguf import is_gguf, read_header, resolve_gguf
from .hf import parts_of
from .spec import EncoderSpec

CONFIG = "config.json"
FALLBACKS = ("causal", "st")
"""Families that read any model of transformers' lists of decoder-only models and of encoders."""


@cache
def complete_spec(text: str) -> str:
    """A spec with its family. If it names none, the family that reads the model is chosen and
    logged once, with the spec that pins it.

    Raises:
        UsageError: if it is neither a spec nor a hub id nor a path.
        ModelError: if no family follows from the model's config.
        DownloadError: if the hub cannot be reached or refuses.
    """
    if not _is_bare(text):
        return text
    spec = EncoderSpec.parse(f"bare:{text.strip()}")
    folder, family, commit = expand_home(spec.source), "", ""
    if is_gguf(spec.source):
        family = _family_of_gguf(spec)
    else:
        if not folder.is_dir():
            marks = [mark for each in _families() for mark in each.marks]
            config = "/".join(filter(None, (parts_of(spec)[0], CONFIG)))
            found = resolve_model(spec.source, spec.revision, patterns=[config, *marks])
            folder, commit = found.folder, found.revision
        family = _family_of_folder(spec, folder)
    chosen = dataclasses.replace(spec, family=family)
    pinned = dataclasses.replace(chosen, revision=commit or spec.revision)
    pin = f"; to pin it, write {shlex.quote(str(pinned))}" if commit else ""
    log.info("%s is read as %s%s", text, shlex.quote(str(chosen)), pin)
    return str(chosen)


def _is_bare(text: str) -> bool:
    """Whether a text names no family: a path that exists, or an id with a slash and no colon
    before its options."""
    source = text.strip().partition("?")[0]
    if ":" in source and source.partition(":")[0] in registry.names("encoder"):
        return False
    path = source.rpartition("@")[0] or source
    return ("/" in path and ":" not in path) or is_on_disk(source)


def _families() -> list[EncoderFamily]:
    return [registry.get("encoder", name) for name in registry.names("encoder")]


def _family_of_folder(spec: EncoderSpec, folder: Path) -> str:
    """The family that names a file of this folder as its mark, else this ``model_type``.

    Raises:
        ModelError: if there is none.
    """
    families, part = _families(), parts_of(spec)[0]
    for family in families if not part else ():
        if any((folder / mark).is_file() for mark in family.marks):
            return family.name
    kind = str(read_model_config(folder / part).get("model_type"))
    for family in families:
        if kind in family.model_types:
            return family.name
    from transformers.models.auto import modeling_auto as lists

    if kind in lists.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in (
        lists.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    ):
        masked = kind in lists.MODEL_FOR_MASKED_LM_MAPPING_NAMES  # BERT is in both lists
        return FALLBACKS[masked]
    if kind in lists.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return FALLBACKS[1]
    raise ModelError(
        f"cannot tell the family from the config of {spec.source} (model_type '{kind}'); write one "
        f"before it, such as causal:{spec.source} (see: encbench list encoders)"
    )


def _family_of_gguf(spec: EncoderSpec) -> str:
    """By the architecture that the file names."""
    kind = read_header(resolve_gguf(spec).folder).model_type
    return next((f.name for f in _families() if kind in f.model_types), FALLBACKS[0])
