"""How well do scores from before training order the trained outcomes?

Takes a table of outcomes (spec and score of each training, the bank of outcomes, or a published
table that comes with encbench) and scores of the same encoders (a run's records, files of
predictions, or further columns of the table), and measures each score's rank agreement by
:mod:`encbench.confirm.agreement`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from . import registry
from .confirm.agreement import LEAST, Agreement, measure_agreement, seed_ceiling
from .confirm.bank import COLUMNS, Outcome, one_recipe, read_bank
from .data.hub import download_plan
from .encoders import EncoderSpec, family_of
from .errors import EncbenchError, UnknownNameError, UsageError
from .files import (
    read_csv,
    read_json,
    read_json_lines,
    to_csv,
    write_atomic,
    write_json,
    write_text,
)
from .records import clean, find_records, read_record
from .rules import TRAINED_WORDING
from .schema import check_value, read_dataclass
from .types import Cell, Estimate

PUBLISHED = Path(__file__).parent / "data" / "outcomes"
OWN = ("spec", "score", "seed", "stratum", "weights", "control", "recipe")
Scores = Mapping[str, Mapping[str, Estimate]]
"""Score's name ('probe score') -> encoder -> value with interval."""


class OutcomesError(EncbenchError):
    """Outcomes or predictions that cannot be read or compared."""


@dataclass(frozen=True)
class EncoderOutcome:
    """The result of training for one encoder.

    Attributes:
        spec: the encoder.
        scores: of its trainings, one for each seed.
        stratum: stage of the encoder's own training; '' = all are in one stratum.
        weights: names its set of weights; layers of one encoder share it.
        control: True for an encoder that serves for comparison only.
    """

    spec: str
    scores: tuple[float, ...]
    stratum: str = ""
    weights: str = ""
    control: bool = False

    @property
    def mean(self) -> float:
        return float(np.mean(self.scores))


