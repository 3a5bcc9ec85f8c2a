"""Shared by metrics that compare the vector of a prompt with that of its image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import normalize

from ..data.hub import ResolvedModel
from ..encoders.guard import one_line_errors
from ..errors import ModelError
from ..files import expand_home
from ..types import ImagePrompt, ImageScore, MetricSpec
from ..vision import ReEncoderSpec

BATCH = 32  # images at a time

Embed = Callable[[Sequence[str], Sequence[Image]], tuple[Tensor, Tensor]]
"""Texts and images to vectors (T, P) and (N, P), of any length."""


class SimilarityMetric:
    """An :class:`~encbench.types.ImageMetric`: a function of the cosine of prompt and image.

    Args:
        embed: called with a batch of images and their different prompts.
        value: of the cosines.
    """

    def __init__(
        self,
        spec: MetricSpec,
        name: str,
        embed: Embed,
        value: Callable[[Float[Tensor, " N"]], Float[Tensor, " N"]],
    ) -> None:
        self.spec, self.name, self.embed, self.value = spec, name, embed, value

    @torch.inference_mode()
    def score(self, prompts: Sequence[ImagePrompt], images: Sequence[Image]) -> list[ImageScore]:
        """One value for each image.

        Raises:
            ModelError: in one line, if the model fails.
        """
        scores: list[ImageScore] = []
        for start in range(0, len(images), BATCH):
            texts = [prompt.text for prompt in prompts[start : start + BATCH]]
            known = list(dict.fromkeys(texts))
            part = [image.convert("RGB") for image in images[start : start + BATCH]]
            with one_line_errors(f"scoring images by {self.name}"):
                words, pictures = self.embed(known, part)
            mine = words[[known.index(text) for text in texts]]
            cosines = (normalize(mine.float(), dim=-1) * normalize(pictures.float(), dim=-1)).sum(1)
            scores += map(ImageScore, self.value(cosines).tolist())
        return scores


def model_name(spec: ReEncoderSpec, default: str, revision: str, **options: str) -> str:
    """A metric's name from its model: results are shared, so it names no folder's place."""
    source = spec.source or default
    place = expand_home(source)
    source = place.name if place.exists() else source
    named: Mapping[str, str] = dict(sorted(options.items()))
    return str(ReEncoderSpec(spec.family, source, revision[:12], tuple(named.items())))


def read_pinned(resolved: ResolvedModel, name: str, hash_name: str, expected: str) -> Any:
    """What a pickled file of published weights holds, once its hash is checked. Nothing but
    tensors and plain containers is unpickled.

    Args:
        hash_name, expected: of the published file, e.g. 'sha256' and its hexadecimal digits.

    Raises:
        ModelError: naming the file, if it is another one, damaged, or holds code.
    """
    path = resolved.folder / name
    with path.open("rb") as file:
        found = hashlib.file_digest(file, hash_name).hexdigest()
    if found != expected:
        raise ModelError(
            f"{path} is not the published file ({hash_name} {found[:12]}..., not "
            f"{expected[:12]}...); remove it and download it again"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds
        raise ModelError(
            f"{path} holds more than weights (code or other objects) or is damaged; it was not "
            "loaded"
        ) from error
