"""A confirmation, read from its run's folder: the verdict, and the names of its encoders."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from encbench import registry
from encbench.errors import EncbenchError
from encbench.records import Predictor, TrainedEncoder, Verdict, read_verdict
from encbench.types import Cell, MetricSpec

from . import text
from .load import Entry, Run, change_texts
from .pictures import ImageFile, read_image

VERDICT = "verdict.json"
CONSTANT = "control:constant"
LARGEST = 8_000_000  # bytes; a grid of samples is far smaller, so a larger file is not one
Group = tuple[str, str]
"""Wording tier, and 'seen' or 'held-out'."""


@dataclass(frozen=True)
class Confirmation:
    """A confirmation for a report: the ranked run and the verdict on it."""

    run: Run
    verdict: Verdict

    @cached_property
    def candidates(self) -> tuple[TrainedEncoder, ...]:
        """The encoders that were trained, best predicted first."""
        return tuple(row for row in self.verdict.encoders if not row.control)

    @cached_property
    def controls(self) -> tuple[TrainedEncoder, ...]:
        return tuple(row for row in self.verdict.encoders if row.control)

    @cached_property
    def rows(self) -> tuple[TrainedEncoder, ...]:
        return (*self.candidates, *self.controls)

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """Stages of training that the encoders are of."""
        return tuple(dict.fromkeys(row.stage for row in self.candidates))

    @cached_property
    def brief(self) -> dict[str, str]:
        """Spec -> a name short enough for a sentence; also of those whose training failed."""
        names = dict(self.run.names)
        names |= {row.spec: row.name for row in self.verdict.plan.encoders}
        names |= {row.spec: row.name for row in self.verdict.encoders}
        return text.short_names(names, 40)

    def name(self, spec: Any) -> str:
        return self.brief.get(str(spec), text.clean_text(spec))

    def rename(self, sentence: Any) -> str:
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
        return tuple(dict.fromkeys(c for c, e in scores if text.is_number(e.value)))

    @property
    def primary(self) -> Cell:
        """The cell of both verdicts."""
        return self.verdict.primary

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that trained models were scored by, the verdicts' first."""
        return tuple(dict.fromkeys([self.primary.metric, *(cell.metric for cell in self._cells)]))

    @cached_property
    def metric(self) -> str:
        """The title of the verdicts' metric."""
        return metric_title(self.primary.metric)

    @property
    def axis_title(self) -> str:
        return f"{self.metric}, {text.count_noun(self.primary.steps, 'step')}"

    @property
    def group_name(self) -> str:
        """The verdicts' prompts in words."""
        tier, combos = map(text.clean_text, self.primary.group)
        return f"tier {tier}, {combos} combinations"

    @cached_property
    def steps(self) -> tuple[int, ...]:
        """Numbers of sampling steps, fewest first."""
        return tuple(sorted({c.steps for c in self._cells if c.metric == self.primary.metric}))

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Tiers of seen prompts, then of held-out ones."""
        groups = {cell.group for cell in self._cells if cell.metric == self.primary.metric}
        return tuple(sorted(groups, key=lambda g: (g[1] != "seen", g[1], g[0])))

    def cell(self, steps: int | None = None, group: Group | None = None, metric: str = "") -> Cell:
        """The verdicts' cell with some of its fields changed."""
        tier, combos = group or self.primary.group
        return Cell(metric or self.primary.metric, steps or self.primary.steps, tier, combos)

    def entry(
        self, row: TrainedEncoder, steps: int | None = None, group: Group | None = None,
        metric: str = "",
    ) -> Entry | None:  # fmt: skip
        """An encoder's score in a cell, the primary one by default; None where there is none."""
        entry = row.scores.get(self.cell(steps, group, metric))
        return entry if entry and text.is_number(entry.value) else None

    def value(self, row: TrainedEncoder) -> float | None:
        """The score that both verdicts are about."""
        entry = self.entry(row)
        return entry.value if entry else None

    @cached_property
    def places(self) -> dict[str, int]:
        """Spec -> place by the primary cell's score, controls left out."""
        scores = [(row, self.value(row)) for row in self.candidates]
        known = [(row, value) for row, value in scores if value is not None]
        known.sort(key=lambda pair: -pair[1])
        return {row.spec: place for place, (row, _) in enumerate(known, 1)}

    @cached_property
    def best(self) -> TrainedEncoder | None:
        return self.row(next(iter(self.places), None))

    @cached_property
    def winner(self) -> TrainedEncoder | None:
        """The encoder that was predicted first."""
        return self.row(self.verdict.choice.winner)

    @cached_property
    def constant(self) -> TrainedEncoder | None:
        return self.row(CONSTANT)

    def predictor(self, name: str, steps: int) -> Predictor | None:
        """How well a predictor orders the encoders at a number of steps."""
        wanted = (name, self.cell(steps))
        return next((p for p in self.verdict.exploratory if (p.name, p.cell) == wanted), None)

    def mean_seconds(self, row: TrainedEncoder) -> float | None:
        """Of one training, mean over seeds."""
        known = [float(x) for x in row.training_seconds if text.is_number(x)]
        return sum(known) / len(known) if known else None

    @property
    def same_prediction(self) -> bool:
        """Whether the verdict is on the prediction that the run holds now."""
        return self.verdict.prediction == self.run.prediction.hash


def metric_title(name: str) -> str:
    """A metric's name as its authors write it, where the metric is installed."""
    spec = _metric_spec(name)
    return text.clean_text(spec.title if spec else name)


def metric_heading(name: str) -> str:
    """Over a column: the title, and the direction where it is not the usual one."""
    spec = _metric_spec(name)
    return metric_title(name) + (" (lower is better)" if spec and spec.direction == "lower" else "")


def _metric_spec(name: str) -> MetricSpec | None:
    with suppress(EncbenchError):
        spec: MetricSpec = registry.get("metric", name).spec
        return spec
    return None


def load_confirmation(run: Run) -> Confirmation | None:
    """The confirmation of a run, or None where none was made.

    Raises:
        RecordError: in one line, if the file is damaged, newer or was changed.
    """
    path = run.folder / VERDICT
    if not path.exists():
        return None
    verdict = read_verdict(path)
    return Confirmation(run, change_texts(verdict, run.hide))


# -------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Grid:
    """One encoder's samples: a row for each prompt, a column for each number of steps.

    Attributes:
        file: name beside the report, without its ending.
        note: the result of the encoder in words.
        shown: False = folded away.
    """

    row: TrainedEncoder
    name: str
    file: str
    image: ImageFile
    note: str
    shown: bool = True


FEW_GRIDS = 6  # shown at once; of more, those that the verdicts are about


def load_grids(c: Confirmation) -> list[Grid]:
    """The grids of all encoders that have one, in order. A file that is no PNG, or lies outside
    the run's folder, is left out. Of many, those of the predicted first and last, the best, and
    the constant are shown at once."""
    grids = []
    for i, row in enumerate(c.rows):
        image = read_image(c.run.folder, row.grid, LARGEST)
        if image is not None and image.kind == "png":
            place = f"predicted {row.predicted_rank}" if row.predicted_rank else "control"
            note = f"{place}, {c.metric} at {c.primary.steps} steps "
            note += text.format_score(c.entry(row))
            grids.append(Grid(row, c.name(row.spec), f"confirm-grid-{i + 1}", image, note))
    if len(grids) > FEW_GRIDS:
        wanted = {row.spec for row in (c.winner, c.best, c.constant, *c.candidates[-1:]) if row}
        grids = [dataclasses.replace(grid, shown=grid.row.spec in wanted) for grid in grids]
    return grids
