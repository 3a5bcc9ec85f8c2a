"""Any decoder-only language model of transformers: Qwen3, Llama, Mistral, the text side of
Qwen-VL, ..."""

from __future__ import annotations

import torch

from ..data.hub import ResolvedModel
from . import EncoderFamily
from .decoder import INTERN, SUBFOLDER, DecoderEncoder, build, load_decoder, resolve
from .hf import DEVICE_OPTIONS, dtype_of, parts_of, requires_source, tokenizer_folder
from .hub_tokenizer import load_tokenizer
from .recipes import option_of, prompt_recipe
from .spec import EncoderSpec


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> DecoderEncoder:
    recipe = prompt_recipe(spec)
    tokenizer = load_tokenizer(spec, tokenizer_folder(spec, resolved))
    folder = resolved.folder / parts_of(spec)[0]
    model = load_decoder(spec, folder, dtype_of(spec, device))
    return build(spec, resolved, model, tokenizer, device, recipe)


FAMILY = EncoderFamily(
    name="causal",
    summary="any decoder-only language model, or the text side of a vision-language one",
    examples=(
        "causal:Qwen/Qwen3-1.7B?layer=normavg",
        "causal:Qwen/Qwen2.5-VL-3B-Instruct",
        "causal:meta-llama/Llama-3.2-1B?layer=penultimate",
    ),
    model_types=(INTERN,),
    resolve=resolve,
    load=_load,
    requires=requires_source,
    options={"recipe": option_of("causal"), "subfolder": SUBFOLDER, **DEVICE_OPTIONS},
)
