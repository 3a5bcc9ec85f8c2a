"""PickScore (arXiv 2305.01569): CLIP-H fine-tuned on people's choices between two images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from ..data.hub import resolve_model
from ..encoders.hf import (
    TOKENIZER_FILES,
    WEIGHT_FILES,
    load_transformers,
    readable_errors,
)
from ..encoders.hub_tokenizer import load_tokenizer
from ..encoders.spec import EncoderSpec
from ..errors import ModelError
from ..schema import read_model_config
from ..types import MetricSpec
from ..vision import ReEncoderSpec
from . import MetricFamily
from .similarity import SimilarityMetric, model_name

WEIGHTS = ("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
PROCESSOR = ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")
"""Where the model card takes tokenizer and image preprocessing from."""
LENGTH = 77  # tokens, as the model card cuts prompts
PREPROCESSING = ("preprocessor_config.json", *TOKENIZER_FILES)
SPEC = MetricSpec("pickscore", "PickScore", "logit scale (about 100) x cosine")


def _load(spec: ReEncoderSpec, device: torch.device) -> SimilarityMetric:
    from transformers import AutoImageProcessor, CLIPModel

    revision = spec.revision or (None if spec.source else WEIGHTS[1])
    full = EncoderSpec("pickscore", spec.source or WEIGHTS[0], revision, spec.options)
    patterns = ["config.json", *WEIGHT_FILES, *PREPROCESSING]
    resolved = resolve_model(full.source, revision, patterns=patterns)
    folder = resolved.folder
    kind = read_model_config(folder).get("model_type")
    if kind != "clip":
        raise ModelError(f"{folder}: model_type '{kind}' is not a CLIP, so it is not a PickScore")
    beside = folder  # the published repository has weights only
    if not (folder / PREPROCESSING[0]).is_file():
        beside = resolve_model(*PROCESSOR, patterns=PREPROCESSING).folder
    model = load_transformers(CLIPModel, full, folder, torch.float32)
    tokenizer = load_tokenizer(full, beside)
    with readable_errors(full, beside, "image preprocessing"):
        processor = AutoImageProcessor.from_pretrained(beside, local_files_only=True)
    moved = model.requires_grad_(False).to(device)
    scale = float(moved.logit_scale.exp())

    def embed(texts: Sequence[str], images: Sequence[Image]) -> tuple[Tensor, Tensor]:
        words = tokenizer(
            list(texts), padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
        found = moved(
            input_ids=words["input_ids"].to(device),
            attention_mask=words["attention_mask"].to(device),
            pixel_values=pixels.to(device),
        )
        return found.text_embeds.cpu(), found.image_embeds.cpu()

    name = model_name(spec, WEIGHTS[0], resolved.revision)
    return SimilarityMetric(SPEC, name, embed, lambda cosines: scale * cosines)


FAMILY = MetricFamily(
    summary="PickScore: which image people choose, by a fine-tuned CLIP-H (arXiv 2305.01569)",
    load=_load,
    examples=("pickscore", "pickscore:FOLDER"),
    spec=SPEC,
)
