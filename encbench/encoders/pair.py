"""Two encoders together, as generators use CLIP beside T5: ``pair:SPEC+SPEC``.

A prompt's tokens are those of the first encoder, then those of the second. Each encoder has columns
of its own, so a generator's first linear layer reads them apart, and its tokens are multiplied by
one number that makes their typical root mean square 1. The vectors of their own stand side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from ..data.hub import ResolvedModel
from ..errors import UsageError
from ..files import digest
from ..types import EncoderCard, TextEncoder, TextFeatures
from . import EncoderFamily, family_of, find_files, load_resolved
from .pooling import pool
from .spec import EncoderSpec

TYPICAL = (
    "a photo of a brown dog and a red bicycle in front of a white house",
    "two small cats sleep on a blue sofa",
    "a man rides a wave on a surfboard",
    "the kitchen has three green chairs and a round table",
    "an old painting of a ship in a storm at night",
    "a red circle left of a blue square",
    "people walk through a busy street with tall buildings, bright signs and yellow taxis",
    "a bowl of fruit",
)
"""Prompts by which the two are brought to one scale."""


class PairEncoder:
    """Both encoders' features, one after the other.

    A prompt counts as truncated where neither encoder read all of it.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        resolved: ResolvedModel,
        parts: Sequence[TextEncoder],
        device: torch.device,
    ) -> None:
        self.parts, self.device = tuple(parts), device
        cards = [part.card for part in parts]
        self.widths = [card.dim for card in cards]
        limits = [card.max_tokens for card in cards if card.max_tokens is not None]
        self.card = EncoderCard(
            spec=str(spec),
            family=spec.family,
            source=spec.source,
            revision=resolved.revision,
            dim=sum(self.widths),
            max_tokens=sum(limits) if len(limits) == len(cards) else None,
            license=", ".join(dict.fromkeys(card.license for card in cards)),
            recipe=" + ".join(dict.fromkeys(card.recipe for card in cards)),
            layer=" + ".join(dict.fromkeys(card.layer for card in cards)),
            pooling=spec.pool,
            dtype=cards[0].dtype if cards[0].dtype == cards[1].dtype else "float32",
            parameters=sum(card.parameters for card in cards),
            quantization=", ".join(filter(None, (card.quantization for card in cards))),
        )
        self.scales = [_scales(part, self.card.dim) for part in parts]

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of prompts, right-padded to the longest.

        Raises:
            EncbenchError: whatever either encoder raises.
        """
        found = [part.encode(prompts) for part in self.parts]
        if not prompts:
            nothing = torch.zeros(0, 0, self.card.dim, device=self.device)
            return TextFeatures(nothing, nothing.sum(2).bool(), nothing.sum((1, 2)).bool())
        dtype = getattr(torch, self.card.dtype)
        tokens, before = [], 0
        for features, width, (scale, _) in zip(found, self.widths, self.scales, strict=True):
            after = self.card.dim - before - width
            scaled = features.tokens.to(self.device, dtype) * scale
            tokens.append(functional.pad(scaled, (before, after)))
            before += width
        mask = torch.cat([features.mask.to(self.device) for features in found], 1)
        order = (~mask).int().argsort(dim=1, stable=True)[:, : int(mask.sum(1).max())]
        pooled = [
            vector_of(features).to(self.device) * scale
            for features, (_, scale) in zip(found, self.scales, strict=True)
        ]
        rows = torch.arange(len(mask), device=self.device)[:, None]
        truncated = found[0].truncated.to(self.device) & found[1].truncated.to(self.device)
        joined = torch.cat(tokens, 1)[rows, order]
        return TextFeatures(joined, mask.gather(1, order), truncated, torch.cat(pooled, 1))


def vector_of(features: TextFeatures) -> Float[Tensor, "B P"]:
    """An encoder's own vector, or the mean of its tokens where it has none."""
    return pool(features, "mean" if features.pooled is None else "own")


def _scales(part: TextEncoder, width: int) -> tuple[float, float]:
    """By what tokens and vectors are multiplied: then the median norm of tokens of typical prompts
    is the root of the pair's width, and that of vectors is 1."""
    features = part.encode(TYPICAL)
    norms = features.tokens[features.mask].float().norm(dim=-1)
    vectors = vector_of(features).norm(dim=-1)
    typical = float(norms.median()), float(vectors.median())
    return width**0.5 / (typical[0] or 1.0), 1 / (typical[1] or 1.0)


def _parts(spec: EncoderSpec) -> tuple[EncoderSpec, EncoderSpec]:
    """Both specs, in the pair's dtype where they name none.

    Raises:
        UsageError: if a part has an option of the whole, or the other way round.
    """
    assert spec.pair is not None
    for part in spec.pair:
        if part.get("pool"):
            raise UsageError(
                f"'{part}' inside '{spec}' has a pool; it belongs to the pair: "
                "pair:(SPEC)+(SPEC)?pool=..."
            )
    for name, _ in spec.options:
        if name not in ("pool", "dtype"):
            raise UsageError(
                f"'{spec}': write {name}= inside the brackets of the encoder that it belongs to"
            )
    if spec.pool == "mean-padded":
        raise UsageError(f"'{spec}': a pair has no padding of its own; use pool=mean")
    given = spec.get("dtype")
    first, second = (part.with_options(dtype=part.get("dtype") or given) for part in spec.pair)
    return first, second


def _resolve(spec: EncoderSpec) -> ResolvedModel:
    parts = _parts(spec)
    found = [find_files(family_of(part), part) for part in parts]
    named = [
        [part.family, family_of(part).version, part.options, each.revision, each.prompt]
        for part, each in zip(parts, found, strict=True)
    ]
    revision = digest(named)
    if spec.revision and not revision.startswith(spec.revision):
        raise UsageError(f"'{spec}' has revision {revision[:12]}...; leave out '@...', or pin both")
    return ResolvedModel(None, revision)


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> PairEncoder:
    loaded: list[Any] = []
    for part in _parts(spec):
        family = family_of(part)
        loaded.append(load_resolved(family, part, find_files(family, part), device))
    return PairEncoder(spec, resolved, loaded, device)


def _requires(spec: EncoderSpec) -> list[tuple[str, str | None]]:
    return [row for part in _parts(spec) for row in family_of(part).requires(part)]


FAMILY = EncoderFamily(
    name="pair",
    summary="two encoders together: tokens one after the other, vectors side by side",
    examples=(
        "pair:(clip:ViT-L-14/openai)+(t5:google/flan-t5-xl)",
        "pair:(clip:ViT-L-14/openai?layer=penultimate)+(gemma:google/gemma-2-2b-it)?pool=own",
    ),
    resolve=_resolve,
    load=_load,
    requires=_requires,
)
