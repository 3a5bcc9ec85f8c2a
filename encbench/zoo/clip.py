"""``mini-clip``: captions and images of the same scene find each other (arXiv 2103.00020)."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..data.scenes.render import render
from .recipe import DEPTH, HEADS, MLP, TEXTS, WIDTH, Schedule, StepContext, TextRecipe
from .text import CONTEXT, CaptionedScenes, caption_scenes, token_ids, tokenizer_for

SIDE, PATCH = 32, 4
IMAGE_WIDTH, IMAGE_DEPTH = 96, 2
JOINT = 64
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
COLDEST = 2.0  # log of the first inverse temperature; hotter, and the towers collapse
HOTTEST = 4.6052  # log of the greatest inverse temperature, 100
BLOCK = 16  # batches that are made together, so that each holds scenes that are much alike


class ClipRecipe(TextRecipe):
    """The symmetric cross-entropy over a batch's cosines, with a learned temperature."""

    name = "mini-clip"
    objective = "contrast with images"
    schedule = Schedule(steps=TEXTS // 32, batch=32, rate=3e-3)
    parts = 2

    def __init__(self) -> None:
        self.tokenizer = tokenizer_for(start=True, end=True)

    def build(self) -> nn.Module:
        import transformers

        text = {
            "vocab_size": len(self.tokenizer),
            "hidden_size": WIDTH,
            "intermediate_size": MLP,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": HEADS,
            "max_position_embeddings": CONTEXT,
            "projection_dim": JOINT,
            "bos_token_id": self.tokenizer.bos_token_id,
            "eos_token_id": self.tokenizer.eos_token_id,
            "pad_token_id": self.tokenizer.pad_token_id,
        }
        vision = {
            "hidden_size": IMAGE_WIDTH,
            "intermediate_size": 4 * IMAGE_WIDTH,
            "num_hidden_layers": IMAGE_DEPTH,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
            "projection_dim": JOINT,
        }
        config = transformers.CLIPConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=JOINT,
            logit_scale_init_value=COLDEST,
        )
        model: nn.Module = transformers.CLIPModel(config)
        return model

    def loss(self, model: Any, at: StepContext) -> Tensor:
        size = self.schedule.batch
        scenes, texts = alike(at.number, size, at.seed)
        pixels = render(scenes, SIDE)
        pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        images = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        rows, found = [], []
        for part in self.split(token_ids(self.tokenizer, texts)):
            # without a mask: attention is causal and padding comes last, so no text sees any
            pooled = model.text_model(input_ids=part.ids).pooler_output
            rows.append(part.rows)
            found.append(model.text_projection(pooled))
        order = torch.cat(rows).argsort()
        told_as = functional.normalize(torch.cat(found)[order], dim=1)
        seen_as = functional.normalize(images, dim=1)
        logits = told_as @ seen_as.T * model.logit_scale.clamp(max=HOTTEST).exp()
        own = torch.arange(size)
        return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2

    def save(self, model: Any, folder: Path) -> int:
        import transformers

        side = {"height": SIDE, "width": SIDE}
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=side)
        processor.save_pretrained(folder)
        return self.save_encoder(model, folder, model.text_model, model.text_projection)


def alike(number: int, size: int, seed: int) -> CaptionedScenes:
    """Batch ``number``: of BLOCK batches' scenes, those that share a ground, and by turns the
    color or the shape of an object.

    Otherwise the ground alone tells most scenes of a batch apart, and nothing else is learned
    (hard negatives, as in arXiv 2010.04592).
    """
    block, part = divmod(number, BLOCK)
    scenes, texts = _block(block, size * BLOCK, seed)
    shared = (scenes.color, scenes.shape)[block % 2][:, 0]
    rows = np.lexsort((shared, scenes.ground))[part * size : (part + 1) * size]
    return CaptionedScenes(scenes.take(rows), [texts[i] for i in rows])


@lru_cache(maxsize=1)
def _block(block: int, size: int, seed: int) -> CaptionedScenes:
    return caption_scenes(block * size, size, seed)
