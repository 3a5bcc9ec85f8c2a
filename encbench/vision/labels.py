"""``labels``: the annotated objects of an image and their sizes. No weights.

A column for each class, holding the square root of the class's share of the annotated area.
So every image with objects has length 1, and the cosine of two images is the Bhattacharyya
coefficient of their area shares: 1 if they show the same things in the same proportion, 0 if
they share nothing; the root keeps one large object from hiding all others. Overlapping
objects count each. An image without objects is a zero vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.geneval import CLASSES, COCO_NAMES
from ..data.hub import ResolvedModel
from ..errors import DataError, ImageError, UsageError
from ..files import digest
from ..types import ImageRecord, ReEncoderCard
from . import ReEncoderFamily, ReEncoderSpec

VERSION = 1
COCO = tuple(COCO_NAMES.get(label, label) for label in CLASSES)  # in the order of COCO's ids


class LabelReEncoder:
    """Vectors of area shares over a fixed list of classes, in that order."""

    def __init__(self, spec: ReEncoderSpec, labels: Sequence[str] = COCO) -> None:
        self.spec = spec
        self.columns = {label: column for column, label in enumerate(labels)}
        self.card = ReEncoderCard(
            spec=str(spec),
            revision=_revision(labels),
            dim=len(self.columns),
            needs="instances",
            license="Apache-2.0",
        )

    def with_labels(self, labels: Sequence[str]) -> LabelReEncoder:
        """The same for another dataset's classes; unchanged for an empty list."""
        return LabelReEncoder(self.spec, labels) if labels else self

    def encode(self, images: Sequence[ImageRecord]) -> Float[Tensor, "N P"]:
        """Area shares of each image's classes.

        Raises:
            ImageError: if an image has no annotations at all.
            DataError: if an object is of a class that is not in the list.
        """
        areas = torch.zeros(len(images), self.card.dim, dtype=torch.float64)
        for row, image in zip(areas, images, strict=True):
            if image.instances is None:
                raise ImageError(f"image {image.image_id} ({image.file_name}) has no instances")
            known = any(instance.area > 0 for instance in image.instances)
            for instance in image.instances:
                if instance.label not in self.columns:
                    raise DataError(
                        f"image {image.image_id} shows a '{instance.label}', which is not one of "
                        "the "
                        f"{self.card.dim} classes of the dataset"
                    )
                # objects without a measured area share the image alike
                row[self.columns[instance.label]] += instance.area if known else 1.0
        shares = areas / areas.sum(1, keepdim=True).clamp_min(torch.finfo(areas.dtype).tiny)
        return shares.sqrt().float()


def _revision(labels: Sequence[str]) -> str:
    return digest(["labels", VERSION, list(labels)])


def _resolve(spec: ReEncoderSpec) -> ResolvedModel:
    if spec.source or spec.revision:
        raise UsageError(f"'{spec}': labels takes no source or revision; write just 'labels'")
    return ResolvedModel(None, _revision(COCO), "Apache-2.0")


FAMILY = ReEncoderFamily(
    name="labels",
    summary="annotated object classes by their share of the area; needs no weights or files",
    examples=("labels",),
    needs="instances",
    resolve=_resolve,
    load=lambda spec, resolved, device: LabelReEncoder(spec),
    version=VERSION,
)
