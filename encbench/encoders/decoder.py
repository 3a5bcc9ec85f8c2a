"""What encoders of decoder-only language models share.

Prompts are padded on the right. States of a causal model do not depend on later tokens, so they
equal those with left padding, which generation needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..data.hub import ResolvedModel
from ..errors import ModelError, UsageError
from ..schema import read_model_config
from ..types import TextFeatures
from .batching import Hidden
from .decoder_weights import load_from_tensors, stored_weights, text_weights
from .gguf import is_gguf
from .hf import (
    load_transformers,
    readable_errors,
    refuse_remote_code,
    resolve_parts,
)
from .hub_tokenizer import HubTokenizer, text_around
from .lengths import DEFAULT_LENGTH, LONGEST, choose_length, embedding_rows, positions_of
from .loaded import TransformersEncoder
from .pooling import select_layer
from .recipes import PromptRecipe, sana_positions
from .spec import EncoderSpec

INTERN = "internvl_chat"
"""InternVL as its authors publish it: ``llm_config`` is a config of transformers, and the code that
comes with it is not needed for the language model."""
SUBFOLDER = (
    "where the encoder lies in a diffusers folder, e.g. text_encoder (its tokenizer is then read "
    "from tokenizer)"
)


class DecoderEncoder(TransformersEncoder):
    """Tokens are the hidden states of a decoder-only language model; there is no vector of its
    own, and no logits are computed.

    Attributes:
        causal: whether the states at a position depend on the ids up to it only, so that a
            prompt whose ids are a prefix of another's needs no pass of its own.
        keep: from features of all positions to those that the recipe keeps; None = all.
    """

    causal: bool = True
    keep: Callable[[TextFeatures], TextFeatures] | None = None

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Hidden:
        return Hidden(self.states(ids, mask), None)

    def finish(self, features: TextFeatures) -> TextFeatures:
        """What :meth:`encode` returns, from features of all positions."""
        return self.keep(features) if self.keep else features

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        return self.finish(super().encode(prompts))

    def states(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Tensor:
        """Hidden states (B, L, D) of right-padded ids, at the layer that the spec names."""
        out = self.model(
            input_ids=ids,
            # what is padded on the right cannot be seen from the left of it, and attention without
            # a mask is faster; only the states of padding itself depend on it
            attention_mask=mask.long() if self.padded else None,
            output_hidden_states=self.layer != "last",
            use_cache=False,
        )
        return select_layer(out.hidden_states or (), out.last_hidden_state, self.layer)


def last_positions(features: TextFeatures, count: int) -> TextFeatures:
    """The last ``count`` real positions of each prompt."""
    if not len(features.mask):
        return features
    places = last_places(features.mask, count)
    return replace(features, tokens=features.tokens[places], mask=features.mask[places])


def last_places(mask: Bool[Tensor, "B L"], count: int) -> tuple[Tensor, Tensor]:
    """Rows (B, 1) and columns (B, count) of the last ``count`` real positions of each prompt."""
    first = mask.sum(1) - count
    where = first[:, None] + torch.arange(count, device=mask.device)
    return torch.arange(len(mask), device=mask.device)[:, None], where


# -------------------------------------------------------------------------------- loading


def load_decoder(spec: EncoderSpec, folder: Path, dtype: torch.dtype) -> Any:
    """The base model (no head) of a decoder-only checkpoint. Of a multimodal checkpoint only the
    language model is read.

    Raises:
        ModelError: if it is something else, or incomplete.
    """
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as ENCODER_DECODERS,
    )

    if is_gguf(folder):  # the names of tensors are known for models with a head
        whole = load_transformers(transformers.AutoModelForCausalLM, spec, folder, dtype)
        return require_causal(whole.base_model, folder)
    raw = read_model_config(folder)
    if raw.get("model_type") == INTERN:
        inner = dict(raw.get("llm_config") or {})
        inner.pop("auto_map", None)
        if inner.get("model_type") not in transformers.CONFIG_MAPPING:
            raise ModelError(f"{folder}: transformers knows no {inner.get('model_type')} model")
        text = transformers.CONFIG_MAPPING[inner["model_type"]].from_dict(inner)
        return _load_language(text, spec, folder, dtype)
    if "auto_map" in raw:
        refuse_remote_code(spec, "auto_map in config.json")
    with readable_errors(spec, folder, "config"):
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=spec.flag("remote_code")
        )
    if config.model_type in ENCODER_DECODERS or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{folder}: model_type '{config.model_type}' is an encoder-decoder; use the t5 family "
            "or another one (see: encbench list encoders)"
        )
    text = config.get_text_config()
    if text is config:
        return require_causal(
            load_transformers(transformers.AutoModel, spec, folder, dtype), folder
        )
    return _load_language(text, spec, folder, dtype)


def _load_language(config: Any, spec: EncoderSpec, folder: Path, dtype: torch.dtype) -> Any:
    """The language model of a checkpoint with several modalities."""
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if type(config) not in MODEL_MAPPING:
        raise ModelError(
            f"{folder}: transformers has no model for the language part '{config.model_type}' alone"
        )
    weights = text_weights(stored_weights(spec, folder), folder)
    kind = MODEL_MAPPING[type(config)]
    return require_causal(load_from_tensors(kind, config, weights, spec, folder, dtype), folder)


def require_causal(model: Any, folder: Path) -> Any:
    """The model itself, if an early state does not change with a later token.

    Raises:
        ModelError: if it does: padding would leak, and none of these families fits.
    """
    count = model.config.vocab_size
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device) % count
    with torch.inference_mode():
        states = model(input_ids=ids, use_cache=False).last_hidden_state[:, :3].float()
    gap = (states[0] - states[1]).abs().max()
    if gap > 1e-3 * states.abs().max():
        raise ModelError(
            f"{folder}: model_type '{model.config.model_type}' looks at later tokens, so it is no "
            "decoder-only model; use another family (see: encbench list encoders)"
        )
    return model


def dress(
    spec: EncoderSpec,
    tokenizer: Any,
    recipe: PromptRecipe,
    model: Any,
    default: int = DEFAULT_LENGTH,
    end: Sequence[int] = (),
    generated: int = 0,
) -> HubTokenizer:
    """The tokenizer of a recipe with a prefix, a chat template, or nothing at all.

    Args:
        model: that reads the ids.
        default: maximum length where neither spec nor recipe says one.
        end: token ids after everything.
        generated: how many tokens the model writes after these.
    """
    positions = positions_of(model)
    if positions is not None:
        positions = max(1, positions - generated)
    length = choose_length(spec, recipe.length or default, positions)
    clean = recipe.clean() if recipe.clean else None
    make = partial(HubTokenizer, tokenizer, rows=embedding_rows(model), clean=clean)
    if recipe.prefix:
        # the recipe's length is that of what it keeps: one token of the prefix, and BOS
        if length < 2:
            raise UsageError(f"max_length={length} of '{spec}' must be at least 2")
        more = len(tokenizer(recipe.prefix)["input_ids"]) - 2
        length = min(length + more, positions or LONGEST)
        return make(max_length=length, head=recipe.prefix, tail=end)
    if recipe.chat is None:
        return make(max_length=length, tail=end)
    head, tail = text_around(tokenizer, *recipe.chat)
    after = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    # a template's text has the special tokens that the model expects, BOS included
    return make(max_length=length, head=head, tail=[*after, *end], special=False)


def build(
    spec: EncoderSpec,
    resolved: ResolvedModel,
    model: Any,
    tokenizer: Any,
    device: torch.device,
    recipe: PromptRecipe,
) -> DecoderEncoder:
    """An encoder of a loaded model under a recipe."""
    tokenizer = dress(spec, tokenizer, recipe, model)
    encoder = DecoderEncoder(spec, resolved, model, tokenizer, device, recipe)
    if not recipe.prefix:
        return encoder
    encoder.keep = partial(sana_positions, prefix=tokenizer.head_tokens)
    kept = tokenizer.max_length - tokenizer.head_tokens + 2
    encoder.card = replace(encoder.card, max_tokens=kept)
    return encoder


def resolve(spec: EncoderSpec) -> ResolvedModel:
    """Find the files of a decoder-only model."""
    return resolve_parts(spec, "chat_template.jinja")
