"""GenEval of a trained network, in memory: the same prompts and noise for every network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from ..data.geneval import GenevalPrompt, to_metadata
from ..errors import EncbenchError
from ..files import digest
from ..flow.features import PromptFeatures
from ..flow.sample import sample_images
from ..metrics.geneval.colors import ColorClassifier
from ..metrics.geneval.detect import Detector
from ..metrics.geneval.generate import sample_seed
from ..metrics.geneval.verdict import judge_image, needs_color
from ..types import Cell

BATCH = {"cpu": 16, "cuda": 512}  # images that are sampled together; of one length, so the last
# batch of each length is filled up
CHUNK = 256  # images that are judged together


@dataclass(frozen=True)
class PromptGroup:
    """Prompts that are scored together: one wording tier, seen or held-out combinations."""

    tier: str
    combos: str
    prompts: tuple[GenevalPrompt, ...]

    def cell(self, steps: int) -> Cell:
        """Where the scores of these prompts stand."""
        return Cell("geneval", steps, self.tier, self.combos)

    @property
    def pin(self) -> str:
        return digest([self.tier, self.combos, [to_metadata(p) for p in self.prompts]])


@dataclass(frozen=True)
class Judge:
    """A detector, and what names colors where it does not."""

    detector: Detector
    colors: Callable[[], ColorClassifier] | None = None

    def right(
        self, prompts: Sequence[GenevalPrompt], images: UInt8[Tensor, "N 3 H W"]
    ) -> list[bool]:
        """Whether each image shows what its prompt asks for.

        Raises:
            EncbenchError: if a color is needed that nobody names.
        """
        found: list[bool] = []
        for start in range(0, len(prompts), CHUNK):
            asked = prompts[start : start + CHUNK]
            pixels = images[start : start + CHUNK]
            pictures = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]
            objects = [list(row) for row in self.detector.detect(pictures)]
            places = [
                (i, j)
                for i, (prompt, row) in enumerate(zip(asked, objects, strict=True))
                for j in needs_color(row, prompt)
            ]
            if places:
                if self.colors is None:
                    raise EncbenchError(
                        f"{self.detector.name} names no colors; give --colors, e.g. "
                        "clip:ViT-L-14/openai"
                    )
                crops = [(pictures[i], objects[i][j]) for i, j in places]
                for (i, j), color in zip(places, self.colors().classify(crops), strict=True):
                    objects[i][j] = replace(objects[i][j], color=color)
            found += [judge_image(row, p).correct for row, p in zip(objects, asked, strict=True)]
        return found


def score_network(
    net: nn.Module,
    space: Any,
    texts: Mapping[str, PromptFeatures],
    prompts: Sequence[GenevalPrompt],
    grader: Judge,
    *,
    steps: int,
    images: int,
    noise: int,
    device: torch.device,
    guidance: float = 1.0,
) -> Float[np.ndarray, " P"]:
    """Share of right images of each prompt.

    Args:
        texts: features by prompt text.
        images: of each prompt.
        noise: seed of the noise; an image's follows from it, the prompt's number and its own.
    """
    asked = [prompt for prompt in prompts for _ in range(images)]
    seeds = [sample_seed(noise, p.prompt_id, k) for p in prompts for k in range(images)]
    made = sample_images(
        net,
        space,
        [texts[prompt.text] for prompt in asked],
        seeds,
        steps=steps,
        guidance=guidance,
        device=device,
        batch=min(len(asked), BATCH.get(device.type, 16)),
    )
    right = np.array(grader.right(asked, made), np.float64)
    return right.reshape(len(prompts), images).mean(axis=1)
