"""The reader's network, and several of them trained side by side as one batched network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from encbench.flow.connector import TextConnector
from encbench.flow.features import Bank, Widths

BATCH = 32
LEARNING_RATE, WARMUP = 2e-3, 20
WIDTH, HEADS, QUERIES, HIDDEN = 96, 3, 8, 192


class Batch(NamedTuple):
    """Features of B texts for each of E readers: all tokens one after another, and where each
    text's tokens stand among them. Padding is neither stored nor computed with. ``pooled`` has
    no columns where the encoder has no vector of its own."""

    rows: Float[Tensor, "E T D"]
    place: Int[Tensor, "E B L"]
    mask: Bool[Tensor, "E B L"]
    pooled: Float[Tensor, "E B P"]


def gather_batch(bank: Bank, index: Int[np.ndarray, "E B"]) -> Batch:
    """Features of the texts with these numbers."""
    starts = bank.starts.numpy()
    first, lengths = starts[index], starts[index + 1] - starts[index]
    column = np.arange(lengths.max())
    mask = column < lengths[..., None]
    before = np.cumsum(lengths, axis=1) - lengths
    source = np.zeros((len(index), lengths.sum(1).max()), np.int64)
    for reader, (begin, many) in enumerate(zip(first, lengths, strict=True)):
        spans = [np.arange(b, b + n) for b, n in zip(begin, many, strict=True)]
        source[reader, : many.sum()] = np.concatenate(spans)
    pooled = torch.empty(len(starts) - 1, 0) if bank.pooled is None else bank.pooled
    return Batch(
        bank.tokens[torch.from_numpy(source)].float(),
        torch.from_numpy(np.where(mask, before[..., None] + column, 0)),
        torch.from_numpy(mask),
        pooled[torch.from_numpy(index)],
    )


class Reader(nn.Module):
    """The generator's connector, queries that attend to its tokens, and a head.

    Args:
        widths: of the encoder's tokens and pooled vector.
        outputs: number of yes-no questions.
    """

    def __init__(self, widths: Widths, outputs: int) -> None:
        super().__init__()
        self.text = TextConnector(widths.tokens, widths.pooled, WIDTH)
        self.queries = nn.Parameter(torch.randn(QUERIES, WIDTH))
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH, bias=False)  # a bias would cancel in the softmax
        self.value = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Sequential(
            nn.Linear((QUERIES + 1) * WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, outputs)
        )

    def forward(
        self,
        rows: Float[Tensor, "T D"],
        place: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"],
        pooled: Float[Tensor, "B P"],
    ) -> Float[Tensor, "B O"]:
        """Logits. Multi-head attention with the key and value layers moved to the queries' side,
        of which there are fewer than tokens: the same function, a third of the work."""
        tokens = self.text.tokens(rows)
        each = WIDTH // HEADS
        query = self.query(self.queries).view(QUERIES, HEADS, each)
        key = self.key.weight.view(HEADS, each, WIDTH)
        query = torch.einsum("qhe,hew->hqw", query, key).flatten(0, 1) / math.sqrt(each)
        fit = (tokens @ query.T)[place].masked_fill(~mask[..., None], -1e9).softmax(1)
        tokens = tokens[place]
        seen = torch.einsum("blk,blw->bkw", fit, tokens).unflatten(1, (HEADS, QUERIES))
        value = self.value.weight.view(HEADS, each, WIDTH)
        seen = torch.einsum("bhqw,hew->bqhe", seen, value).flatten(2) + self.value.bias
        if self.text.pooled is None:
            real = mask[..., None].to(tokens.dtype)
            whole = (tokens * real).sum(1) / real.sum(1).clamp(min=1)
        else:
            whole = self.text.pooled(pooled)
        logits: Tensor = self.head(torch.cat([self.out(seen).flatten(1), whole], 1))
        return logits


class Readings(NamedTuple):
    """Outputs of E readers.

    Attributes:
        outputs: by number of steps, then by question.
        bits: code length of a caption's targets for each reader at each step, before it learns from
            that caption, in bits.
    """

    outputs: dict[int, dict[str, Float[np.ndarray, "E N T"]]]
    bits: Float[np.ndarray, "S E"]


def train_readers(
    captions: Bank,
    targets: Float[np.ndarray, "M T"],
    questions: Mapping[str, Bank],
    *,
    steps: Sequence[int],
    seeds: int,
    seed: int,
    rare: bool = False,
) -> Readings:
    """Train readers side by side; each has initial weights and an order of captions of its own.

    Args:
        captions: features of M captions.
        targets: content of the captions, ones and zeros.
        questions: features of prompts, asked after each of ``steps``.
        rare: see :class:`encbench.probes.statements.Language`.
    """
    models = []
    with torch.random.fork_rng(devices=[]):
        for reader in range(seeds):
            torch.manual_seed(1000 * seed + reader)
            models.append(Reader(captions.widths, targets.shape[1]))
    if rare:
        share = torch.from_numpy(targets).mean(0).clamp(min=1 / len(targets)) * 0.999
        for model in models:
            model.head[-1].bias.data = share.logit()
    for connector, rows in (
        (models[0].text.tokens, captions.tokens),
        (models[0].text.pooled, captions.pooled),
    ):
        if connector is not None and rows is not None:
            connector.calibrate(rows.float()[None])
    for model in models[1:]:
        model.load_state_dict(
            {k: v for k, v in models[0].state_dict().items() if k.endswith("scale")}, strict=False
        )
    weights, buffers = stack_module_state(models)

    def call(weights: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch) -> Tensor:
        logits: Tensor = functional_call(models[0], (weights, buffers), tuple(batch))
        return logits

    each, shared = vmap(call), vmap(call, in_dims=(0, 0, None))
    optimizer = torch.optim.AdamW(list(weights.values()), lr=LEARNING_RATE)
    wanted = torch.from_numpy(targets)
    asked = {}
    for name, bank in questions.items():
        every = np.arange(len(bank.starts) - 1)[None]  # one batch that all readers share
        asked[name] = Batch(*(part[0] for part in gather_batch(bank, every)))
    order = _order(len(targets), max(steps) * BATCH, seeds, seed)
    outputs: dict[int, dict[str, np.ndarray]] = {}
    bits = np.empty((max(steps), seeds))
    for step in range(max(steps)):
        index = order[:, step * BATCH : (step + 1) * BATCH]
        logits = each(weights, buffers, gather_batch(captions, index))
        loss = functional.binary_cross_entropy_with_logits(logits, wanted[index], reduction="none")
        paid = loss.sum(2).mean(1)
        bits[step] = paid.detach().numpy() / math.log(2)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP)
        optimizer.zero_grad()
        paid.sum().backward()  # readers share no weights, so each gets its own gradient
        optimizer.step()
        if step + 1 in steps:
            with torch.no_grad():
                outputs[step + 1] = {
                    name: shared(weights, buffers, batch).numpy() for name, batch in asked.items()
                }
    return Readings(outputs, bits)


def _order(count: int, length: int, seeds: int, seed: int) -> Int[np.ndarray, "E S"]:
    """Numbers of captions for each reader: every caption once before any comes again."""
    rows = []
    for reader in range(seeds):
        rng = np.random.default_rng([seed, reader, 5])
        rounds = [rng.permutation(count) for _ in range(-(-length // count))]
        rows.append(np.concatenate(rounds)[:length])
    return np.stack(rows)
