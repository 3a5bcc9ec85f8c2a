"""Your own encoder: ``python:package.module:name`` or ``python:path/to/file.py:name``."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from ..data.hub import ResolvedModel
from ..errors import EncoderOutputError, ModelError, UsageError
from ..files import digest, digest_files, expand_home, slug
from ..types import EncoderCard, JointEncoder, TextEncoder, TextFeatures
from . import EncoderFamily
from .checks import validate_features
from .guard import one_line_errors
from .spec import COMMON_OPTIONS, EncoderSpec


class CheckedEncoder:
    """A custom encoder whose every output is checked."""

    def __init__(self, inner: TextEncoder, card: EncoderCard) -> None:
        self.inner, self.card = inner, card

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """What the custom encoder returns.

        Raises:
            EncoderOutputError: if that is not sound, or it raised something itself.
        """
        hint = f"; see where: python -m encbench.encoders.checks '{self.card.spec}' --traceback"
        with one_line_errors(f"encode() of {self.card.spec}", EncoderOutputError, hint):
            features = self.inner.encode(prompts)
        validate_features(features, prompts, self.card)
        return features


class CheckedJointEncoder(CheckedEncoder):
    """A custom encoder with a joint space of texts and images."""

    inner: JointEncoder

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "N P"]:
        """Image vectors, as the custom encoder returns them.

        Raises:
            EncoderOutputError: if they are not one finite vector for each image.
        """
        with one_line_errors(f"encode_images() of {self.card.spec}", EncoderOutputError):
            vectors = self.inner.encode_images(images)
        sound = isinstance(vectors, Tensor) and vectors.ndim == 2 and len(vectors) == len(images)
        if not sound or not vectors.is_floating_point() or not vectors.isfinite().all():
            raise EncoderOutputError(
                f"{self.card.spec}: encode_images() must return a finite float tensor with one row "
                f"for each of {len(images)} images"
            )
        return vectors


OBJECT = "object"
"""``python:object:NAME`` is an encoder that :func:`add_object` was given, in this process only."""
_OBJECTS: dict[str, TextEncoder] = {}
_PROCESS = uuid.uuid4().hex


def add_object(encoder: TextEncoder) -> EncoderSpec:
    """Give an encoder object a spec that this process can load.

    Its revision is new in each process: an object has no content that could be hashed, so its
    features are never taken from an earlier process's store.

    Raises:
        EncoderOutputError: if it has no ``card`` or no ``encode``.
    """
    if inspect.isclass(encoder) or not isinstance(encoder, TextEncoder):
        kind = encoder.__name__ if inspect.isclass(encoder) else type(encoder).__name__
        raise EncoderOutputError(
            f"{kind} is not an encoder: give a spec string or an object with card and encode()"
        )
    name = slug(type(encoder).__name__)
    same = [key for key, value in _OBJECTS.items() if value is encoder]
    key = same[0] if same else f"{name}-{len(_OBJECTS) + 1}" if name in _OBJECTS else name
    _OBJECTS[key] = encoder
    return EncoderSpec.parse(f"python:{OBJECT}:{key}")


def _parts(spec: EncoderSpec) -> tuple[str, str]:
    module, colon, attribute = spec.source.rpartition(":")
    if not colon or not module or not attribute:
        raise UsageError(
            f"'{spec}' must be python:module:attribute or python:path/to/file.py:attribute"
        )
    return module, attribute


def _file(spec: EncoderSpec) -> Path:
    """The source file that a spec names; for a package, its ``__init__.py``."""
    module, _ = _parts(spec)
    if module.endswith(".py"):
        path = expand_home(module)
        if not path.is_file():
            raise ModelError(f"'{spec}': there is no file {path}")
        return path
    with one_line_errors(f"'{spec}': finding the module {module}"):  # imports its package
        found = importlib.util.find_spec(module)
    if found is None or not found.origin or not Path(found.origin).is_file():
        raise ModelError(
            f"'{spec}': there is no module {module}; is it installed, or on PYTHONPATH?"
        )
    return Path(found.origin)


def _attribute(spec: EncoderSpec) -> Any:
    module_name, attribute = _parts(spec)
    if module_name == OBJECT:
        return _object(spec)
    path = _file(spec)
    with one_line_errors(f"'{spec}': importing {path}"):
        if module_name.endswith(".py"):
            name = f"encbench_custom_{digest(str(path.resolve()))[:12]}"
            found = importlib.util.spec_from_file_location(name, path)
            assert found is not None
            assert found.loader is not None
            module = importlib.util.module_from_spec(found)
            sys.modules[name] = module  # dataclasses and pickles look a class's module up
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise ModelError(f"'{spec}': {module_name} has no attribute '{attribute}'")
        value = getattr(value, part)
    return value


def _object(spec: EncoderSpec) -> TextEncoder:
    if (name := _parts(spec)[1]) not in _OBJECTS:
        raise ModelError(
            f"'{spec}': that encoder object existed in another process only; run it again in that "
            "process"
        )
    return _OBJECTS[name]


def _resolve(spec: EncoderSpec) -> ResolvedModel:
    if _parts(spec)[0] == OBJECT:
        return ResolvedModel(None, digest([_PROCESS, id(_object(spec))]))
    path = _file(spec)
    revision = digest_files([path])
    if spec.revision and not revision.startswith(spec.revision):
        raise ModelError(f"'{spec}': {path} has content hash {revision[:12]}..., not that revision")
    return ResolvedModel(None, revision)


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> CheckedEncoder:
    for name, _ in spec.options:
        if name != "pool" and name in COMMON_OPTIONS:
            raise UsageError(
                f"'{spec}': a custom encoder takes no option '{name}'; set it in its code"
            )
    if spec.pool == "mean-padded":
        raise UsageError(f"'{spec}': padding is the custom encoder's own; use pool=mean")
    inner: Any = _attribute(spec)
    if inspect.isclass(inner) or not isinstance(inner, TextEncoder):
        if not callable(inner):
            raise ModelError(
                f"'{spec}' is a {type(inner).__name__}; it must be a TextEncoder (card and "
                "encode), its class, or a function that makes one"
            )
        with one_line_errors(f"'{spec}': making the encoder"):
            takes_device = "device" in inspect.signature(inner).parameters
            build: Any = inner
            inner = build(device=device) if takes_device else build()
    if not isinstance(inner, TextEncoder) or not isinstance(inner.card, EncoderCard):
        raise EncoderOutputError(
            f"'{spec}' gave a {type(inner).__name__} without card (an EncoderCard) or encode()"
        )
    card = replace(
        inner.card,
        spec=str(spec),
        family=spec.family,
        source=spec.source,
        revision=resolved.revision,
        pooling=spec.pool,
    )
    if isinstance(inner, JointEncoder):
        return CheckedJointEncoder(inner, card)
    return CheckedEncoder(inner, card)


FAMILY = EncoderFamily(
    name="python",
    summary="your own encoder: a class, instance or function of a module or file",
    examples=("python:my_package.my_module:MyEncoder", "python:./my_encoder.py:MyEncoder"),
    resolve=_resolve,
    load=_load,
    real_weights="whatever yours loads",
)
