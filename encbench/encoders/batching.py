"""Batching: prompts are sorted by length, packed to a token budget, and put back in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..device import is_out_of_memory
from ..errors import ModelError
from ..progress import log
from ..types import EncoderCard, TextFeatures
from .guard import one_line_errors
from .pooling import EndedFeatures


class Tokenized(NamedTuple):
    """Token ids of each prompt, special ones included, after cutting; which ones were cut."""

    ids: Sequence[Sequence[int]]
    truncated: Sequence[bool]


class Hidden(NamedTuple):
    """What one forward pass gives: token features, and the model's own vector if it has one."""

    tokens: Float[Tensor, "B L D"]
    pooled: Float[Tensor, "B P"] | None


class BatchedEncoder(ABC):
    """An encoder that runs a model on batches packed to a token budget.

    A subclass sets the attributes and gives :meth:`tokenize` and :meth:`forward`.

    Attributes:
        card: its card.
        device: where it computes.
        batch_tokens: padded tokens in one forward pass; halved when memory runs out.
        width: run at this length always, padding included; None = at the batch's longest.
        padded: return all of that width, for ``pool=mean-padded``.
        pad_id: token id of padding.
        ends: whether the tokenizer ends every prompt with an end-of-text token.
        causal: whether token features at a position depend on the ids up to it alone, and there
            is no vector of its own; then states of beginnings are reused (:mod:`.prefix`).
    """

    card: EncoderCard
    device: torch.device
    batch_tokens: int
    width: int | None = None
    padded: bool = False
    pad_id: int = 0
    ends: bool = False
    causal: bool = False

    @abstractmethod
    def tokenize(self, prompts: list[str]) -> Tokenized:
        """Token ids of prompts, special ones included, cut to the maximum length."""

    @abstractmethod
    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Hidden:
        """One forward pass over right-padded ids. The hot path: nothing else runs per batch."""

    def finish(self, features: TextFeatures) -> TextFeatures:
        """From features of all positions to those that the encoder returns: all, as a rule. One
        that chooses also calls it in ``encode``."""
        return features

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """Features of any number of prompts, right-padded to the longest of them.

        Positions that the mask leaves out carry no meaning, unless the spec asks for
        ``pool=mean-padded``: then they are what the model computes for its padding.

        Raises:
            ModelError: if a single prompt does not fit into memory, or the tokenizer or the model
                fails in any other way.
        """
        with one_line_errors(f"encoding with {self.card.spec}"):
            return self._encode(prompts)

    def _encode(self, prompts: Sequence[str]) -> TextFeatures:
        if not prompts:
            none = torch.zeros(0, 0, dtype=torch.bool, device=self.device)
            nothing = torch.zeros(0, 0, self.card.dim, device=self.device)
            return TextFeatures(nothing, none, none.any(1))
        ids, truncated = self.tokenize([replace_surrogates(prompt) for prompt in prompts])
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat = np.fromiter(chain.from_iterable(ids), np.int64, int(lengths.sum()))
        starts = np.cumsum(lengths) - lengths
        order = np.argsort(-lengths, kind="stable")  # longest first: what fails, fails at once
        longest = self.width if self.padded and self.width else int(lengths.max())

        tokens: Tensor | None = None
        pooled: Tensor | None = None
        done = 0
        while done < len(order):
            width = self.width or int(lengths[order[done]])
            rows = order[done : done + max(1, self.batch_tokens // width)]
            columns = np.arange(width)
            real = columns < lengths[rows, None]
            batch = np.where(
                real, flat[np.where(real, starts[rows, None] + columns, 0)], self.pad_id
            )
            hidden = None
            try:
                with torch.inference_mode():
                    hidden = self.forward(
                        torch.from_numpy(batch).to(self.device),
                        torch.from_numpy(real).to(self.device),
                    )
                if tokens is None:
                    if hidden.pooled is not None:
                        pooled = hidden.pooled.new_zeros(len(order), hidden.pooled.shape[-1])
                    shape = (len(order), longest, hidden.tokens.shape[-1])
                    tokens = hidden.tokens.new_zeros(shape)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(rows) == 1:
                    raise ModelError(
                        f"{self.card.spec}: one prompt does not fit into the memory of "
                        f"{self.device}; use ?max_length=..., a smaller dtype, or --device cpu"
                    ) from error
                hidden = None
            if (
                hidden is None or tokens is None
            ):  # the error, which holds what the forward pass had made, is gone here
                self._shrink()
                continue
            kept = min(width, longest)
            where = torch.from_numpy(rows).to(self.device)
            tokens[where, :kept] = hidden.tokens[:, :kept]
            if pooled is not None and hidden.pooled is not None:
                pooled[where] = hidden.pooled
            done += len(rows)
        assert tokens is not None
        mask = torch.from_numpy(np.arange(longest) < lengths[:, None]).to(self.device)
        cut = torch.tensor(list(truncated), device=self.device)
        return (EndedFeatures if self.ends else TextFeatures)(tokens, mask, cut, pooled)

    def _shrink(self) -> None:
        """Halve the tokens of a batch; finished batches are kept."""
        self.batch_tokens = max(1, self.batch_tokens // 2)
        torch.cuda.empty_cache()
        log.warning(
            "%s: out of memory on %s; continuing with %d tokens per batch",
            self.card.spec,
            self.device,
            self.batch_tokens,
        )


def replace_surrogates(prompt: str) -> str:
    """The prompt with lone surrogates, which no tokenizer takes, replaced by '?'."""
    if prompt.isascii():
        return prompt
    return prompt.encode("utf-8", "replace").decode()
