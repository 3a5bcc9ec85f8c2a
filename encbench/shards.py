"""Make one shard of a store entry, in this or another process of the command."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .encoders import EncoderSpec, family_of, find_files, load_resolved
from .encoders.batching import BatchedEncoder
from .encoders.checks import encode_checked, validate_features
from .encoders.pooling import pool as pool_tokens
from .encoders.prefix import beginnings_of, find, reuses, states_of
from .errors import ModelError, UsageError
from .store import StoreEntry
from .types import TextEncoder, TextFeatures

Made = dict[str, tuple[dict[str, Tensor], dict[str, float]]]
BEGINNINGS = "~"  # in a kind: the pooling before it, the digest of a list of beginnings after it


@dataclass(frozen=True)
class ShardTask:
    """One shard: its number, its prompts, the kinds to make, and beginnings of its prompts."""

    number: int
    prompts: tuple[str, ...]
    kinds: tuple[str, ...]
    beginnings: tuple[str, ...] = ()


def make_shard(encoder: TextEncoder, task: ShardTask, wanted: str) -> Made:
    """Encode a shard's prompts once; from that every kind.

    Args:
        wanted: the kind that must be made; another that the encoder cannot give is left out.

    Raises:
        UsageError: if the encoder cannot give the kind that is wanted.
        EncoderOutputError: if it returns NaN or wrong shapes.
    """
    batch = list(task.prompts)
    started = time.perf_counter()
    states: TextFeatures | None = None
    if task.beginnings and isinstance(encoder, BatchedEncoder) and reuses(encoder):
        states = states_of(encoder, batch)
        features = encoder.finish(states)
        validate_features(features, batch, encoder.card)
    else:
        features = encode_checked(encoder, batch)
    if features.tokens.is_cuda:
        torch.cuda.synchronize()
    lengths = features.mask.sum(1).cpu()
    info = {
        "seconds": time.perf_counter() - started,
        "prompts": len(batch),
        "tokens": int(lengths.sum()),
    }
    made: Made = {}
    for kind in task.kinds:
        if kind == "tokens":
            real = features.tokens[features.mask].cpu()
            made[kind] = ({"tokens": real, "lengths": lengths}, info)
            continue
        try:
            if BEGINNINGS in kind:
                tensors = _beginnings(encoder, task, states, kind.partition(BEGINNINGS)[0])
            else:
                pooled = pool_tokens(features, kind).float()
                tensors = {"pooled": pooled.cpu(), "truncated": features.truncated.cpu()}
        except UsageError:
            if kind == wanted:
                raise
            continue  # an optional kind; if it is the only one wanted, the error is raised
        made[kind] = (tensors, info)
    return made


def _beginnings(
    encoder: TextEncoder, task: ShardTask, states: TextFeatures | None, how: str
) -> dict[str, Tensor]:
    """Pooled vectors of a shard's beginnings: from the states of its prompts where their ids
    are a prefix, else by a pass of their own."""
    count, size = len(task.beginnings), max(1, len(task.prompts))
    rows: list[Tensor | None] = [None] * count
    cut = torch.zeros(count, dtype=torch.bool)

    def put(numbers: Sequence[int], features: TextFeatures) -> None:
        for number, row in zip(numbers, pool_tokens(features, how).float().cpu(), strict=True):
            rows[number] = row
        cut[list(numbers)] = features.truncated.cpu()

    left = list(range(count))
    if states is not None and count:
        assert isinstance(encoder, BatchedEncoder)
        found = find(encoder, task.prompts, task.beginnings)
        hosted = [i for i in left if found.host[i] >= 0]
        left = [i for i in left if found.host[i] < 0]
        for start in range(0, len(hosted), size):
            some = hosted[start : start + size]
            put(some, beginnings_of(encoder, states, found, some))
    for start in range(0, len(left), size):
        some = left[start : start + size]
        put(some, encode_checked(encoder, [task.beginnings[i] for i in some]))
    made = [row for row in rows if row is not None]
    pooled = torch.stack(made) if made else torch.zeros(0, 0)
    return {"pooled": pooled, "truncated": cut}


@dataclass(frozen=True)
class ShardJob:
    """Makes shards in any process; picklable.

    If this process sees the leader's mark, the store is on a shared file system and is written
    directly; otherwise results are sent to the leader.

    Attributes:
        spec: the encoder.
        revision: that the leader found; another one is refused.
        device: its type; each process has a card of its own.
        wanted: as in :func:`make_shard`.
        keep_wanted: whether that kind is to be stored.
        mark: a file in the entry's folder.
    """

    spec: EncoderSpec
    revision: str
    device: str
    wanted: str
    keep_wanted: bool
    mark: Path

    def __call__(self, task: ShardTask) -> Made:
        return self.make(held_encoder(self.spec, self.revision, self.device), task)

    def make(self, encoder: TextEncoder, task: ShardTask) -> Made:
        """The shard's kinds, without those that are in the store already."""
        made = make_shard(encoder, task, self.wanted)
        if self.mark.exists():
            write_shard(StoreEntry(self.mark.parent), task.number, made, self._passing)
        else:
            return made
        return {kind: value for kind, value in made.items() if kind == self._passing}

    @property
    def _passing(self) -> str:
        return "" if self.keep_wanted else self.wanted


def write_shard(entry: StoreEntry, number: int, made: Mapping[str, Any], passing: str = "") -> None:
    """Store every kind of a shard but ``passing``."""
    for kind, (tensors, info) in made.items():
        if kind != passing:
            entry.write(number, kind, tensors, info)


_held: dict[tuple[str, str], TextEncoder] = {}


def held_encoder(spec: EncoderSpec, revision: str, device: str) -> TextEncoder:
    """An encoder in a process that serves: the last one asked for is kept.

    Raises:
        EncbenchError: if it cannot be loaded here, or is another one than the leader's.
    """
    key = (str(spec), device)
    if key not in _held:
        _held.clear()
        if device == "cuda":
            torch.cuda.empty_cache()
        family = family_of(spec)
        resolved = find_files(family, spec)
        require_revision(str(spec), resolved.revision, revision)
        _held[key] = load_resolved(family, spec, resolved, torch.device(device))
    return _held[key]


def require_revision(what: str, here: str, wanted: str) -> None:
    """All processes must compute with the same files.

    Raises:
        ModelError: if this one's are others than the leader's.
    """
    if here != wanted:
        raise ModelError(
            f"{what}: processes see different files (revisions {wanted[:12]} and {here[:12]}); pin "
            "one by @revision, or make the folders the same"
        )
