"""Scores of a trained network, in memory: the same prompts and noise for every network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import nn

from ..data.geneval import GenevalPrompt, to_metadata
from ..errors import UsageError
from ..files import digest
from ..flow.features import PromptFeatures
from ..flow.sample import sample_images
from ..metrics import find_family
from ..metrics.geneval.generate import sample_seed
from ..metrics.geneval.metric import SPEC
from ..metrics.score import extract_features, score_images
from ..records import ConfirmPlan
from ..types import Cell, Metric, MetricSpec, SetMetric

BATCH = {"cpu": 16, "cuda": 512}  # images that are sampled together; of one length, so the last
# batch of each length is filled up


@dataclass(frozen=True)
class PromptGroup:
    """Prompts that are scored together: one wording tier, seen or held-out combinations."""

    tier: str
    combos: str
    prompts: tuple[GenevalPrompt, ...]

    def cell(self, steps: int, metric: str = SPEC.name) -> Cell:
        """The cell of the scores of these prompts."""
        return Cell(metric, steps, self.tier, self.combos)

    @property
    def pin(self) -> str:
        return digest([self.tier, self.combos, [to_metadata(p) for p in self.prompts]])


def metric_specs(plan: ConfirmPlan) -> list[MetricSpec]:
    """What the images of a plan are scored by, GenEval first.

    Raises:
        UsageError: for a metric that is unknown or named twice.
    """
    specs = [SPEC, *(find_family("metric", text)[0].spec for text in plan.metrics)]
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--metrics {name}: it already scores every image; leave it out")
    return specs


def score_network(
    net: nn.Module,
    space: Any,
    texts: Mapping[str, PromptFeatures],
    prompts: Sequence[GenevalPrompt],
    metrics: Sequence[Metric],
    *,
    steps: int,
    images: int,
    noise: int,
    device: torch.device,
) -> list[Float[np.ndarray, " _"]]:
    """Each metric's mean value of the images of each prompt, NaN where none could be scored; of a
    metric of whole sets its one value.

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
        device=device,
        batch=min(len(asked), BATCH.get(device.type, 16)),
    )
    pictures = [Image.fromarray(pixels) for pixels in made.permute(0, 2, 3, 1).numpy()]
    return [_values(metric, asked, pictures, images) for metric in metrics]


def _values(
    metric: Metric, prompts: Sequence[GenevalPrompt], pictures: Sequence[Image.Image], images: int
) -> Float[np.ndarray, " _"]:
    if isinstance(metric, SetMetric):
        return np.array([metric.reduce(extract_features(metric, prompts, pictures))])
    values = [score.value for score in score_images(metric, prompts, pictures)]
    table = np.array(values, np.float64).reshape(-1, images)
    with np.errstate(invalid="ignore"):
        found: Float[np.ndarray, " _"] = np.nansum(table, axis=1) / np.isfinite(table).sum(axis=1)
    return found
