"""Trained pooling: can a small trained pooler match captions with statements about them?

The idea of TED-6K (arXiv 2512.15560, section 3.3), built for the captions here: two
transformer layers and a learned context token pool an encoder's frozen tokens. They are trained
by contrast, a caption against the same clauses in GenEval's words, and then tested: which of four
statements about a part of a prompt is true? A mean over tokens misranks encoders whose
tokens need a reader; a trained pooler does not (their Table 7).

Differences from TED-6K: one hidden state in place of learned layer weights, since layers are
candidates
of their own here; captions of the small world, or of COCO's classes, in place of dense ones.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from encbench.data.geneval import Clause, GenevalPrompt, prompt_text
from encbench.data.scenes.world import MAX_OBJECTS
from encbench.flow.connector import TextConnector
from encbench.flow.features import Bank, PromptFeatures, Widths
from encbench.intervals import estimate_scores
from encbench.types import Measurement, ProbeContext, ProbeSpec

from .perturb import rng_for
from .statements import OTHER_WORDS, SEEN, Language, language_for

CAPTIONS, STEPS, BATCH = 2000, 300, 64
WIDTH, HEADS, LAYERS, HIDDEN = 96, 3, 2, 192
LEARNING_RATE, WARMUP, TEMPERATURE = 1e-3, 20, 0.07
CHOICES = 4
CPU = torch.device("cpu")


class TrainedPoolingProbe:
    """Option ``vocabulary``. ``limit`` is the number of prompts; below 125 the pooler is trained on
    fewer captions for fewer steps, too. Runs only where ``--probes`` names it: it is a rival of the
    reader, and no rule uses it."""

    on_request = True
    own_texts = 2_300  # about how many it makes and encodes; it encodes no others
    spec = ProbeSpec(
        name="trained-pooling",
        version=1,
        main_metric="statements",
        title="a trained pooler tells true statements from false ones",
        dataset="scene and GenEval grammar, version 1",
        orders=(OTHER_WORDS,),
        reads=("captions",),
    )

    def run(self, context: ProbeContext, *, seed: int, limit: int | None = None) -> Measurement:
        """Measure one encoder: 'statements' is the share of prompts whose true statement is the
        most similar of four (chance .25), 'other-words' the same with the prompts in words that no
        caption uses."""
        share = 1.0 if limit is None else min(1.0, 16 * limit / CAPTIONS)
        written = language_for(context.captions, context.options.get("vocabulary"))
        language = written(seed, max(BATCH, round(share * CAPTIONS)))
        asked = {  # of one thing alone the true statement would be the prompt itself
            name: [prompt for prompt in language.prompts[name] if len(prompt.include) == 2][:limit]
            for name in (SEEN, OTHER_WORDS)
        }
        choices = [statements(prompt, language, seed) for prompt in asked[SEEN]]
        pairs = [(caption.text, prompt_text(caption.include)) for caption in language.captions]
        texts = list(dict.fromkeys(
            [text for pair in pairs for text in pair]
            + [text for four in choices for text in four]
            + [prompt.text for prompts in asked.values() for prompt in prompts]
        ))  # fmt: skip
        tokens, pooled = context.condition(texts)
        bank = Bank.of(
            [
                PromptFeatures(tokens[i], None if pooled is None else pooled[i])
                for i in range(len(texts))
            ]
        )
        place = {text: number for number, text in enumerate(texts)}
        pooler = train_pooler(
            bank, np.array([[place[a], place[b]] for a, b in pairs]), math.ceil(share * STEPS), seed
        )
        with torch.no_grad():
            vectors = pooler.vectors(bank, np.arange(len(texts)))
        columns: dict[str, np.ndarray] = {}
        four = torch.tensor([[place[text] for text in row] for row in choices])
        for name, prompts in asked.items():
            source = vectors[[place[prompt.text] for prompt in prompts]]
            fit = (vectors[four] @ source[..., None])[..., 0]
            # what is true must be strictly nearer: a constant encoder gets nothing
            columns[name] = (fit[:, 0] > fit[:, 1:].max(1).values).double().numpy()
        items = pd.DataFrame(
            {
                "item": [f"{p.task} {i}: {p.text}" for i, p in enumerate(asked[SEEN])],
                "statements": columns[SEEN],
                OTHER_WORDS: columns[OTHER_WORDS],
            }
        )
        names = {name: (name,) for name in ("statements", OTHER_WORDS)}
        return Measurement(
            scores=estimate_scores(items, names, seed=seed), items=items, item_scores=names
        )


def statements(prompt: GenevalPrompt, language: Language, seed: int) -> tuple[str, ...]:
    """A true statement about one clause of a prompt, then three false ones, each with one change
    of label, color or count. A color or label that the prompt's other clause has comes first:
    such a statement is wrong only about which is whose."""
    rng = rng_for("statements", seed, prompt.text)
    clauses = [replace(clause, position=None) for clause in prompt.include]
    true, others = clauses[0], clauses[1:]
    wrong: list[Clause] = []
    for other in others:
        if true.color and other.color and other.color != true.color:
            wrong.append(replace(true, color=other.color))
    labels = [x for x in language.labels if x not in {clause.label for clause in clauses}]
    kinds = [[replace(true, label=str(x)) for x in rng.permutation(labels)]]
    if true.color:
        colors = [x for x in language.colors if x not in {clause.color for clause in clauses}]
        kinds.append([replace(true, color=str(x)) for x in rng.permutation(colors)])
    counts = [x for x in range(1, MAX_OBJECTS + 1) if x != true.count]
    other_counts = [replace(true, count=int(x)) for x in rng.permutation(counts)]
    if prompt.task == "counting":
        kinds.append(other_counts)
    changed = [clause for by_turns in zip(*kinds, strict=False) for clause in by_turns]
    changed += [clause for kind in kinds for clause in kind if clause not in changed]
    changed += [clause for clause in other_counts if clause not in changed]
    wrong += changed
    return tuple(prompt_text([clause]) for clause in (true, *wrong[: CHOICES - 1]))


class Pooler(nn.Module):
    """The generator's connector, a learned context token, and transformer layers over both."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.text = TextConnector(widths.tokens, 0, WIDTH)
        self.context = nn.Parameter(torch.randn(1, 1, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False
        )

    def forward(self, bank: Bank, index: Int[np.ndarray, " B"]) -> Float[Tensor, "B W"]:
        """Unit vectors of texts by their numbers."""
        cond = self.text(bank.conditions(index, CPU))
        first = self.context.expand(len(index), -1, -1)
        hidden = torch.cat([first, cond.tokens], 1)
        real = torch.cat([torch.ones(len(index), 1, dtype=torch.bool), cond.mask], 1)
        pooled = self.layers(hidden, src_key_padding_mask=~real)[:, 0]
        return nn.functional.normalize(pooled, dim=1)

    def vectors(self, bank: Bank, index: Int[np.ndarray, " N"]) -> Float[Tensor, "N W"]:
        """The same in pieces."""
        return torch.cat([self(bank, index[k : k + 512]) for k in range(0, len(index), 512)])


def train_pooler(bank: Bank, pairs: Int[np.ndarray, "M 2"], steps: int, seed: int) -> Pooler:
    """Train by symmetric contrast within a batch (InfoNCE); equal texts in a batch are no
    negatives of each other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pooler = Pooler(bank.widths)
    pooler.text.tokens.calibrate(bank.tokens.float()[None])
    optimizer = torch.optim.AdamW(pooler.parameters(), lr=LEARNING_RATE)
    rng = np.random.default_rng([seed, 11])
    for step in range(steps):
        rows = pairs[rng.choice(len(pairs), BATCH, replace=len(pairs) < BATCH)]
        left, right = pooler(bank, rows[:, 0]), pooler(bank, rows[:, 1])
        same = torch.from_numpy(rows[:, 1, None] == rows[None, :, 1])
        same.fill_diagonal_(False)
        fit = (left @ right.T / TEMPERATURE).masked_fill(same, -torch.inf)
        target = torch.arange(BATCH)
        loss = nn.functional.cross_entropy(fit, target) + nn.functional.cross_entropy(fit.T, target)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARMUP)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return pooler.eval()
