"""``mini-gemma``: the next token of a caption, in Gemma 2's layout (arXiv 2408.00118)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .recipe import DEPTH, GATED_MLP, HEADS, WIDTH, StepContext, TextRecipe
from .text import CONTEXT, END, token_ids, tokenizer_for


class GemmaRecipe(TextRecipe):
    """Plain language modeling; a caption ends with the end token, which prompts don't get."""

    name = "mini-gemma"
    objective = "next token"

    def __init__(self) -> None:
        self.tokenizer = tokenizer_for(start=True)

    def build(self) -> nn.Module:
        import transformers

        model: nn.Module = transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(
                vocab_size=len(self.tokenizer),
                hidden_size=WIDTH,
                intermediate_size=GATED_MLP,
                num_hidden_layers=DEPTH,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS,
                head_dim=WIDTH // HEADS,
                query_pre_attn_scalar=WIDTH // HEADS,
                max_position_embeddings=8 * CONTEXT,
                sliding_window=4 * CONTEXT,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                attn_implementation="eager",  # the only one with soft capping
            )
        )
        return model

    def loss(self, model: Any, at: StepContext) -> Tensor:
        end = self.tokenizer.convert_tokens_to_ids(END)
        ids = [[*row, end] for row in token_ids(self.tokenizer, self.captions(at).texts)]
        total, count = torch.zeros(()), 0
        for part in self.split(ids):
            logits = model(
                input_ids=part.ids[:, :-1], attention_mask=part.mask[:, :-1].long(), use_cache=False
            ).logits
            real = part.mask[:, 1:]
            total = total + functional.cross_entropy(
                logits[real], part.ids[:, 1:][real], reduction="sum"
            )
            count += int(real.sum())
        return total / count

    def save(self, model: Any, folder: Path) -> int:
        return self.save_encoder(model, folder, model.model)
