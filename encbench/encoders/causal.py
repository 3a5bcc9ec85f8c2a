"""Any decoder-only language model of transformers: Qwen3, Llama, Mistral, the text side of
Qwen-VL, ..."""

from __future__ import annotations

import torch

from ..data.hub import ResolvedModel
from . import EncoderFamily
from .decoder import SUBFOLDER, DecoderEncoder, build, load_decoder, resolve
from .hf import DEVICE_OPTIONS, dtype_of, folder_of, load_tokenizer, parts_of
from .recipes import option_of, recipe_of
from .spec import EncoderSpec


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> DecoderEncoder:
    recipe = recipe_of(spec)
    model_part, tokenizer_part = parts_of(spec)
    tokenizer = load_tokenizer(spec, folder_of(resolved) / tokenizer_part)
    model = load_decoder(spec, folder_of(resolved) / model_part, dtype_of(spec, device))
    return build(spec, resolved, model, tokenizer, device, recipe)


FAMILY = EncoderFamily(
    name="causal",
    summary="any decoder-only language model, or the text side of a vision-language one",
    examples=(
        "causal:Qwen/Qwen3-1.7B?layer=normavg",
        "causal:Qwen/Qwen2.5-VL-3B-Instruct",
        "causal:meta-llama/Llama-3.2-1B?layer=penultimate",
    ),
    resolve=resolve,
    load=_load,
    requires=lambda spec: [(spec.source, spec.revision)],
    options={"recipe": option_of("causal"), "subfolder": SUBFOLDER, **DEVICE_OPTIONS},
)
