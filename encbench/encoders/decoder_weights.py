"""Parts of a checkpoint: the language model of one that holds more, without reading the rest.

Tensors are read from safetensors one by one, when transformers puts them into the model, so the
peak is the part's own weights and one or two tensors; the other modules are never touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from ..data.hub import read_weight_map
from ..errors import ModelError
from .hf import quiet, readable_errors, refuse_adapter, spread_arguments
from .spec import EncoderSpec

INDEX = "model.safetensors.index.json"
TEXT_PREFIXES = ("model.language_model.", "language_model.model.", "language_model.", "model.", "")
"""Where published checkpoints of several modalities keep their language model, as
``<prefix>embed_tokens.weight``, ``<prefix>layers...`` and ``<prefix>norm.weight``."""


class StoredTensor:
    """A tensor in a safetensors file. It is read by ``stored[...]``, and each time again: the
    file is closed in between, so that its pages do not stay in memory beside the copies."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name

    def __getitem__(self, index: EllipsisType) -> Tensor:
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(self.name)
        return tensor


def stored_weights(spec: EncoderSpec, folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder's safetensors by name, sharded or not; nothing is read yet.

    Raises:
        ModelError: if there are none, or a file is damaged or missing.
    """
    from safetensors import safe_open

    refuse_adapter(folder)
    with readable_errors(spec, folder, "weights"):
        single = folder / "model.safetensors"
        if (folder / INDEX).is_file() and not single.is_file():
            shards = read_weight_map(folder / INDEX)
            return {n: StoredTensor(folder / s, n) for n, s in shards.items()}
        files = [single] if single.is_file() else sorted(folder.glob("[!.]*.safetensors"))
        if not files:
            raise ModelError(f"{folder} has only pickled weights; this adapter reads safetensors")
        found: dict[str, StoredTensor] = {}
        for path in files:
            with safe_open(path, "pt") as file:
                found |= {name: StoredTensor(path, name) for name in file.keys()}  # noqa: SIM118
        return found


def below(weights: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """The tensors whose name starts with a prefix, by the rest of it."""
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


def text_weights(weights: Mapping[str, StoredTensor], folder: Path) -> dict[str, StoredTensor]:
    """The language model's tensors of a multimodal checkpoint, without its head.

    Raises:
        ModelError: if no known layout fits.
    """
    for prefix in TEXT_PREFIXES:
        if f"{prefix}embed_tokens.weight" in weights:
            return below(weights, prefix)
    raise ModelError(
        f"{folder}: no language model among its weights (looked for embed_tokens.weight below "
        f"{', '.join(p or '(nothing)' for p in TEXT_PREFIXES)})"
    )


def load_from_tensors(
    kind: Any,
    config: Any,
    weights: Mapping[str, StoredTensor],
    spec: EncoderSpec,
    folder: Path,
    dtype: torch.dtype,
    **more: Any,
) -> Any:
    """A transformers model from some of a checkpoint's tensors, in eval mode.

    Args:
        kind: its class.
        config: of that class.
        weights: under the names that the class's own checkpoints use; what it does not have is
            not read.
        more: further arguments for its ``from_pretrained``.

    Raises:
        ModelError: if tensors are missing or have other shapes.
    """
    with readable_errors(spec, folder, "model"), quiet():
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=dict(weights),
            dtype=dtype,
            output_loading_info=True,
            **{**spread_arguments(spec), **more},
        )
    missing = sorted(info["missing_keys"])
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ModelError(
            f"the weights in {folder} lack {missing[0]}{others}; they are not those of a "
            f"{kind.__name__}, or incomplete"
        )
    return model.eval()
