"""Text encoders: one adapter a file, each registered under ``encbench.encoders``.

An adapter file ends with ``FAMILY = EncoderFamily(...)``. To add one, write such a file and
name it in an entry point. Check it with ``python -m encbench.encoders.checks SPEC``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .. import registry
from ..data.hub import ResolvedModel
from ..errors import UnknownNameError
from .guard import one_line_errors
from .spec import COMMON_OPTIONS, EncoderSpec

if TYPE_CHECKING:
    import torch

    from ..types import TextEncoder

__all__ = [
    "EncoderFamily",
    "EncoderSpec",
    "family_of",
    "find_files",
    "load_encoder",
    "load_resolved",
]


@dataclass(frozen=True)
class EncoderFamily:
    """How one kind of encoder is found and loaded.

    Attributes:
        name: the part of a spec before the colon.
        summary: one line for ``encbench list encoders``.
        examples: spec strings that work.
        resolve: finds the files (downloading them if it must) and the revision that pins them.
        load: builds the encoder from resolved files on a device.
        requires: what `resolve` would download, as (repository, revision) pairs; used by
            ``--dry-run``, so it must not touch the network.
        options: options of this family beside the common ones, with what each does.
        version: raised when the same weights and options would give other features.
        control: True if its encoders serve for comparison only.
        real_weights: what has been run with real pretrained weights, in words.
        marks: names of files that mark a folder as one of this family.
        model_types: values of ``model_type`` in config.json that mark a folder without such a file.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    resolve: Callable[[EncoderSpec], ResolvedModel]
    load: Callable[[EncoderSpec, ResolvedModel, torch.device], TextEncoder]
    requires: Callable[[EncoderSpec], list[tuple[str, str | None]]] = lambda spec: []
    options: Mapping[str, str] = field(default_factory=dict)
    version: int = 1
    control: bool = False
    real_weights: str = "no; tiny random checkpoints in the published format only"
    marks: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()


def family_of(spec: EncoderSpec) -> EncoderFamily:
    """The adapter for a spec.

    Raises:
        UnknownNameError: if there is no such family, or it has no such option.
    """
    family: EncoderFamily = registry.get("encoder", spec.family)
    known = {**COMMON_OPTIONS, **family.options}
    for name, _ in spec.options:
        if name not in known:
            raise UnknownNameError(f"option of '{spec.family}:' encoders", name, known)
    return family


def find_files(family: EncoderFamily, spec: EncoderSpec) -> ResolvedModel:
    """The files of a spec and what pins them.

    Raises:
        EncbenchError: in one line, whatever the adapter raises.
    """
    with one_line_errors(f"finding the files of {spec}"):
        return family.resolve(spec)


def load_resolved(
    family: EncoderFamily, spec: EncoderSpec, resolved: ResolvedModel, device: torch.device
) -> TextEncoder:
    """Load the encoder of a spec whose files were found.

    Raises:
        EncbenchError: in one line, whatever the adapter raises.
    """
    with one_line_errors(f"loading {spec}"):
        return family.load(spec, resolved, device)


def load_encoder(text: str, device: str | torch.device = "auto") -> TextEncoder:
    """Find, download if needed, and load an encoder by its spec string.

    Raises:
        EncbenchError: in one line: unknown family or option, files missing or unsafe,
            hub unreachable, license not accepted.
    """
    from ..device import choose_device
    from .detect import complete_spec

    spec = EncoderSpec.parse(complete_spec(text))
    family = family_of(spec)
    return family.load(spec, family.resolve(spec), choose_device(device))
