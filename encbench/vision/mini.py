"""``mini-dinov3``: the zoo's image encoder, read by the adapter of DINOv3.

A small vision transformer in DINOv3's layout that was trained on rendered scenes without
captions. It comes with encbench, and every file is checked against its manifest.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..data.hub import ResolvedModel
from ..errors import UsageError
from ..shipped import read_manifest, shipped
from ..types import ReEncoder
from ..zoo.catalog import REENCODER, STAGES, zoo_folder
from . import ReEncoderFamily, ReEncoderSpec
from .dino import DINOV3, OPTIONS


def _inner(spec: ReEncoderSpec) -> ReEncoderSpec:
    """The same model, as DINOv3's adapter names it; its files are checked."""
    if spec.source or spec.revision:
        raise UsageError(f"'{spec}': write just '{REENCODER}'; it comes with encbench")
    folder = shipped(zoo_folder(REENCODER, spec.get("step", "final")))
    passed = tuple(option for option in spec.options if option[0] != "step")
    return ReEncoderSpec(DINOV3.name, str(folder), None, passed)


def _resolve(spec: ReEncoderSpec) -> ResolvedModel:
    inner = _inner(spec)
    about = read_manifest(zoo_folder(REENCODER, spec.get("step", "final")))["about"]
    return replace(DINOV3.resolve(inner), license=str(about.get("license", "unknown")))


def _load(spec: ReEncoderSpec, resolved: ResolvedModel, device: torch.device) -> ReEncoder:
    reencoder = DINOV3.load(_inner(spec), resolved, device)
    reencoder.card = replace(reencoder.card, spec=str(spec))
    return reencoder


FAMILY = ReEncoderFamily(
    name=REENCODER,
    summary="a small DINOv3 trained on rendered scenes without captions; comes with encbench",
    examples=(REENCODER, f"{REENCODER}?token=mean", f"{REENCODER}?step={list(STAGES)[-1]}"),
    needs="pixels",
    resolve=_resolve,
    load=_load,
    options={**OPTIONS, "step": "which point of training: final (default), 20pct or 3pct"},
)
