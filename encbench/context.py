"""What probes work on: the data, and encoders and images behind the store."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from PIL.Image import new as new_image
from torch import Tensor

from .config import RunConfig
from .data.datasets import DatasetSpec, DatasetUse, load_dataset, load_prompt_set
from .data.scenes.default import scene_captions, scene_prompts_long
from .encode import StoredEncoder, bytes_of
from .encoders import EncoderSpec
from .errors import DataError, ImageError
from .files import digest
from .progress import log
from .shards import held_encoder, require_revision
from .store import Store, digest_of_files
from .types import (
    EncoderCard,
    ImageRecord,
    ImageTextDataset,
    JointEncoder,
    ProbeSpec,
    PromptSet,
    ReEncoder,
    ReEncoderCard,
    TextEncoder,
)
from .vision import load_reencoder, open_image, reencoder_family

LARGE = 50_000_000  # parameters from which on tokens are stored


@dataclass(frozen=True)
class Data:
    """The data of a run. ``None`` for a kind that was not given."""

    captions: ImageTextDataset | None
    prompts: PromptSet | None

    def of(self, spec: ProbeSpec) -> str:
        """The data that a probe's scores depend on, as 'name@pin'."""
        kinds = (("captions", self.captions), ("prompts", self.prompts))
        used = [f"{s.name}@{s.pin}" for kind, s in kinds if s is not None and kind in spec.reads]
        return " + ".join([spec.dataset, *used] if spec.dataset else used)


def load_run_data(config: RunConfig) -> Data:
    """The datasets that the configuration names; the embedded scenes where it names none.

    Raises:
        DataError: one line about what is missing or broken.
    """
    dataset, prompt_set = config.dataset, config.prompt_set
    if dataset is None and config.coco_split is not None:
        raise DataError(
            f"COCO {config.coco_split} is needed and no folder given: encbench data fetch coco "
            f"--split {config.coco_split} --to FOLDER, then --coco FOLDER"
        )
    if dataset is None and prompt_set is None:
        return Data(scene_captions(), scene_prompts_long())
    captions = None
    if dataset is not None:
        missing = config.allow_missing_images or config.re_encoder == "none"
        captions = load_dataset(dataset, DatasetUse(allow_missing=missing, store=config.store))
    if dataset is not None and dataset.family == "scenes" and prompt_set is None:
        prompt_set = DatasetSpec("scenes")
    return Data(captions, load_prompt_set(prompt_set) if prompt_set else None)


class Context:
    """What a probe gets: an encoder with one pooling, behind its store, and the data."""

    def __init__(
        self,
        encoder: StoredEncoder,
        pool: str,
        data: Data,
        images: Images | None,
        options: Mapping[str, Any],
    ) -> None:
        self.card: EncoderCard = encoder.card  # loads the encoder where nothing is stored yet
        self.encoder = encoder
        self.pool = pool
        self.captions = data.captions
        self.prompts = data.prompts
        self.images = images
        self.reencoder: ReEncoderCard | None = images.card if images else None
        self.options = options
        self._known: Mapping[str, Tensor] = {}

    def prepare(self, whole: Sequence[str], *shortened: Sequence[str]) -> None:
        every = [prompt for prompts in shortened for prompt in prompts]
        self._known = self.encoder.beginnings(whole, every, self.pool) or {}

    def embed(self, prompts: Sequence[str]) -> Float[Tensor, "N P"]:
        return self.encoder.embed(prompts, self.pool, self._known)

    def tokens(self, prompts: Sequence[str]) -> list[Float[Tensor, "_ D"]]:
        return [rows.float() for rows in self.encoder.tokens(prompts, keep=False)]

    def condition(
        self, prompts: Sequence[str]
    ) -> tuple[list[Float[Tensor, "_ D"]], Float[Tensor, "N P"] | None]:
        # a large encoder is slower than reading its stored tokens
        keep = self.card.parameters > LARGE
        tokens, pooled = self.encoder.condition(prompts, keep=keep)
        return [rows.float() for rows in tokens], pooled

    def embed_joint(self, prompts: Sequence[str]) -> Float[Tensor, "N P"] | None:
        if not self.encoder.about.joint:
            return None
        return self.encoder.embed(prompts, "own")

    def embed_images(self, images: Sequence[ImageRecord]) -> Float[Tensor, "N P"]:
        assert self.images is not None
        return self.images.joint(self.encoder, images)

    def reencode(self, images: Sequence[ImageRecord]) -> Float[Tensor, "N P"]:
        assert self.images is not None
        return self.images.reencode(images)

    def truncated(self, prompts: Sequence[str]) -> Bool[Tensor, " N"]:
        return self.encoder.truncated(prompts, self.pool)

    def throughput(self, prompts: Sequence[str]) -> Mapping[str, float]:
        return {
            **self.encoder.throughput(prompts, self.pool),
            "latency_ms": self.encoder.about.latency_ms,
            "memory_bytes": bytes_of(self.encoder.card),
        }


