"""Presets: functions that return values for a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .errors import UnknownNameError

Presets = Mapping[str, Callable[[], dict[str, Any]]]
"""Functions by name; the first sentence of a docstring says what the preset is for."""


def preset_values(presets: Presets, name: str) -> dict[str, Any]:
    """The values of a preset.

    Raises:
        UnknownNameError: with the known ones.
    """
    if name not in presets:
        raise UnknownNameError("preset", name, presets)
    return presets[name]()


def emf() -> dict[str, Any]:
    """The five pretrained encoders and the protocol of EMF (arXiv 2604.18168, Tables 1 and 2).

    COCO 2017 train, 1,000 queries, all DPG-Bench prompts, DINOv3. The paper does not say
    which checkpoints it took; these are the ones that the generators named there use. T5 v1.1
    XXL is taken from a repository that holds its encoder as safetensors; OpenUni is published as
    a pickle, of which only tensors are read.
    """
    return {
        "encoders": (
            "blip3o:BLIP3o/BLIP3o-NEXT-SFT-3B?mode=text",
            "clip:ViT-L-14/openai",
            "gemma:google/gemma-2-2b-it?recipe=sana",
            "queries:wusize/openuni/openuni_l_internvl3_2b_sana_1_6b_512_hf_blip3o60k.pth"
            "?pickle=true",
            "t5:PixArt-alpha/PixArt-XL-2-1024-MS?subfolder=text_encoder",
        ),
        "coco_split": "train2017",
        "queries": 1000,
        "re_encoder": "dinov3",
    }


PRESETS: Presets = {"emf": emf}

CAPTION_COUNTS = {"train2017": (591_753, 118_287), "val2017": (25_014, 5_000)}
"""Captions and images of the COCO 2017 splits."""