@dataclass(frozen=True)
class Outcomes:
    """A table of outcomes.

    Attributes:
        name: of the file or the published table.
        encoders: one for each.
        scores: further columns: scores from before training that came with the table.
        notes: where it comes from and what it is confounded by.
    """

    name: str
    encoders: tuple[EncoderOutcome, ...]
    scores: Scores = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validation:
    """Rank agreement of scores with outcomes.

    Attributes:
        outcomes: name of the table.
        encoders: those with an outcome and at least one score.
        rows: one for each score, best first.
        scores: the values behind the rows.
        spread: best minus worst mean outcome.
        ceiling, rank_ceiling: the correlation that a perfect predictor of true scores can be
            expected to reach, from how far seeds agree, by values and by ranks; None with one seed.
        notes: what was left out, in words.
    """

    outcomes: str
    encoders: tuple[EncoderOutcome, ...]
    rows: tuple[Agreement, ...]
    scores: Scores
    spread: float
    ceiling: float | None
    rank_ceiling: float | None
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """What was compared, in a line."""
        seeds = max(len(row.scores) for row in self.encoders)
        text = f"{self.outcomes}: {len(self.encoders)} encoders, outcomes spread over "
        text += f"{self.spread:.3f}"
        if self.ceiling is not None and self.rank_ceiling is not None:
            text += (
                f", ceiling by {seeds} seeds {self.ceiling:.2f} ({self.rank_ceiling:.2f} by rank)"
            )
        return text

    def markdown(self) -> str:
        """The table, best score first, with its notes."""
        lines = [
            f"{self.summary}.\n",
            "| score | Spearman (95 %) | within strata | leaving one out | 97.5 % of random orders"
            " | Pearson | encoders (sets of weights) |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            low, high = row.pooled.low, row.pooled.high
            within = "-" if math.isnan(row.within) else f"{row.within:.2f}"
            lines.append(
                f"| {row.name} | {row.pooled.value:.2f} ({low:.2f} to {high:.2f}) | {within} | "
                f"{row.lowest:.2f} to {row.highest:.2f} | below {row.chance:.2f} | "
                f"{row.linear:.2f} | {row.encoders} ({row.sets}) |"
            )
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    def table(self) -> str:
        """The same as CSV."""
        head = ["score", "spearman", "low", "high", "within", "lowest", "highest", "chance"]
        rows = []
        for row in self.rows:
            interval = (row.pooled.value, row.pooled.low, row.pooled.high)
            numbers = (*interval, row.within, row.lowest, row.highest, row.chance, row.linear)
            rows.append([row.name, *(round(x, 6) for x in numbers), row.encoders, row.sets])
        return to_csv([*head, "pearson", "encoders", "sets"], rows)

    def as_dict(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return dict(clean(asdict(self)))

    def write(self, folder: Path) -> None:
        """Write validation.md, .csv, .json and .png into a folder.

        Raises:
            StoreError: if it cannot be written.
        """
        drawing = registry.get("figure", "agreement").draw(self)
        write_atomic(folder / "validation.png", drawing.png)
        write_text(folder / "validation.csv", self.table())
        write_text(folder / "validation.md", self.markdown() + f"\n{drawing.caption}\n")
        write_json(folder / "validation.json", self.as_dict())


# ---------------------------------------------------------------------------- validation


def validate_files(
    outcomes: str, runs: Sequence[Path], predictions: Sequence[Path], *, cell: str, recipe: str,
    controls: bool, seed: int,
) -> Validation:  # fmt: skip
    """:func:`validate` on files: outcomes by path or name, scores from folders of runs and from
    files of predictions.

    Raises:
        EncbenchError: one line that names what cannot be read or compared.
    """
    try:
        wanted = Cell.parse(cell)
    except ValueError as error:
        raise UsageError(f"--cell {error}") from error
    scores = load_predictions(predictions)
    for folder in runs:
        for name, values in load_run_scores(folder).items():
            scores.setdefault(name, {}).update(values)
    table = load_outcomes(outcomes, cell=wanted, recipe=recipe)
    return validate(table, scores, controls=controls, seed=seed)


def validate(
    outcomes: Outcomes, scores: Scores | None = None, *, controls: bool = False, seed: int = 0,
    draws: int = 2000,
) -> Validation:  # fmt: skip
    """Measure how well each score orders the outcomes.

    Args:
        outcomes: from :func:`load_outcomes`.
        scores: from :func:`load_run_scores` or :func:`load_predictions`; those that came with the
            outcomes are taken as well.
        controls: whether controls count, too. They make an order look better than it is, since
            they are easy to tell from encoders.
        seed, draws: of the bootstrap over sets of weights, and of the random orders.

    Raises:
        OutcomesError: with fewer than four encoders that have an outcome and a score, naming
            those without.
    """
    everything = {**outcomes.scores, **(scores or {})}
    wanted = [row for row in outcomes.encoders if controls or not row.control]
    names = {_plain(row.spec): row.spec for row in wanted}
    found: dict[str, dict[str, Estimate]] = {}
    for name, values in everything.items():
        known = {names[_plain(s)]: v for s, v in values.items() if _plain(s) in names}
        found[name] = {s: v for s, v in known.items() if math.isfinite(v.value)}
    scored = {spec for values in found.values() for spec in values}
    kept = [row for row in wanted if row.spec in scored]
    notes = list(outcomes.notes)
    measured = {_plain(spec) for values in (scores or {}).values() for spec in values}
    absent = missing_weights([row.spec for row in wanted if _plain(row.spec) not in measured])
    missing = [row.spec for row in wanted if row.spec not in scored and row.spec not in absent]
    if missing:
        notes.append(f"No score was given for {', '.join(missing)}.")
    if absent:
        text = ", ".join(f"{spec}{why}" for spec, why in absent.items())
        notes.append(f"Not measured, and weights not at hand: {text}.")
    if len(kept) < LEAST:
        raise OutcomesError(
            f"{outcomes.name}: {len(kept)} of {len(wanted)} encoders have both an outcome and a "
            f"score; a rank correlation needs {LEAST}. " + " ".join(notes[len(outcomes.notes) :])
        )
    rows = []
    for name, values in found.items():
        here = [row for row in kept if row.spec in values]
        if len(here) < LEAST:
            notes.append(f"{name}: {len(here)} encoders have it; a rank correlation needs {LEAST}.")
            continue
        rows.append(
            measure_agreement(
                name,
                np.array([values[row.spec].value for row in here]),
                np.array([row.mean for row in here]),
                sets=[row.weights or row.spec for row in here],
                strata=[row.stratum for row in here],
                seed=seed,
                draws=draws,
            )
        )
    seeds = min(len(row.scores) for row in kept)
    by_seed = np.array([row.scores[:seeds] for row in kept])
    return Validation(
        outcomes.name,
        tuple(kept),
        tuple(sorted(rows, key=lambda row: -row.pooled.value)),
        {row.name: found[row.name] for row in rows},
        float(np.ptp([row.mean for row in kept])),
        seed_ceiling(by_seed),
        seed_ceiling(rankdata(by_seed, axis=0)),
        tuple(notes),
    )


def _plain(spec: str) -> str:
    """A spec without revision, in canonical form; another text as it is."""
    with suppress(EncbenchError):
        parsed = EncoderSpec.parse(spec)
        return str(parsed).replace(f"@{parsed.revision}", "") if parsed.revision else str(parsed)
    return spec


def missing_weights(specs: Sequence[str]) -> dict[str, str]:
    """Those whose weights are neither in a local folder nor in the hub's cache, with '', and those
    that are no spec of an encoder, with that as the reason."""
    absent = {}
    for text in specs:
        try:
            spec = EncoderSpec.parse(text)
            needed = family_of(spec).requires(spec)
        except (Exception, SystemExit):  # an encoder's code raises anything
            absent[text] = " (no spec)"
            continue
        if not all(row.cached for row in download_plan(needed)):
            absent[text] = ""
    return absent


# ------------------------------------------------------------------------------- outcomes


@dataclass(frozen=True)
class _Published:
    """A published table: where it comes from and what it is confounded by, and its rows."""

    about: tuple[str, ...]
    rows: list[dict[str, Any]]


def published_names() -> list[str]:
    """Names of the tables that come with encbench."""
    return sorted(path.stem for path in PUBLISHED.glob("*.json"))


def load_outcomes(
    source: str | Path, *, cell: Cell = TRAINED_WORDING, recipe: str = ""
) -> Outcomes:
    """Read outcomes.

    Args:
        source: a bank of outcomes; a .csv or .jsonl file with at least ``spec`` and ``score``; or
            the name of a published table, see :func:`published_names`. Of other columns
            ``seed``, ``stratum``, ``weights``, ``control`` and ``recipe`` have a meaning; any
            further one holds a score from before training.
        cell: of a bank, which score.
        recipe: of rows of several recipes, the beginning of the one to take.

    Raises:
        EncbenchError: one line that names the file and, where there is one, the line: for a
            score that is missing or no number, repeated rows, or rows of several recipes.
    """
    path, name = Path(source), str(source)
    if name in published_names():
        table = read_dataclass(_Published, PUBLISHED / f"{name}.json", OutcomesError)
        rows = [(f"{name}, row {k}", row) for k, row in enumerate(table.rows, 1)]
        return _assemble(rows, name, table.about, recipe)
    if not path.exists() and not path.suffix:
        raise UnknownNameError("table of outcomes", name, published_names())
    if path.suffix == ".jsonl":
        rows = [
            (where, dict(check_value(dict[str, Any], value, where, OutcomesError)))
            for where, value in read_json_lines(path, OutcomesError)
        ]
        return _assemble(rows, path.name, (), recipe)
    columns, lines = read_csv(path, OutcomesError)
    if {name for name, default in COLUMNS.items() if default is MISSING} <= set(columns):
        return _from_bank(one_recipe(read_bank(path), recipe), path.name, cell)
    rows = []
    for number, line in enumerate(lines, 2):
        if None in line.values():
            raise OutcomesError(f"line {number} of {path.name} has fewer values than its head")
        rows.append((f"line {number} of {path.name}", line))
    return _assemble(rows, path.name, (), recipe)


def _from_bank(rows: Sequence[Outcome], name: str, cell: Cell) -> Outcomes:
    """One recipe's finished trainings on plain features. A score of the parent becomes a score
    from before the few-step model."""
    here = [row for row in rows if row.cell == cell and not row.features and not row.repeat]
    if not here:
        raise OutcomesError(f"{name} has no score in the cell {cell}")
    trained: dict[str, list[Outcome]] = {}
    for row in here:
        if not row.phase:
            trained.setdefault(row.encoder, []).append(row)
    encoders = tuple(
        EncoderOutcome(
            spec,
            tuple(row.score for row in sorted(group, key=lambda row: row.seed)),
            group[0].stage,
            group[0].weights,
            group[0].control,
        )
        for spec, group in trained.items()
    )
    return Outcomes(name, encoders, _parents(rows))


def _parents(rows: Sequence[Outcome]) -> dict[str, dict[str, Estimate]]:
    """Scores of the plain flow-matching models before they became few-step models: mean over seeds,
    by cell."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.phase and not row.features and not row.repeat:
            name = f"parent, flow matching, {row.steps} steps, tier {row.tier}"
            found.setdefault(name, {}).setdefault(row.encoder, []).append(row.score)
    return {
        name: {s: Estimate(float(np.mean(v)), min(v), max(v)) for s, v in values.items()}
        for name, values in found.items()
    }


def _assemble(
    rows: Sequence[tuple[str, dict[str, Any]]], name: str, notes: tuple[str, ...], recipe: str
) -> Outcomes:
    if not rows or not {"spec", "score"} <= set(rows[0][1]):
        raise OutcomesError(f"{name} needs the columns spec and score, and a row for each training")
    recipes = list(dict.fromkeys(str(row.get("recipe") or "") for _, row in rows))
    chosen = [text for text in recipes if text.startswith(recipe)]
    if len(chosen) != 1:
        raise OutcomesError(
            f"{name} holds rows of {len(chosen)} recipes, which cannot be compared: name one of "
            f"{', '.join(recipes)}"
        )
    scores: dict[str, dict[int, float]] = {}
    about: dict[str, dict[str, Any]] = {}
    before: dict[str, dict[str, Estimate]] = {}
    seen: dict[tuple[str, int], str] = {}
    for where, row in rows:
        if str(row.get("recipe") or "") != chosen[0]:
            continue
        spec = str(row.get("spec") or "").strip()
        if not spec:
            raise OutcomesError(f"{where} has no spec")
        if row.get("score") in (None, ""):
            raise OutcomesError(f"{where}: {spec} has no score; give one or remove the row")
        number = _number(row.get("seed") or 0, f"{where}: seed")
        seed = int(number)
        if seed != number or abs(seed) > 2**53:  # above, two seeds would be one float
            raise OutcomesError(f"{where}: seed must be a whole number below 2**53, not {number}")
        if (spec, seed) in seen:
            raise OutcomesError(
                f"{where} repeats {seen[spec, seed]} ({spec}, seed {seed}); remove one of them"
            )
        seen[spec, seed] = where
        scores.setdefault(spec, {})[seed] = _number(row["score"], f"{where}: score of {spec}")
        about.setdefault(spec, row)
        for column, value in row.items():
            if column not in OWN and value not in (None, ""):
                number = _number(value, f"{where}: {column} of {spec}")
                before.setdefault(column, {})[spec] = Estimate(number, number, number)
    encoders = tuple(
        EncoderOutcome(
            spec,
            tuple(by_seed[seed] for seed in sorted(by_seed)),
            str(about[spec].get("stratum") or ""),
            str(about[spec].get("weights") or ""),
            _is_control(spec, about[spec].get("control")),
        )
        for spec, by_seed in scores.items()
    )
    return Outcomes(name, encoders, before, notes)


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise OutcomesError(f"{where} cannot be {value!a}; it must be a number") from error
    if not math.isfinite(number):
        raise OutcomesError(f"{where} is {value}, which is not a number; remove the row")
    return number


def _is_control(spec: str, value: Any) -> bool:
    if value in (None, ""):
        return spec.startswith("control:")
    return str(value).lower() in ("true", "1", "yes")


# --------------------------------------------------------------------------------- scores


def load_run_scores(folder: Path) -> dict[str, dict[str, Estimate]]:
    """Every score of every probe in a run's records, higher = better (a probe of which lower is
    better counts with its sign turned). Other layers and poolings are left out.

    Raises:
        EncbenchError: one line, if there is no record, or one is damaged.
    """
    found: dict[str, dict[str, Estimate]] = {}
    for path in find_records(folder):
        record = read_record(path)
        if record.variant:
            continue
        sign = -1 if record.probe.direction == "lower" else 1
        for name, score in record.scores.items():
            low, high = sorted((sign * score.low, sign * score.high))
            value = Estimate(sign * score.value, low, high)
            found.setdefault(f"{record.probe.name} {name}", {})[record.card.spec] = value
    if not found:
        raise OutcomesError(f"{folder} has no records; run the probes first: encbench run")
    return found


def load_predictions(paths: Sequence[Path]) -> dict[str, dict[str, Estimate]]:
    """Scores of files of predictions as ``benchmarks/predict_heldout.py`` writes them: every
    rule's value and every probe's score. Of two files that give the same one the first counts.

    Raises:
        OutcomesError: one line that names file and key, if one is damaged.
    """
    found: dict[str, dict[str, Estimate]] = {}
    for path in paths:
        for spec, row in _rows_of(path, read_json(path, OutcomesError), "encoders").items():
            where = f"{path}: {spec}"
            for name, value in _rows_of(where, row, "rules").items():
                value = check_value(float, value, f"{where}: rule {name}", OutcomesError)
                found.setdefault(f"rule {name}", {}).setdefault(spec, Estimate(value, value, value))
            probes = _rows_of(where, row, "scores")
            for probe in probes:
                scores = _rows_of(f"{where}: scores", probes, probe)
                for name in scores:
                    if isinstance(scores[name], list):  # beside it stand its time and commit
                        key = f"{probe} {name}"
                        low, value, high = sorted(
                            -x if name == "bits" else x  # of a code length, shorter is better
                            for x in check_value(
                                tuple[float, float, float], scores[name], f"{where}: {key}",
                                OutcomesError,
                            )
                        )  # fmt: skip
                        found.setdefault(key, {}).setdefault(spec, Estimate(value, low, high))
    return found


def _rows_of(where: object, content: Any, key: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get(key), dict):
        raise OutcomesError(f"{where} has no '{key}'; it is not a file of predictions")
    return dict(content[key])