class Images:
    """Image vectors behind the store, from the re-encoder or from an encoder's joint space."""

    def __init__(
        self, reencoder: ReEncoder, store: Store, device: torch.device, *, skip_broken: bool
    ) -> None:
        self.reencoder = reencoder
        self.device = device
        self.card = reencoder.card
        self.store = store
        self.skip_broken = skip_broken

    def reencode(self, images: Sequence[ImageRecord]) -> Float[Tensor, "N P"]:
        """A row for each image; NaN where its file is broken and that is allowed."""
        if self.card.needs == "instances":
            return self.reencoder.encode(images)
        who = {
            "re-encoder": self.card.spec,
            "revision": self.card.revision,
            "version": reencoder_family(self.card.spec)[0].version,
        }
        job = ImageJob(self.card.spec, self.card.revision, self.device.type)
        return self._rows(who, images, job, lambda: _of_reencoder(self.reencoder))

    def joint(self, encoder: StoredEncoder, images: Sequence[ImageRecord]) -> Float[Tensor, "N P"]:
        """Image vectors of an encoder's joint space; NaN as above."""
        job = ImageJob(encoder.inner, encoder.resolved.revision, encoder.device.type)
        who = {"joint space": encoder.identity}
        return self._rows(who, images, job, lambda: _of_joint_space(encoder.encoder))

    def _rows(
        self,
        who: Mapping[str, Any],
        images: Sequence[ImageRecord],
        job: ImageJob,
        load: Callable[[], Embedder],
    ) -> Tensor:
        hashes = digest_of_files([image.path for image in images if image.path is not None])
        return self.store.rows(
            {**who, "images": digest(hashes)},
            len(images),
            lambda span: _vectors(load(), [images[i] for i in span], self.skip_broken),
            what=f"images by {job.who}",
            elsewhere=dataclasses.replace(
                job,
                images=tuple(dataclasses.replace(image, instances=None) for image in images),
                skip_broken=self.skip_broken,
            ),
        )


class Embedder(NamedTuple):
    """Makes vectors of images; with their width."""

    encode: Callable[[Sequence[ImageRecord]], Tensor]
    width: Callable[[], int]


@dataclass(frozen=True)
class ImageJob:
    """Vectors of images in another process of the command, which has the same files; picklable.

    Attributes:
        who: a re-encoder, or an encoder whose joint space is meant.
        revision: that the leader found; another one is refused.
        device: its type; each process has a card of its own.
    """

    who: str | EncoderSpec
    revision: str
    device: str
    images: tuple[ImageRecord, ...] = ()
    skip_broken: bool = False

    def __call__(self, span: range) -> Tensor:
        batch = [self.images[i] for i in span]
        return _vectors(self._load(), batch, self.skip_broken).float().cpu()

    def _load(self) -> Embedder:
        if isinstance(self.who, EncoderSpec):
            return _of_joint_space(held_encoder(self.who, self.revision, self.device))
        reencoder = _held_reencoder(self.who, self.device)
        require_revision(self.who, reencoder.card.revision, self.revision)
        return _of_reencoder(reencoder)


@lru_cache(maxsize=1)
def _held_reencoder(text: str, device: str) -> ReEncoder:
    return load_reencoder(text, torch.device(device))


def _of_reencoder(reencoder: ReEncoder) -> Embedder:
    return Embedder(reencoder.encode, lambda: reencoder.card.dim)


def _of_joint_space(encoder: TextEncoder) -> Embedder:
    assert isinstance(encoder, JointEncoder)
    return Embedder(
        lambda batch: encoder.encode_images([open_image(image) for image in batch]),
        lambda: encoder.encode_images([new_image("RGB", (8, 8))]).shape[1],
    )


def _vectors(embedder: Embedder, batch: Sequence[ImageRecord], skip_broken: bool) -> Tensor:
    """Vectors of images; if one is broken, an error or a row of NaN for it."""
    try:
        return embedder.encode(batch)
    except ImageError as error:
        if not skip_broken:
            raise ImageError(
                f"{error}; restore it, or add --allow-missing-images to leave broken images "
                "unscored"
            ) from error
    return torch.stack([_vector(embedder, image) for image in batch])


def _vector(embedder: Embedder, image: ImageRecord) -> Tensor:
    try:
        return embedder.encode([image])[0].cpu()
    except ImageError as error:
        log.warning("%s; unscored", error)
        return torch.full((embedder.width(),), float("nan"))


def load_images(config: RunConfig, data: Data, store: Store, device: torch.device) -> Images | None:
    """The re-encoder behind its store; None if no probe has images."""
    text = config.chosen_re_encoder
    if text == "none" or data.captions is None:
        return None
    family, _ = reencoder_family(text)
    images = data.captions.images
    if family.needs == "instances":
        if not any(image.instances for image in images):
            raise DataError(
                f"--re-encoder {text} needs annotated objects, and "
                f"{data.captions.name} has none; add annotations/instances_<split>.json, or use "
                "another re-encoder"
            )
    elif not any(image.path is not None for image in images):
        log.info(
            "%s has no images, so encoders are ranked by recall of captions", data.captions.name
        )
        return None
    reencoder = load_reencoder(text, device)
    if hasattr(reencoder, "with_labels"):
        reencoder = reencoder.with_labels(data.captions.labels)
    return Images(reencoder, store, device, skip_broken=config.allow_missing_images)
