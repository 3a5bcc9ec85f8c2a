"""The bank of outcomes: one row for each finished training and cell, in a CSV that only grows.

Rows can be compared only if they come from one recipe. A recipe is everything but the encoder and
the seed of the training that a score depends on; its hash stands in every row, the recipe itself
beside the table in ``recipes/HASH.json``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..encoders import EncoderSpec
from ..encoders.local import public_spec, read_places
from ..errors import EncbenchError, UsageError
from ..files import digest, read_csv, to_csv, unescape_formula, write_json, write_text
from ..flow.config import FREE, with_step
from ..metrics.tables import average_values
from ..records import ConfirmPlan, Verdict, clean
from ..schema import read_dataclass
from ..types import Cell
from .experiment import RESULT, ScoredTraining
from .plan import PLAN, prompt_groups, read_plan, shape_of
from .scoring import metric_specs

RECIPES = "recipes"
DIGITS = 6  # of a score in the table: it is a share of a few hundred images
ARMS = ("condition_scaling", "condition_pooled")
"""Options of the trainer that say what is done to an encoder's features. They are no part of the
recipe: a row names them in its column ``features``."""


class BankError(EncbenchError):
    """A bank of outcomes cannot be read or added to."""


@dataclass(frozen=True)
class Outcome:
    """One training's score in one cell.

    Attributes:
        encoder: spec; of a local encoder the folder's own name, never its path.
        revision: content hash or hub revision of the weights.
        layer: which hidden state.
        stage: of the encoder's own training.
        control: True for an encoder that serves for comparison only.
        features: '' as the encoder gives them, else what was done to them
            ('condition_scaling=whitened').
        recipe: hash of the training's recipe, see :func:`recipe_of`.
        seed: of the training.
        repeat: 0, or the number of the repetition of the same training.
        metric, steps, tier, combos: the cell.
        score: the metric's value, rounded to 6 digits.
        prompts, images: how many prompts are behind it, and images of each.
        source: the verdict or run that it was taken from.
        commit: of the code that trained.
        created: when the verdict was written, ISO 8601.
        phase: '' for the finished few-step model, 'parent' for its checkpoint at the switch,
            sampled as plain flow matching. Banks of the first version lack this column.
    """

    encoder: str
    revision: str
    layer: str
    stage: str
    control: bool
    features: str
    recipe: str
    seed: int
    repeat: int
    metric: str
    steps: int
    tier: str
    combos: str
    score: float
    prompts: int
    images: int
    source: str
    commit: str = ""
    created: str = ""
    phase: str = ""

    @property
    def cell(self) -> Cell:
        return Cell(self.metric, self.steps, self.tier, self.combos)

    @property
    def weights(self) -> str:
        """Identifies a set of weights; all layers of an encoder share it."""
        spec = EncoderSpec.parse(self.encoder)
        return self.revision or f"{spec.family}:{spec.source} {spec.get('step') or ''}"

    @property
    def key(self) -> tuple[object, ...]:
        """Rows of one key are the same measurement."""
        training = (self.encoder, self.revision, self.features, self.recipe, self.seed)
        return (*training, self.repeat, self.cell, self.phase)


COLUMNS: dict[str, Any] = {field.name: field.default for field in fields(Outcome)}
PARENT = "parent"


# -------------------------------------------------------------------------------- recipes


def recipe_of(plan: ConfirmPlan) -> dict[str, Any]:
    """Everything but encoder and seed that a plan's scores depend on, JSON-ready."""
    train = shape_of(plan).as_dict()
    train["derivative_step"] = with_step(plan.train)["derivative_step"]
    own = {"encoder", "seed", *FREE, *ARMS}
    kept = {name: value for name, value in train.items() if name not in own}
    return {
        "train": clean(kept),
        "backbone": plan.backbone,
        "scoring": clean(
            {
                "per_task": plan.per_task, "images": plan.images, "seed": plan.seed,
                "prompts": plan.prompt_pins, "detector": plan.detector, "colors": plan.colors,
            }
        ),
    }  # fmt: skip


