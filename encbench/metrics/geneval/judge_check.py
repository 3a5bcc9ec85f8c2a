"""Compares the objects that a judge found with the true objects of the scene."""

from __future__ import annotations

from collections.abc import Sequence

from ...data.scenes.world import Scene
from ...types import Detection
from .verdict import THRESHOLD, Box

OVERLAP = 0.5


def truth(scene: Scene, side: int) -> list[Detection]:
    """The objects that a perfect judge finds in the scene's image of ``side`` pixels."""
    return [
        Detection(thing.shape, _scaled(thing.box, side), 1.0, color=thing.color)
        for thing in scene.objects
    ]


def recovered(
    found: Sequence[Detection], scene: Scene, side: int, *, threshold: float = THRESHOLD
) -> bool:
    """Whether the objects above a threshold are exactly the scene's: as many, each with its
    shape, its color, and a box whose intersection over union with the true one is above .5."""
    kept = [each for each in found if each.score > threshold]
    if len(kept) != len(scene.objects):
        return False
    pairs = [match(kept, thing) for thing in truth(scene, side)]
    return all(
        seen is not None and (seen.label, seen.color) == (thing.label, thing.color)
        for thing, seen in zip(truth(scene, side), pairs, strict=True)
    )


def match(found: Sequence[Detection], thing: Detection) -> Detection | None:
    """The object that lies where a true one does, whatever it was called; None if none does."""
    best = max(found, key=lambda each: box_iou(each.box, thing.box), default=None)
    return best if best is not None and box_iou(best.box, thing.box) > OVERLAP else None


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes in continuous coordinates; 0 without area."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    inner = max(wide, 0.0) * max(high, 0.0)
    union = sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - inner
    return inner / union if union > 0 else 0.0


def _scaled(box: Box, side: int) -> Box:
    x0, y0, x1, y1 = (end * side for end in box)
    return x0, y0, x1, y1
