"""Encoders of the T5 kind: T5 1.0 and v1.1, Flan-T5, mT5, UMT5."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..data.hub import ResolvedModel, resolve_model
from ..errors import ModelError, UsageError
from ..schema import read_model_config
from . import EncoderFamily
from .batching import BatchedEncoder, Hidden, Tokenized, default_batch_tokens
from .hf import (
    DEVICE_OPTIONS,
    card_of,
    count_parameters,
    dtype_of,
    freeze,
    load_transformers,
    model_folder,
    parts_of,
    patterns_of,
)
from .hub_tokenizer import HubTokenizer, load_tokenizer
from .lengths import DEFAULT_LENGTH, choose_length, embedding_rows
from .pooling import select_layer
from .recipes import PromptRecipe, option_of, prompt_recipe
from .spec import EncoderSpec

CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}


class T5Encoder(BatchedEncoder):
    """Tokens are the encoder's hidden states; there is no vector of its own. The decoder of a
    full checkpoint is not loaded. Positions are relative, so any maximum length works."""

    def __init__(
        self,
        spec: EncoderSpec,
        resolved: ResolvedModel,
        model: Any,
        tokenizer: HubTokenizer,
        device: torch.device,
        recipe: PromptRecipe,
    ) -> None:
        self.model = freeze(model, device)
        self.device = device
        self.batch_tokens = default_batch_tokens(device)
        self.layer = spec.layer
        self._tokenizer = tokenizer
        self.pad_id = tokenizer.pad_id
        self.ends = tokenizer.ends
        self.padded = spec.pool == "mean-padded"
        self.width = tokenizer.max_length if self.padded else None
        card = card_of(
            spec,
            resolved,
            model.dtype,
            dim=model.config.d_model,
            max_tokens=tokenizer.max_length,
            parameters=count_parameters(model),
        )
        self.card = replace(card, recipe=recipe.name)

    def tokenize(self, prompts: list[str]) -> Tokenized:
        return self._tokenizer(prompts)

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Hidden:
        out = self.model(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=self.layer != "last"
        )
        return Hidden(
            select_layer(out.hidden_states or (), out.last_hidden_state, self.layer), None
        )


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> T5Encoder:
    recipe = prompt_recipe(spec)
    dtype = dtype_of(spec, device)
    if dtype == torch.float16:
        raise UsageError(f"'{spec}': T5 overflows in float16; use dtype=bfloat16 or float32")
    model_part, tokenizer_part = parts_of(spec)
    folder = model_folder(resolved) / model_part
    kind = str(read_model_config(folder).get("model_type"))
    if kind not in CLASSES:
        raise ModelError(
            f"{folder}: model_type '{kind}' is none of {', '.join(CLASSES)}; use another family "
            "(see: encbench list encoders)"
        )
    import transformers

    tokenizer = load_tokenizer(spec, model_folder(resolved) / tokenizer_part)
    model = load_transformers(getattr(transformers, CLASSES[kind]), spec, folder, dtype)
    length = choose_length(spec, recipe.length or DEFAULT_LENGTH)
    clean = recipe.clean() if recipe.clean else None
    tokenizer = HubTokenizer(tokenizer, length, embedding_rows(model), clean=clean)
    return T5Encoder(spec, resolved, model, tokenizer, device, recipe)


def _resolve(spec: EncoderSpec) -> ResolvedModel:
    return resolve_model(
        spec.source, spec.revision, patterns=patterns_of(spec), pickle=spec.flag("pickle")
    )


FAMILY = EncoderFamily(
    name="t5",
    summary="T5 v1.1, Flan-T5, mT5 and UMT5 encoders (transformers)",
    examples=(
        "t5:google/flan-t5-xl",
        "t5:google/t5-v1_1-xxl?max_length=256&pickle=true",
        "t5:google/umt5-xxl?layer=normavg",
        "t5:PixArt-alpha/PixArt-Sigma-XL-2-1024-MS?subfolder=text_encoder&recipe=pixart",
        "t5:black-forest-labs/FLUX.1-schnell?subfolder=text_encoder_2",
    ),
    resolve=_resolve,
    load=_load,
    requires=lambda spec: [(spec.source, spec.revision)],
    options={
        "recipe": option_of("t5"),
        "subfolder": "where the encoder lies in a diffusers folder, e.g. text_encoder_3 "
        "(its tokenizer is then read from tokenizer_3)",
        **DEVICE_OPTIONS,
    },
)
