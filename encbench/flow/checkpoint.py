"""The checkpoints in the folder of a training, and what their ``state.json`` says.

``<out>/checkpoints/00000500/`` holds ``model`` (raw weights), ``ema``, ``optimizer`` and the log up
to its step; ``<out>/parent/`` and ``<out>/final/`` no optimizer. See :mod:`encbench.checkpoint`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import checkpoint as files
from ..checkpoint import STATE, find_damage
from ..errors import ModelError
from ..progress import log
from .meters import MetersState, SpikesState

FOLDER, PARENT, FINAL = "checkpoints", "parent", "final"


@dataclass(frozen=True)
class EncoderState:
    """The encoder of a training: spec, revision, widths of its tokens and pooled vector, and the
    sha256 of the statistics that its features are whitened by ('' if they are not)."""

    spec: str
    revision: str
    tokens: int
    pooled: int
    statistics: str = ""


@dataclass(frozen=True)
class DataState:
    """The images of a training: name, and sha256 of what they hold."""

    name: str
    pin: str


@dataclass(frozen=True)
class TrainingState:
    """The content of ``state.json`` for a training.

    Attributes:
        step: steps that were done.
        instantaneous: whether only r = t has been trained so far.
        config: values of the configuration.
        seconds: spent on training so far.
        sana: configuration of a SANA network; None for another.
        frozen: sha256 of the weights under its adapters, which the checkpoint leaves out; '' if it
            has none.
    """

    step: int
    instantaneous: bool
    config: dict[str, Any]
    encoder: EncoderState
    data: DataState
    seconds: float
    meters: MetersState
    spikes: SpikesState
    sana: dict[str, Any] | None = None
    frozen: str = ""


def read_state(path: Path) -> TrainingState:
    """The state of a training's checkpoint.

    Raises:
        ModelError: naming file and key, if there is none, it is damaged, or of a newer version.
    """
    state = files.read_state(path, TrainingState)
    if state.step < 0:
        raise ModelError(f"{path / STATE}: step must not be negative: {state.step}")
    return state


def check_statistics(path: Path, state: TrainingState, pin: str) -> None:
    """
    Raises:
        ModelError: if the statistics in a checkpoint are not those that its state names.
    """
    if state.encoder.statistics != pin:
        raise ModelError(
            f"{path}: the features would be whitened by other statistics (sha256 {pin[:12]}) than "
            f"in training ({state.encoder.statistics[:12]}); {files.ADVICE}"
        )


def check_frozen(path: Path, state: TrainingState, pin: str) -> None:
    """
    Raises:
        ModelError: if the weights under a checkpoint's adapters are not those of its training.
    """
    if state.frozen != pin:
        raise ModelError(
            f"{path} holds adapters of {state.config.get('network')}, whose weights have changed "
            f"since (sha256 was {state.frozen[:12]}, is {pin[:12]}): put the same model there"
        )


def latest(out: Path) -> Path | None:
    """The newest checkpoint of a training: the final one, else the one of most steps."""
    return next(iter(_newest_first(out)), None)


def latest_whole(out: Path) -> Path | None:
    """The newest checkpoint of a training that is not damaged; None if it has none at all.

    Raises:
        ModelError: if all are damaged.
    """
    problem = None
    for path in _newest_first(out):
        problem = find_damage(path)
        if problem is None:
            return path
        log.warning("%s; using the checkpoint before it", problem)
    if problem is not None:
        raise ModelError(f"{problem}, and there is no other checkpoint; remove {out} to start over")
    return None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint at a path: the folder itself, or the newest checkpoint of a training.

    Raises:
        ModelError: if there is none, it is damaged, or a pickled file.
    """
    if not (path / STATE).is_file() and path.is_dir() and (newest := latest(path)) is not None:
        path = newest
    read_state(path)  # says what is wrong
    problem = find_damage(path)
    if problem is not None:
        raise ModelError(f"{problem}; {files.ADVICE} and run the same training again")
    return path


def remove_old(out: Path, keep: int) -> None:
    """Remove all but the newest checkpoints; parent and final ones stay.

    So many are kept of those that read back whole, beside the one just written; once the final
    one reads back whole, no more than ``keep`` in all.
    """
    paths = [path for path in _newest_first(out) if path.name != FINAL]
    just_written = 0 if find_damage(out / FINAL) is None else 1
    for path in paths[just_written:]:
        if keep and find_damage(path) is None:
            keep -= 1
        else:
            shutil.rmtree(path, ignore_errors=True)


def _newest_first(out: Path) -> list[Path]:
    folder = out / FOLDER
    entries = folder.iterdir() if folder.is_dir() else ()
    found = sorted((p for p in entries if p.name.isdecimal()), reverse=True)
    return [path for path in (out / FINAL, *found) if (path / STATE).is_file()]
