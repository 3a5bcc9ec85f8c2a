"""The constructor that the encoders of this package share."""

from __future__ import annotations

from typing import Any

import torch

from ..data.hub import ResolvedModel
from ..types import EncoderCard
from .batching import BatchedEncoder, Tokenized
from .hf import count_parameters, freeze
from .hub_tokenizer import HubTokenizer
from .recipes import PromptRecipe
from .spec import EncoderSpec


class LoadedEncoder(BatchedEncoder):
    """A batched encoder whose card and settings follow from its spec, files and tokenizer.

    Args:
        spec: as on the command line.
        resolved: where its files are and what pins them.
        device: to compute on; the caller has moved the weights there.
        dtype: of the computation.
        dim: width of the token features.
        max_tokens: longest prompt in tokens, special ones included; None = no limit.
        parameters: number of weights used to encode text.
        tokenizer: prompts -> Tokenized, with ``pad_id`` and ``ends``; None = the subclass has its
            own ``tokenize``.
        width: length of every forward pass; None = that of the longest prompt in a batch.
        more: further fields of the card, such as the recipe.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        resolved: ResolvedModel,
        device: torch.device,
        *,
        dtype: torch.dtype,
        dim: int,
        max_tokens: int | None,
        parameters: int,
        tokenizer: Any = None,
        width: int | None = None,
        **more: Any,
    ) -> None:
        self.device = device
        self.batch_tokens = 16_384 if device.type == "cuda" else 2_048  # a CPU's caches are small
        self.layer = spec.layer
        self.padded = spec.pool == "mean-padded"
        self.width = width or (max_tokens if self.padded else None)
        self.tokenizer = tokenizer
        if tokenizer is not None:
            self.pad_id, self.ends = tokenizer.pad_id, tokenizer.ends
        self.card = EncoderCard(
            spec=str(spec),
            family=spec.family,
            source=spec.source,
            revision=resolved.revision,
            dim=dim,
            max_tokens=max_tokens,
            license=resolved.license,
            layer=spec.layer,
            pooling=spec.pool,
            dtype=str(dtype).removeprefix("torch."),
            parameters=parameters,
            quantization=resolved.quantization,
            **more,
        )

    def tokenize(self, prompts: list[str]) -> Tokenized:
        found: Tokenized = self.tokenizer(prompts)
        return found


class TransformersEncoder(LoadedEncoder):
    """A loaded encoder whose tokens are hidden states of a transformers model."""

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
        super().__init__(
            spec,
            resolved,
            device,
            dtype=model.dtype,
            dim=model.config.hidden_size,
            max_tokens=tokenizer.max_length,
            parameters=count_parameters(model),
            tokenizer=tokenizer,
            recipe=recipe.name,
        )
