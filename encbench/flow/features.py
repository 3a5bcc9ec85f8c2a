"""Text features as conditions: those of all captions in memory, or encoded when needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..encode import StoredEncoder
from ..encoders import EncoderSpec
from ..errors import EncbenchError, UsageError
from ..progress import bar
from ..store import Store
from .meanflow import Condition

CHUNK = 4096  # captions that are encoded and stored together
HALF_MAX = 6e4  # the most that float16 holds, nearly
PAD = 8  # lengths are padded to a multiple of this


class Widths(NamedTuple):
    """Of an encoder's tokens, and of its own pooled vector (0 = it has none)."""

    tokens: int
    pooled: int


class PromptFeatures(NamedTuple):
    """Features of one prompt: real tokens only."""

    tokens: Float[Tensor, "L D"]
    pooled: Float[Tensor, " P"] | None


@runtime_checkable
class Features(Protocol):
    """Conditions by the numbers of a list of texts."""

    @property
    def widths(self) -> Widths: ...

    def conditions(self, index: Int[np.ndarray, " n"], device: torch.device) -> Condition: ...


@dataclass(frozen=True)
class Bank:
    """Features of N texts, held without padding.

    Attributes:
        tokens: of all texts, one after another, float16 where that holds them, else float32.
        starts: where each text begins, and the end of the last one.
        pooled: of each text, or None.
    """

    tokens: Float[Tensor, "T D"]
    starts: Int[Tensor, " N1"]
    pooled: Float[Tensor, "N P"] | None

    @property
    def widths(self) -> Widths:
        return Widths(self.tokens.shape[1], 0 if self.pooled is None else self.pooled.shape[1])

    @classmethod
    def of(cls, texts: Sequence[PromptFeatures], most: int | None = None) -> Bank:
        """Concatenate features of texts; of each text at most the first ``most`` tokens."""
        kept = [text.tokens[:most] for text in texts]
        lengths = torch.tensor([0, *map(len, kept)])
        tokens = torch.cat(kept)
        if tokens.dtype != torch.float32 or float(tokens.abs().max()) < HALF_MAX:
            tokens = tokens.half() if float(tokens.abs().max()) < HALF_MAX else tokens.float()
        vectors = [text.pooled for text in texts if text.pooled is not None]
        return cls(tokens, lengths.cumsum(0), torch.stack(vectors).float() if vectors else None)

    def text(self, number: int) -> PromptFeatures:
        """Features of one text, float32."""
        part = self.tokens[self.starts[number] : self.starts[number + 1]].float()
        return PromptFeatures(part, None if self.pooled is None else self.pooled[number])

    def to(self, device: torch.device) -> Bank:
        """The same with the features on a device; where texts begin stays on the CPU, so that
        no step has to wait for the device."""
        pooled = None if self.pooled is None else self.pooled.to(device)
        return Bank(self.tokens.to(device), self.starts, pooled)

    def conditions(self, index: Int[np.ndarray, " n"], device: torch.device) -> Condition:
        """Padded to a multiple of eight, float32."""
        where = torch.from_numpy(np.ascontiguousarray(index))
        first, lengths = self.starts[where], self.starts[where + 1] - self.starts[where]
        place = torch.arange(-(-int(lengths.max()) // PAD) * PAD)
        mask = place < lengths[:, None]
        rows = torch.where(mask, first[:, None] + place, 0).to(self.tokens.device)
        tokens, mask = self.tokens[rows].to(device).float(), mask.to(device)
        pooled = None
        if self.pooled is not None:
            pooled = self.pooled[where.to(self.pooled.device)].to(device)
        return Condition(tokens * mask[..., None], mask, pooled)


class PromptEncoder:
    """Features of prompts by an encoder, its own pooled vector included where it has one.

    Args:
        spec: of the encoder.
        store: where features are kept; None encodes anew.
        most: tokens of a prompt that are used.

    Raises:
        UsageError: for ``control:shuffle``, whose features belong to no prompt.
    """

    def __init__(
        self, spec: str, store: Path | None, device: torch.device, most: int | None = None
    ) -> None:
        parsed = EncoderSpec.parse(spec)
        if parsed.shuffled is not None:
            raise UsageError(
                f"'{spec}' shuffles embeddings across prompts, so nothing can be trained on it; "
                "take "
                "control:constant or control:random as a control"
            )
        self.spec, self.most, self.device = spec, most, device
        self.stored = StoredEncoder(parsed, Store(store or _nowhere()), device, pools=())
        # what a control gives is made faster than it is read
        self.keep = store is not None and parsed.family != "control"
        self._widths: Widths | None = None

    @property
    def revision(self) -> str:
        return self.stored.resolved.revision

    @property
    def widths(self) -> Widths:
        """Found by encoding one prompt."""
        if self._widths is None:
            (text,) = self.alone(["a photo"])
            pooled = 0 if text.pooled is None else len(text.pooled)
            self._widths = Widths(text.tokens.shape[1], pooled)
        return self._widths

    def bank(self, texts: Sequence[str]) -> Bank:
        """Features of many texts, from the store where they are there."""
        found: list[PromptFeatures] = []
        with bar("reading captions", len(texts)) as advance:
            for start in range(0, len(texts), CHUNK):
                part = list(texts[start : start + CHUNK])
                found += self._stored(part) if self.keep else self.together(part)
                advance(len(part))
        return Bank.of(found, self.most)

    def together(self, texts: Sequence[str]) -> list[PromptFeatures]:
        """Features of texts, encoded in the encoder's own batches."""
        features = self.stored.encoder.encode(list(texts))
        lengths = features.mask.sum(1).tolist()
        rows = features.tokens[features.mask].float().cpu().split(lengths)
        pooled = None if features.pooled is None else features.pooled.float().cpu()
        return [
            PromptFeatures(row[: self.most], None if pooled is None else pooled[i])
            for i, row in enumerate(rows)
        ]

    def alone(self, texts: Sequence[str]) -> list[PromptFeatures]:
        """Each text by itself, so that not even rounding depends on its neighbors."""
        return [self.together([text])[0] for text in texts]

    def release(self) -> None:
        """Drop the weights."""
        self.stored.release()

    def _stored(self, texts: list[str]) -> list[PromptFeatures]:
        tokens = self.stored.tokens(texts)
        pooled: Tensor | None = None
        if self.widths.pooled:
            pooled = self.stored.embed(texts, "own")
        return [
            PromptFeatures(row[: self.most].float(), None if pooled is None else pooled[i])
            for i, row in enumerate(tokens)
        ]


@dataclass(frozen=True)
class Encoded:
    """Texts that are encoded when they are asked for, for sets too large for memory."""

    encoder: PromptEncoder
    texts: Sequence[str]

    @property
    def widths(self) -> Widths:
        return self.encoder.widths

    def conditions(self, index: Int[np.ndarray, " n"], device: torch.device) -> Condition:
        found = self.encoder.together([self.texts[i] for i in index])
        return Bank.of(found).conditions(np.arange(len(found)), device)


def check_fits(widths: Widths, cond_dim: int, pooled_dim: int, spec: str, where: str) -> None:
    """Raise unless the widths of an encoder fit a model.

    Raises:
        EncbenchError: naming both.
    """
    if (widths.tokens, widths.pooled) == (cond_dim, pooled_dim):
        return

    def said(tokens: int, pooled: int) -> str:
        return f"width {tokens}" + (f" with a pooled vector of {pooled}" if pooled else "")

    raise EncbenchError(
        f"the encoder {spec} does not fit {where}: it gives features of "
        f"{said(*widths)}, and the model takes {said(cond_dim, pooled_dim)}; use the encoder "
        "that the model was trained with, or train one with this encoder"
    )


def _nowhere() -> Path:
    import tempfile

    return Path(tempfile.mkdtemp(prefix="encbench-"))
