"""Safe loading, shared by the adapters of trained models.

Models are only ever loaded from a local folder, from safetensors unless the spec says
``pickle=true``, and without running code that comes with them unless it says
``remote_code=true``.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.hub import ADAPTER, ResolvedModel, cache_dir, describe_adapter, resolve_model
from ..device import is_out_of_memory
from ..errors import EncbenchError, ModelError, UsageError
from ..files import expand_home, read_json, split_lines
from ..schema import check_value, read_model_config
from .gguf import hub_parts, is_gguf, pretrained_place, read_header, resolve_gguf
from .spec import EncoderSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)
WEIGHT_FILES = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
    "pytorch_model.bin.index.json",
)
SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")
DEVICE_OPTIONS = {
    "device_map": "for a model that is too large for one device: "
    + ", ".join(SPREADS)
    + ", or a JSON file of module names and devices (0, cpu, disk); see accelerate"
}


# -------------------------------------------------------------------------------- loading


def dtype_of(spec: EncoderSpec, device: torch.device) -> torch.dtype:
    """The dtype of a spec on a device: 'auto' is bfloat16 on CUDA, else float32."""
    name = spec.dtype
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def count_parameters(*modules: Any) -> int:
    """Number of distinct weights of modules; a tied one counts once."""
    found = {id(p): p.numel() for m in modules if m is not None for p in m.parameters()}
    return sum(found.values())


def read_own_config(folder: Path) -> dict[str, Any]:
    """A model's config.json; of a GGUF file, its ``model_type`` alone.

    Raises:
        ModelError: naming the file, if it is missing or damaged.
    """
    if is_gguf(folder) and folder.is_file():
        return {"model_type": read_header(folder).model_type}
    return read_model_config(folder)


def require_kind(folder: Path, kinds: Iterable[str]) -> str:
    """The ``model_type`` of a folder's config, which must be one of those that a family reads.

    Raises:
        ModelError: naming it.
    """
    kind = str(read_own_config(folder).get("model_type"))
    if kind not in kinds:
        raise ModelError(
            f"{folder}: model_type '{kind}' is none of {', '.join(kinds)}; use another family, "
            "e.g. causal (see: encbench list encoders)"
        )
    return kind


def refuse_remote_code(spec: EncoderSpec, what: str) -> None:
    """Stop at a model that brings its own code, unless the spec allows it.

    Raises:
        ModelError: saying what to add and what that means.
    """
    if not spec.flag("remote_code"):
        raise ModelError(
            f"{spec} needs Python code that comes with the model ({what}); add ?remote_code=true "
            "to run it, with all that your user account may do, if you trust its authors"
        )


def device_map_of(spec: EncoderSpec) -> str | dict[str, Any] | None:
    """Where the parts of a model go, as accelerate reads it; None = all on one device.

    Raises:
        UsageError: if the option is neither a way to spread a model nor a JSON file.
    """
    chosen = spec.get("device_map")
    if chosen is None or chosen in SPREADS:
        return chosen

    def refuse(text: str) -> UsageError:
        return UsageError(
            f"device_map={chosen} of '{spec}': write {', '.join(SPREADS)}, or the path of a JSON "
            f"file of module names and devices ({text})"
        )

    found = read_json(expand_home(chosen), refuse)
    places: dict[str, Any] = check_value(dict[str, str | int], found, chosen, refuse)
    return places


def spread_arguments(spec: EncoderSpec) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` about devices: none, or the spec's ``device_map``. Weights
    that fit nowhere stay on disk: in the checkpoint's own files if possible, else in a folder that
    is removed when the process ends."""
    chosen = device_map_of(spec)
    if chosen is None:
        return {}
    cache_dir().mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="offload-", dir=cache_dir())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return {"device_map": chosen, "offload_folder": folder}


def freeze(model: Any, device: torch.device) -> Any:
    """The model without gradients, on a device; one that is spread by ``device_map`` stays where
    it is, and accelerate's hooks take inputs to it and outputs back."""
    model.requires_grad_(False)
    spread = any(hasattr(module, "_hf_hook") for module in model.modules())
    return model if spread else model.to(device)


def load_transformers(
    kind: Any, spec: EncoderSpec, folder: Path, dtype: torch.dtype, **more: Any
) -> PreTrainedModel:
    """A transformers model of a folder, in eval mode, on the CPU unless the spec says
    ``device_map``. Weights are read shard by shard, into a model that has none yet.

    Args:
        kind: the class whose ``from_pretrained`` loads it.
        more: further arguments for that.

    Raises:
        ModelError: if weights are missing, broken or only pickled, or it brings its own code.
    """
    refuse_adapter(folder)
    if "auto_map" in read_own_config(folder):
        refuse_remote_code(spec, "auto_map in config.json")
    with readable_errors(spec, folder, "model"), quiet():
        place, given = pretrained_place(folder)
        if given:  # transformers would keep the blocks of some architectures as they are
            from transformers import GgufConfig

            given["quantization_config"] = GgufConfig(dequantize=True)
        model, info = kind.from_pretrained(
            place,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=None if spec.flag("pickle") else True,
            trust_remote_code=spec.flag("remote_code"),
            output_loading_info=True,
            **{**spread_arguments(spec), **given, **more},
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"the weights in {folder} lack {missing[0]}"
            + (f" and {len(missing) - 1} others" if len(missing) > 1 else "")
            + f"; they are not those of a {kind.__name__}, or incomplete"
        )
    return model.eval()


