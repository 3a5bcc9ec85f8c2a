"""Run records, predictions and verdicts: JSON files with a schema version.

Probes and reports share nothing but records. Fields are only ever added, with a default, so that
old files stay readable; a file of a newer schema is refused. :func:`clean` turns a record into
JSON, and :func:`_read` reads it back and checks every type.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import platform
import subprocess
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import RecordError, first_line
from .files import (
    OLD_NAMES,
    digest,
    escape_formula,
    read_json,
    unescape_formula,
    with_current_names,
    write_gzip,
    write_json,
)
from .schema import load_dataclass
from .types import NULLABLE, Cell, EncoderCard, Estimate, ProbeSpec, Score

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
UNKNOWN = Estimate(math.nan, math.nan, math.nan)
PACKAGES = (
    "encbench", "torch", "transformers", "open_clip_torch", "sentence-transformers", "timm",
    "faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "numpy", "scikit-learn", "pandas", "pycocotools",
    "tokenizers",
)  # fmt: skip


@dataclass(frozen=True)
class RunRecord:
    """One encoder through one probe.

    Attributes:
        key: hash of everything the scores depend on; equal keys mean equal scores.
        name: the encoder's short name, unique within a run.
        card: of the encoder.
        pooling: the pooling that was measured.
        probe: its spec, dataset and pin filled in.
        scores: by name.
        item_scores: see ``types.Measurement``.
        items: file with one row per item, relative to the record's folder ('' = none).
        series: plot data by name, in the probe's own form.
        notes: warnings in words.
        config: the resolved configuration of the run, as JSON.
        seed: of the run.
        provenance: commit, packages, device, time.
        seconds: how long the probe took.
        variant: '' for the encoder as it is ranked, else what differs ('layer=normavg&pool=max').
        variant_of: for a variant, the spec of the encoder as it is ranked.
    """

    key: str
    name: str
    card: EncoderCard
    pooling: str
    probe: ProbeSpec
    scores: dict[str, Score]
    item_scores: dict[str, list[str]] = field(default_factory=dict)
    items: str = ""
    series: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    variant: str = ""
    variant_of: str = ""
    schema: int = SCHEMA
    kind: str = "run"

    @property
    def main(self) -> Score:
        """The probe's main score."""
        return self.scores[self.probe.main_metric]


@dataclass(frozen=True)
class Failure:
    """An encoder that could not be measured or trained (then with the seed), and why."""

    spec: str
    error: str
    seed: int | None = None


# ------------------------------------------------------------------------------ prediction


@dataclass(frozen=True)
class TrackRecord:
    """How well one version of a rule ordered held-out encoders, which were trained after it was
    frozen.

    Attributes:
        rule, version: of the rule.
        cell: of the trained scores.
        recipe: hash of the trainings' recipe, see :func:`encbench.confirm.bank.recipe_of`.
        encoders, sets: how many encoders (without controls), from how many sets of weights.
        correlation: Spearman's, pooled; ``low`` and ``high`` are its 95 % interval, by bootstrap
            over sets of weights.
        source, commit: the table that it was taken from, and the code that made it.
        within: the same within stages of training; NaN if unknown.
        chance: the 97.5th percentile of random orders; NaN if unknown.
        complete: whether all encoders of the prediction were trained.
        predictions: hash of the predictions.
    """

    rule: str
    version: int
    cell: Cell
    recipe: str
    encoders: int
    sets: int
    correlation: float
    low: float
    high: float
    source: str
    commit: str
    within: float = field(default=math.nan, metadata=NULLABLE)
    chance: float = field(default=math.nan, metadata=NULLABLE)
    complete: bool = True
    predictions: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        return self.rule, self.version, self.cell, self.recipe


@dataclass(frozen=True)
class AppliedRule:
    """A ranking rule as a prediction used it.

    Attributes:
        trust: how far it can be trusted, in a sentence: its track record.
        name, version: of the rule.
        text: the rule in a sentence.
        probe, metric: the score that ranks (of a sum, its first term's).
        terms: what is summed, as text; () in files of early versions.
        cell: of the trained scores that the order predicts; None if no single one.
        pooling: that the rule uses.
        resamples: of the bootstrap behind the intervals.
        record: the track record; None if it has none.
    """

    trust: str = ""
    name: str = ""
    version: int = 0
    text: str = ""
    probe: str = "retrieval"
    metric: str = "score"
    terms: tuple[str, ...] = ()
    cell: Cell | None = None
    pooling: str = "mean"
    resamples: int = 0
    record: TrackRecord | None = None


