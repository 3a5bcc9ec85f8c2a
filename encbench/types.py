"""The core types. No I/O here, and no import of a sibling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from PIL.Image import Image
from torch import Tensor

# --------------------------------------------------------------------- text encoders


@dataclass(frozen=True)
class TextFeatures:
    """Features of a batch of B prompts.

    Attributes:
        tokens: hidden states, one vector for each position.
        mask: True where a position holds a real token. Special tokens that the
            model itself adds (BOS, EOS, CLS, a chat template) are real tokens.
        pooled: the model's own sentence vector, or None if it has none.
        truncated: True where the prompt was too long and was cut.
    """

    tokens: Float[Tensor, "B L D"]
    mask: Bool[Tensor, "B L"]
    truncated: Bool[Tensor, " B"]
    pooled: Float[Tensor, "B P"] | None = None


@dataclass(frozen=True)
class EncoderCard:
    """Identifies an encoder, for records and reports.

    Attributes:
        spec: the canonical spec string, as in records and on the command line.
        family: the adapter's name in the registry.
        source: hub id, folder or architecture, as in the spec.
        revision: 40-hex hub revision or the content hash of the weights.
        dim: width D of the token features.
        max_tokens: longest prompt in tokens, special ones included; None = no limit.
        license: of the weights, as their own card says; 'unknown' if it doesn't.
        recipe: how the prompt is wrapped before tokenization; 'plain' = not at all.
        layer: hidden state of the tokens: 'last', an index, 'penultimate', 'normavg'.
        pooling: the pooling that the spec asks for.
        dtype: of the computation, e.g. 'float32'.
        parameters: number of weights used to encode text.
        stage: of training; 'final' by default.
        control: True for an encoder that serves for comparison only.
        quantization: of the stored weights, such as 'Q4_K_M'; '' = none. The computation is in
            ``dtype``.
    """

    spec: str
    family: str
    source: str
    revision: str
    dim: int
    max_tokens: int | None
    license: str = "unknown"
    recipe: str = "plain"
    layer: str = "last"
    pooling: str = "mean"
    dtype: str = "float32"
    parameters: int = 0
    stage: str = "final"
    control: bool = False
    quantization: str = ""


@runtime_checkable
class TextEncoder(Protocol):
    """Turns prompts into features.

    ``encode`` may be given any number of prompts and returns features on any device.
    The result for a prompt must not depend on its neighbors in the batch.
    """

    card: EncoderCard

    def encode(self, prompts: Sequence[str]) -> TextFeatures: ...


@runtime_checkable
class JointEncoder(TextEncoder, Protocol):
    """A text encoder whose ``pooled`` vectors share a space with image vectors."""

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "N P"]: ...


# ------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Instance:
    """One annotated object: class name, area in pixels, box (x0, y0, x1, y1) in pixels."""

    label: str
    area: float
    box: tuple[float, float, float, float]


@runtime_checkable
class ImageSource(Protocol):
    """The bytes of an image: a Path, or a part of a larger file, such as a member of a tar. Its
    text names it in messages."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes: ...


@dataclass(frozen=True)
class ImageRecord:
    """One image of a dataset. ``path`` is None when its file is not there;
    ``instances`` is None when the dataset has no annotations for it."""

    image_id: int
    file_name: str
    path: ImageSource | None
    width: int
    height: int
    instances: tuple[Instance, ...] | None = None
    license: str = ""
    url: str = ""


@dataclass(frozen=True)
class Caption:
    caption_id: int
    image_id: int
    text: str


@dataclass(frozen=True)
class CaptionSet:
    """Images with their captions.

    Attributes:
        name: e.g. 'coco-val2017'.
        pin: sha256 over the annotation files it was read from.
        images: in the order of their ids.
        captions: in the order of their ids; several for one image.
        labels: all class names that ``instances`` may use, in the dataset's order.
        notes: warnings in words (files missing, captions skipped).
    """

    name: str
    pin: str
    images: tuple[ImageRecord, ...]
    captions: tuple[Caption, ...]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@runtime_checkable
