"""GGUF files: how they are found, and their header. Transformers dequantizes them."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..data.hub import ResolvedModel, combine_hashes, digest_each, resolve_model
from ..errors import MissingLibraryError, ModelError, from_os_error
from ..files import expand_home
from .spec import EncoderSpec

SUFFIX = ".gguf"
VERSION = 2  # raised when the same file would give other features
KINDS = {"gemma3": "gemma3_text", "t5encoder": "t5", "gpt-oss": "gpt_oss"} | {
    f"qwen{n}moe": f"qwen{n}_moe" for n in (2, 3)
}
"""model_type of transformers, where it is not the architecture's name."""


@dataclasses.dataclass(frozen=True)
class GgufHeader:
    """The header of a file.

    Attributes:
        model_type: as transformers names it.
        quantization: such as 'Q4_K_M'.
        license: of the weights; 'unknown' if it doesn't say.
    """

    model_type: str
    quantization: str
    license: str


def is_gguf(path: str | Path) -> bool:
    """Whether a source or a path is of a GGUF file."""
    return str(path).lower().endswith(SUFFIX)


def hub_parts(source: str) -> tuple[str, str] | None:
    """Repository and file of ``owner/name/file.gguf``; None for a file that is here."""
    parts = source.split("/", 2)
    if expand_home(source).is_file() or len(parts) < 3 or source.startswith(("/", ".", "~")):
        return None
    return f"{parts[0]}/{parts[1]}", parts[2]


def resolve_gguf(spec: EncoderSpec) -> ResolvedModel:
    """Find a GGUF file: a local one is pinned by its content hash, one on the hub by its commit.

    Raises:
        ModelError: if it is not there, is not a GGUF file, or one part of several.
    """
    named = hub_parts(spec.source)
    if named is not None:
        found = resolve_model(named[0], spec.revision, patterns=[named[1]])
        path = found.folder / named[1]
    else:
        path = expand_home(spec.source)
        if not path.is_file():
            raise ModelError(
                f"there is no file {path}; check the path, or write owner/name/file.gguf"
            )
        found = ResolvedModel(path, combine_hashes(digest_each({path.name: path})))
        if spec.revision and not found.revision.startswith(spec.revision):
            raise ModelError(
                f"{path} has content hash {found.revision[:12]}..., not {spec.revision}; "
                "leave out '@...' to take the file as it is"
            )
    header = read_header(path)
    license = header.license if found.license == "unknown" else found.license
    return dataclasses.replace(found, path=path, license=license, quantization=header.quantization)


def pretrained_place(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Where ``from_pretrained`` reads a folder or a GGUF file: its first argument and others.

    Raises:
        MissingLibraryError: if the package gguf is not installed.
    """
    if not is_gguf(folder):
        return folder, {}
    if find_spec("gguf") is None:
        raise MissingLibraryError("gguf", "encbench[gguf]", f"reading {folder.name}")
    return folder.parent, {
        "gguf_file": folder.name,
        "config": _config(folder, folder.stat().st_mtime_ns),
    }


@lru_cache(maxsize=4)
def _config(path: Path, changed: int) -> Any:
    """The config of a file; the library indexes its whole vocabulary for it, which takes long."""
    from transformers import AutoConfig
    from transformers.integrations.gguf import read_gguf_metadata

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    if hasattr(config, "dense_act_fn"):
        # T5: the library takes every file for a gated one, and its activation for ReLU. llama.cpp
        # computes a gated GELU where there is a gate (T5 v1.1, UMT5), else ReLU (T5 1.0).
        _, names = read_gguf_metadata(str(path))
        config.is_gated_act = any("ffn_gate" in name for name in names)
        config.dense_act_fn = "gelu_new" if config.is_gated_act else "relu"
        config.feed_forward_proj = "gated-gelu" if config.is_gated_act else "relu"
    return config


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file.

    Raises:
        ModelError: if it is no GGUF file, is damaged, or is one part of several.
    """
    try:
        from transformers.integrations.gguf import read_gguf_metadata
    except ImportError as error:
        what = f"reading {path.name}"
        raise MissingLibraryError("transformers 5.23", "encbench[gguf]", what) from error
    try:
        values, _ = read_gguf_metadata(str(path))
        parts = int(values.get("split.count") or 1)
    except OSError as error:
        raise from_os_error(error, f"reading {path}") from error
    except Exception as error:  # the library raises many errors on a damaged file
        raise ModelError(f"{path} is not a GGUF file, or damaged; download it again") from error
    if parts > 1:
        raise ModelError(f"{path} is one part of several; merge them (llama-gguf-split --merge)")
    kind = str(values.get("general.architecture"))
    if kind.startswith("t5") and "umt5" in str(values.get("general.name")).lower():
        kind = "umt5"
    return GgufHeader(
        KINDS.get(kind, kind),
        _quantization(values.get("general.file_type")),
        str(values.get("general.license") or "unknown"),
    )


def _quantization(file_type: Any) -> str:
    """The library's name of a file type; its number where the library is missing or older."""
    try:
        from gguf import LlamaFileType

        name: str = LlamaFileType(file_type).name
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (ImportError, ValueError):
        return "of an unknown type" if file_type is None else f"type {file_type}"
