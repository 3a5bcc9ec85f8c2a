"""CLIPScore (arXiv 2104.08718): the cosine of a prompt and its image in any CLIP's joint space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from ..encoders import load_encoder
from ..encoders.spec import EncoderSpec
from ..errors import UnknownNameError, UsageError
from ..types import JointEncoder, MetricSpec
from ..vision import ReEncoderSpec
from . import MetricFamily
from .similarity import SimilarityMetric, model_name

DEFAULT = "ViT-B-32/openai"
SPEC = MetricSpec("clipscore", "CLIPScore", "weight x cosine, at least 0")
FORMS = {
    "published": (2.5, "A photo depicts "),  # section 3: w = 2.5, and the prompt's beginning
    "plain": (100.0, ""),  # as text-to-image papers report it, and torchmetrics computes it
}
"""Form -> weight w and what the text begins with; the value is w * max(cosine, 0)."""


def _load(spec: ReEncoderSpec, device: torch.device) -> SimilarityMetric:
    form = spec.get("form", "published")
    if form not in FORMS:
        raise UnknownNameError("form of clipscore", form, FORMS)
    weight, prefix = FORMS[form]
    wanted = EncoderSpec("clip", spec.source or DEFAULT, spec.revision)
    more = {"pickle": "true"} if spec.flag("pickle") else {}
    encoder = load_encoder(str(wanted.with_options(dtype="float32", **more)), device)
    if not isinstance(encoder, JointEncoder):
        raise UsageError(f"'{spec}' cannot score images: it has no image tower; use {DEFAULT}")

    def embed(texts: Sequence[str], images: Sequence[Image]) -> tuple[Tensor, Tensor]:
        words = encoder.encode([prefix + text for text in texts]).pooled
        assert words is not None  # a joint encoder has one
        return words.cpu(), encoder.encode_images(images).cpu()

    name = model_name(spec, DEFAULT, encoder.card.revision, form=form)
    return SimilarityMetric(SPEC, name, embed, lambda cosines: weight * cosines.clamp(min=0))


FAMILY = MetricFamily(
    summary="CLIPScore: cosine of prompt and image by any CLIP (arXiv 2104.08718)",
    load=_load,
    examples=("clipscore", "clipscore:FOLDER?form=plain"),
    options={
        "form": "published (2.5 x cosine, 'A photo depicts ' before the prompt) or plain (100 x "
        "cosine, the prompt alone) [published]",
        "pickle": "true: load pickled weights where there are no safetensors (off by default)",
    },
    spec=SPEC,
)