class ImageTextDataset(Protocol):
    """Images with captions, as the retrieval probe and a training read them; attributes as in
    :class:`CaptionSet`, which is one. A dataset that has ``draw(side)``, giving all images as
    uint8 (N, 3, side, side), is trained on as drawn; any other's images are read from files."""

    @property
    def name(self) -> str: ...
    @property
    def pin(self) -> str: ...
    @property
    def images(self) -> Sequence[ImageRecord]: ...
    @property
    def captions(self) -> Sequence[Caption]: ...
    @property
    def labels(self) -> Sequence[str]: ...
    @property
    def notes(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Prompt:
    prompt_id: str
    text: str


@dataclass(frozen=True)
class PromptSet:
    """Long prompts, e.g. DPG-Bench. ``pin`` is a sha256 over ids and texts."""

    name: str
    pin: str
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...] = ()


# ------------------------------------------------------------------------ re-encoders


@dataclass(frozen=True)
class ReEncoderCard:
    """Identifies an image re-encoder. ``needs`` says what it reads of an image."""

    spec: str
    revision: str
    dim: int
    needs: Literal["pixels", "instances"] = "pixels"
    license: str = "unknown"
    parameters: int = 0


@runtime_checkable
class ReEncoder(Protocol):
    """Turns images into vectors, to compare retrieved images with a query's own.

    Raises:
        ImageError: naming the file, if one image cannot be read.
    """

    card: ReEncoderCard

    def encode(self, images: Sequence[ImageRecord]) -> Float[Tensor, "N P"]: ...


# ----------------------------------------------------------------------------- probes


NULLABLE = {"null": math.nan}
"""Metadata of a dataclass field for a number that may be NaN, which is null in JSON."""


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float = field(metadata=NULLABLE)
    low: float = field(metadata=NULLABLE)
    high: float = field(metadata=NULLABLE)


@dataclass(frozen=True)
class Score:
    """A value with its 95 % interval. ``n``: items behind it; ``unscored``: items that failed."""

    value: float = field(metadata=NULLABLE)
    n: int
    low: float = field(metadata=NULLABLE)
    high: float = field(metadata=NULLABLE)
    unscored: int = 0


@dataclass(frozen=True)
class ProbeDisplay:
    """How reports show a probe. It is part of the probe's records, so that reports import no probe.

    Attributes:
        section: heading of the report's section that the probe belongs to; '' = its own name.
        scores: columns of its table after the main metric, in this order: name -> meaning in a few
            words ('' = the name suffices). Without any, all scores are shown.
        panels: of the figure of its scores: panel -> the scores drawn in it. Without any, each
            of ``scores`` has a panel. Not used where a registered figure names the probe.
        caption: of that figure.
        chance: score of an encoder that ignores its prompt, in those panels; None if unknown.
        definitions: term -> how it is computed.
        similarity: of the two histograms in the series 'similarity': the kind of text, the pairs
            that belong together, and the pairs that do not.
    """

    section: str = ""
    scores: Mapping[str, str] = field(default_factory=dict)
    panels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    caption: str = ""
    chance: float | None = None
    definitions: Mapping[str, str] = field(default_factory=dict)
    similarity: tuple[str, str, str] = ("texts", "pairs that belong together", "random pairs")


@dataclass(frozen=True)
class ProbeSpec:
    """What a probe measures.

    Attributes:
        name: as in the registry, in file names and in reports.
        version: raised whenever the same input would give another score.
        dataset: data that it uses besides ``reads``; the run sets name and pin of all data.
        main_metric: the score that ranks by this probe alone.
        direction: which way is better.
        title: a few words for a reader.
        orders: further scores by which encoders can be ordered (the same way round).
        reads: the run's data that its scores depend on: 'captions', 'prompts', 'images'.
        needs: those without which it has nothing to measure.
        display: how reports show it. No score depends on it.
    """

    name: str
    version: int
    main_metric: str
    title: str
    dataset: str = ""
    direction: Literal["higher", "lower"] = "higher"
    orders: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("captions", "prompts", "images")
    needs: tuple[str, ...] = ()
    display: ProbeDisplay = field(default_factory=ProbeDisplay)


