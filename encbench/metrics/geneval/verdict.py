"""GenEval's verdict (arXiv 2310.11513): from the detected objects of an image to right or wrong.

Pure functions, no model in them: same answer and same reason as the published evaluator
(github.com/djghosh13/geneval), whose thresholds and conventions these are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...data.geneval import COLORS, Clause, GenevalPrompt
from ...errors import DataError
from ...types import Detection

THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16
POSITION_THRESHOLD = 0.1
DIRECTION = 0.5
NO_OFFSET = 1e-3  # pixels

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ClauseResult:
    """The result of one clause; those of a prompt are in the order (*include, *exclude).

    Attributes:
        correct: whether it holds.
        objects: the objects it was judged by, best first, as places in the detections.
        reason: '' if it holds, else why not, as the published evaluator says it.
    """

    correct: bool
    objects: tuple[int, ...]
    reason: str = ""


@dataclass(frozen=True)
class ImageVerdict:
    """Right or wrong, why (one line for each clause that fails), and clause by clause."""

    correct: bool
    reason: str
    clauses: tuple[ClauseResult, ...]


def judge_image(
    detections: Sequence[Detection], prompt: GenevalPrompt, *, overlap_limit: float = 1.0
) -> ImageVerdict:
    """Whether an image shows what its prompt asks for.

    Args:
        detections: in the image, in any order; of equal scores the later comes first.
        prompt: with its clauses; the counting task asks for a higher score.
        overlap_limit: an object goes if it overlaps a better one of its class by this much
            (intersection over union); 1 = none goes.

    Raises:
        DataError: if a clause needs the color of an object and it has none.
    """
    kept = keep_objects(detections, prompt.task, overlap_limit)
    results: list[ClauseResult] = []
    for clause in prompt.include:
        objects = tuple(kept.get(clause.label, [])[: clause.count])
        reason = _missing(clause, objects) or _miscolored(clause, objects, detections)
        if not reason and clause.position is not None:
            target = results[clause.position[1]]
            reason = _misplaced(clause, objects, target, detections)
        results.append(ClauseResult(not reason, objects, reason))
    for clause in prompt.exclude:
        objects = tuple(kept.get(clause.label, []))
        found, few = len(objects), len(objects) < clause.count
        reason = "" if few else f"expected {clause.label}<{clause.count}, found {found}"
        results.append(ClauseResult(few, objects, reason))
    reasons = [result.reason for result in results if not result.correct]
    return ImageVerdict(not reasons, "\n".join(reasons), tuple(results))


def needs_color(
    detections: Sequence[Detection], prompt: GenevalPrompt, *, overlap_limit: float = 1.0
) -> list[int]:
    """The detections without a color whose color :func:`judge_image` needs, as places."""
    kept = keep_objects(detections, prompt.task, overlap_limit)
    wanted: dict[int, None] = {}
    for clause in prompt.include:
        objects = kept.get(clause.label, [])[: clause.count]
        if clause.color is not None and len(objects) == clause.count:
            wanted |= dict.fromkeys(i for i in objects if detections[i].color is None)
    return list(wanted)


def keep_objects(
    detections: Sequence[Detection], task: str, overlap_limit: float = 1.0
) -> dict[str, list[int]]:
    """The objects of each class that count, best first, as places in the detections."""
    threshold = COUNTING_THRESHOLD if task == "counting" else THRESHOLD
    by_label: dict[str, list[int]] = {}
    for place, detection in enumerate(detections):
        if detection.score > threshold:
            by_label.setdefault(detection.label, []).append(place)
    kept = {}
    for label, places in by_label.items():
        best = sorted(places, key=lambda i: (detections[i].score, i), reverse=True)[:MAX_OBJECTS]
        if overlap_limit < 1:
            best = _thin_out(best, detections, overlap_limit)
        kept[label] = best
    return kept


def _thin_out(places: list[int], detections: Sequence[Detection], limit: float) -> list[int]:
    kept: list[int] = []
    for place in places:
        box = detections[place].box
        if all(overlap(detections[better].box, box) < limit for better in kept):
            kept.append(place)
    return kept


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes whose last pixel belongs to them; 0 without area."""

    def area(x0: float, y0: float, x1: float, y1: float) -> float:
        return max(x1 - x0 + 1.0, 0.0) * max(y1 - y0 + 1.0, 0.0)

    inner = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - inner
    return inner / union if union else 0.0


def relations_of_boxes(a: Box, b: Box) -> list[str]:
    """Relations of the first box to the second: none, one or two.

    The offset of the centers is shrunk towards zero by a tenth of both sizes, and compared with
    half the distance of the centers.
    """
    offset, shrunk = [], []
    for axis in (0, 1):
        apart = (a[axis] + a[axis + 2]) / 2 - (b[axis] + b[axis + 2]) / 2
        sizes = abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis])
        offset.append(apart)
        shrunk.append(math.copysign(max(abs(apart) - POSITION_THRESHOLD * sizes, 0.0), apart))
    if max(map(abs, shrunk)) < NO_OFFSET:
        return []
    dx, dy = (part / math.hypot(*offset) for part in shrunk)
    holds: Mapping[str, bool] = {
        "left of": dx < -DIRECTION,
        "above": dy < -DIRECTION,
        "right of": dx > DIRECTION,
        "below": dy > DIRECTION,
    }
    return [name for name, true in holds.items() if true]


def _missing(clause: Clause, objects: Sequence[int]) -> str:
    if len(objects) >= clause.count:
        return ""
    return f"expected {clause.label}>={clause.count}, found {len(objects)}"


def _miscolored(clause: Clause, objects: Sequence[int], detections: Sequence[Detection]) -> str:
    if clause.color is None:
        return ""
    colors = [detections[place].color for place in objects]
    for color in colors:
        if color not in COLORS:
            said = "has no color" if color is None else f"is '{color}', none of the ten colors"
            raise DataError(
                f"a detected {clause.label} {said}, but the prompt asks for a {clause.color} one; "
                "add a color classifier, e.g. --colors clip:ViT-L-14/openai"
            )
    right = colors.count(clause.color)
    if right >= clause.count:
        return ""
    found = ", ".join(f"{colors.count(c)} {c}" for c in COLORS if c in colors)
    return (
        f"expected {clause.color} {clause.label}>={clause.count}, found "
        f"{right} {clause.color}; and {found}"
    )


def _misplaced(
    clause: Clause, objects: Sequence[int], target: ClauseResult, detections: Sequence[Detection]
) -> str:
    assert clause.position is not None
    relation = clause.position[0]
    if not target.correct:
        return f"no target for {clause.label} to be {relation}"
    for place in objects:
        for other in target.objects:
            found = relations_of_boxes(detections[place].box, detections[other].box)
            if relation not in found:
                return (
                    f"expected {clause.label} {relation} target, found {' and '.join(found)} target"
                )
    return ""
