"""Datasets of images with captions, for the retrieval probe and for training alike.

A dataset is registered under ``encbench.datasets`` by a file that ends with ``FAMILY =
DatasetFamily(...)``, and named by a spec: ``family[:source][?option=value&...]``, such as
``coco:FOLDER?split=val2017``, ``folder:FOLDER`` or ``scenes:scenes-easy``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import DataError, UsageError
from ..schema import INT64, check_text
from ..types import Caption, CaptionSet, ImageRecord, ImageSource, ImageTextDataset, PromptSet
from .spec import DatasetSpec

__all__ = [
    "DatasetFamily",
    "DatasetSpec",
    "DatasetUse",
    "PromptFamily",
    "load_dataset",
    "load_prompt_set",
]


@dataclass(frozen=True)
class DatasetUse:
    """What a dataset is wanted for.

    Attributes:
        training: images are to be trained on; a dataset with splits gives those that no probe
            and no test reads.
        count: how many images; None for as many as there are, or the dataset's own choice.
        seed: of data that are drawn.
        allow_missing: accept images whose files are not there.
        store: folder of the store, where an index of large files is kept; None for the default.
    """

    training: bool = False
    count: int | None = None
    seed: int = 0
    allow_missing: bool = False
    store: Path | None = None


@dataclass(frozen=True)
class DatasetFamily:
    """How one kind of dataset is found and read.

    Attributes:
        name: what a spec begins with.
        summary: one line for ``encbench list datasets``.
        examples: specs that work.
        load: reads it; raises DataError in one line that names the file.
        options: names of the spec's options, with what each does.
        revisions: whether a source may have an ``@revision``.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    load: Callable[[DatasetSpec, DatasetUse], ImageTextDataset]
    options: Mapping[str, str] = field(default_factory=dict)
    revisions: bool = False


@dataclass(frozen=True)
class PromptFamily:
    """How one kind of prompt set (group ``encbench.prompts``) is read; fields as in
    :class:`DatasetFamily`, but ``load`` takes the spec alone."""

    name: str
    summary: str
    examples: tuple[str, ...]
    load: Callable[[DatasetSpec], PromptSet]
    options: Mapping[str, str] = field(default_factory=dict)


def load_dataset(spec: str | DatasetSpec, use: DatasetUse | None = None) -> ImageTextDataset:
    """Read a dataset and check what every reader relies on.

    Raises:
        UsageError: if the spec is none, or has unknown parts.
        DataError: in one line, if the data are missing or broken.
    """
    family, spec = _family("dataset", spec)
    data: ImageTextDataset = family.load(spec, use or DatasetUse())
    if not isinstance(data, CaptionSet):  # a class of another package
        check_dataset(data, str(spec))
    return data


def load_prompt_set(spec: str | DatasetSpec) -> PromptSet:
    """Read a prompt set, such as ``dpg:FOLDER``.

    Raises:
        UsageError: if the spec is none, or has unknown parts.
        DataError: in one line, if it is missing or broken.
    """
    family, spec = _family("prompt-set", spec)
    loaded: PromptSet = family.load(spec)
    return loaded


def clean_captions(texts: Iterable[str], where: str) -> list[str]:
    """The captions of one image, without spaces around them and without empty ones.

    Raises:
        DataError: if one is not text.
    """
    return [text.strip() for text in texts if check_text(text, where, DataError).strip()]


def number_pairs(
    name: str,
    pin: str,
    pairs: Iterable[tuple[str, ImageSource | None, Sequence[str]]],
    notes: Sequence[str] = (),
) -> CaptionSet:
    """A dataset of images (name, file, captions), numbered from 1 as they come."""
    images: list[ImageRecord] = []
    captions: list[Caption] = []
    for name_of_image, file, texts in pairs:
        images.append(ImageRecord(len(images) + 1, name_of_image, file, 0, 0))
        for text in texts:
            captions.append(Caption(len(captions) + 1, len(images), text))
    return CaptionSet(name, pin, tuple(images), tuple(captions), notes=tuple(notes))


def captions_by_image(data: ImageTextDataset) -> dict[int, list[Caption]]:
    """The captions of each image that has any, by the image's id."""
    listed: dict[int, list[Caption]] = {}
    for caption in data.captions:
        listed.setdefault(caption.image_id, []).append(caption)
    return listed


def check_dataset(data: ImageTextDataset, where: str) -> None:
    """Check ids and texts of a dataset.

    Raises:
        DataError: in one line that begins with ``where``.
    """
    known = {image.image_id for image in data.images}
    ids = {caption.caption_id for caption in data.captions}
    if len(known) < len(data.images) or len(ids) < len(data.captions):
        raise DataError(f"{where}: an id appears twice among its images or captions")
    if not all(type(number) is int and number in INT64 for number in known | ids):
        raise DataError(f"{where}: ids must be whole numbers of at most 64 bits")
    for caption in data.captions:
        if caption.image_id not in known:
            raise DataError(
                f"{where}: caption {caption.caption_id} belongs to image {caption.image_id}, which "
                "does not exist"
            )
        check_text(caption.text, f"{where}: caption {caption.caption_id}", DataError)


def _family(kind: str, spec: str | DatasetSpec) -> tuple[Any, DatasetSpec]:
    spec = DatasetSpec.parse(spec) if isinstance(spec, str) else spec
    family = registry.get_family(kind, spec.family, dict(spec.options))
    if spec.revision is not None and not getattr(family, "revisions", False):
        raise UsageError(f"'{spec}': a {kind} has no revision, so no '@{spec.revision}'")
    return family, spec
