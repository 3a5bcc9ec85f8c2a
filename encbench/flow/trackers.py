"""Experiment trackers, by accelerate: they show the log while a training runs.

The JSONL log is always written; a tracker that fails on the way is left out with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import EncbenchError, MissingLibraryError, UsageError, first_line, from_os_error
from ..files import digest
from ..progress import log

PROJECT = "encbench"
NONE = "none"


def _tensorboard(out: Path, step: int) -> dict[str, Any]:
    # what an interrupted run wrote after the step is hidden
    return {"run_name": "tensorboard", "logging_dir": out, "purge_step": step + 1}


def _wandb(out: Path, step: int) -> dict[str, Any]:
    same_run = digest(str(out.resolve()))[:16]
    return {"run_name": PROJECT, "name": out.name, "id": same_run, "resume": "allow", "dir": out}


def _trackio(out: Path, step: int) -> dict[str, Any]:
    return {"run_name": PROJECT, "name": out.name, "resume": "allow"}


def _mlflow(out: Path, step: int) -> dict[str, Any]:
    return {"experiment_name": PROJECT, "run_name": out.name}


SETTINGS: Mapping[str, Callable[[Path, int], dict[str, Any]]] = {
    "tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio, "mlflow": _mlflow,
}  # fmt: skip
"""How each tracker is started, from the training's folder and the step at which it goes on."""


def check_trackers(names: Sequence[str]) -> None:
    """
    Raises:
        MissingLibraryError: naming what to install, if a tracker's library is not there.
        UsageError: if 'none' is given with others.
    """
    if NONE in names and len(names) > 1:
        raise UsageError("--report-to none excludes all other trackers; leave one out")
    for name in names:
        if name != NONE and find_spec(name) is None:
            raise MissingLibraryError(name, name, f"--report-to {name}")


class Trackers:
    """The trackers of one training, started.

    Args:
        names: of :data:`SETTINGS`, or 'none'.
        out: folder of the training; its name is the run's.
        step: at which the training goes on.
        config: shown beside the curves, except by TensorBoard.
        cpu: whether the training is on the CPU.

    Raises:
        StoreError: if the disk is full.
        EncbenchError: if a tracker cannot be started, as without a login.
    """

    def __init__(
        self,
        names: Sequence[str],
        out: Path,
        step: int,
        config: Mapping[str, Any],
        *,
        cpu: bool = True,
    ) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState(cpu=cpu)  # accelerate's own log lines need it
        self.running: dict[str, Any] = {}
        for name in names:
            if name == NONE:
                continue
            try:
                tracker = LOGGER_TYPE_TO_CLASS[name](**SETTINGS[name](out, step))
                tracker.main_process_only = False  # a training may be another process's own
                tracker.start()
                if name != "tensorboard":
                    tracker.store_init_configuration(dict(config))
            except Exception as error:  # each library raises its own errors
                if name == "tensorboard" and isinstance(error, OSError):
                    raise from_os_error(error, f"writing {out / name}") from error
                raise EncbenchError(
                    f"--report-to {name} cannot be started ({first_line(error)}); set {name} up, "
                    "or leave it out: log.jsonl holds the same numbers"
                ) from error
            self.running[name] = tracker

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._call(lambda name, tracker: tracker.log(dict(values), step=step))

    def log_image(self, title: str, pixels: Any, step: int) -> None:
        """``pixels``: (H, W, 3) bytes. Trackio and MLflow show numbers only."""

        def show(name: str, tracker: Any) -> None:
            layout = {"dataformats": "NHWC"} if name == "tensorboard" else {}
            if hasattr(tracker, "log_images"):
                tracker.log_images({title: pixels[None]}, step=step, **layout)

        self._call(show)

    def close(self) -> None:
        self._call(lambda name, tracker: tracker.finish())

    def _call(self, work: Callable[[str, Any], None]) -> None:
        for name, tracker in list(self.running.items()):
            try:
                work(name, tracker)
            except Exception as error:  # a network failure must not end the training
                log.warning(
                    "%s failed and is left out from here on (%s); log.jsonl goes on",
                    name, first_line(error),
                )  # fmt: skip
                del self.running[name]
                with suppress(Exception):
                    tracker.finish()
