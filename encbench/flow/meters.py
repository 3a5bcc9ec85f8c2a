"""The log of a training: a JSONL line every few steps, also sent to trackers."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, RecordError, from_os_error
from ..files import parse_json, read_bytes, write_atomic
from .loss import LossTerms
from .trackers import Trackers

BINS = 10
LOG = "log.jsonl"
HISTORY = 100  # steps whose gradient norms say what is usual
USUAL = 20  # of them before a step can be a spike


@dataclass(frozen=True)
class MetersState:
    """The sums of :class:`Meters`, JSON-ready."""

    sums: list[list[float]]
    loss: list[float]


@dataclass(frozen=True)
class SpikesState:
    """The state of :class:`Spikes`, JSON-ready."""

    norms: list[float]
    in_a_row: int
    skipped: int


class Meters:
    """Sums over steps, kept on the device; rows are their means.

    By tenths of t: the mean squared error (flow matching's and MeanFlow's loss before it is
    weighted), and |u - v| / |v| over the samples with r < t.
    """

    def __init__(self, device: torch.device, processes: int = 1) -> None:
        self.processes = processes
        self.sums = torch.zeros(4, BINS, dtype=torch.float64, device=device)
        self.loss = torch.zeros(3, dtype=torch.float64, device=device)  # loss, norm, steps

    def add(self, terms: LossTerms, t: Tensor, share: float) -> None:
        """Of one part of a batch, which is ``share`` of this process's step."""
        place = (t.double() * BINS).long().clamp(0, BINS - 1)
        inside = terms.interval.double()
        # a sample that is not finite must not hide all others of its row
        rows = torch.stack(
            [
                terms.error.double().nan_to_num(0, 0, 0),
                torch.ones_like(inside),
                terms.gap.double().nan_to_num(0, 0, 0) * inside,
                inside,
            ]
        )
        self.sums.index_add_(1, place, rows)
        self.loss[0] += terms.loss.detach().double().nan_to_num(0, 0, 0) * (share / self.processes)

    def end_step(self, norm: float) -> None:
        """``norm``: of the gradient, the same in all processes."""
        self.loss[1] += (norm if math.isfinite(norm) else 0.0) / self.processes
        self.loss[2] += 1 / self.processes

    def state(self, total: Callable[[Tensor], Tensor]) -> MetersState:
        """Sums over all processes; the first one's :meth:`load` takes them back."""
        return MetersState(total(self.sums.clone()).tolist(), total(self.loss.clone()).tolist())

    def load(self, state: MetersState) -> None:
        """
        Raises:
            ModelError: if the sums are not of this shape.
        """
        for name in ("sums", "loss"):
            held, values = getattr(self, name), getattr(state, name)
            try:
                held.copy_(torch.tensor(values, dtype=held.dtype).reshape(held.shape))
            except (ValueError, RuntimeError) as error:
                raise ModelError(f"meters: {name} does not hold {held.numel()} numbers") from error

    def row(self, total: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Means since the last row; ``total`` adds up over processes. Starts anew."""
        sums, loss = total(self.sums.clone()), total(self.loss.clone())
        error, count, gap, inside = sums.tolist()
        steps = max(round(float(loss[2])), 1)
        self.sums.zero_()
        self.loss.zero_()

        def mean(a: float, b: float) -> float | None:
            return a / b if b else None

        return {
            "loss": float(loss[0]) / steps,
            "error": mean(sum(error), sum(count)),
            "error_by_t": [mean(a, b) for a, b in zip(error, count, strict=True)],
            "gap_by_t": [mean(a, b) for a, b in zip(gap, inside, strict=True)],
            "interval_share": mean(sum(inside), sum(count)),
            "gradient_norm": float(loss[1]) / steps,
        }


class Spikes:
    """Finds steps with an unusual gradient norm."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.norms: list[float] = []
        self.in_a_row = 0
        self.skipped = 0

    def judge(self, loss: float, norm: float) -> str | None:
        """The reason to skip a step, in words; None to take it."""
        usual = statistics.median(self.norms) if len(self.norms) >= USUAL else math.inf
        problem = None
        if not math.isfinite(loss):
            problem = f"the loss is {loss}"
        elif not math.isfinite(norm):
            problem = f"the gradient's norm is {norm}"
        elif norm > self.factor * usual:
            problem = f"the gradient's norm is {norm:.3g}, usually {usual:.3g}"
        if problem is None:
            self.norms = [*self.norms[1 - HISTORY :], norm]
            self.in_a_row = 0
        else:
            self.in_a_row += 1
            self.skipped += 1
        return problem

    def state(self) -> SpikesState:
        return SpikesState(self.norms, self.in_a_row, self.skipped)

    def load(self, state: SpikesState) -> None:
        self.norms = list(state.norms)
        self.in_a_row, self.skipped = state.in_a_row, state.skipped


class Log:
    """The JSONL file of a training, and its trackers.

    Args:
        out: folder of the training.
        step: at which it goes on; what an interrupted run wrote after it is removed.
        checkpoint: folder that may hold the log up to there; a damaged log is made again from it.
        trackers: told the same numbers.
    """

    def __init__(
        self, out: Path, step: int, checkpoint: Path | None = None,
        trackers: Trackers | None = None,
    ) -> None:  # fmt: skip
        self.path, self.trackers = out / LOG, trackers
        rows = (read_log(checkpoint) if checkpoint else []) or read_log(out)
        write_atomic(self.path, b"".join(_line(row) for row in rows if row["step"] <= step))

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row.

        Raises:
            StoreError: if the disk is full.
        """
        try:
            with self.path.open("ab") as file:
                file.write(_line(row))
        except OSError as error:
            raise from_os_error(error, f"writing {self.path}") from error
        if self.trackers is not None:
            self.trackers.log(_scalars(row), row["step"])

    def image(self, name: str, pixels: Any, step: int) -> None:
        """``pixels``: (H, W, 3) bytes."""
        if self.trackers is not None:
            self.trackers.log_image(name, pixels, step)

    def close(self) -> None:
        if self.trackers is not None:
            self.trackers.close()


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by name, those of a list with the tenth of t that they belong to."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, int | float) and name != "step":
            flat[name] = value
        elif isinstance(value, list):
            for place, part in enumerate(value):
                if part is not None:
                    flat[f"{name}/{place / BINS:.1f}-{(place + 1) / BINS:.1f}"] = part
    return flat


def read_log(out: Path) -> list[dict[str, Any]]:
    """All rows of a training's log; damaged ones, as a last line that was cut off, are left out."""
    path = out / LOG
    rows = []
    for line in read_bytes(path).split(b"\n") if path.is_file() else ():
        with suppress(RecordError):
            rows.append(parse_json(line, str(path)))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, allow_nan=False) + "\n").encode()
