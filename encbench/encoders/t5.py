"""Encoders of the T5 kind: T5 1.0 and v1.1, Flan-T5, mT5, UMT5."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..data.hub import ResolvedModel
from ..errors import UsageError
from . import EncoderFamily
from .batching import Hidden
from .hf import (
    DEVICE_OPTIONS,
    dtype_of,
    load_transformers,
    parts_of,
    require_kind,
    requires_source,
    resolve_parts,
    tokenizer_folder,
)
from .hub_tokenizer import HubTokenizer, load_tokenizer
from .lengths import DEFAULT_LENGTH, choose_length, embedding_rows
from .loaded import TransformersEncoder
from .pooling import select_layer
from .recipes import option_of, prompt_recipe
from .spec import EncoderSpec

CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}


class T5Encoder(TransformersEncoder):
    """Tokens are the encoder's hidden states; there is no vector of its own. The decoder of a
    full checkpoint is not loaded. Positions are relative, so any maximum length works."""

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
    folder = resolved.folder / parts_of(spec)[0]
    kind = require_kind(folder, CLASSES)
    import transformers

    tokenizer = load_tokenizer(spec, tokenizer_folder(spec, resolved))
    model = load_transformers(getattr(transformers, CLASSES[kind]), spec, folder, dtype)
    length = choose_length(spec, recipe.length or DEFAULT_LENGTH)
    clean = recipe.clean() if recipe.clean else None
    tokenizer = HubTokenizer(tokenizer, length, embedding_rows(model), clean=clean)
    return T5Encoder(spec, resolved, model, tokenizer, device, recipe)


FAMILY = EncoderFamily(
    name="t5",
    summary="T5 v1.1, Flan-T5, mT5 and UMT5 encoders (transformers)",
    examples=(
        "t5:google/flan-t5-xl",
        "t5:google/t5-v1_1-xxl?max_length=256&pickle=true",
        "t5:google/umt5-xxl?layer=normavg",
        "t5:PixArt-alpha/PixArt-Sigma-XL-2-1024-MS?subfolder=text_encoder&recipe=pixart",
        "t5:black-forest-labs/FLUX.1-schnell?subfolder=text_encoder_2",
        "t5:city96/t5-v1_1-xxl-encoder-gguf/t5-v1_1-xxl-encoder-Q5_K_M.gguf",
    ),
    model_types=tuple(CLASSES),
    resolve=resolve_parts,
    load=_load,
    requires=requires_source,
    options={
        "recipe": option_of("t5"),
        "subfolder": "where the encoder lies in a diffusers folder, e.g. text_encoder_3 "
        "(its tokenizer is then read from tokenizer_3)",
        **DEVICE_OPTIONS,
    },
)