def refuse_adapter(folder: Path) -> None:
    """Stop at a folder of adapter weights: the base model under them is in no content hash.

    Raises:
        ModelError: saying how to use it.
    """
    if (folder / ADAPTER).is_file():
        raise ModelError(f"{folder} is {describe_adapter(folder)}")


@contextmanager
def readable_errors(spec: EncoderSpec, folder: Path, what: str) -> Iterator[None]:
    """Turn any exception of a library while it loads into one line that names the file.

    Raises:
        ModelError: always in place of the library's error.
    """
    try:
        yield
    except EncbenchError:
        raise
    except ImportError as error:
        raise ModelError(f"the {what} of {spec} needs a package: {_one_line(error)}") from error
    except Exception as error:  # libraries raise many errors
        if is_out_of_memory(error):
            raise ModelError(
                f"{spec} does not fit into memory; use ?dtype=bfloat16 or a smaller model"
            ) from error
        broken = _broken_safetensors(folder)
        if broken:
            raise ModelError(f"{broken} is damaged; remove it and download it again") from error
        text = str(error)
        if "trust_remote_code" in text:
            refuse_remote_code(spec, f"its {what}")
        if is_gguf(folder):
            raise ModelError(
                f"cannot read the {what} of {spec}: {_one_line(error)} (transformers reads only "
                "some GGUF architectures and types; use the model's safetensors)"
            ) from error
        if "does not recognize this architecture" in text or "Unrecognized model" in text:
            kind = _model_type(folder)
            raise ModelError(
                f"{folder}: model_type '{kind}' is unknown to the installed transformers; "
                "pip install -U transformers, or write an adapter (python:module:attr)"
            ) from error
        raise ModelError(f"cannot load the {what} of {spec}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in split_lines(str(error)) if line.strip()]
    said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return said[:300] or type(error).__name__


def _model_type(folder: Path) -> str:
    try:
        return str(read_model_config(folder).get("model_type", "(none)"))
    except ModelError:
        return "(none)"


def _broken_safetensors(folder: Path) -> Path | None:
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.rglob("[!.]*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError):
            return path
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the library's table of unexpected keys and its bars: a text encoder leaves out the rest
    on purpose."""
    from transformers.utils import logging as hub_logging

    bars = hub_logging.is_progress_bar_enabled()
    hub_logging.disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    handler = logging.NullHandler()  # without one, logging.warning() would install its own
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        logging.disable(before)
        if bars:
            hub_logging.enable_progress_bar()


def parts_of(spec: EncoderSpec) -> tuple[str, str]:
    """Where model and tokenizer lie inside a repository: ('', ''), or what ``subfolder`` says
    in the layout of diffusers (``text_encoder_2`` goes with ``tokenizer_2``)."""
    folder = (spec.get("subfolder") or "").strip("/")
    if ".." in folder.split("/") or os.path.isabs(folder):  # noqa: PTH117
        raise UsageError(f"subfolder={folder} of '{spec}' must lie inside the model's folder")
    return folder, folder.replace("text_encoder", "tokenizer")


def tokenizer_folder(spec: EncoderSpec, resolved: ResolvedModel) -> Path:
    """Where the tokenizer of a model lies: beside it, unless the files were found elsewhere."""
    return (resolved.tokenizer or resolved.folder) / parts_of(spec)[1]


def patterns_of(spec: EncoderSpec, *more: str) -> list[str]:
    """The files that a transformers text encoder consists of, for ``resolve_model``."""
    model, tokenizer = (f"{part}/" if part else "" for part in parts_of(spec))
    code = ["*.py"] if spec.flag("remote_code") else []
    return [
        *(model + name for name in ("config.json", *WEIGHT_FILES)),
        *(tokenizer + name for name in TOKENIZER_FILES),
        *more,
        *code,
    ]


def resolve_parts(spec: EncoderSpec, *more: str) -> ResolvedModel:
    """Find the files of a transformers text encoder and its tokenizer, or its GGUF file.

    Args:
        more: patterns of further files.
    """
    if is_gguf(spec.source):
        return resolve_gguf(spec)
    patterns = patterns_of(spec, *more)
    return resolve_model(spec.source, spec.revision, patterns=patterns, pickle=spec.flag("pickle"))


def requires_source(spec: EncoderSpec) -> list[tuple[str, str | None]]:
    """What :func:`resolve_parts` would download."""
    if not is_gguf(spec.source):
        return [(spec.source, spec.revision)]
    named = hub_parts(spec.source)
    return [(named[0], spec.revision)] if named else []
