"""A confirmation, read from its run's folder: the verdict, and how its encoders are named."""

from __future__ import annotations

import base64
import dataclasses
import io
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from encbench.records import Advice, Predictor, Ranked, TrainedEncoder, Verdict, read_verdict
from encbench.types import Cell, Score

from . import text
from .load import Run

VERDICT = "verdict.json"
CONSTANT = "control:constant"
LARGEST = 8_000_000  # bytes; a grid of samples is far smaller, so this is something else
Group = tuple[str, str]
"""Wording tier, and 'seen' or 'held-out'."""


@dataclass(frozen=True)
class Confirmation:
    """What a report may say about a confirmation.

    Attributes:
        run: the ranked run, its order reduced to the encoders that were trained, so that drawing
            functions see only these.
        ranked: the run as it is.
        verdict: the verdict.
    """

    run: Run
    ranked: Run
    verdict: Verdict

    @cached_property
    def trained(self) -> tuple[TrainedEncoder, ...]:
        """Best predicted first."""
        return tuple(row for row in self.verdict.encoders if not row.control)

    @cached_property
    def controls(self) -> tuple[TrainedEncoder, ...]:
        return tuple(row for row in self.verdict.encoders if row.control)

    @cached_property
    def rows(self) -> tuple[TrainedEncoder, ...]:
        return (*self.trained, *self.controls)

    @cached_property
    def brief(self) -> dict[str, str]:
        """Spec -> a name short enough for a sentence; also of those whose training failed."""
        names = dict(self.ranked.names)
        names |= {row.spec: row.name for row in self.verdict.plan.encoders}
        names |= {row.spec: row.name for row in self.verdict.encoders}
        return text.short_names(names, 40)

    def name(self, spec: Any) -> str:
        return self.brief.get(str(spec), text.clean_text(str(spec)))

    def named(self, sentence: Any) -> str:
        """A sentence with names in place of specs; longest first, since one spec may begin
        another."""
        sentence = str(sentence or "")
        for spec in sorted(self.brief, key=len, reverse=True):
            sentence = sentence.replace(spec, self.brief[spec])
        return text.clean_text(sentence)

    def row(self, spec: Any) -> TrainedEncoder | None:
        return next((row for row in self.rows if row.spec == spec), None)

    # -------------------------------------------------------------------------- the cells

    @cached_property
    def _cells(self) -> tuple[Cell, ...]:
        """Every cell that has a score."""
        scores = (entry for row in self.rows for entry in row.scores.items())
        return tuple(dict.fromkeys(c for c, e in scores if text.is_number(e.get("value"))))

    @property
    def primary(self) -> Cell:
        """The cell of both verdicts."""
        return self.verdict.primary

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Numbers of sampling steps, fewest first."""
        return tuple(sorted({cell.steps for cell in self._cells}))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Tiers of seen prompts, then of held-out ones."""
        there = {cell.group for cell in self._cells}
        return tuple(sorted(there, key=lambda g: (g[1] != "seen", g[1], g[0])))

    def entry(
        self, row: TrainedEncoder, steps: int | None = None, group: Group | None = None
    ) -> Score | None:
        """An encoder's score in a cell, the primary one by default; None where there is none."""
        tier, combos = group or self.primary.group
        cell = self.primary._replace(steps=steps or self.primary.steps, tier=tier, combos=combos)
        found = row.scores.get(cell)
        return found if found and text.is_number(found.get("value")) else None

    def value(self, row: TrainedEncoder) -> float | None:
        """The score that both verdicts are about."""
        found = self.entry(row)
        return float(found["value"]) if found else None

    @cached_property
    def places(self) -> dict[str, int]:
        """Spec -> place by the primary cell's score, trained encoders only."""
        scored = [(row, self.value(row)) for row in self.trained]
        known = [(row, value) for row, value in scored if value is not None]
        known.sort(key=lambda pair: -pair[1])
        return {row.spec: place for place, (row, _) in enumerate(known, 1)}

    @cached_property
    def best(self) -> TrainedEncoder | None:
        return self.row(next(iter(self.places), None))

    @cached_property
    def winner(self) -> TrainedEncoder | None:
        """The encoder that was predicted first."""
        return self.row(self.verdict.choice.get("winner"))

    @cached_property
    def constant(self) -> TrainedEncoder | None:
        return self.row(CONSTANT)

    def predictor(self, name: str, steps: int) -> Predictor | None:
        """How well a predictor orders the encoders at a number of steps."""
        wanted = self.primary._replace(steps=steps)
        rows = self.verdict.exploratory
        return next((p for p in rows if (p.name, p.cell) == (name, wanted)), None)

    @property
    def same_prediction(self) -> bool:
        """Whether the verdict is on the prediction that the run holds now."""
        return self.verdict.prediction == self.ranked.prediction.hash


def load_confirmation(ranked: Run) -> Confirmation | None:
    """The confirmation of a run, or None where none was made.

    Raises:
        RecordError: in one line, if the file is damaged, newer or was changed.
    """
    path = ranked.folder / VERDICT
    if not path.exists():
        return None
    verdict = read_verdict(path)
    order = [
        Ranked(
            spec=row.spec,
            name=row.name,
            control=row.control,
            value=_float(row.predicted.get("value")),
            low=_float(row.predicted.get("low")),
            high=_float(row.predicted.get("high")),
            n=0,
            rank=row.predicted_rank,
            parameters=row.parameters,
            stage=row.stage,
        )
        for row in verdict.encoders
    ]
    advice = Advice("", verdict.choice.winner)
    prediction = dataclasses.replace(ranked.prediction, order=order, advice=advice)
    return Confirmation(dataclasses.replace(ranked, prediction=prediction), ranked, verdict)


def _float(value: Any) -> float:
    return float(value) if text.is_number(value) else float("nan")


# -------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Grid:
    """One encoder's samples: a row for each prompt, a column for each number of steps."""

    row: TrainedEncoder
    name: str
    file: str  # without its ending
    png: bytes
    width: int
    height: int
    said: str
    shown: bool = True  # or folded away

    def fold(self, *, shown: bool) -> Grid:
        return dataclasses.replace(self, shown=shown)

    @property
    def data(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def load_grids(c: Confirmation) -> list[Grid]:
    """The grids of all encoders that have one, in order. A file that is no PNG, or lies outside
    the run's folder, is left out."""
    found = []
    for i, row in enumerate(c.rows):
        content = _png(c.ranked.folder, row.grid)
        if content is not None:
            png, width, height = content
            value = text.format_score(c.entry(row))
            place = f"predicted {row.predicted_rank}, " if row.predicted_rank else "control, "
            said = f"{place}GenEval at {c.primary.steps} steps {value}"
            found.append(
                Grid(row, c.name(row.spec), f"confirm-grid-{i + 1}", png, width, height, said)
            )
    return found


def _png(folder: Path, name: str) -> tuple[bytes, int, int] | None:
    """A PNG's content and its size in pixels."""
    from PIL import Image, UnidentifiedImageError

    if not name:
        return None
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or path.stat().st_size > LARGEST:
            return None
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.verify()
            kind, (width, height) = image.format, image.size
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    return (content, width, height) if kind == "PNG" else None