@dataclass(frozen=True)
class Measurement:
    """The result of a probe for one encoder.

    Attributes:
        scores: by name.
        items: one row for each item (image, prompt), column ``item`` holding its id;
            the columns named in ``item_scores`` can be resampled.
        item_scores: score name -> how its value follows from item columns. A name of one
            column stands for that column's mean; a triple (value, floor, ceiling) for
            (mean value - mean floor) / (mean ceiling - mean floor), where 0/0 is 0.
        series: plot data by name (curves, histograms), JSON-ready.
        notes: warnings in words.
        main_metric: the main score, where the data at hand do not allow the probe's own.
    """

    scores: Mapping[str, Score]
    items: pd.DataFrame
    item_scores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    series: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    main_metric: str = ""


@runtime_checkable
class ProbeContext(Protocol):
    """What a probe may use: an encoder with its store, the data, the re-encoder.

    All vectors come back in the order of the arguments, float32, on the CPU.
    """

    card: EncoderCard
    captions: ImageTextDataset | None
    prompts: PromptSet | None
    reencoder: ReEncoderCard | None
    options: Mapping[str, Any]

    def prepare(self, whole: Sequence[str], *shortened: Sequence[str]) -> None:
        """Announce lists of prompts, shortened at their ends, that :meth:`embed` will get: a causal
        encoder then makes them in the pass over the full prompts. Calling it is optional."""
        ...

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "N P"]:
        """Pooled vectors, by the pooling under test."""
        ...

    def tokens(self, prompts: Sequence[str]) -> list[Float[Tensor, "_ D"]]:
        """Features of each prompt's real tokens: what a generator's attention reads."""
        ...

    def condition(
        self, prompts: Sequence[str]
    ) -> tuple[list[Float[Tensor, "_ D"]], Float[Tensor, "N P"] | None]:
        """The input of a generator: :meth:`tokens`, and the encoder's own pooled vectors or
        None."""
        ...

    def embed_joint(self, prompts: Sequence[str]) -> Float[Tensor, "N P"] | None:
        """The model's own pooled vectors if it has a joint space with images, else None."""
        ...

    def embed_images(self, images: Sequence[ImageRecord]) -> Float[Tensor, "N P"]:
        """Image vectors of the model's joint space."""
        ...

    def reencode(self, images: Sequence[ImageRecord]) -> Float[Tensor, "N P"]:
        """Image vectors of the re-encoder; a row of NaN for an image that cannot be read."""
        ...

    def truncated(self, prompts: Sequence[str]) -> Bool[Tensor, " N"]:
        """Which prompts the encoder cut."""
        ...

    def throughput(self, prompts: Sequence[str]) -> Mapping[str, float]:
        """How fast these prompts were encoded, as measured when they were."""
        ...


@runtime_checkable
class Probe(Protocol):
    """One measurement of one encoder.

    ``run`` draws all its randomness from ``seed`` and looks at no more than ``limit``
    items (all of them if None).
    """

    spec: ProbeSpec

    def run(self, context: ProbeContext, *, seed: int, limit: int | None = None) -> Measurement: ...


# -------------------------------------------------------------------- images as scenes


@dataclass(frozen=True)
class Detection:
    """One object that a detector found: box (x0, y0, x1, y1) in pixels."""

    label: str
    box: tuple[float, float, float, float]
    score: float
    mask: Bool[Tensor, "H W"] | None = None
    color: str | None = None


@runtime_checkable
class Detector(Protocol):
    """Finds objects. If it sets their colors, no color classifier is used.

    Attributes:
        name: identifies its results, e.g. a spec with its revision.
        labels: all classes that it can find, by GenEval's names.
    """

    name: str
    labels: tuple[str, ...]

    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        """The objects of each image, with scores from .3 up; an image's must not depend on the
        others given with it."""
        ...


# -------------------------------------------------------------- metrics of generated images


