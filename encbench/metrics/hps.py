"""HPS v2.1 (arXiv 2306.09341): human preference, by open_clip's ViT-H-14 with published weights.

Give prompts their style (anime, concept-art, paintings, photo) to get the four styles apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL.Image import Image
from torch import Tensor

from ..data.hub import resolve_model
from ..encoders.hf import quiet
from ..encoders.openclip import library_of
from ..errors import ModelError
from ..files import expand_home
from ..types import MetricSpec
from ..vision import ReEncoderSpec
from . import MetricFamily
from .similarity import SimilarityMetric, model_name, read_pinned

WEIGHTS = ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a")
FILE, MD5 = "HPS_v2.1_compressed.pt", "4067542e34ba2553a738c5ac6c1d75c0"
ARCH = "ViT-H-14"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SPEC = MetricSpec("hps-v2.1", "HPS v2.1", "100 x cosine")


def prepare(image: Image, size: int) -> Tensor:
    """The published preprocessing of an RGB image: its longer side becomes ``size`` (bicubic,
    antialiased), the rest is filled with black evenly on both sides, then CLIP's normalization."""
    from torchvision.transforms import InterpolationMode  # type: ignore[import-untyped]
    from torchvision.transforms import functional as F

    pixels = F.to_tensor(image)
    scale = size / max(image.size)
    high, wide = round(image.height * scale), round(image.width * scale)
    if scale != 1:
        pixels = F.resize(pixels, [high, wide], InterpolationMode.BICUBIC, antialias=True)
    left, top = (size - wide) // 2, (size - high) // 2
    pixels = F.pad(pixels, [left, top, size - wide - left, size - high - top])
    normalized: Tensor = F.normalize(pixels, list(MEAN), list(STD))
    return normalized


def _load(spec: ReEncoderSpec, device: torch.device) -> SimilarityMetric:
    source, revision = spec.source or WEIGHTS[0], spec.revision
    if not spec.source:
        revision = revision or WEIGHTS[1]
    place = expand_home(source)
    if place.is_file():
        source, place = str(place.parent), place.parent
    if place.is_dir() and not (place / FILE).is_file():
        others = [p.name for p in sorted(place.glob("*.pt"))] or ["no .pt file"]
        raise ModelError(
            f"{place} holds no {FILE} (it has {', '.join(others[:3])}); download that file of "
            f"{WEIGHTS[0]}, or give it its published name"
        )
    resolved = resolve_model(source, revision, patterns=[FILE], pickle=True)
    found = read_pinned(resolved, FILE, "md5", MD5)
    path = resolved.folder / FILE
    library = library_of()
    with quiet():
        model = library.create_model(ARCH, load_weights=False, output_dict=True)
    try:
        model.load_state_dict(found["state_dict"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"{path} does not hold the weights of a {ARCH} in 'state_dict'") from error
    model.eval().requires_grad_(False).to(device)
    tokenizer = library.get_tokenizer(ARCH)
    size = model.visual.image_size
    side = size[0] if isinstance(size, tuple | list) else size

    def embed(texts: Sequence[str], images: Sequence[Image]) -> tuple[Tensor, Tensor]:
        pixels = torch.stack([prepare(image, side) for image in images])
        words = model.encode_text(tokenizer(list(texts)).to(device), normalize=True)
        return words.cpu(), model.encode_image(pixels.to(device), normalize=True).cpu()

    name = model_name(spec, WEIGHTS[0], resolved.revision)
    return SimilarityMetric(SPEC, name, embed, lambda cosines: 100 * cosines)


FAMILY = MetricFamily(
    summary="HPS v2.1: human preference by a fine-tuned CLIP-H (arXiv 2306.09341)",
    load=_load,
    examples=("hps-v2.1", f"hps-v2.1:FOLDER/{FILE}"),
    spec=SPEC,
)