def features_of(plan: ConfirmPlan) -> str:
    """What a plan does to the encoders' features, as in :attr:`Outcome.features`."""
    train = shape_of(plan).as_dict()
    return " ".join(f"{name}={train[name]}" for name in ARMS if name in train)


def recipe_hash(plan: ConfirmPlan) -> str:
    """16 hex digits that identify a recipe."""
    return digest(recipe_of(plan))[:16]


# ------------------------------------------------------------------------- from a training


class Source(NamedTuple):
    """Where rows are taken from, for their last columns."""

    name: str
    commit: str
    created: str


def rows_of_verdict(verdict: Verdict, name: str) -> list[Outcome]:
    """A row for each training and cell of a verdict."""
    commit = str(verdict.provenance.get("commit") or "")
    source = Source(name, commit, verdict.created)
    return [
        _row(verdict.plan, trained, seed, cell, scores[place], trained.scores[cell].n, source)
        for trained in verdict.encoders
        for cell, scores in trained.by_seed.items()
        for place, seed in enumerate(trained.seeds)
    ]


def rows_of_run(folder: Path, source: Source) -> list[Outcome]:
    """A row for each finished training, phase and cell of a run's folder, whether or not the
    whole confirmation is finished.

    Raises:
        EncbenchError: one line, if a file of the run is damaged or prompts are others now.
    """
    plan = read_plan(folder / "confirm" / PLAN)
    groups = {(group.tier, group.combos): group for group in prompt_groups(plan)}
    for (tier, combos), group in groups.items():
        if plan.prompt_pins.get(f"{tier} {combos}") != group.pin:
            raise BankError(f"{folder} was scored on other prompts than this encbench makes")
    places = read_places(folder)  # a training knows where its encoder lay
    entries = {places.get(entry.spec, entry.spec): entry for entry in plan.encoders}
    specs = {spec.name: spec for spec in metric_specs(plan)}
    rows = []
    for path in sorted((folder / "confirm" / "models").glob(f"*/{RESULT}")):
        result = read_dataclass(ScoredTraining, path)
        trained = read_dataclass(_Trained, path.with_name("config.json"), BankError)
        if trained.encoder not in entries:
            raise BankError(
                f"{path} belongs to {trained.encoder}, which is not in the plan of {folder}"
            )
        entry = entries[trained.encoder]
        if not entry.revision:  # plans of early versions don't have it
            state = read_dataclass(_State, path.with_name("final") / "state.json", BankError)
            entry = replace(entry, revision=state.encoder.revision)
        for phase, cells in (("", result.right), (PARENT, result.parent)):
            for cell, right in cells.items():
                prompts = groups[cell.group].prompts
                score = average_values(np.array(right, float), prompts, specs[cell.metric])
                row = _row(plan, entry, trained.seed, cell, score, len(prompts), source)
                rows.append(replace(row, phase=phase, revision=entry.revision))
    return rows


def _row(
    plan: ConfirmPlan, trained: Any, seed: int, cell: Cell, score: float, prompts: int,
    source: Source,
) -> Outcome:  # fmt: skip
    spec = EncoderSpec.parse(trained.spec)
    revision = next((e.revision for e in plan.encoders if e.spec == trained.spec), "")
    control = trained.control or spec.family == "control"
    if spec.revision and revision.startswith(spec.revision):
        spec = replace(spec, revision=None)  # which has a column of its own
    return Outcome(
        str(public_spec(spec)), revision, str(spec.get("layer") or "last"), trained.stage, control,
        features_of(plan), recipe_hash(plan), seed, 0, *cell, round(score, DIGITS), prompts,
        plan.images, *source,
    )  # fmt: skip


# ------------------------------------------------------------------------- reading, adding