@runtime_checkable
class ImagePrompt(Protocol):
    """What an image was generated from. A metric may need more, e.g. GenEval's clauses.

    ``prompt_id`` is its number in a folder of images; ``task`` the kind of prompt, '' if none.
    """

    @property
    def prompt_id(self) -> int: ...
    @property
    def task(self) -> str: ...
    @property
    def text(self) -> str: ...


@dataclass(frozen=True)
class MetricSpec:
    """What a metric of generated images measures.

    Attributes:
        name: as in the registry, on the command line and in results.
        title: a few words for a reader.
        unit: of a value, e.g. 'share of correct images'.
        version: raised whenever the same images would be scored otherwise.
        direction: which way is better.
        tasks: how values are averaged: over the images of each of these tasks, then over tasks;
            () = over all images.
        needs: what it reads of a prompt besides its text, e.g. 'clauses'.
        whole_set: it has one value for a set of images, from features of each; see
            :class:`SetMetric`.
    """

    name: str
    title: str
    unit: str
    version: int = 1
    direction: Literal["higher", "lower"] = "higher"
    tasks: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    whole_set: bool = False


@dataclass(frozen=True)
class ImageScore:
    """A metric's result for one image. Metrics may return a subclass with more fields.

    Attributes:
        value: None if the image could not be scored, or if the metric scores whole sets.
        problem: why it could not be scored; '' if it could.
        parts: numbers that the value was computed from, by name. Parts named 'group/item', e.g.
            answers to questions, are also averaged over all images of a set for each group.
    """

    value: float | None = None
    problem: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class ImageMetric(Protocol):
    """Scores each image by itself.

    Attributes:
        name: a spec string with models and settings, which identifies its results.
    """

    spec: MetricSpec
    name: str

    def score(
        self, prompts: Sequence[ImagePrompt], images: Sequence[Image]
    ) -> Sequence[ImageScore]:
        """One score for each image, given with its prompt."""
        ...


@runtime_checkable
class SetMetric(Protocol):
    """Scores a set of images as a whole, e.g. by its distance to a reference set, which is the
    metric's own (an option of its spec). Its spec has ``whole_set``.

    Attributes:
        name: a spec string with models, settings and reference set, which identifies its results.
    """

    spec: MetricSpec
    name: str

    def extract(
        self, prompts: Sequence[ImagePrompt], images: Sequence[Image]
    ) -> Float[np.ndarray, "N F"]:
        """Features of each image, given with its prompt, as float32; an image's must not depend
        on the others given with it."""
        ...

    def reduce(self, features: Float[np.ndarray, "N F"]) -> float:
        """The set's value. ``features`` may be a memory map.

        Raises:
            DataError: if there are too few images.
        """
        ...


Metric = ImageMetric | SetMetric
"""What generated images are scored by; registered under ``encbench.metrics``."""


# --------------------------------------------------------------------- trained outcomes


class Cell(NamedTuple):
    """The conditions of a score of trained models. No field has a default, so that none is
    forgotten.

    ``str(cell)`` is its key in files; :meth:`parse` reads it back.

    Attributes:
        metric: name of the metric, as in the registry.
        steps: number of sampling steps.
        tier: wording of the prompts: 'A' as in training, 'B' and 'C' in other words; 'file' for
            prompts from a file.
        combos: 'seen' or 'held-out' combinations of attributes.
    """

    metric: str
    steps: int
    tier: str
    combos: str

    @property
    def group(self) -> tuple[str, str]:
        """Tier and combos: which prompts were used."""
        return self.tier, self.combos

    def __str__(self) -> str:
        return "&".join(f"{name}={value}" for name, value in self._asdict().items())

    @classmethod
    def parse(cls, key: str) -> Cell:
        """Read a key; one of an earlier version names no metric, which was GenEval.

        Raises:
            ValueError: if it is not the key of a cell.
        """
        fields = dict(part.partition("=")[::2] for part in key.split("&"))
        if not {"steps", "tier", "combos"} <= set(fields) <= set(cls._fields):
            raise ValueError(f"'{key}' is not like metric=geneval&steps=4&tier=A&combos=seen")
        steps = int(fields["steps"])
        return cls(fields.get("metric", "geneval"), steps, fields["tier"], fields["combos"])
