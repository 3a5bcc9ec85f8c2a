"""Detectors of objects in images, behind one interface.

The default is the published evaluator's model, Mask2Former (arXiv 2112.01527) with Swin-S
trained on COCO instances, through transformers in place of mmdetection. Weights and scores are
the same kind, but not bit for bit: transformers prepares images at the size in the checkpoint's
configuration, which need not be mmdetection's, with its own resampling, and turns
masks into pixels at 384 x 384 before it scales them to the image. So scores near a threshold
can fall on the other side of it, and small objects are found less often.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ...data.geneval import CLASSES, COCO_NAMES
from ...data.hub import resolve_model
from ...encoders.hf import (
    WEIGHT_FILES,
    dtype_of,
    load_transformers,
    readable_errors,
)
from ...encoders.spec import EncoderSpec
from ...errors import EncbenchError, ModelError, UsageError
from ...schema import read_model_config
from ...types import Detection, Detector
from ...vision import ReEncoderSpec
from .. import DetectorFamily, load_extension
from .verdict import THRESHOLD

DEFAULT = "facebook/mask2former-swin-small-coco-instance"
CPU_MASKS = 16  # at a time, so that they stay in the processor's cache
SIDE = 384  # of the masks that become pixels, as transformers has it for all Mask2Formers

# What models call the classes for which GenEval has another word.
_ALIASES = {own: name for name, own in COCO_NAMES.items()} | {
    "motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv",
    "pottedplant": "potted plant", "diningtable": "dining table", "cellphone": "cell phone",
    "hair dryer": "hair drier", "doughnut": "donut",
}  # fmt: skip


class Mask2FormerDetector:
    """Mask2Former of transformers.

    Images of one size go through the model together, so that none is padded and a batch gives
    what its images give one by one.

    Args:
        labels: GenEval's name of each of the model's classes; see :func:`match_labels`.
        batch: images at a time.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        processor: Any,
        labels: Mapping[int, str],
        *,
        batch: int = 8,
    ) -> None:
        self.name, self.labels = name, tuple(labels[i] for i in sorted(labels))
        self.model, self.processor = model, processor
        self.batch = batch

    @torch.inference_mode()
    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        """The objects of each image, with masks and without colors."""
        found: list[list[Detection]] = [[] for _ in images]
        by_size: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            by_size.setdefault((image.height, image.width), []).append(place)
        for size, places in by_size.items():
            for start in range(0, len(places), self.batch):
                part = places[start : start + self.batch]
                pixels = self.prepare([images[i] for i in part])
                out = self.model(pixel_values=pixels)
                made = self._read(out.class_queries_logits, out.masks_queries_logits, size)
                for place, detections in zip(part, made, strict=True):
                    found[place] = detections
        return found

    def prepare(self, images: Sequence[Image]) -> Float[Tensor, "B 3 h w"]:
        """The model's input, as its own processor makes it, on its device."""
        rgb = [image.convert("RGB") for image in images]
        made = self.processor(images=rgb, return_tensors="pt", device=self.model.device)
        pixels: Tensor = made["pixel_values"]
        return pixels.to(self.model.device, self.model.dtype)

    def _read(
        self,
        classes: Float[Tensor, "B Q C"],
        masks: Float[Tensor, "B Q h w"],
        size: tuple[int, int],
    ) -> list[list[Detection]]:
        image, label, score, mask = instances(classes.float(), masks.float(), size, THRESHOLD)
        boxes = mask_boxes(mask).tolist()
        made: list[list[Detection]] = [[] for _ in classes]
        rows = zip(image.tolist(), label.tolist(), score.tolist(), boxes, mask.cpu(), strict=True)
        for i, kind, value, box, pixels in rows:
            made[i].append(Detection(self.labels[kind], tuple(box), value, pixels))
        return made