@dataclass(frozen=True)
class Ranked:
    """One encoder's place by a rule.

    ``rank`` counts candidates only and is None for a control; ``rank_low`` and
    ``rank_high`` are its 95 % interval.
    """

    spec: str
    name: str
    control: bool
    value: float = field(metadata=NULLABLE)
    low: float = field(metadata=NULLABLE)
    high: float = field(metadata=NULLABLE)
    n: int
    unscored: int = 0
    rank: int | None = None
    rank_low: int | None = None
    rank_high: int | None = None
    parameters: int = 0
    pooling: str = "mean"
    stage: str = "final"

    @property
    def score(self) -> Estimate:
        return Estimate(self.value, self.low, self.high)


@dataclass(frozen=True)
class PairedDifference:
    """The paired difference a - b by a rule, with its 95 % interval.

    ``p`` is two-sided, ``p_holm`` corrected over all pairs of that rule."""

    a: str
    b: str
    difference: float = field(metadata=NULLABLE)
    low: float = field(metadata=NULLABLE)
    high: float = field(metadata=NULLABLE)
    p: float = field(metadata=NULLABLE)
    p_holm: float = field(metadata=NULLABLE)
    distinguishable: bool


@dataclass(frozen=True)
class Advice:
    """Which encoder to use, in words (``text``) and by spec.

    Attributes:
        use: the winner; None if no encoder can be recommended.
        tied: not distinguishable from it.
        cheapest: of these and the winner, the one with the fewest parameters.
    """

    text: str
    use: str | None = None
    tied: tuple[str, ...] = ()
    cheapest: str | None = None


@dataclass(frozen=True)
class RivalOrder:
    """Another way to order the same encoders, named beside the primary rule, never mixed in.

    ``scores`` maps a spec to its score; ``order`` holds candidates best first.
    ``agreement`` is Spearman's correlation with the primary order over candidates
    (None for fewer than three)."""

    probe: str
    score: str
    order: list[str]
    scores: dict[str, Estimate]
    direction: str = "higher"
    published: bool = False
    saturated: bool = False
    agreement: float | None = None


@dataclass(frozen=True)
class Variant:
    """A rule under another layer or pooling.

    ``flips`` are pairs of candidates that stand the other way round than by that rule as ranked;
    ``clear_flips`` those whose difference excludes zero here. ``rule`` is its name; '' = the
    primary one."""

    layer: str
    pooling: str
    order: list[str]
    scores: dict[str, Estimate]
    flips: list[list[str]] = field(default_factory=list)
    clear_flips: list[list[str]] = field(default_factory=list)
    rule: str = ""


@dataclass(frozen=True, kw_only=True)
class RuleOrder:
    """The result of one rule: order with intervals, paired differences, advice."""

    rule: AppliedRule = AppliedRule()
    order: list[Ranked]
    pairs: list[PairedDifference] = field(default_factory=list)
    advice: Advice = Advice("")


@dataclass(frozen=True, kw_only=True)
class Prediction(RuleOrder):
    """The prediction before anything is trained: the order by the primary rule, and ``others`` by
    further rules. ``hash`` is the sha256 of everything else; see
    :func:`body_hash`."""

    data: dict[str, str] = field(default_factory=dict)
    rivals: list[RivalOrder] = field(default_factory=list)
    sensitivity: list[Variant] = field(default_factory=list)
    others: list[RuleOrder] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    seed: int = 0
    created: str = ""
    hash: str = ""
    schema: int = SCHEMA
    kind: str = "prediction"


# --------------------------------------------------------------------------------- verdict


@dataclass(frozen=True)
class PlannedTraining:
    """One encoder of a confirmation, as the prediction has it.

    ``predicted`` is by the rule of the first question, ``second`` by that of the second one."""

    spec: str
    name: str
    stage: str
    control: bool
    predicted: Estimate
    parameters: int
    revision: str = ""
    second: Estimate | None = None


