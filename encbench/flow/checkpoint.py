"""Checkpoints of a training: safetensors and JSON in a folder that is whole or not there.

``<out>/checkpoints/00000500/`` holds ``model`` (raw weights), ``ema``, ``optimizer`` and
``state.json``. Nothing is pickled, and nothing pickled is read.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ModelError, RecordError, from_os_error
from ..files import read_json, write_json

SCHEMA = 1
STATE = "state.json"
PARTS = ("model", "ema", "optimizer")
FOLDER, PARENT, FINAL = "checkpoints", "parent", "final"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Checkpoint:
    """What is written: tensors by part and name, and everything else as JSON.

    Attributes:
        tensors: of each part in :data:`PARTS` that there is.
        state: 'step', 'config', 'encoder', 'network', 'space', and what resuming needs.
    """

    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> Path:
    """Write into a folder beside ``path`` that takes its name when all is on disk.

    Raises:
        StoreError: in one line, if the disk is full or the folder cannot be written; what was
            there stays.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        temporary.chmod(0o755)
        for part, tensors in checkpoint.tensors.items():
            held = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
            file = temporary / f"{part}.safetensors"
            try:
                save_file(held, file)
            except SafetensorError as error:
                raise _os_error(error) from error
            _sync(file)
        write_json(temporary / STATE, {"schema": SCHEMA, **checkpoint.state})
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        _sync(path.parent)
    except OSError as error:
        raise from_os_error(error, f"writing the checkpoint {path}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return path


def read_state(path: Path) -> dict[str, Any]:
    """The JSON of a checkpoint.

    Raises:
        ModelError: if there is none, it is damaged, or of a newer version.
    """
    if path.is_file() or path.suffix in PICKLED:
        raise _not_a_folder(path)
    if not (path / STATE).is_file():
        pickled = [p.name for p in path.glob("*") if p.suffix in PICKLED] if path.is_dir() else []
        if pickled:
            raise _not_a_folder(path / pickled[0])
        raise ModelError(f"{path} holds no checkpoint ({STATE} is missing)")
    try:
        found = read_json(path / STATE)
    except RecordError as error:
        raise ModelError(f"{path / STATE} is damaged; take another checkpoint") from error
    if not isinstance(found, dict) or not isinstance(found.get("schema"), int):
        raise ModelError(f"{path / STATE} is damaged; take another checkpoint")
    if found["schema"] > SCHEMA:
        raise ModelError(f"{path} was written by a newer version of encbench; update it")
    return found


def read_part(path: Path, part: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Tensors of one part.

    Raises:
        ModelError: naming the file, if it is missing, pickled or damaged.
    """
    file = path / f"{part}.safetensors"
    pickled = [p for p in path.glob(f"{part}.*") if p.suffix in PICKLED]
    if pickled and not file.is_file():
        raise _not_a_folder(pickled[0])
    return read_tensors(file, device)


def read_tensors(file: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """A safetensors file.

    Raises:
        ModelError: naming it, if it is missing, pickled or damaged.
    """
    if file.suffix in PICKLED:
        raise _not_a_folder(file)
    if not file.is_file():
        raise ModelError(f"{file} is missing; take another checkpoint")
    try:
        return load_file(file, device=str(device))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is damaged ({error}); take another checkpoint") from error


def latest(out: Path) -> Path | None:
    """The newest checkpoint of a training: the final one, else the one of most steps."""
    if (out / FINAL / STATE).is_file():
        return out / FINAL
    found = _steps(out)
    return found[-1] if found else None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a user means: the folder itself, or the newest one of a training.

    Raises:
        ModelError: if there is none, or it is a pickled file.
    """
    if (path / STATE).is_file():
        return path
    if path.is_dir() and (newest := latest(path)) is not None:
        return newest
    read_state(path)  # says what is wrong
    return path


def remove_old(out: Path, keep: int) -> None:
    """Remove all but the newest checkpoints; parent and final ones stay."""
    for path in _steps(out)[: -keep or None]:
        shutil.rmtree(path, ignore_errors=True)


def _steps(out: Path) -> list[Path]:
    folder = out / FOLDER
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.isdecimal() and (p / STATE).is_file())


def _not_a_folder(path: Path) -> ModelError:
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
