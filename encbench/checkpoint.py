"""Checkpoints of a training: safetensors and JSON in a folder that is complete or absent.

A folder holds a safetensors file for each part (``model``, ``optimizer``, ...), further files, and
``state.json``, which names all of them with their sha256. Pickles are neither written nor read.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, device, nn

from .errors import EncbenchError, ModelError, first_line
from .files import digest_file, read_json, replace_on_success, write_json
from .schema import get_field, load_dataclass

T = TypeVar("T")
SCHEMA = 1
STATE = "state.json"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
ADVICE = "take another checkpoint, or remove this one"


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        tensors: by part and name. If tensors share memory, only the first is written.
        state: JSON-ready; what resuming needs besides the tensors.
        files: further files by name.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> Path:
    """Write to a temporary folder that is renamed to ``path`` once everything is on disk.

    Raises:
        StoreError: in one line, if the disk is full or the folder cannot be written. An older
            checkpoint stays.
    """
    with replace_on_success(path) as temporary:
        temporary.mkdir()
        for part, tensors in checkpoint.tensors.items():
            try:
                save_file(_unshared(tensors), temporary / f"{part}.safetensors")
            except SafetensorError as error:
                raise _os_error(error) from error
        for name, data in checkpoint.files.items():
            (temporary / name).write_bytes(data)
        files = sorted(temporary.iterdir())
        sums = {file.name: digest_file(file) for file in files}
        write_json(temporary / STATE, {"schema": SCHEMA, "files": sums, **checkpoint.state})
        for each in (*files, temporary):
            _sync(each)
    _sync(path.parent)
    return path


def read_state(path: Path, kind: type[T]) -> T:
    """The state of a checkpoint as a dataclass.

    Raises:
        ModelError: naming file and key, if there is none, it is damaged, or of a newer version.
    """
    return load_dataclass(kind, _read_raw_state(path), str(path / STATE), ModelError)


def read_part(path: Path, part: str) -> dict[str, Tensor]:
    """Tensors of one part.

    Raises:
        ModelError: naming the file, if it is missing, pickled or damaged.
    """
    file = path / f"{part}.safetensors"
    pickled = [p for p in path.glob(f"{part}.*") if p.suffix in PICKLED]
    return read_tensors(pickled[0] if pickled and not file.is_file() else file)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """A safetensors file.

    Raises:
        ModelError: naming it, if it is missing, pickled or damaged.
    """
    if file.suffix in PICKLED:
        raise _not_a_checkpoint(file)
    if not file.is_file():
        raise ModelError(f"{file} is missing; {ADVICE}")
    try:
        tensors: dict[str, Tensor] = load_file(file, device=str(device("cpu")))
    except Exception as error:  # safetensors raises several errors, all about the file
        raise ModelError(f"{file} is damaged ({first_line(error)}); {ADVICE}") from error
    return tensors


def find_damage(path: Path) -> str | None:
    """A description of what is wrong with a checkpoint; None if it is sound. Every file is read and
    compared with its hash."""
    try:
        stats = [(file.name, file.stat()) for file in sorted(_entries(path))]
        return _find_damage(path, tuple((n, s.st_size, s.st_mtime_ns) for n, s in stats))
    except OSError as error:
        return f"cannot read {path}: {error.strerror}"


@lru_cache(maxsize=64)
def _find_damage(path: Path, stamp: tuple[tuple[str, int, int], ...]) -> str | None:
    """``stamp`` identifies the state of the files; with the same stamp they are not read again."""
    try:
        where = str(path / STATE)
        sums = get_field(_read_raw_state(path), "files", dict[str, str], where, ModelError, {})
        for name, expected in sums.items():
            if not (path / name).is_file():
                return f"{path / name} is missing"
            if digest_file(path / name) != expected:
                return f"{path / name} is damaged: it is not what was written (sha256 differs)"
        for file in path.glob("*.safetensors") if not sums else ():  # of an earlier version
            with safe_open(file, framework="pt"):
                pass
    except (EncbenchError, SafetensorError) as error:
        return str(error)
    return None


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], where: object) -> None:
    """Load all weights and buffers into a module.

    Raises:
        ModelError: see :func:`check_weights`.
    """
    check_weights(module.state_dict(), tensors, where)
    module.load_state_dict(dict(tensors), strict=False)  # shared weights are stored under one name


def check_weights(mine: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: object) -> None:
    """
    Raises:
        ModelError: naming the file and the first tensor that is missing, unknown, or of another
            shape or type.
    """
    there = {mine[name].data_ptr() for name in tensors if name in mine}
    for name in sorted(mine.keys() | tensors.keys()):
        if name not in mine:
            raise ModelError(f"{where} has {name}, which this network does not have")
        if name not in tensors:
            if mine[name].data_ptr() in there:  # another name of a stored weight
                continue
            raise ModelError(f"{where} lacks {name}: it belongs to another network")
        wanted, given = (f"{tuple(part[name].shape)}" for part in (mine, tensors))
        if wanted != given:
            raise ModelError(
                f"{where}: {name} is {given}, but this network's is {wanted}: the sizes differ"
            )
        if mine[name].is_floating_point() != tensors[name].is_floating_point():
            raise ModelError(f"{where}: {name} is of type {tensors[name].dtype}")


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    seen: set[int] = set()
    kept = {}
    for name, tensor in tensors.items():
        if not tensor.numel() or tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept[name] = tensor.detach().cpu().contiguous()
    return kept


def _read_raw_state(path: Path) -> Any:
    if path.is_file() or path.suffix in PICKLED:
        raise _not_a_checkpoint(path)
    if not (path / STATE).is_file():
        pickled = [p for p in _entries(path) if p.suffix in PICKLED]
        if pickled:
            raise _not_a_checkpoint(pickled[0])
        raise ModelError(f"{path} holds no checkpoint ({STATE} is missing)")
    raw = read_json(path / STATE, lambda text: ModelError(f"{text}; {ADVICE}"))
    if get_field(raw, "schema", int, str(path / STATE), ModelError) > SCHEMA:
        raise ModelError(f"{path} was written by a newer version of encbench; update it")
    return raw


def _entries(path: Path) -> Iterable[Path]:
    return path.glob("*") if path.is_dir() else ()


def _not_a_checkpoint(path: Path) -> ModelError:
    if not path.exists():
        return ModelError(f"there is no checkpoint {path}")
    kind = "a pickled file, which can run any code when it is read: refused"
    return ModelError(
        f"{path} is {kind if path.suffix in PICKLED else 'no checkpoint folder'}; give a folder "
        f"with {STATE} and safetensors, as 'encbench train' writes them"
    )


def _os_error(error: SafetensorError) -> OSError:
    """The operating system's error inside one of safetensors', which carries only its text."""
    text = str(error)
    code = errno.ENOSPC if "os error 28" in text or "No space left" in text else errno.EIO
    return OSError(code, text)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