@dataclass(frozen=True)
class ConfirmPlan:
    """Everything that a verdict depends on, fixed before the first step.

    Attributes:
        prediction: its hash; '' = still to be made.
        preset: whose values are the defaults.
        encoders: best predicted first, controls last.
        seeds: of the trainings.
        train: values of ``flow.config.TrainConfig`` but for encoder, seed and place, as JSON.
        per_task, images, steps: of scoring; ``steps`` are numbers of sampling steps.
        prompts: file of prompts, or '' for those of the world.
        prompt_pins: hash of each group of prompts.
        primary: cell of the first question's verdicts.
        backbone: identifies the backbone; '' = from scratch.
        detector, colors: the judges of images.
        budget: in seconds; None = none was given.
        gave_up: what was left out for the budget, in words.
        seed: of prompts, noise and bootstrap.
        metrics: specs of further metrics, besides GenEval.
        rule: name of the rule whose order is judged in the primary cell.
        second: cell of the second question; None = it is not asked.
        second_rule: name of the rule whose order is judged there.
    """

    prediction: str
    preset: str
    encoders: tuple[PlannedTraining, ...]
    seeds: tuple[int, ...]
    train: dict[str, Any]
    per_task: int
    images: int
    prompts: str
    prompt_pins: dict[str, str]
    primary: Cell
    backbone: str
    detector: str
    colors: str
    steps: tuple[int, ...] = (1, 2, 4, 16)
    budget: float | None = None
    gave_up: tuple[str, ...] = ()
    seed: int = 0
    metrics: tuple[str, ...] = ()
    rule: str = ""
    second: Cell | None = None
    second_rule: str = ""

    @property
    def trained(self) -> tuple[PlannedTraining, ...]:
        return tuple(e for e in self.encoders if not e.control)

    @property
    def digest(self) -> str:
        return digest(clean(asdict(self)))


@dataclass(frozen=True)
class Reach:
    """What a plan is able to show.

    Attributes:
        smallest_p: that a perfect order would reach.
        prompts, images: of an encoder in the primary cell.
        regret_half_width: that a regret's interval can be expected to have.
        choice, rule: the verdicts that are possible.
    """

    smallest_p: float
    prompts: int
    images: int
    regret_half_width: float
    choice: tuple[str, ...]
    rule: tuple[str, ...]


@dataclass(frozen=True)
class CurvePoint:
    """A score during a training: 4 steps, the prompts of the primary cell."""

    step: int
    stage: str
    value: float = field(metadata=NULLABLE)


@dataclass(frozen=True)
class GapPoint:
    """|u - v| / |v| around a time t, at the end of a training."""

    t: float
    value: float = field(metadata=NULLABLE)


@dataclass(frozen=True)
class TrainedEncoder:
    """The result of one encoder, mean over its trainings (one for each seed).

    Attributes:
        predicted: by the primary rule of the prediction.
        predicted_rank: among the trained encoders of the experiment; None for a control.
        training_seconds: of each training; ``folders``: of each, relative to the run.
        scores: the metric's value in each cell, over n prompts.
        tasks: share of right images by task, in each cell.
        by_seed: the score of each training, in the order of ``seeds``.
        parent: scores of the checkpoint at the switch, sampled as plain flow matching.
        grid: image file relative to the run: a row for each prompt, a column for each number
            of steps, first seed.
    """

    spec: str
    name: str
    stage: str
    control: bool
    predicted: Estimate
    seeds: list[int]
    scores: dict[Cell, Score]
    predicted_rank: int | None = None
    parameters: int = 0
    tasks: dict[Cell, dict[str, float]] = field(default_factory=dict)
    by_seed: dict[Cell, list[float]] = field(default_factory=dict)
    parent: dict[Cell, Score] = field(default_factory=dict)
    curve: list[CurvePoint] = field(default_factory=list)
    gap: list[GapPoint] = field(default_factory=list)
    training_seconds: list[float] = field(default_factory=list)
    scoring_seconds: list[float] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    grid: str = ""


@dataclass(frozen=True)
class Lead:
    """The predicted winner's paired lead over one rival; ``high_corrected`` is the upper end
    of the interval corrected over all rivals."""

    rival: str
    lead: Estimate
    high_corrected: float


@dataclass(frozen=True)
class ChoiceVerdict:
    """``verdict``: 'confirmed', 'overturned by <spec>' or "can't tell"; why, in words."""

    verdict: str
    why: str = ""
    winner: str = ""
    leads: tuple[Lead, ...] = ()


