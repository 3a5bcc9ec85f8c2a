"""Gemma 1, 2 and 3 as text encoders; of a multimodal Gemma 3 its language model."""

from __future__ import annotations

import torch

from ..data.hub import ResolvedModel
from ..errors import ModelError, UsageError
from ..schema import read_model_config
from . import EncoderFamily
from .decoder import SUBFOLDER, DecoderEncoder, build, load_decoder, resolve
from .hf import DEVICE_OPTIONS, dtype_of, model_folder, parts_of
from .hub_tokenizer import load_tokenizer
from .recipes import option_of, prompt_recipe
from .spec import EncoderSpec

KINDS = ("gemma", "gemma2", "gemma3_text", "gemma3")


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> DecoderEncoder:
    recipe = prompt_recipe(spec)
    dtype = dtype_of(spec, device)
    if dtype == torch.float16:
        raise UsageError(f"'{spec}': Gemma overflows in float16; use dtype=bfloat16 or float32")
    model_part, tokenizer_part = parts_of(spec)
    folder = model_folder(resolved) / model_part
    kind = str(read_model_config(folder).get("model_type"))
    if kind not in KINDS:
        raise ModelError(
            f"{folder}: model_type '{kind}' is none of {', '.join(KINDS)}; use another family, "
            "e.g. causal (see: encbench list encoders)"
        )
    tokenizer = load_tokenizer(spec, model_folder(resolved) / tokenizer_part)
    return build(spec, resolved, load_decoder(spec, folder, dtype), tokenizer, device, recipe)


FAMILY = EncoderFamily(
    name="gemma",
    summary="Gemma 1, 2 and 3 text models, also of a multimodal Gemma 3",
    examples=(
        "gemma:google/gemma-2-2b-it?recipe=sana",
        "gemma:google/gemma-3-4b-it?layer=normavg",
        "gemma:Efficient-Large-Model/Sana_1600M_1024px_diffusers?subfolder=text_encoder&recipe=sana",
    ),
    resolve=resolve,
    load=_load,
    requires=lambda spec: [(spec.source, spec.revision)],
    options={"recipe": option_of("gemma"), "subfolder": SUBFOLDER, **DEVICE_OPTIONS},
)
