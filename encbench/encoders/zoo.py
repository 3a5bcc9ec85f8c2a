"""The zoo: small encoders that come with encbench, read by the adapters of full-size models.

``zoo:mini-clip`` is a folder of weights whose every file is checked against its manifest, then
given to ``clip:``; so with the others. ``?step=3pct`` and ``?step=20pct`` are earlier points of
the same training.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import registry
from ..data.hub import ResolvedModel, combine_hashes
from ..errors import UnknownNameError, UsageError
from ..schema import read_model_config
from ..shipped import read_manifest, shipped
from ..zoo.catalog import ENCODERS, FAMILIES, zoo_folder
from . import EncoderFamily
from .blip3o import FAMILY as BLIP3O
from .spec import COMMON_OPTIONS, EncoderSpec

if TYPE_CHECKING:
    import torch

    from ..types import TextEncoder

OWN = ("step",)
UNREAD = ("README.md", "generation_config.json")
"""Files that no adapter reads, so they are no part of the pin."""


def _stage(spec: EncoderSpec) -> str:
    return spec.get("step") or "final"


def _folder(spec: EncoderSpec) -> Path:
    """Where the files are; nothing is read.

    Raises:
        UnknownNameError: if there is no such encoder, step or option.
    """
    if spec.source not in FAMILIES:
        raise UnknownNameError("encoder of the zoo", spec.source, FAMILIES)
    return zoo_folder(spec.source, _stage(spec))


def _resolve(spec: EncoderSpec) -> ResolvedModel:
    if spec.revision:
        raise UsageError(f"'{spec}': the zoo's weights come with encbench and have no revision")
    folder, whole = _folder(spec), zoo_folder(spec.source)  # all stages read its tokenizer
    _adapter(spec)
    shipped(folder, whole)
    manifest = read_manifest(folder)
    used = {n: h for n, h in manifest["files"].items() if n not in UNREAD}
    license = str(manifest["about"].get("license", "unknown"))
    return ResolvedModel(folder, combine_hashes(used), license, tokenizer=whole)


def _adapter(spec: EncoderSpec) -> EncoderFamily:
    """The family that reads these weights.

    Raises:
        UnknownNameError: if it has no such option.
    """
    family: EncoderFamily = registry.get("encoder", FAMILIES[spec.source])
    known = {**COMMON_OPTIONS, **family.options}
    for name, _ in spec.options:
        if name not in known and name not in OWN:
            raise UnknownNameError(f"option of 'zoo:{spec.source}'", name, [*known, *OWN])
    return family


def _inner(spec: EncoderSpec, folder: Path) -> EncoderSpec:
    """The same encoder, as its adapter names it."""
    passed = tuple(option for option in spec.options if option[0] not in OWN)
    inner = EncoderSpec(FAMILIES[spec.source], str(folder), None, passed)
    if inner.get("mode") == "image" and not inner.get("image_tokens"):
        inner = inner.with_options(image_tokens=str(read_model_config(folder)["image_tokens"]))
    return inner


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> TextEncoder:
    encoder = _adapter(spec).load(_inner(spec, _folder(spec)), resolved, device)
    encoder.card = replace(
        encoder.card, spec=str(spec), family=spec.family, source=spec.source, stage=_stage(spec)
    )
    return encoder


FAMILY = EncoderFamily(
    name="zoo",
    summary="small encoders that come with encbench; only what they were trained to do differs",
    examples=(
        *ENCODERS[:4],
        "zoo:mini-clip?step=3pct",
        "zoo:mini-blip3o?mode=image",
    ),
    resolve=_resolve,
    load=_load,
    options={
        "step": "which point of training: final (default), 20pct or 3pct",
        **dict.fromkeys(BLIP3O.options, f"of {BLIP3O.name}, gemma and others: see there"),
    },
    real_weights="yes: the weights that come with encbench",
)
