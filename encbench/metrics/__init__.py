"""Metrics of generated images: one file or package for each, named under
``encbench.metrics``.

A metric gives a value for each image (:class:`~encbench.types.ImageMetric`), or features for
each image and a value of the whole set (:class:`~encbench.types.SetMetric`). Its file ends with
``FAMILY = MetricFamily(...)``. To add one, write such a file and name it in an entry point.
Detectors of objects are added in the same way, under ``encbench.detectors``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from .. import registry
from ..device import choose_device
from ..errors import ModelError
from ..types import Detector, Metric, MetricSpec, SetMetric
from ..vision import ReEncoderSpec

T = TypeVar("T")


@dataclass(frozen=True)
class Family(Generic[T]):
    """How one kind of extension is listed and loaded.

    Attributes:
        summary: one line for ``encbench list``.
        load: builds it from a spec ``name[:source][@revision][?option=value&...]``.
        examples: specs that work.
        options: names of its options, with what each does.
    """

    summary: str
    load: Callable[[ReEncoderSpec, torch.device], T]
    examples: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


DetectorFamily = Family[Detector]


@dataclass(frozen=True)
class MetricFamily(Family[Metric]):
    """A metric's family; ``spec`` says what it measures before anything is loaded."""

    spec: MetricSpec = field(kw_only=True)


def find_family(kind: str, text: str) -> tuple[Any, ReEncoderSpec]:
    """The registered family that a spec names, and the parsed spec.

    Raises:
        UsageError: if the text is no spec, or there is no such family or option.
    """
    name, colon, source = text.strip().partition(":")
    if colon and Path(source).is_dir():  # whose name may hold @ or ?
        return registry.get(kind, name), ReEncoderSpec(name, source)
    spec = ReEncoderSpec.parse(text)
    return registry.get_family(kind, spec.family, dict(spec.options)), spec


def load_extension(kind: str, text: str, device: str | torch.device) -> Any:
    """Load the metric or detector that a spec names."""
    family, spec = find_family(kind, text)
    return family.load(spec, choose_device(device))


def load_metric(text: str, device: str | torch.device = "auto") -> Metric:
    """Find and load a metric by its spec, e.g. ``geneval?detector=scenes&colors=none``.

    Raises:
        EncbenchError: in one line, if that does not work.
    """
    metric = load_extension("metric", text, device)
    if not isinstance(metric, Metric) or metric.spec.whole_set != isinstance(metric, SetMetric):
        raise ModelError(
            f"{text} is not a metric: it needs a spec, a name and score(prompts, images), or with "
            "whole_set in its spec extract(prompts, images) and reduce(features)"
        )
    return metric
