"""States of shortened prompts, taken from the states of the full prompt.

A causal model's state at a position depends on the ids up to it alone. So where a shortened
prompt's token ids, special ones and template included, are a prefix of the full prompt's, its
states are the first rows of the full one's, and no forward pass is needed for it. Where they are
not (a merge across the cut, an end-of-text token, a template that goes on after the prompt, a
prompt cut to the maximum length), nothing is reused.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..types import TextFeatures
from .batching import BatchedEncoder, replace_surrogates


class PrefixHosts(NamedTuple):
    """For each beginning: the row of a prompt that its ids are a prefix of (-1 = none), how many
    ids it has, and whether it was cut."""

    host: list[int]
    length: list[int]
    truncated: list[bool]


def hosts_by_text(prompts: Sequence[str], beginnings: Sequence[str]) -> list[int]:
    """For each beginning the index of a prompt that starts with it, or -1."""
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    texts = [prompts[i] for i in order]
    found = []
    for text in beginnings:  # what starts with a text follows it in alphabetical order
        place = bisect.bisect_left(texts, text)
        fits = place < len(texts) and texts[place].startswith(text)
        found.append(order[place] if fits else -1)
    return found


def reuses(encoder: object) -> bool:
    """Whether an encoder's states can be reused: it declares itself causal, is not asked for the
    states of its padding, and its rotary frequencies do not change with the length."""
    if not isinstance(encoder, BatchedEncoder) or not encoder.causal or encoder.padded:
        return False
    config = getattr(getattr(encoder, "model", None), "config", None)
    return not _stretching(getattr(config, "rope_parameters", None) or {})


def _stretching(rope: Mapping[str, Any]) -> bool:
    """Whether rotary parameters, in some models one set a kind of layer, depend on the length."""
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return True
    return any(_stretching(inner) for inner in rope.values() if isinstance(inner, Mapping))


def find(encoder: BatchedEncoder, prompts: Sequence[str], beginnings: Sequence[str]) -> PrefixHosts:
    """Which beginnings are prefixes of prompts in token ids."""
    whole, _ = encoder.tokenize([replace_surrogates(prompt) for prompt in prompts])
    short, cut = encoder.tokenize([replace_surrogates(prompt) for prompt in beginnings])
    host = hosts_by_text(prompts, beginnings)
    for number, row in enumerate(host):
        ids = list(short[number])
        if row >= 0 and (cut[number] or list(whole[row][: len(ids)]) != ids):
            host[number] = -1
    return PrefixHosts(host, [len(ids) for ids in short], list(cut))


def beginnings_of(
    encoder: BatchedEncoder, states: TextFeatures, found: PrefixHosts, rows: Sequence[int]
) -> TextFeatures:
    """Features of some of the beginnings, as ``encoder.encode`` would give them.

    Args:
        states: of the prompts at all positions, as :func:`states_of` gives them.
        rows: which beginnings; all must have a host.
    """
    lengths = np.array([found.length[i] for i in rows])
    longest = int(lengths.max())
    where = torch.tensor([found.host[i] for i in rows], device=states.tokens.device)
    mask = torch.from_numpy(np.arange(longest) < lengths[:, None]).to(states.tokens.device)
    cut = torch.tensor([found.truncated[i] for i in rows], device=states.tokens.device)
    tokens: Tensor = states.tokens[where, :longest]
    return encoder.finish(replace(states, tokens=tokens, mask=mask, truncated=cut, pooled=None))


def states_of(encoder: BatchedEncoder, prompts: Sequence[str]) -> TextFeatures:
    """States of prompts at all positions, before the encoder chooses among them."""
    return BatchedEncoder.encode(encoder, prompts)
