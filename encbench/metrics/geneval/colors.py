"""Colors of detected objects, zero-shot, as GenEval names them (arXiv 2310.11513)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from ...data.geneval import COLORS
from ...encoders import load_encoder
from ...encoders.spec import EncoderSpec
from ...errors import UsageError
from ...types import Detection, JointEncoder

DEFAULT = "clip:ViT-L-14/openai"
TEMPLATES = (
    "a photo of a {c} {label}",
    "a photo of a {c}-colored {label}",
    "a photo of a {c} object",
)
BACKGROUND = "#999"

Crop = tuple[Image.Image, Detection]


@runtime_checkable
class ColorClassifier(Protocol):
    """Names the color of objects, one of ten. ``name`` identifies its results."""

    name: str

    def classify(self, objects: Sequence[Crop]) -> list[str]:
        """One color for each object, given with the image that it is in."""
        ...


class ClipColors:
    """Zero-shot classification by any model with a joint space of texts and images.

    For each class there is one text vector a color: the mean of three normalized prompts,
    normalized. They are made once, when the class is first met.
    """

    def __init__(self, name: str, encoder: JointEncoder) -> None:
        self.name, self.encoder = name, encoder
        self.texts: dict[str, Float[Tensor, "10 P"]] = {}

    @torch.inference_mode()
    def classify(self, objects: Sequence[Crop]) -> list[str]:
        """One color for each object, all crops in the same batches."""
        if not objects:
            return []
        labels = [detection.label for _, detection in objects]
        self._learn([label for label in dict.fromkeys(labels) if label not in self.texts])
        vectors = self.encoder.encode_images([crop(image, found) for image, found in objects])
        vectors = normalize(vectors.float(), dim=-1).cpu()
        texts = torch.stack([self.texts[label] for label in labels])
        best = torch.einsum("np,ncp->nc", vectors, texts).argmax(1)
        return [COLORS[i] for i in best.tolist()]

    def _learn(self, labels: Sequence[str]) -> None:
        prompts = [
            template.format(c=color, label=label)
            for label in labels
            for color in COLORS
            for template in TEMPLATES
        ]
        if prompts:
            pooled = self.encoder.encode(prompts).pooled
            assert pooled is not None  # a joint encoder has one
            vectors = normalize(pooled.float().cpu(), dim=-1)
            vectors = vectors.view(len(labels), len(COLORS), len(TEMPLATES), -1).mean(2)
            self.texts |= zip(labels, normalize(vectors, dim=-1), strict=True)


def crop(image: Image.Image, found: Detection) -> Image.Image:
    """An object's box, all that its mask leaves out replaced by gray; its whole box if it has
    no mask. A box without area becomes one pixel wide."""
    image = image.convert("RGB")
    if found.mask is not None:
        mask = Image.fromarray(found.mask.cpu().numpy())
        image = Image.composite(image, Image.new("RGB", image.size, BACKGROUND), mask)
    x0, y0, x1, y1 = map(round, found.box)
    return image.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))


def load_colors(text: str = DEFAULT, device: str | torch.device = "auto") -> ClipColors:
    """Find, download if needed, and load a classifier; in float32 unless the spec says else.

    Raises:
        UsageError: if the model has no joint space of texts and images.
        EncbenchError: in one line, if it cannot be loaded.
    """
    spec = EncoderSpec.parse(text)
    if spec.get("dtype") is None:
        spec = spec.with_options(dtype="float32")
    encoder = load_encoder(str(spec), device)
    if not isinstance(encoder, JointEncoder):
        raise UsageError(f"'{text}' cannot name colors: it has no image tower; use {DEFAULT}")
    revision = encoder.card.revision[:12]
    return ClipColors(f"{spec}#{revision}", encoder)
