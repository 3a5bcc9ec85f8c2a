"""Encoding: a plan over prompts, and an encoder whose features are kept in the store.

The plan is a pure function of the full list of prompts: the same prompts give the same
shards, whatever the machine. A shard is the unit of work, of the store and of resuming.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from . import distributed
from .data.hub import ResolvedModel
from .encoders import EncoderSpec, family_of, find_files, load_resolved
from .encoders.checks import compare_answers, encode_checked
from .encoders.control import shuffle_rows, shuffled_order
from .encoders.gguf import VERSION as GGUF_VERSION
from .encoders.local import public_spec
from .encoders.prefix import hosts_by_text, reuses
from .errors import EncbenchError
from .files import digest, read_json, with_current_names, write_json
from .progress import bar, log
from .schema import load_dataclass
from .shards import BEGINNINGS, Made, ShardJob, ShardTask, make_shard, write_shard
from .store import Store, StoreEntry
from .types import EncoderCard, JointEncoder, TextEncoder

SHARD_TOKENS = 16_384  # padded tokens in a shard: large enough for a GPU, seconds of work on a CPU
LONG = 5.0  # seconds of loading from which on the log says so
LATENCY_PROMPT = "a photo of a brown dog and a red bicycle in front of a white house"
NEIGHBORS = ("", "two cats", 3 * LATENCY_PROMPT)  # encoded beside it, to see whether they matter


def estimated_tokens(prompt: str) -> int:
    """About how many tokens a prompt has, for any tokenizer: four bytes each, two special."""
    return len(prompt.encode("utf-8", "surrogatepass")) // 4 + 3


@dataclass(frozen=True)
class EncodingPlan:
    """Unique prompts sorted by length, and the span of each shard."""

    prompts: tuple[str, ...]
    shards: tuple[range, ...]

    @cached_property
    def digest(self) -> str:
        return digest([SHARD_TOKENS, self.prompts])


def plan_encoding(prompts: Iterable[str], shard_tokens: int = SHARD_TOKENS) -> EncodingPlan:
    """Deduplicate, sort by length and pack to a token budget, counted with padding.

    A prompt over the budget (encoders will cut it) gets a shard of its own.
    """
    unique = sorted(set(prompts), key=lambda p: (estimated_tokens(p), p))
    shards: list[range] = []
    start = 0
    for index, prompt in enumerate(unique):  # ascending, so each prompt is the longest so far
        if index > start and (index + 1 - start) * estimated_tokens(prompt) > shard_tokens:
            shards.append(range(start, index))
            start = index
    if unique:
        shards.append(range(start, len(unique)))
    return EncodingPlan(tuple(unique), tuple(shards))


@dataclass(frozen=True)
class EncoderFacts:
    """What the store keeps about an encoder, so that a finished run needs no weights.

    Attributes:
        joint: whether it has a joint space with images.
        pooled: whether it gives a pooled vector of its own.
        latency_ms: time for one prompt.
        causal: whether a prompt's beginning can be read from the pass over the whole prompt.
        notes: warnings in words.
    """

    card: EncoderCard
    joint: bool
    pooled: bool
    latency_ms: float
    causal: bool = False
    notes: tuple[str, ...] = ()


class StoredEncoder:
    """An encoder with its store. Weights are loaded only if something is not stored yet.

    Args:
        spec: what to load. Its pool option is ignored here except for 'mean-padded', which changes
            what the encoder must return.
        store: where vectors are kept.
        device: where to compute.
        pools: poolings that every pass over the prompts stores at once.
        seed: of the permutation, for ``control:shuffle(...)``.

    Raises:
        EncbenchError: if the encoder's files cannot be found.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        store: Store,
        device: torch.device,
        pools: Sequence[str] = ("mean",),
        seed: int = 0,
    ) -> None:
        self.spec = spec
        self.store = store
        self.device = device
        self.pools = tuple(pools)
        self.seed = seed
        self.shuffled = spec.shuffled is not None
        self.inner = spec.shuffled or spec
        self.family = family_of(self.inner)
        self.resolved: ResolvedModel = find_files(self.family, self.inner)
        self._encoder: TextEncoder | None = None
        self._memory: dict[tuple[str, str], tuple[Tensor, Tensor, list[dict[str, float]]]] = {}

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the token features depend on besides the prompts, JSON-ready."""
        options = {k: v for k, v in self.inner.options if k != "pool"}
        if self.inner.dtype == "auto":
            options["dtype"] = f"auto on {self.device.type}"
        local = os.path.exists(self.inner.source)  # noqa: PTH110  (a spec's source may be no path at all)
        named = public_spec(self.inner) if self.inner.pair else self.inner
        return {
            "family": self.inner.family,
            "version": self.family.version,
            "source": "" if local else named.source,
            "revision": self.resolved.revision,
            "options": options,
            "padded": self.inner.pool == "mean-padded",
            # only where there is one, so that vectors of earlier versions are still found
            **({"prompt": self.resolved.prompt} if self.resolved.prompt else {}),
            **({"gguf": GGUF_VERSION} if self.resolved.quantization else {}),
        }

    @property
    def encoder(self) -> TextEncoder:
        """The encoder itself, loaded on first use."""
        if self._encoder is None:
            started = time.perf_counter()
            self._encoder = load_resolved(self.family, self.inner, self.resolved, self.device)
            seconds = time.perf_counter() - started
            log.log(
                logging.INFO if seconds > LONG else logging.DEBUG, "loaded %s in %.1f s",
                self.inner, seconds,
            )  # fmt: skip
        return self._encoder

    def release(self) -> None:
        """Drop the weights and what is held in memory; the store keeps everything."""
        self._encoder = None
        self._memory.clear()
        self.__dict__.pop("about", None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def about(self) -> EncoderFacts:
        """The facts from the store; if there are none, measured with the encoder."""
        path = self.store.entry({"about": self.identity}).folder / "about.json"
        if path.exists():
            try:
                return load_dataclass(EncoderFacts, with_current_names(read_json(path)), str(path))
            except EncbenchError as error:
                log.warning("%s; making it again", error)
        encoder = self.encoder
        batch = encode_checked(encoder, [LATENCY_PROMPT, *NEIGHBORS])  # also warms up
        alone, seconds = [], []
        for _ in range(5):
            started = time.perf_counter()
            alone.append(encode_checked(encoder, [LATENCY_PROMPT]))
            alone[-1].tokens.cpu()
            seconds.append(time.perf_counter() - started)
        notes = compare_answers(encoder.card, batch, alone)
        for note in notes:
            log.warning("%s: %s", encoder.card.spec, note)
        facts = EncoderFacts(
            card=encoder.card,
            joint=isinstance(encoder, JointEncoder),
            pooled=batch.pooled is not None,
            latency_ms=1000 * sorted(seconds)[2],
            causal=reuses(encoder),
            notes=tuple(notes),
        )
        write_json(path, asdict(facts))
        return facts

    @property
    def card(self) -> EncoderCard:
        card = replace(self.about.card, spec=str(self.spec))
        return replace(card, family="control", control=True) if self.shuffled else card

    def embed(
        self,
        prompts: Sequence[str],
        pool: str = "mean",
        known: Mapping[str, Float[Tensor, " P"]] | None = None,
    ) -> Float[Tensor, "N P"]:
        """Pooled vectors in the order of the prompts, float32, on the CPU.

        For ``control:shuffle(...)`` the vectors of the list's unique prompts are permuted.

        Args:
            known: vectors by prompt from :meth:`beginnings`; taken if they hold all prompts.

        Raises:
            UsageError: if the encoder has no such pooling.
            EncoderOutputError: if it returns NaN or wrong shapes.
        """
        if known and prompts and all(prompt in known for prompt in prompts):
            rows = torch.stack([known[prompt] for prompt in plan_encoding(prompts).prompts])
        else:
            rows, _, _ = self._stored(prompts, pool)
        if self.shuffled:
            rows = shuffle_rows(rows, self.seed)
        index = {p: i for i, p in enumerate(plan_encoding(prompts).prompts)}
        return rows[[index[p] for p in prompts]]

    def beginnings(
        self, whole: Sequence[str], shortened: Sequence[str], pool: str = "mean"
    ) -> dict[str, Float[Tensor, " P"]] | None:
        """Pooled vectors of shortened prompts by their text. With a causal encoder they are made in
        the pass over the full prompts: a prefix in token ids costs nothing.

        Returns:
            None where nothing could be reused; then embed them as any others.
        """
        if not self.about.causal or pool in ("own", "mean-padded"):
            return None
        work = plan_encoding(whole)
        short = sorted(set(shortened))
        shard_of = [n for n, span in enumerate(work.shards) for _ in span]
        parts: list[list[str]] = [[] for _ in work.shards]
        for text, host in zip(short, hosts_by_text(work.prompts, short), strict=True):
            parts[shard_of[host] if host >= 0 else -1].append(text)
        kind = f"{pool}{BEGINNINGS}{digest(short)[:16]}"
        kinds = tuple(dict.fromkeys((kind, pool, *self.pools)))
        given = [tuple(part) for part in parts]
        rows: dict[str, Tensor] = {}
        found = self._fill(work, kinds, kind, beginnings=given)
        for part, (tensors, _) in zip(given, found, strict=True):
            rows.update(zip(part, tensors["pooled"], strict=True))
        return rows

    def truncated(self, prompts: Sequence[str], pool: str = "mean") -> Bool[Tensor, " N"]:
        """Which prompts were too long and were cut."""
        _, cut, _ = self._stored(prompts, pool)
        index = {p: i for i, p in enumerate(plan_encoding(prompts).prompts)}
        return cut[[index[p] for p in prompts]]

    def throughput(self, prompts: Sequence[str], pool: str = "mean") -> dict[str, float]:
        """Prompts and real tokens a second, as measured when these prompts were encoded. The
        first shard warms up and is left out where there are others."""
        _, _, infos = self._stored(prompts, pool)
        timed = infos[1:] or infos
        seconds = sum(info["seconds"] for info in timed)
        if not seconds:
            return {}
        return {
            "prompts_per_second": sum(info["prompts"] for info in timed) / seconds,
            "tokens_per_second": sum(info["tokens"] for info in timed) / seconds,
        }

    def tokens(self, prompts: Sequence[str], *, keep: bool = True) -> list[Float[Tensor, "_ D"]]:
        """Features of the real tokens of each prompt, in the order of the prompts, on the CPU,
        in the dtype of the computation. Permuted as :meth:`embed` does.

        Args:
            keep: also store them. They are a hundred times as large as pooled vectors, which are
                stored in the same pass either way.
        """
        work = plan_encoding(prompts)
        parts: list[Tensor] = []
        for tensors, _ in self._fill(work, ("tokens", *self.pools), keep_wanted=keep):
            parts.extend(tensors["tokens"].split(tensors["lengths"].tolist()))
        if self.shuffled:
            parts = [parts[i] for i in shuffled_order(len(parts), self.seed)]
        index = {p: i for i, p in enumerate(work.prompts)}
        return [parts[index[p]] for p in prompts]

    def condition(
        self, prompts: Sequence[str], *, keep: bool = True
    ) -> tuple[list[Float[Tensor, "_ D"]], Float[Tensor, "N P"] | None]:
        """The input of a generator for each prompt: tokens, and the encoder's own pooled vector or
        None. Both are made in one pass."""
        if not self.about.pooled:
            return self.tokens(prompts, keep=keep), None
        pools, self.pools = self.pools, tuple(dict.fromkeys((*self.pools, "own")))
        try:
            return self.tokens(prompts, keep=keep), self.embed(prompts, "own")
        finally:
            self.pools = pools

    # ------------------------------------------------------------------------ inside

    def _entry(self, work: EncodingPlan) -> StoreEntry:
        return self.store.entry({"encoder": self.identity, "prompts": work.digest})

    def _stored(
        self, prompts: Sequence[str], pool: str
    ) -> tuple[Tensor, Tensor, list[dict[str, float]]]:
        work = plan_encoding(prompts)
        key = (work.digest, pool)
        if key not in self._memory:
            wanted = tuple(dict.fromkeys((pool, *self.pools)))
            parts = self._fill(work, wanted, pool)
            self._memory[key] = (
                torch.cat([tensors["pooled"] for tensors, _ in parts]),
                torch.cat([tensors["truncated"] for tensors, _ in parts]),
                [info for _, info in parts],
            )
        return self._memory[key]

    def _fill(
        self,
        work: EncodingPlan,
        kinds: Sequence[str],
        wanted: str | None = None,
        *,
        keep_wanted: bool = True,
        beginnings: Sequence[tuple[str, ...]] = (),
    ) -> list[Any]:
        """Make every shard of every kind that is not stored yet, in one pass over the prompts.

        Args:
            keep_wanted: whether to store the kind ``wanted``, too.
            beginnings: of each shard's prompts, for kinds that are about them.

        Returns:
            the shards of the kind ``wanted``.
        """
        entry = self._entry(work)
        wanted = wanted or kinds[0]

        def task(number: int) -> ShardTask:
            missing = [k for k in kinds if k != wanted and not entry.path(number, k).exists()]
            batch = tuple(work.prompts[i] for i in work.shards[number])
            return ShardTask(
                number, batch, (wanted, *missing), beginnings[number] if beginnings else ()
            )

        ready: dict[int, Any] = {}
        if distributed.process_count() > 1:
            missing = [n for n in range(len(work.shards)) if entry.read(n, wanted) is None]
            ready = self._share(entry, [task(n) for n in missing], wanted, keep_wanted)
        result: list[Any] = []
        with bar(f"encoding {self.inner}", len(work.prompts)) as advance:
            for number, span in enumerate(work.shards):
                found = ready.pop(number, None) or entry.read(number, wanted)
                if found is None:
                    made = make_shard(self.encoder, task(number), wanted)
                    write_shard(entry, number, made, "" if keep_wanted else wanted)
                    found = entry.read(number, wanted) if keep_wanted else made[wanted]
                    if found is None:
                        raise EncbenchError(f"{entry.path(number, wanted)} cannot be read back")
                result.append(found)
                advance(len(span))
        return result

    def _share(
        self, entry: StoreEntry, tasks: list[ShardTask], wanted: str, keep_wanted: bool
    ) -> dict[int, Any]:
        """Make shards in all processes of the command. Returns, by their number, those of the
        kind ``wanted`` where that is not to be stored."""
        ready: dict[int, Any] = {}
        if not tasks:
            return ready
        passing = "" if keep_wanted else wanted
        count = sum(len(task.prompts) for task in tasks)
        with bar(f"encoding {self.inner}", count) as advance, entry.marked() as mark:

            def keep(position: int, made: Made) -> None:
                number = tasks[position].number
                write_shard(entry, number, made, passing)
                if passing in made:
                    ready[number] = made[passing]
                advance(len(tasks[position].prompts))

            job = ShardJob(
                self.inner, self.resolved.revision, self.device.type, wanted, keep_wanted, mark
            )
            distributed.share_tasks(job, tasks, keep, lambda task: job.make(self.encoder, task))
        return ready


def bytes_of(card: EncoderCard) -> int:
    """Memory of the weights, in bytes."""
    return card.parameters * {"float32": 4, "bfloat16": 2, "float16": 2}.get(card.dtype, 4)


def identity_of(encoder: StoredEncoder, pool: str) -> Mapping[str, Any]:
    """Everything that an encoder's scores depend on besides data and seed."""
    shuffle = {"shuffle": encoder.seed} if encoder.shuffled else {}
    return {**encoder.identity, "pool": pool, **shuffle}
