"""What encoders of decoder-only language models share.

Prompts are padded on the right. A causal model's states do not depend on what comes after, so
they are the same as with the left padding that generation needs.
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

from ..data.hub import ResolvedModel, resolve_model
from ..errors import ModelError, UsageError
from ..types import TextFeatures
from .batching import BatchedEncoder, Hidden, Tokenized, default_batch_tokens
from .decoder_weights import load_from_tensors, stored_weights, text_weights
from .hf import (
    HubTokenizer,
    card_of,
    count_parameters,
    freeze,
    load_transformers,
    max_length_of,
    patterns_of,
    read_model_config,
    readable_errors,
    refuse_remote_code,
)
from .pooling import select_layer
from .recipes import PromptRecipe, sana_positions
from .spec import EncoderSpec

DEFAULT_LENGTH = 512
MARK = "\ue000prompt\ue000"  # stands for the prompt while a chat template is written out
SUBFOLDER = (
    "where the encoder lies in a diffusers folder, e.g. text_encoder (its tokenizer is then read "
    "from tokenizer)"
)


class DressedTokenizer:
    """Token ids of ``head + prompt``, cut on the right, and the ids ``tail`` after them.

    The cut takes from the prompt, so that what a template puts after it is always there.

    Args:
        tokenizer: of transformers.
        max_length: in tokens, all included.
        head: text before the prompt.
        tail: token ids after it.
        clean: applied to the prompt first, if any.

    Attributes:
        head_tokens: tokens of the head alone, special ones included.

    Raises:
        UsageError: if nothing of a prompt would fit.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        head: str = "",
        tail: Sequence[int] = (),
        clean: Callable[[str], str] | None = None,
    ) -> None:
        self.tail = list(tail)
        self.max_length = max_length
        self.head_tokens = len(tokenizer(head)["input_ids"]) if head else 0
        if head and max_length <= self.head_tokens + len(self.tail):
            fixed = self.head_tokens + len(self.tail)
            raise UsageError(
                f"max_length={max_length} leaves no room beside the {fixed} tokens that the recipe "
                f"puts around a prompt; use at least {fixed + 1}"
            )
        self._inner = HubTokenizer(
            tokenizer,
            max_length - len(self.tail),
            (lambda prompt: head + (clean(prompt) if clean else prompt)) if head else clean,
        )
        self.tokenizer = tokenizer
        self.pad_id = self._inner.pad_id
        self.ends = self._inner.ends and not self.tail

    def __call__(self, prompts: list[str]) -> Tokenized:
        found = self._inner(prompts)
        if not self.tail:
            return found
        return Tokenized([[*row, *self.tail] for row in found.ids], found.truncated)


class DecoderEncoder(BatchedEncoder):
    """Tokens are the hidden states of a decoder-only language model; there is no vector of its
    own, and no logits are computed.

    Attributes:
        causal: whether the states at a position depend on the ids up to it only, so that a
            prompt whose ids are a prefix of another's needs no pass of its own.
        keep: from features of all positions to those that the recipe keeps; None = all.
    """

    causal: bool = True

    def __init__(
        self,
        spec: EncoderSpec,
        resolved: ResolvedModel,
        model: Any,
        tokenizer: DressedTokenizer,
        device: torch.device,
        recipe: PromptRecipe,
        keep: Callable[[TextFeatures], TextFeatures] | None = None,
    ) -> None:
        self.model = freeze(model, device)
        self.device = device
        self.batch_tokens = default_batch_tokens(device)
        self.layer = spec.layer
        self.keep = keep
        self._tokenizer = tokenizer
        self.pad_id = tokenizer.pad_id
        self.ends = tokenizer.ends
        self.padded = spec.pool == "mean-padded"
        self.width = tokenizer.max_length if self.padded else None
        card = card_of(
            spec,
            resolved,
            model.dtype,
            dim=model.config.hidden_size,
            max_tokens=tokenizer.max_length,
            parameters=count_parameters(model),
        )
        self.card = replace(card, recipe=recipe.name)

    def tokenize(self, prompts: list[str]) -> Tokenized:
        return self._tokenizer(prompts)

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


# -------------------------------------------------------------------------------- loading