def read_bank(path: Path) -> list[Outcome]:
    """Read a bank.

    Raises:
        BankError: one line that names file, line and column, for a value of the wrong type, a
            score that is no number, or two rows of one measurement.
    """
    columns, lines = read_csv(path, BankError)
    needed = {name for name, default in COLUMNS.items() if default is MISSING}
    missing = needed - set(columns)
    if missing:
        raise BankError(f"{path} has no column {', '.join(sorted(missing))}; it is not a bank")
    rows, seen = [], dict[tuple[object, ...], int]()
    for line, values in enumerate(lines, 2):
        row = _parse(values, f"{path}, line {line}")
        if row.key in seen:
            raise BankError(
                f"{path}, line {line} repeats line {seen[row.key]} ({row.encoder}, seed "
                f"{row.seed}, {row.cell}); remove one of them"
            )
        seen[row.key] = line
        rows.append(row)
    return rows


@dataclass(frozen=True)
class _Trained:
    """What the bank needs of a training's ``config.json``."""

    encoder: str
    seed: int


@dataclass(frozen=True)
class _Weights:
    revision: str


@dataclass(frozen=True)
class _State:
    """What it needs of a checkpoint's ``state.json``."""

    encoder: _Weights


def _parse(values: dict[str, str], where: str) -> Outcome:
    kinds = {field.name: str(field.type) for field in fields(Outcome)}
    made: dict[str, Any] = {}
    for name, default in COLUMNS.items():
        text = values.get(name, default)
        try:
            if text is None:
                raise ValueError("nothing")
            if kinds[name] == "bool":
                made[name] = {"True": True, "False": False}[text]
            elif kinds[name] == "int":
                made[name] = int(text)
            elif kinds[name] == "float":
                made[name] = float(text)
            else:
                made[name] = unescape_formula(text)
        except (KeyError, ValueError) as error:
            raise BankError(f"{where}: {name} cannot be {text!a}") from error
        if kinds[name] == "float" and not math.isfinite(made[name]):
            raise BankError(f"{where}: {name} is {text}, which is not a number; remove the row")
    return Outcome(**made)


def add_to_bank(path: Path, rows: Sequence[Outcome], plan: ConfirmPlan) -> int:
    """Append the rows that are not in the bank yet, and write their recipe beside it. A training
    that another source has already becomes a repetition.

    Returns:
        how many were added.

    Raises:
        BankError: if a row of the same source is there with another score.
    """
    there = read_bank(path) if path.exists() else []
    known = {(*row.key, row.source): row for row in there}
    keys = {row.key for row in there}
    new = []
    for row in rows:
        while (*row.key, row.source) not in known and row.key in keys:
            row = replace(row, repeat=row.repeat + 1)
        old = known.get((*row.key, row.source))
        if old is None:
            new.append(row)
        elif abs(old.score - row.score) > 10**-DIGITS:
            raise BankError(
                f"{path} holds the score {old.score} for {row.encoder}, seed {row.seed}, "
                f"{row.cell} of {row.source}, and it is {row.score} now; rows of a bank are "
                "never changed"
            )
    write_json(path.parent / RECIPES / f"{recipe_hash(plan)}.json", recipe_of(plan))
    if new:
        cells = [[getattr(row, name) for name in COLUMNS] for row in (*there, *new)]
        write_text(path, to_csv(list(COLUMNS), cells, line_end="\n"))
    return len(new)


def bank_verdict(path: Path, verdict: Verdict, name: str) -> int:
    """Add every training of a verdict to a bank; returns the number of new rows."""
    return add_to_bank(path, rows_of_verdict(verdict, name), verdict.plan)


def one_recipe(rows: Sequence[Outcome], recipe: str = "") -> list[Outcome]:
    """The rows of one recipe: the one named (by the beginning of its hash), or the only one.

    Raises:
        UsageError: if the bank holds several and none was named.
    """
    hashes = list(dict.fromkeys(row.recipe for row in rows))
    chosen = [found for found in hashes if found.startswith(recipe)]
    if len(chosen) != 1:
        raise UsageError(
            f"the bank holds rows of {len(chosen)} recipes, which cannot be compared: name one of "
            f"{', '.join(hashes)}"
        )
    return [row for row in rows if row.recipe == chosen[0]]
