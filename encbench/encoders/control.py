"""Control encoders: what scores look like without any training.

Their numbers come from a hash, so they are the same on every machine and in every process.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..data.hub import ResolvedModel
from ..errors import EncbenchError, ModelError, UnknownNameError, UsageError
from ..files import digest
from . import EncoderFamily
from .batching import Hidden, Tokenized
from .hf import count_parameters, dtype_of
from .lengths import DEFAULT_LENGTH, choose_length
from .loaded import LoadedEncoder
from .pooling import select_layer
from .spec import EncoderSpec

NAMES = ("constant", "random", "bag-of-words", "word-position", "random-transformer")
CONTROLS: tuple[str, ...] = tuple(f"control:{name}" for name in NAMES)
"""Spec strings of the controls that every run adds."""

VERSION = 1
WHOLE_PROMPT = ("constant", "random")  # one token stands for all of the prompt
DEFAULT_DIM = 512
HEADS, LAYERS = 8, 2
TABLE_ROWS = 50_000  # vectors kept between calls
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def hashed_vector(*key: object, size: int) -> Float[Tensor, " D"]:
    """A vector of independent entries, uniform with mean 0 and variance 1, drawn by hash.

    Args:
        key: what the vector belongs to; the same key, the same vector.
        size: number of entries.
    """
    text = "\0".join(map(str, key)).encode("utf-8", "surrogatepass")
    bits = np.frombuffer(hashlib.shake_256(text).digest(4 * size), "<u4")
    return torch.from_numpy(((bits + 0.5) * (2 * 3**0.5 / 2**32) - 3**0.5).astype(np.float32))


def split_words(prompt: str) -> list[str]:
    """Lower-cased words without punctuation; what stands between spaces, if there are none."""
    lowered = prompt.lower()
    return _WORD.findall(lowered) or lowered.split()


def positions(length: int, dim: int) -> Float[Tensor, "L D"]:
    """Sinusoidal position vectors, section 3.5 of 'Attention Is All You Need' (1706.03762)."""
    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(0, dim, 2) / dim)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :dim]


def shuffle_rows(rows: Float[Tensor, "N P"], seed: int) -> Float[Tensor, "N P"]:
    """The rows in a random order: real embeddings that belong to other prompts."""
    return rows[torch.from_numpy(shuffled_order(len(rows), seed)).to(rows.device)]


def shuffled_order(count: int, seed: int) -> Int[np.ndarray, " N"]:
    """The order in which ``shuffle`` hands out what belongs to ``count`` prompts."""
    return np.random.default_rng(seed).permutation(count)


class ControlEncoder(LoadedEncoder):
    """A control by its name in :data:`NAMES`.

    ``constant`` gives every prompt the same vector. ``random`` gives each prompt a vector of
    its own, by its hash. ``bag-of-words`` gives each lower-cased word a vector.
    ``word-position`` adds a sinusoidal position vector to it (position-tagged words without
    context nearly suffice for diffusion transformers: arXiv 2606.03715).
    ``random-transformer`` runs these through an untrained transformer. The empty prompt is
    one word, the empty one.
    """

    def __init__(self, spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> None:
        self.name = spec.source
        self.dim, self.seed = _dim(spec), _seed(spec)
        self.dtype = dtype_of(spec, device)
        if self.name != "random-transformer" and spec.layer != "last":
            raise UsageError(f"layer={spec.layer} of '{spec}': this control has no layers")
        length: int | None = None
        if self.name not in WHOLE_PROMPT:
            length = choose_length(spec, DEFAULT_LENGTH)
            self.positions = positions(length, self.dim).to(device)
        elif spec.max_length is not None:
            raise UsageError(f"max_length of '{spec}': this control reads the whole prompt")
        self.length = length
        self._ids: dict[str, int] = {}
        self._table = torch.zeros(1024, self.dim, device=device)
        self._row("")  # also stands for padding
        self.net = self._transformer() if self.name == "random-transformer" else None
        super().__init__(
            spec,
            resolved,
            device,
            dtype=self.dtype,
            dim=self.dim,
            max_tokens=length,
            parameters=count_parameters(self.net),
            control=True,
        )

    def tokenize(self, prompts: list[str]) -> Tokenized:
        if len(self._ids) > TABLE_ROWS:  # ids need to hold for one call only
            self._ids.clear()
            self._row("")
        if self.length is None:
            keys = [""] * len(prompts) if self.name == "constant" else prompts
            return Tokenized([[self._row(key)] for key in keys], [False] * len(prompts))
        split = [split_words(prompt) or [""] for prompt in prompts]
        ids = [[self._row(word) for word in ws[: self.length]] for ws in split]
        return Tokenized(ids, [len(ws) > self.length for ws in split])

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Hidden:
        tokens = self._table[ids]
        if self.length is not None and self.name != "bag-of-words":
            tokens = tokens + self.positions[: ids.shape[1]]
        states = [tokens.to(self.dtype)]
        if self.net is not None:
            for layer in self.net:
                states.append(layer(states[-1], src_key_padding_mask=~mask))
        return Hidden(select_layer(states, states[-1], self.layer), None)

    def _row(self, key: str) -> int:
        """The row of a word's (or prompt's) vector in the table, made when first seen."""
        row = self._ids.get(key)
        if row is None:
            row = self._ids[key] = len(self._ids)
            if row == len(self._table):
                self._table = torch.cat([self._table, torch.zeros_like(self._table)])
            self._table[row] = hashed_vector("word", self.seed, key, size=self.dim)
        return row

    def _transformer(self) -> nn.ModuleList:
        """Weights with variance 1 / fan-in, by hash; norms and biases as if never trained."""
        layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                self.dim, HEADS, 2 * self.dim, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        with torch.no_grad():
            for name, weight in layers.named_parameters():
                if weight.ndim == 2:
                    drawn = hashed_vector("weight", self.seed, name, size=weight.numel())
                    weight.copy_(drawn.view_as(weight) / weight.shape[1] ** 0.5)
                else:
                    weight.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
        return layers.eval().requires_grad_(False).to(self._table.device, self.dtype)


def _dim(spec: EncoderSpec) -> int:
    text = spec.get("dim") or str(DEFAULT_DIM)
    if not text.isdecimal() or not int(text) or int(text) % HEADS:
        raise UsageError(f"dim={text} of '{spec}' must be a positive multiple of {HEADS}")
    return int(text)


def _seed(spec: EncoderSpec) -> int:
    text = spec.get("seed") or "0"
    if not text.isdecimal():
        raise UsageError(f"seed={text} of '{spec}' must be a whole number of at least 0")
    return int(text)


def _resolve(spec: EncoderSpec) -> ResolvedModel:
    if spec.shuffled is not None:
        raise EncbenchError(
            f"'{spec}' is not an encoder of its own: a run permutes the rows of the encoder inside "
            "the brackets after encoding; use it with run or probe, or load that encoder"
        )
    if spec.source not in NAMES:
        raise UnknownNameError("control", spec.source, (*NAMES, "shuffle(<spec>)"))
    revision = digest([spec.source, VERSION, _dim(spec), _seed(spec)])
    if spec.revision and not revision.startswith(spec.revision):
        raise ModelError(f"'{spec}': this version of encbench has revision {revision[:12]}...")
    return ResolvedModel(None, revision, "Apache-2.0")


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> ControlEncoder:
    if spec.shuffled is not None or spec.source not in NAMES:
        _resolve(spec)
    return ControlEncoder(spec, resolved, device)


FAMILY = EncoderFamily(
    name="control",
    summary="encoders without training: constant, random, words, word order, random weights",
    examples=(*CONTROLS, "control:shuffle(st:all-MiniLM-L6-v2)"),
    resolve=_resolve,
    load=_load,
    options={
        "dim": f"width of the vectors, a multiple of {HEADS} (default {DEFAULT_DIM})",
        "seed": "another draw of all random numbers (default 0)",
    },
    version=VERSION,
    control=True,
    real_weights="none needed",
)


__all__: Sequence[str] = [
    "CONTROLS",
    "FAMILY",
    "ControlEncoder",
    "hashed_vector",
    "positions",
    "shuffle_rows",
    "shuffled_order",
    "split_words",
]
