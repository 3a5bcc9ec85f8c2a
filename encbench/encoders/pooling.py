"""From token features to one vector, and from hidden states to token features.

Pure functions. All pooling is done in float32, whatever the encoder computed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..errors import UsageError
from ..types import TextFeatures
from .spec import POOLINGS


@dataclass(frozen=True)
class EndedFeatures(TextFeatures):
    """Features whose every prompt ends with the tokenizer's end-of-text token.

    An adapter returns this instead of TextFeatures where its tokenizer puts that token (EOS,
    or BERT's SEP) after the prompt, truncated or not. The last real token then *is* the
    end-of-text token, which is what ``pool=eos`` needs to know.
    """


def pool(features: TextFeatures, how: str) -> Float[Tensor, "B P"]:
    """One vector for each prompt, float32.

    Args:
        features: of B prompts, padded on either side.
        how: ``mean`` over real tokens (EMF Eq. 4, arXiv 2604.18168, with padding masked);
            ``mean-padded`` over all L positions, which means something only for features that
            were padded to the encoder's maximum length (spec option ``pool=mean-padded``);
            ``max`` over real tokens; ``last``, the last real token; ``eos``, the end-of-text
            token, of :class:`EndedFeatures`; ``own``, the model's own vector.

    Raises:
        UsageError: if the features lack what the pooling needs, or there is no such pooling.
    """
    tokens, mask = features.tokens, features.mask
    if how == "mean":
        weights = mask.to(torch.float32)
        total = torch.bmm(weights[:, None], _unmasked_zero(tokens, mask).float())[:, 0]
        return total / weights.sum(1, keepdim=True).clamp(min=1)
    if how == "mean-padded":
        return tokens.mean(1, dtype=torch.float32)
    if how == "max":
        return tokens.masked_fill(~mask[..., None], -torch.inf).amax(1).float()
    if how in ("last", "eos"):
        if how == "eos" and not isinstance(features, EndedFeatures):
            raise UsageError(
                "pool=eos needs a tokenizer that ends every prompt with an end-of-text token, and "
                "this encoder's does not; use pool=last or pool=mean"
            )
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, positions, -1).amax(1).clamp(min=0)
        return tokens[torch.arange(len(tokens), device=tokens.device), last].float()
    if how == "own":
        if features.pooled is None:
            raise UsageError("pool=own: this encoder has no vector of its own; use pool=mean")
        return features.pooled.float()
    raise UsageError(f"unknown pool '{how}'; known: {', '.join(POOLINGS)}")


def _unmasked_zero(tokens: Tensor, mask: Tensor) -> Tensor:
    """0 times whatever stands in a padded position is not always 0: infinities must go."""
    return tokens if mask.all() else tokens.masked_fill(~mask[..., None], 0)


def select_layer(
    hidden_states: Sequence[Float[Tensor, "B L D"]],
    last_hidden_state: Float[Tensor, "B L D"],
    layer: str,
) -> Float[Tensor, "B L D"]:
    """The hidden state that a spec's ``layer`` names.

    Args:
        hidden_states: embeddings first, then each layer's output, as transformers returns
            them; may be empty for ``last``.
        last_hidden_state: the model's output, after its final norm if it has one.
        layer: ``last``; ``penultimate``, ``hidden_states[-2]`` without the final norm, as
            Stable Diffusion 3 reads CLIP; an index into ``hidden_states`` (0 = embeddings,
            negative from the end); ``normavg``, the mean over all layers of each layer's
            parameter-free layer-normalized output (arXiv 2506.08210), embeddings left out.

    Raises:
        UsageError: if there is no such layer.
    """
    if layer == "last":
        return last_hidden_state
    if len(hidden_states) < 2:
        raise UsageError(f"layer={layer}: this encoder has one layer only; use layer=last")
    if layer == "penultimate":
        return hidden_states[-2]
    if layer == "normavg":
        width = last_hidden_state.shape[-1:]
        total = torch.zeros_like(last_hidden_state, dtype=torch.float32)
        for state in hidden_states[1:]:
            total += functional.layer_norm(state.float(), width)
        return (total / (len(hidden_states) - 1)).to(last_hidden_state.dtype)
    index, count = int(layer), len(hidden_states)
    if not -count <= index < count:
        raise UsageError(
            f"layer={layer}: this encoder has {count} hidden states, 0 (embeddings) to {count - 1}"
        )
    return hidden_states[index]