@dataclass(frozen=True)
class OrderVerdict:
    """``verdict``: 'confirmed', 'not confirmed' or "can't tell"; why, in words.

    Attributes:
        statistic: size-weighted mean of Spearman within strata.
        p: one-sided, by permutation within strata; exact if ``exact``.
        regret: top-1 regret; see the verdict's rules.
        smallest_p: what a perfect order would reach.
        score_range: best minus worst mean score.
        seed_deviation: of one training's score; None with one seed.
        seed_correlation: Pearson's correlation of encoders' scores between seeds, mean over
            pairs of seeds: the ceiling of any prediction. None with one seed.
    """

    verdict: str = "can't tell"
    why: str = "no encoder was trained"
    statistic: Estimate = UNKNOWN
    p: float = field(default=math.nan, metadata=NULLABLE)
    exact: bool = True
    regret: Estimate = UNKNOWN
    smallest_p: float = 1.0
    score_range: float = 0.0
    seed_deviation: float | None = None
    seed_correlation: float | None = None


@dataclass(frozen=True)
class ControlLead:
    """The best trained encoder against the constant control in the primary cell."""

    best: str
    control: str
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class CellVerdict:
    """The two verdicts in one cell.

    Attributes:
        cell: of the scores.
        ranked_by: name of the rule whose order is judged; '' in files of early versions.
        choice, rule: on the predicted first, and on the predicted order.
        control: None without a constant control.
    """

    cell: Cell
    ranked_by: str
    choice: ChoiceVerdict
    rule: OrderVerdict
    control: ControlLead | None = None


@dataclass(frozen=True)
class Predictor:
    """How well one score that was there before (or besides) training orders the trained
    encoders in one cell: exploratory, never a verdict. ``p`` is one-sided by permutation within
    stages, ``p_holm`` corrected over all rows of the table."""

    name: str
    cell: Cell
    statistic: float
    p: float
    p_holm: float
    encoders: int


@dataclass(frozen=True)
class Verdict:
    """Whether a prediction held when models were trained.

    Attributes:
        prediction: hash of the prediction that was tested.
        rules: the rules of both verdicts and the correction, as fixed before training.
        plan: what was trained and scored.
        encoders: best predicted first, controls last.
        choice, rule, control: the verdicts on the first question, in the ``primary`` cell.
        ranked_by: name of the rule whose order they judge; '' in files of early versions.
        second: the verdicts on the second question, 'in other words'; None if it was not asked.
        reach: what the plan could show; None in files of early versions.
        failed: trainings that failed; the same command tries them again.
    """

    prediction: str
    rules: dict[str, str]
    plan: ConfirmPlan
    encoders: list[TrainedEncoder]
    choice: ChoiceVerdict
    rule: OrderVerdict
    primary: Cell
    reach: Reach | None = None
    control: ControlLead | None = None
    ranked_by: str = ""
    second: CellVerdict | None = None
    exploratory: list[Predictor] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    created: str = ""
    hash: str = ""
    schema: int = SCHEMA
    kind: str = "verdict"


T = TypeVar("T", RunRecord, Prediction, Verdict)
Hashed = TypeVar("Hashed", Prediction, Verdict)


# ------------------------------------------------------------------------ reading, writing


