"""``mini-blip3o``: a language model over a caption and then the image's discrete tokens.

BLIP3o-NEXT's layout (arXiv 2510.15857): Qwen's chat template around the caption, then
``<im_start><S0>``, the image's tokens and ``<im_end>``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.scenes.render import render
from ..files import write_text
from ..schema import read_model_config
from ..shipped import shipped
from .recipe import DEPTH, GATED_MLP, HEADS, WIDTH, StepContext, TextRecipe
from .text import CONTEXT, REQUEST, SYSTEM, token_ids, tokenizer_for
from .vq import CODES, SIDE, TOKENS, load_vq

TURN, TURN_END, IMAGE, IMAGE_END = "<|im_start|>", "<|im_end|>", "<im_start>", "<im_end>"
SCALES = ("<S0>", "<S1>", "<S2>")
BEFORE = f"{TURN}system\n{SYSTEM}{TURN_END}\n{TURN}user\n" + REQUEST.format("")
AFTER = f"{TURN_END}\n{TURN}assistant\n{IMAGE}{SCALES[0]}"
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Blip3oRecipe(TextRecipe):
    """Next token over caption and image tokens, each of the two parts by its own mean.

    Args:
        vq: folder of ``scene-vq``, whose manifest is checked.
    """

    name = "mini-blip3o"
    objective = "next token of text, then of its image"

    def __init__(self, vq: Path) -> None:
        self.vq = load_vq(shipped(vq))
        special = [TURN, TURN_END, IMAGE, IMAGE_END, *SCALES, *(f"<I{i}>" for i in range(CODES))]
        self.tokenizer = tokenizer_for(special)
        self.id = self.tokenizer.convert_tokens_to_ids
        # the space before the caption is the first of its own first token
        self.opening: list[int] = self.tokenizer(BEFORE.rstrip(" "))["input_ids"]
        self.closing: list[int] = self.tokenizer(AFTER)["input_ids"]

    def build(self) -> nn.Module:
        import transformers

        model: nn.Module = transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(
                vocab_size=len(self.tokenizer),
                hidden_size=WIDTH,
                intermediate_size=GATED_MLP,
                num_hidden_layers=DEPTH,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS,
                head_dim=WIDTH // HEADS,
                max_position_embeddings=8 * CONTEXT,
                tie_word_embeddings=False,
                bos_token_id=None,
                eos_token_id=self.id(TURN_END),
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        return model

    def loss(self, model: Any, at: StepContext) -> Tensor:
        scenes, texts = self.captions(at)
        first, end = self.id("<I0>"), self.id(IMAGE_END)
        images = (self.vq.tokens(render(scenes, SIDE)) + first).tolist()
        heard = token_ids(self.tokenizer, texts)
        ids = [
            [*text, *self.closing, *image, end] for text, image in zip(heard, images, strict=True)
        ]
        # the same for all, so read once; its last state tells the first word
        common = model.model(torch.tensor([self.opening]), use_cache=True)
        words, pictures = [torch.zeros(())] * 2
        count = 0
        for part in self.split(ids):
            b = len(part.ids)
            seen = torch.ones(b, len(self.opening), dtype=torch.bool)
            hidden = model.model(
                input_ids=part.ids,
                attention_mask=torch.cat([seen, part.mask], 1).long(),
                past_key_values=_for_each(common.past_key_values, b),
            ).last_hidden_state
            start = common.last_hidden_state[:, -1:].expand(b, -1, -1)
            states = torch.cat([start, hidden[:, :-1]], 1)[part.mask]
            wrong = functional.cross_entropy(
                model.lm_head(states), part.ids[part.mask], reduction="none"
            )
            shown = (part.ids[part.mask] >= first) & (part.ids[part.mask] < first + CODES)
            words = words + wrong[~shown].sum()
            pictures = pictures + wrong[shown].sum()
            count += int((~shown).sum())
        return words / count + pictures / (self.schedule.batch * TOKENS)

    def save(self, model: Any, folder: Path) -> int:
        self.tokenizer.chat_template = CHAT
        parameters = self.save_encoder(model, folder, model.model)
        path = folder / "config.json"
        config = read_model_config(folder)
        first = self.id("<I0>")
        config |= {
            "model_type": "blip3o_qwen",
            "architectures": ["blip3oQwenForCausalLM"],
            "image_start_token_id": first,
            "image_end_token_id": first + CODES - 1,
            "scale_start_token_id": self.id(SCALES[0]),
            "scale_end_token_id": self.id(SCALES[-1]),
            "image_start_tag_id": self.id(IMAGE),
            "image_end_tag_id": self.id(IMAGE_END),
            "image_tokens": TOKENS,
        }
        write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
        return parameters


def _for_each(cache: Any, batch: int) -> Any:
    """One prompt's keys and values for every row of a batch; gradients reach the one."""
    from transformers import DynamicCache

    wide = DynamicCache()
    for number, layer in enumerate(cache.layers):
        wide.update(
            layer.keys.expand(batch, -1, -1, -1), layer.values.expand(batch, -1, -1, -1), number
        )
    return wide