def instances(
    class_logits: Float[Tensor, "B Q C"],
    mask_logits: Float[Tensor, "B Q h w"],
    size: tuple[int, int],
    threshold: float,
) -> tuple[
    Int[Tensor, " N"], Int[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, "N height width"]
]:
    """Objects of a batch of images, all of one size (height, width).

    Gives what ``Mask2FormerImageProcessor.post_process_instance_segmentation`` gives with
    ``return_binary_maps`` (scores not rounded), on the model's device, and scales up no mask
    whose class alone is below the threshold: a score is the class's probability times the mean
    probability inside the mask, so that it cannot reach it any more.

    Returns:
        image, class, score and mask of each of N objects; those of one image in the library's
        order.
    """
    queries, classes = class_logits.shape[1], class_logits.shape[2] - 1
    likely = class_logits.softmax(-1)[..., :-1].flatten(1)
    scores, places = likely.topk(queries, sorted=False)
    image, rank = (scores >= threshold).nonzero(as_tuple=True)
    score, place = scores[image, rank], places[image, rank]
    kept = [torch.zeros_like(image[:0])]
    masks = [mask_logits.new_zeros(0, *size, dtype=torch.bool)]
    step = CPU_MASKS if mask_logits.device.type == "cpu" else max(len(image), 1)
    for start in range(0, len(image), step):
        rows = torch.arange(start, min(start + step, len(image)), device=image.device)
        chosen = mask_logits[image[rows], place[rows] // classes]
        chosen = interpolate(chosen[None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
        inside = chosen > 0
        quality = chosen.sigmoid_().mul_(inside).flatten(1).sum(1)
        score[rows] *= quality / (inside.flatten(1).sum(1) + 1e-6)
        good = score[rows] >= threshold
        if good.any():  # interpolate refuses a batch of none
            mask = interpolate(inside[good][None].byte(), size, mode="nearest")[0].bool()
            there = mask.flatten(1).any(1)
            kept.append(rows[good][there])
            masks.append(mask[there])
    found = torch.cat(kept)
    return image[found], place[found] % classes, score[found], torch.cat(masks)


def mask_boxes(masks: Bool[Tensor, "N H W"]) -> Float[Tensor, "N 4"]:
    """Boxes (x0, y0, x1, y1) around masks, in pixels; the last pixel lies before x1 and y1."""
    sides = []
    for axis, length in ((1, masks.shape[2]), (2, masks.shape[1])):
        hit = masks.any(axis).float()
        sides.append((hit.argmax(1), length - hit.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], 1).float()


def match_labels(names: Mapping[int, str], who: str) -> dict[int, str]:
    """GenEval's names of a model's classes, all of which must be known.

    Raises:
        ModelError: naming the class that is not, or that two of the model's classes mean.
    """
    matched: dict[int, str] = {}
    for number, name in sorted(names.items()):
        label = _ALIASES.get(name.strip().lower(), name.strip().lower())
        if label not in CLASSES:
            raise ModelError(
                f"{who} calls its class {number} '{name}', which is not one of GenEval's 80; use a "
                "model trained on COCO instances"
            )
        if label in matched.values():
            raise ModelError(f"{who} has two classes for '{label}'; use another model")
        matched[number] = label
    if list(matched) != list(range(len(matched))):
        raise ModelError(f"{who} does not number its classes from 0 up in its id2label")
    return matched


# -------------------------------------------------------------------------------- loading


def load_detector(text: str, device: str | torch.device = "auto") -> Detector:
    """Find, download if needed, and load a detector.

    Args:
        text: ``name[:source][?option=value&...]`` of a registered detector, e.g. ``mask2former``;
            ``scenes[:FOLDER]``, the scene judge that comes with encbench, or one of a folder; or
            ``python:MODULE:NAME``, a function or class that takes the device.
        device: 'auto', 'cpu', 'cuda' or a device.

    Raises:
        EncbenchError: in one line, if that does not work.
    """
    found = load_extension("detector", text, device)
    if not isinstance(found, Detector):
        raise ModelError(f"{text} is not a detector: it needs name, labels and detect(images)")
    return found


def load_mask2former(spec: ReEncoderSpec, device: torch.device) -> Mask2FormerDetector:
    """Mask2Former from a local folder or the hub; safetensors unless the spec allows pickles.

    Raises:
        EncbenchError: in one line: unknown option, files missing, unsafe or of another model,
            classes that are not GenEval's.
    """
    from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

    full = EncoderSpec(spec.family, spec.source or DEFAULT, spec.revision, spec.options)
    full = EncoderSpec.parse(str(full))
    batch = full.get("batch") or "8"
    if not batch.isdecimal() or int(batch) < 1:
        raise UsageError(f"batch={batch} of '{full}' must be a whole number of at least 1")
    resolved = resolve_model(
        full.source,
        full.revision,
        patterns=["config.json", "preprocessor_config.json", *WEIGHT_FILES],
        pickle=full.flag("pickle"),
    )
    folder = resolved.folder
    config = read_model_config(folder)
    if config.get("model_type") != "mask2former":
        raise ModelError(f"{folder}: model_type '{config.get('model_type')}' is not a mask2former")
    read_model_config(folder, "preprocessor_config.json")
    dtype = torch.float32 if full.dtype == "auto" else dtype_of(full, device)
    model = load_transformers(Mask2FormerForUniversalSegmentation, full, folder, dtype)
    labels = match_labels({int(i): str(n) for i, n in model.config.id2label.items()}, full.source)
    with readable_errors(full, folder, "image preprocessing"):
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    model.requires_grad_(False)
    # what a batch holds changes no result, so it is no part of the name; nor is a folder's place
    source = Path(full.source).name if Path(full.source).is_dir() else full.source
    name = f"mask2former:{source}@{resolved.revision[:12]}?dtype={str(dtype)[6:]}"
    moved: Any = model
    return Mask2FormerDetector(name, moved.to(device), processor, labels, batch=int(batch))


def load_scene_judge(spec: ReEncoderSpec, device: torch.device) -> Detector:
    """The scene judge that comes with encbench, or that of a folder."""
    from .judge import WEIGHTS, load_judge

    return load_judge(device, Path(spec.source) if spec.source else WEIGHTS)


def load_python(spec: ReEncoderSpec, device: torch.device) -> Any:
    """Your own detector: ``MODULE:NAME``, a function or class that is called with the device;
    :func:`load_detector` checks that it is one.

    Raises:
        ModelError: in one line, if that does not work.
    """
    module, _, attribute = spec.source.partition(":")
    if not attribute:
        raise UsageError(f"'{spec}' names no detector; write python:MODULE:NAME")
    try:
        return getattr(importlib.import_module(module), attribute)(device)
    except EncbenchError:
        raise
    except (Exception, SystemExit) as error:  # user code
        said = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"the detector {spec} cannot be made: {said}") from error


MASK2FORMER = DetectorFamily(
    summary="Mask2Former trained on COCO instances, as the published evaluator uses it",
    load=load_mask2former,
    examples=("mask2former", "mask2former:FOLDER?batch=16"),
    options={
        "batch": "images at a time [8]",
        "dtype": "of weights and computation [float32]",
        "pickle": "true: load pickled weights where there are no safetensors (off by default)",
    },
)
SCENES = DetectorFamily(
    summary="the judge of embedded scenes, which also names colors (use --colors none)",
    load=load_scene_judge,
    examples=("scenes", "scenes:FOLDER"),
)
PYTHON = DetectorFamily(
    summary="your own: a function or class that takes the device (runs your code)",
    load=load_python,
    examples=("python:MODULE:NAME",),
)