def clean(value: Any) -> Any:
    """JSON-ready copy: numpy scalars become numbers, NaN and infinity None, a cell its key."""
    if isinstance(value, Cell):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    if hasattr(value, "tolist"):  # numpy array or scalar, torch tensor
        return clean(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def _read(cls: type[T], path: Path, raw: Any, again: str) -> T:
    """A record of this or any earlier schema from its JSON; ``again`` says what makes it anew."""
    kind = next(f.default for f in dataclasses.fields(cls) if f.name == "kind")
    if not isinstance(raw, dict) or raw.get("kind") != kind:
        raise RecordError(f"{path} is not an encbench {kind} file")
    value = with_current_names(raw)
    if kind == "verdict":  # the first ones had {} for no control and the reach within the plan
        plan = value.get("plan")
        reach = plan.get("reach") if isinstance(plan, dict) else None
        value = {"reach": reach} | value | {"control": value.get("control") or None}
    record = load_dataclass(cls, value, str(path), lambda text: RecordError(f"{text}; {again}"))
    if record.schema > SCHEMA:
        raise RecordError(
            f"{path} has schema {record.schema}, newer than this encbench reads ({SCHEMA}); "
            "update encbench"
        )
    return record


def write_record(path: Path, record: RunRecord, items: pd.DataFrame | None = None) -> None:
    """Write a record and, beside it, its items; the record last, so that it is never
    there without them. Both atomically.

    Raises:
        StoreError: if the disk is full or the folder cannot be written.
    """
    if items is not None:
        name = path.stem + ".items.csv.gz"
        buffer = io.BytesIO()
        _map_texts(items, escape_formula).to_csv(buffer, index=False, lineterminator="\n")
        write_gzip(path.with_name(name), buffer.getvalue())
        record = dataclasses.replace(record, items=name)
    write_json(path, clean(asdict(record)))


def read_record(path: Path) -> RunRecord:
    """Read a record of this or any earlier schema.

    Raises:
        RecordError: naming file and key, if it is missing, damaged or newer.
    """
    return _read(RunRecord, path, read_json(path), "remove it and run again")


def read_items(path: Path, record: RunRecord) -> pd.DataFrame:
    """The items of a record that was read from ``path``; column 'item' is text.

    Raises:
        RecordError: naming the file, if it is missing or damaged.
    """
    import pandas as pd

    file = path.with_name(record.items)
    try:
        items = pd.read_csv(
            file,
            dtype={"item": str},
            float_precision="round_trip",
            keep_default_na=False,  # an item may be called NA
            na_values=[""],
        )
        if "item" not in items:
            raise ValueError("it has no column 'item'")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise RecordError(
            f"cannot read {file} ({first_line(error)}); remove {path.name} and run again"
        ) from error
    return _map_texts(items, unescape_formula).rename(columns=OLD_NAMES)


def _map_texts(items: pd.DataFrame, change: Callable[[Any], Any]) -> pd.DataFrame:
    texts = items.select_dtypes(["object", "string"])
    return items.assign(**{str(name): texts[name].map(change) for name in texts})


def find_records(folder: Path) -> list[Path]:
    """All record files under a run's folder, sorted; hidden ones of macOS or Jupyter are none."""
    root = folder / "records"
    names = (path.relative_to(root).parts for path in root.rglob("*.json"))
    return sorted(root.joinpath(*parts) for parts in names if all(p[0] != "." for p in parts))


def body_hash(record: Prediction | Verdict) -> str:
    """sha256 over the whole record but its own hash."""
    body = clean(asdict(record))
    del body["hash"]
    return digest(body)


def write_prediction(path: Path, prediction: Prediction) -> Prediction:
    """Write a prediction with its hash. If the file already holds the same prediction, it is kept,
    with its time of creation.

    Returns:
        the prediction as it is on disk now.
    """
    return _write_hashed(path, prediction, read_prediction)


def write_verdict(path: Path, verdict: Verdict) -> Verdict:
    """Write a verdict with its hash, as :func:`write_prediction` does."""
    return _write_hashed(path, verdict, read_verdict)


def _write_hashed(path: Path, record: Hashed, read: Callable[[Path], Hashed]) -> Hashed:
    if path.exists():
        try:
            old = read(path)
        except RecordError:
            old = None
        if old is not None:
            same = dataclasses.replace(record, created=old.created, hash="")
            if body_hash(same) == old.hash:
                return old
    record = dataclasses.replace(record, hash="")
    record = dataclasses.replace(record, hash=body_hash(record))
    write_json(path, clean(asdict(record)))
    return record


def read_prediction(path: Path) -> Prediction:
    """Read a prediction and check its hash.

    Raises:
        RecordError: naming file and key, if it is missing, damaged, newer, or was changed after
            it was made.
    """
    return _read_hashed(Prediction, path, "run 'encbench rank' again")


def read_verdict(path: Path) -> Verdict:
    """Read a verdict and check its hash.

    Raises:
        RecordError: naming file and key, if it is missing, damaged, newer, or was changed after
            it was made.
    """
    return _read_hashed(Verdict, path, "run 'encbench confirm' again")


def _read_hashed(cls: type[Hashed], path: Path, again: str) -> Hashed:
    raw = read_json(path)
    record = _read(cls, path, raw, again)
    if digest({k: v for k, v in raw.items() if k != "hash"}) != record.hash:
        raise RecordError(f"{path} was changed after it was made (its hash does not match)")
    return record


# -------------------------------------------------------------------------- provenance


@cache
def provenance() -> dict[str, Any]:
    """Where and with what a record is made: commit, dirty flag, packages, machine, time."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        **_commit(),
        "packages": found,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> dict[str, Any]:
    """The commit of the source tree this package runs from; 'unknown' once installed."""
    here = Path(__file__).resolve().parents[1]
    if not (here / ".git").exists():
        return {"commit": "unknown", "dirty": None}

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "unknown", "dirty": None}
