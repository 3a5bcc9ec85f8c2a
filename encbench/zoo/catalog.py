"""The catalog of the zoo: names, stages, folders and recipes. Loads no torch."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .recipe import ZooRecipe

WEIGHTS = Path(__file__).parent / "weights"
STAGES: dict[str, float] = {"final": 1.0, "20pct": 0.2, "3pct": 0.03}
"""Points of training that are kept, as shares of the steps."""

FAMILIES = {
    "mini-clip": "clip",
    "mini-t5": "t5",
    "mini-gemma": "gemma",
    "mini-blip3o": "blip3o",
}
"""Text encoders, each with the adapter that reads it."""

REENCODER, QUANTIZER = "mini-dinov3", "scene-vq"
NAMES = (*FAMILIES, REENCODER, QUANTIZER)
ORDER = (QUANTIZER, *FAMILIES, REENCODER)
"""In which all are trained: mini-blip3o reads scene-vq's tokens."""


def spec_of(name: str, stage: str = "final") -> str:
    """How an encoder of the zoo is named on the command line."""
    return f"zoo:{name}" if stage == "final" else f"zoo:{name}?step={stage}"


ENCODERS: tuple[str, ...] = tuple(spec_of(name, stage) for stage in STAGES for name in FAMILIES)
"""All text encoders, the finished ones first; what ``encbench run`` ranks by itself."""


def stages_of(name: str) -> tuple[str, ...]:
    """The stages that are kept of a member."""
    return ("final",) if name == QUANTIZER else tuple(STAGES)


def zoo_folder(name: str, stage: str = "final", root: Path = WEIGHTS) -> Path:
    """Where a member's files lie.

    Raises:
        UnknownNameError: if the zoo has no such member, or keeps no such stage of it.
    """
    if name not in NAMES:
        raise UnknownNameError("member of the zoo", name, NAMES)
    if stage not in stages_of(name):
        raise UnknownNameError(f"step of {name}", stage, stages_of(name))
    return root / (name if stage == "final" else f"{name}-{stage}")


def zoo_recipe(name: str, root: Path = WEIGHTS) -> ZooRecipe:
    """The recipe of a member; ``root`` is where scene-vq is looked for first.

    Raises:
        UnknownNameError: if the zoo has no such member.
        ModelError: if scene-vq's files are missing or damaged.
    """
    if name not in NAMES:
        raise UnknownNameError("member of the zoo", name, NAMES)
    module, attribute = _RECIPES[name]
    recipe: Callable[..., ZooRecipe] = getattr(
        importlib.import_module(f".{module}", __package__), attribute
    )
    if name == "mini-blip3o":
        own = zoo_folder(QUANTIZER, root=root)
        return recipe(own if own.is_dir() else zoo_folder(QUANTIZER))
    return recipe()


_RECIPES = {
    "mini-clip": ("clip", "ClipRecipe"),
    "mini-t5": ("t5", "T5Recipe"),
    "mini-gemma": ("gemma", "GemmaRecipe"),
    "mini-blip3o": ("blip3o", "Blip3oRecipe"),
    "mini-dinov3": ("dinov3", "DinoRecipe"),
    "scene-vq": ("vq", "VQRecipe"),
}