def load_decoder(spec: EncoderSpec, folder: Path, dtype: torch.dtype) -> Any:
    """The base model (no head) of a decoder-only checkpoint; of one with several modalities its
    language model alone, whose other weights are not read.

    Raises:
        ModelError: if it is something else, or incomplete.
    """
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as ENCODER_DECODERS,
    )
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    if "auto_map" in read_model_config(folder):
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
    if type(text) not in MODEL_MAPPING:
        raise ModelError(
            f"{folder}: transformers has no model for the language part '{text.model_type}' alone"
        )
    weights = text_weights(stored_weights(spec, folder), folder)
    kind = MODEL_MAPPING[type(text)]
    return require_causal(load_from_tensors(kind, text, weights, spec, folder, dtype), folder)


def require_causal(model: Any, folder: Path) -> Any:
    """The model itself, if an early state does not change with a later token.

    Raises:
        ModelError: if it does: then padding would leak, and it is none of these families'.
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
    limit: int | None,
    default: int = DEFAULT_LENGTH,
    end: Sequence[int] = (),
) -> DressedTokenizer:
    """The tokenizer of a recipe with a prefix, a chat template, or nothing at all.

    Args:
        limit: what the model can read, in tokens.
        default: maximum length where neither spec nor recipe says one.
        end: token ids after everything.
    """
    clean = recipe.clean() if recipe.clean else None
    if recipe.prefix:
        # the recipe's length is that of what it keeps: one token of the prefix, and BOS
        length = max_length_of(spec, recipe.length or default, limit)
        if length < 2:
            raise UsageError(f"max_length={length} of '{spec}' must be at least 2")
        more = len(tokenizer(recipe.prefix)["input_ids"]) - 2
        return DressedTokenizer(tokenizer, length + more, recipe.prefix, end, clean)
    length = max_length_of(spec, recipe.length or default, limit)
    if recipe.chat is None:
        return DressedTokenizer(tokenizer, length, "", end, clean)
    head, tail = written_out(tokenizer, recipe.chat)
    after = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    return DressedTokenizer(tokenizer, length, head, [*after, *end], clean)


def written_out(tokenizer: Any, chat: tuple[str, str]) -> tuple[str, str]:
    """What a chat template puts before and after a prompt, up to where the answer begins.

    Raises:
        ModelError: if the tokenizer has no chat template, or that drops the prompt.
    """
    system, user = chat
    if not tokenizer.chat_template:
        raise ModelError(
            "its tokenizer has no chat template, which this recipe needs; use recipe=plain"
        )
    said = [
        {"role": "system", "content": system},
        {"role": "user", "content": user.format(prompt=MARK)},
    ]
    try:
        text = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is somebody's program
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"its chat template refuses this recipe's messages ({reason})") from error
    if text.count(MARK) != 1:
        raise ModelError("its chat template does not hold the prompt once; use recipe=plain")
    head, _, tail = text.partition(MARK)
    return head, tail


def limit_of(model: Any) -> int | None:
    """The longest sequence that a model's positions reach, if it has a limit."""
    found = getattr(model.config, "max_position_embeddings", None)
    return int(found) if found else None


def build(
    spec: EncoderSpec,
    resolved: ResolvedModel,
    model: Any,
    tokenizer: Any,
    device: torch.device,
    recipe: PromptRecipe,
) -> DecoderEncoder:
    """An encoder of a loaded model under a recipe."""
    tokenizer = dress(spec, tokenizer, recipe, limit_of(model))
    if not recipe.prefix:
        return DecoderEncoder(spec, resolved, model, tokenizer, device, recipe)
    keep = partial(sana_positions, prefix=tokenizer.head_tokens)
    encoder = DecoderEncoder(spec, resolved, model, tokenizer, device, recipe, keep)
    kept = tokenizer.max_length - tokenizer.head_tokens + 2
    encoder.card = replace(encoder.card, max_tokens=kept)
    return encoder


def resolve(spec: EncoderSpec) -> ResolvedModel:
    """Find the files of a decoder-only model."""
    return resolve_model(
        spec.source,
        spec.revision,
        patterns=patterns_of(spec, "chat_template.jinja"),
        pickle=spec.flag("pickle"),
    )
