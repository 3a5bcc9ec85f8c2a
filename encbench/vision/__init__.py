"""Re-encoders of images, each in its own file and registered under ``encbench.reencoders``.

A re-encoder file ends with ``FAMILY = ReEncoderFamily(...)``. To add one, write such a file
and name it in an entry point.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from .. import registry
from ..data.hub import ResolvedModel
from ..device import choose_device
from ..images import open_image
from ..specs import Spec
from ..types import ImageRecord, ReEncoder

__all__ = [
    "ReEncoderFamily",
    "ReEncoderSpec",
    "in_batches",
    "load_reencoder",
    "open_image",
    "reencoder_family",
]

T = TypeVar("T")
THREADS = 8


class ReEncoderSpec(Spec):
    """A parsed ``family[:source][@revision][?option=value&...]``."""

    HINT = (
        "write family[:source][@revision][?option=value&...], for example dinov3, labels or pixels"
    )


@dataclass(frozen=True)
class ReEncoderFamily:
    """How one kind of re-encoder is found and loaded.

    Attributes:
        name: what a spec begins with.
        summary: one line for ``encbench list``.
        examples: spec strings that work.
        needs: what it reads of an image.
        resolve: finds the files (downloading them if it must) and the revision that pins them.
        load: builds the re-encoder from resolved files on a device.
        requires: what `resolve` would download, as (repository, revision) pairs; must not touch
            the network.
        options: names of its options, with what each does.
        version: raised when the same weights and options would give other vectors.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    needs: Literal["pixels", "instances"]
    resolve: Callable[[ReEncoderSpec], ResolvedModel]
    load: Callable[[ReEncoderSpec, ResolvedModel, torch.device], ReEncoder]
    requires: Callable[[ReEncoderSpec], list[tuple[str, str | None]]] = lambda spec: []
    options: Mapping[str, str] = field(default_factory=dict)
    version: int = 1


def reencoder_family(text: str) -> tuple[ReEncoderFamily, ReEncoderSpec]:
    """The family that a spec string names, and the parsed spec.

    Raises:
        UsageError: if the text is no spec, or there is no such family or option.
    """
    spec = ReEncoderSpec.parse(text)
    return registry.get_family("re-encoder", spec.family, dict(spec.options)), spec


def load_reencoder(text: str, device: str | torch.device = "auto") -> ReEncoder:
    """Find, download if needed, and load a re-encoder by its spec string.

    Raises:
        EncbenchError: in one line: unknown family or option, files missing or unsafe, hub
            unreachable, license not accepted.
    """
    family, spec = reencoder_family(text)
    return family.load(spec, family.resolve(spec), choose_device(device))


def in_batches(
    prepare: Callable[[ImageRecord], T], images: Sequence[ImageRecord], size: int
) -> Iterator[list[T]]:
    """Prepare images in threads, a few batches ahead of the consumer.

    So decoding goes on while a device computes, and memory holds three batches at most.

    Raises:
        ImageError: from ``prepare``, when the batch that holds the image is taken.
    """
    ahead: deque[list[Future[T]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for start in range(0, len(images), size):
                ahead.append([pool.submit(prepare, i) for i in images[start : start + size]])
                if len(ahead) == 3:
                    yield [future.result() for future in ahead.popleft()]
            while ahead:
                yield [future.result() for future in ahead.popleft()]
        finally:
            pool.shutdown(cancel_futures=True)
