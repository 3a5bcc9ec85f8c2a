"""Any decoder-only language model of transformers: Qwen3, Llama, Mistral, the text side of
Qwen-VL, ..."""

from __future__ import annotations

import torch

from ..data.hub import ResolvedModel
from . import EncoderFamily
from .decoder import SUBFOLDER, DecoderEncoder, build, load_decoder, resolve
from .hf import DEVICE_OPTIONS, dtype_of, model_folder, parts_of
from .hub_tokenizer import load_tokenizer
from .recipes import option_of, prompt_recipe
from .spec import EncoderSpec


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> DecoderEncoder:
    recipe = prompt_recipe(spec)
    model_part, tokenizer_part = parts_of(spec)
    tokenizer = load_tokenizer(spec, model_folder(resolved) / tokenizer_part)
    model = load_decoder(spec, model_folder(resolved) / model_part, dtype_of(spec, device))
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
