"""GenEval as a metric (arXiv 2310.11513): detect, name colors, judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from PIL.Image import Image

from ...data.geneval import TASKS, GenevalPrompt
from ...encoders import family_of
from ...encoders.spec import EncoderSpec
from ...errors import DataError, EncbenchError, UsageError
from ...files import digest
from ...types import Detection, Detector, ImagePrompt, ImageScore, MetricSpec
from ...vision import ReEncoderSpec
from .. import MetricFamily
from .colors import DEFAULT as DEFAULT_COLORS
from .colors import ColorClassifier, Crop, load_colors
from .detect import load_detector
from .verdict import ImageVerdict, judge_image, needs_color

SPEC = MetricSpec(
    name="geneval",
    title="GenEval",
    unit="share of correct images",
    tasks=TASKS,
    needs=("clauses",),
)


@dataclass(frozen=True)
class Judgment(ImageScore):
    """GenEval's score of one image: 1 if it is correct, else 0.

    Attributes:
        objects: what was detected, without masks.
        verdict: None if the image could not be scored.
    """

    objects: tuple[Detection, ...] = ()
    verdict: ImageVerdict | None = None

    def __post_init__(self) -> None:
        if self.verdict is not None:
            object.__setattr__(self, "value", float(self.verdict.correct))


class GenevalMetric:
    """The :class:`~encbench.types.ImageMetric` of GenEval.

    Args:
        colors: loads the classifier; called when the first color is needed that the detector
            does not give. None = there is no classifier.
        colors_name: identifies the classifier's results before it is loaded.
        overlap_limit: see :func:`~encbench.metrics.geneval.verdict.judge_image`.
    """

    spec = SPEC

    def __init__(
        self,
        detector: Detector,
        colors: Callable[[], ColorClassifier] | None = None,
        *,
        colors_name: str = "",
        overlap_limit: float = 1.0,
    ) -> None:
        self.detector, self.colors, self.overlap_limit = detector, colors, overlap_limit
        self.classifier: ColorClassifier | None = None
        named = [("colors", colors_name)] if colors_name else []
        named += [("detector", detector.name), ("overlap_limit", str(float(overlap_limit)))]
        self.name = str(ReEncoderSpec(SPEC.name, options=tuple(named)))

    def check(self, prompts: Sequence[ImagePrompt]) -> None:
        """Raise DataError if a prompt has no clauses, or a class that the detector cannot find."""
        for prompt in prompts:
            if not isinstance(prompt, GenevalPrompt):
                raise DataError(
                    f"GenEval needs prompts with clauses, and '{prompt.text}' has none; take "
                    "prompts from: encbench geneval prompts"
                )
            for clause in (*prompt.include, *prompt.exclude):
                if clause.label not in self.detector.labels:
                    known = ", ".join(self.detector.labels[:4])
                    raise DataError(
                        f"prompt {prompt.prompt_id:05d} ('{prompt.text}') needs the class "
                        f"'{clause.label}', which {self.detector.name} does not know (it knows "
                        f"{known}, ...); use another detector"
                    )

    def score(self, prompts: Sequence[ImagePrompt], images: Sequence[Image]) -> list[Judgment]:
        """Score images: one detection, and one color classification of all crops.

        Raises:
            DataError: if a color is needed that nobody names, and as :meth:`check` does.
        """
        self.check(prompts)
        asked = cast(Sequence[GenevalPrompt], prompts)
        found = [list(objects) for objects in self.detector.detect(images)] if images else []
        if len(found) != len(images):
            raise EncbenchError(
                f"{self.detector.name} returned {len(found)} lists of objects for {len(images)} "
                "images"
            )
        places: list[tuple[int, int]] = []
        crops: list[Crop] = []
        for i, (prompt, image, objects) in enumerate(zip(asked, images, found, strict=True)):
            for j in needs_color(objects, prompt, overlap_limit=self.overlap_limit):
                places.append((i, j))
                crops.append((image, objects[j]))
        if crops and self.colors is not None:
            self.classifier = self.classifier or self.colors()
            for (i, j), color in zip(places, self.classifier.classify(crops), strict=True):
                found[i][j] = replace(found[i][j], color=color)
        return [
            Judgment(
                objects=tuple(replace(each, mask=None) for each in objects),
                verdict=judge_image(objects, prompt, overlap_limit=self.overlap_limit),
            )
            for prompt, objects in zip(asked, found, strict=True)
        ]


def build_geneval(
    detector: str, colors: str, device: str | torch.device, *, overlap_limit: float = 1.0
) -> GenevalMetric:
    """Load the detector and the color classifier of GenEval.

    Args:
        detector: see :func:`~encbench.metrics.geneval.detect.load_detector`.
        colors: an encoder's spec, loaded only if a color is needed; 'none' = no classifier.

    Raises:
        EncbenchError: in one line, if that does not work.
    """
    loader: Callable[[], ColorClassifier] | None = None
    name = ""
    if colors != "none":
        spec = EncoderSpec.parse(colors)
        family_of(spec)  # a wrong spec fails before anything is computed
        loader = partial(load_colors, colors, device)
        name = colors
        if Path(spec.source).exists():  # results are shared: they name no folder of this machine
            name = str(replace(spec, source=f"{Path(spec.source).name}-{digest(spec.source)[:8]}"))
    return GenevalMetric(
        load_detector(detector, device), loader, colors_name=name, overlap_limit=overlap_limit
    )


def _load(spec: ReEncoderSpec, device: torch.device) -> GenevalMetric:
    if spec.source or spec.revision:
        raise UsageError(f"'{spec}': geneval takes options only, e.g. geneval?detector=scenes")
    try:
        limit = float(spec.get("overlap_limit", "1"))
    except ValueError:
        limit = -1.0
    if not 0 <= limit <= 1:
        raise UsageError(f"overlap_limit of '{spec}' must be a number from 0 to 1")
    detector, colors = spec.get("detector", "mask2former"), spec.get("colors", DEFAULT_COLORS)
    return build_geneval(detector, colors, device, overlap_limit=limit)


FAMILY = MetricFamily(
    summary="GenEval: are the objects there, in number, color and place (arXiv 2310.11513)",
    load=_load,
    examples=("geneval", "geneval?detector=scenes&colors=none"),
    options={
        "detector": "spec of the detector; see encbench list detectors",
        "colors": "spec of an encoder with an image tower that names colors, or none",
        "overlap_limit": "drop the lower-scoring box of a class above this IoU; 1 = none",
    },
    spec=SPEC,
)
