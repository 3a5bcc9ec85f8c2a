"""``mini-t5``: spans are cut out of a caption and written by a decoder (arXiv 1910.10683)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .recipe import DEPTH, GATED_MLP, HEADS, WIDTH, StepContext, TextRecipe
from .text import token_ids, tokenizer_for

SENTINELS = 20
CUT, SPAN = 0.15, 3  # share of tokens that is cut out, and their mean number in a span
DECODER_DEPTH = 2


class T5Recipe(TextRecipe):
    """Span corruption. The decoder is thrown away."""

    name = "mini-t5"
    objective = "span corruption"

    def __init__(self) -> None:
        marks = [f"<extra_id_{i}>" for i in range(SENTINELS)]
        self.tokenizer = tokenizer_for(marks, end=True)
        self.sentinels: list[int] = self.tokenizer.convert_tokens_to_ids(marks)

    def build(self) -> nn.Module:
        import transformers

        model: nn.Module = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=len(self.tokenizer),
                d_model=WIDTH,
                d_kv=WIDTH // HEADS,
                d_ff=GATED_MLP,
                num_layers=DEPTH,
                num_decoder_layers=DECODER_DEPTH,
                num_heads=HEADS,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                tie_word_embeddings=False,
                pad_token_id=self.tokenizer.pad_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                decoder_start_token_id=self.tokenizer.pad_token_id,
            )
        )
        return model

    def loss(self, model: Any, at: StepContext) -> Tensor:
        texts = self.captions(at).texts
        draw = np.random.default_rng([at.seed, at.number])
        pairs = [corrupt(row, self.sentinels, draw) for row in token_ids(self.tokenizer, texts)]
        total, count = torch.zeros(()), 0
        for part in self.split([source for source, _ in pairs]):
            targets = [pairs[row][1] for row in part.rows.tolist()]
            labels = torch.full((len(targets), max(map(len, targets))), -100)
            for at_row, target in enumerate(targets):
                labels[at_row, : len(target)] = torch.tensor(target)
            logits = model(
                input_ids=part.ids, attention_mask=part.mask.long(), labels=labels
            ).logits
            total = total + functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
            )
            count += int((labels >= 0).sum())
        return total / count

    def save(self, model: Any, folder: Path) -> int:
        import transformers

        encoder = transformers.T5EncoderModel(model.config)
        encoder.load_state_dict(
            {k: v for k, v in model.state_dict().items() if k.startswith(("shared.", "encoder."))},
            strict=False,  # embeddings are there under one of their two names
        )
        return self.save_encoder(encoder, folder, encoder)


def corrupt(
    ids: Sequence[int], sentinels: Sequence[int], draw: np.random.Generator
) -> tuple[list[int], list[int]]:
    """A text with spans cut out, and the spans: (source, target), both with the end token.

    Args:
        ids: of the text, the end token last.
        draw: where the spans are.
    """
    body, end = list(ids[:-1]), ids[-1]
    cut = min(max(round(len(body) * CUT), 1), len(body) - 1)
    spans = min(max(round(cut / SPAN), 1), len(sentinels), len(body) - cut)
    source: list[int] = []
    target: list[int] = []
    at = 0
    for mark, (kept, gone) in enumerate(
        zip(_shares(len(body) - cut, spans, draw), _shares(cut, spans, draw), strict=True)
    ):
        source += [*body[at : at + kept], sentinels[mark]]
        target += [sentinels[mark], *body[at + kept : at + kept + gone]]
        at += kept + gone
    return [*source, end], [*target, end]


def _shares(total: int, parts: int, draw: np.random.Generator) -> list[int]:
    """``total`` in ``parts`` random shares of at least one."""
    edges = np.sort(draw.choice(np.arange(1, total), parts - 1, replace=False))
    shares: list[int] = np.diff([0, *edges.tolist(), total]).tolist()
    return shares
