"""What is written down: run records, predictions and verdicts, as JSON with a schema version.

Records are the only seam between probes and reports. Fields are only ever added, with a
default, so that an old file loads for ever; a file of a newer schema is refused by name.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import RecordError
from .files import OLD_NAMES, digest, read_json, with_current_names, write_gzip, write_json
from .types import Cell

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
PACKAGES = (
    "encbench", "torch", "transformers", "open_clip_torch", "sentence-transformers", "timm",
    "faiss-cpu", "faiss-gpu-cu12", "numpy", "scikit-learn", "pandas", "pycocotools", "tokenizers",
)  # fmt: skip


@dataclass(frozen=True)
class RunRecord:
    """One encoder through one probe.

    Attributes:
        key: hash of everything the scores depend on; equal keys mean equal scores.
        name: the encoder's short name, unique within a run.
        card: the EncoderCard as a dict.
        pooling: the pooling that was measured.
        probe: the ProbeSpec as a dict, data set and pin filled in.
        scores: name -> {value, n, low, high, unscored}.
        item_scores: see ``types.Measurement``.
        items: file with one row per item, relative to the record's folder ('' = none).
        series: plot data by name.
        notes: warnings in words.
        config: the resolved configuration of the run.
        seed: of the run.
        provenance: commit, packages, device, time.
        seconds: how long the probe took.
        variant: '' for the encoder as it is ranked, else what differs ('layer=normavg&pool=max').
        variant_of: for a variant, the spec of the encoder as it is ranked.
    """

    key: str
    name: str
    card: dict[str, Any]
    pooling: str
    probe: dict[str, Any]
    scores: dict[str, dict[str, Any]]
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
    def control(self) -> bool:
        return bool(self.card.get("control"))

    @property
    def main(self) -> dict[str, Any]:
        """The probe's main score."""
        return self.scores[self.probe["main_metric"]]


@dataclass(frozen=True)
class Ranked:
    """One encoder's place by the primary rule.

    ``rank`` counts candidates only and is None for a control; ``rank_low`` and
    ``rank_high`` are its 95 % interval.
    """

    spec: str
    name: str
    control: bool
    value: float
    low: float
    high: float
    n: int
    unscored: int = 0
    rank: int | None = None
    rank_low: int | None = None
    rank_high: int | None = None
    parameters: int = 0
    pooling: str = "mean"
    stage: str = "final"


@dataclass(frozen=True)
class PairedDifference:
    """The paired difference a - b by the primary rule, with its 95 % interval.

    ``p`` is two-sided, ``p_holm`` corrected over all pairs in the file."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    distinguishable: bool


@dataclass(frozen=True)
class RivalOrder:
    """Another way to order the same encoders, named beside the primary rule, never mixed in.

    ``scores`` maps a spec to {value, low, high}; ``order`` holds candidates best first.
    ``agreement`` is Spearman's correlation with the primary order over candidates
    (None for fewer than three)."""

    probe: str
    score: str
    order: list[str]
    scores: dict[str, dict[str, float]]
    direction: str = "higher"
    published: bool = False
    saturated: bool = False
    agreement: float | None = None


@dataclass(frozen=True)
class Variant:
    """The primary rule under another layer or pooling.

    ``flips`` are pairs of candidates that stand the other way round than by the primary
    rule; ``clear_flips`` those whose difference excludes zero here."""

    layer: str
    pooling: str
    order: list[str]
    scores: dict[str, dict[str, float]]
    flips: list[list[str]] = field(default_factory=list)
    clear_flips: list[list[str]] = field(default_factory=list)


@dataclass(frozen=True)
class Prediction:
    """What the probes say before anything is trained.

    ``advice`` holds 'text', 'use', 'tied', 'cheapest'. ``hash`` is the sha256 of
    everything else; see :func:`body_hash`.
    """

    rule: dict[str, Any]
    data: dict[str, str]
    order: list[Ranked]
    pairs: list[PairedDifference]
    rivals: list[RivalOrder]
    sensitivity: list[Variant]
    advice: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    failed: list[dict[str, str]] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    seed: int = 0
    created: str = ""
    hash: str = ""
    schema: int = SCHEMA
    kind: str = "prediction"


@dataclass(frozen=True)
class TrainedEncoder:
    """What came out for one encoder, mean over its trainings (one for each seed).

    Attributes:
        predicted: {value, low, high} by the primary rule of the prediction.
        predicted_rank: among the trained encoders of the experiment; None for a control.
        training_seconds: of each training; ``folders`` where each lies, relative to the run.
        scores: cell -> {value, low, high, n}: GenEval's overall score, n prompts.
        tasks: cell -> task -> share of right images.
        by_seed: cell -> the score of each training, in the order of ``seeds``.
        parent: cell -> {value, low, high, n} of the checkpoint at the switch, sampled as plain
            flow matching.
        curve: {step, stage, value} through training: 4 steps, tier B.
        gap: {t, value}: |u - v| / |v| by t at the end of training.
        grid: image file relative to the run: a row for each prompt, a column for each number
            of steps, first seed.
    """

    spec: str
    name: str
    stage: str
    control: bool
    predicted: dict[str, float]
    seeds: list[int]
    scores: dict[Cell, dict[str, float]]
    predicted_rank: int | None = None
    parameters: int = 0
    tasks: dict[Cell, dict[str, float]] = field(default_factory=dict)
    by_seed: dict[Cell, list[float]] = field(default_factory=dict)
    parent: dict[Cell, dict[str, float]] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    gap: list[dict[str, float]] = field(default_factory=list)
    training_seconds: list[float] = field(default_factory=list)
    scoring_seconds: list[float] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    grid: str = ""


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
        prediction: hash of the prediction that was put to the test.
        rules: the rules of both verdicts and the correction, as fixed before training.
        plan: what was trained and scored, fixed before training: preset, world, side, network,
            steps, batch, seeds, images, prompts, cells, backbone, budget and what it gave up
            ('gave_up'), what was within reach ('reach').
        encoders: best predicted first, controls last.
        choice: {verdict, why, winner, leads: [{rival, lead: {value, low, high}, high_corrected}]}.
        rule: {verdict, why, statistic: {value, low, high}, p, exact, regret: {value, low, high},
            smallest_p, score_range, seed_deviation, seed_correlation}.
        control: {best, control, difference, low, high}: the best trained encoder against the
            constant control in the primary cell; empty without one.
        primary: the cell of both verdicts.
        failed: {spec, seed, error} of trainings that failed; the same command tries them again.
    """

    prediction: str
    rules: dict[str, str]
    plan: dict[str, Any]
    encoders: list[TrainedEncoder]
    choice: dict[str, Any]
    rule: dict[str, Any]
    primary: Cell
    control: dict[str, Any] = field(default_factory=dict)
    exploratory: list[Predictor] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    created: str = ""
    hash: str = ""
    schema: int = SCHEMA
    kind: str = "verdict"


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


def _load(cls: type, value: Any, path: Path, kind: str) -> dict[str, Any]:
    if not isinstance(value, dict) or value.get("kind") != kind:
        raise RecordError(f"{path} is not an encbench {kind} file")
    if value.get("schema", 0) > SCHEMA:
        raise RecordError(
            f"{path} has schema {value['schema']}, newer than this encbench reads ({SCHEMA}); "
            "update encbench"
        )
    known = {f.name for f in dataclasses.fields(cls)}
    return {k: v for k, v in with_current_names(value).items() if k in known}


def write_record(path: Path, record: RunRecord, items: pd.DataFrame | None = None) -> None:
    """Write a record and, beside it, its items; the record last, so that it is never
    there without them. Both atomically.

    Raises:
        StoreError: if the disk is full or the folder cannot be written.
    """
    if items is not None:
        name = path.stem + ".items.csv.gz"
        buffer = io.BytesIO()
        items.to_csv(buffer, index=False, lineterminator="\n")
        write_gzip(path.with_name(name), buffer.getvalue())
        record = dataclasses.replace(record, items=name)
    write_json(path, clean(asdict(record)))


def read_record(path: Path) -> RunRecord:
    """Read a record of this or any earlier schema.

    Raises:
        RecordError: naming the file, if it is missing, damaged or newer.
    """
    value = _load(RunRecord, read_json(path), path, "run")
    try:
        return RunRecord(**value)
    except TypeError as error:
        raise RecordError(f"{path} lacks something: {error}; remove it and run again") from error


def read_items(path: Path, record: RunRecord) -> pd.DataFrame:
    """The items of a record that was read from ``path``; column 'item' is text.

    Raises:
        RecordError: naming the file, if it is missing or damaged.
    """
    import pandas as pd

    file = path.with_name(record.items)
    try:
        items = pd.read_csv(file, dtype={"item": str}, float_precision="round_trip")
    except (OSError, EOFError, ValueError) as error:
        raise RecordError(
            f"cannot read {file} ({error}); remove {path.name} and run again"
        ) from error
    return items.rename(columns=OLD_NAMES)


def find_records(folder: Path) -> list[Path]:
    """All record files under a run's folder, sorted."""
    return sorted((folder / "records").rglob("*.json"))


def body_hash(record: Prediction | Verdict) -> str:
    """sha256 over the whole record but its own hash."""
    body = clean(asdict(record))
    del body["hash"]
    return digest(body)


def write_prediction(path: Path, prediction: Prediction) -> Prediction:
    """Write a prediction with its hash. One that says the same as the file that is already
    there leaves it untouched, so that its time of creation stays.

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
        RecordError: if the file is missing, damaged, newer, or was changed after it was made.
    """
    value = _load(Prediction, read_json(path), path, "prediction")
    try:
        prediction = Prediction(
            **{
                **value,
                "order": [Ranked(**row) for row in value["order"]],
                "pairs": [PairedDifference(**row) for row in value["pairs"]],
                "rivals": [RivalOrder(**row) for row in value["rivals"]],
                "sensitivity": [Variant(**row) for row in value["sensitivity"]],
            }
        )
    except (TypeError, KeyError) as error:
        raise RecordError(f"{path} lacks something: {error}; run 'encbench rank' again") from error
    _check_hash(path, prediction.hash)
    return prediction


def read_verdict(path: Path) -> Verdict:
    """Read a verdict and check its hash.

    Raises:
        RecordError: if the file is missing, damaged, newer, or was changed after it was made.
    """
    value = _load(Verdict, read_json(path), path, "verdict")
    try:
        verdict = Verdict(
            **{
                **value,
                "primary": Cell.parse(value["primary"]),
                "encoders": [
                    TrainedEncoder(**row | {name: _by_cell(row.get(name, {})) for name in BY_CELL})
                    for row in value["encoders"]
                ],
                "exploratory": [
                    Predictor(**row | {"cell": Cell.parse(row["cell"])})
                    for row in value.get("exploratory", [])
                ],
            }
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RecordError(
            f"{path} lacks something: {error}; run 'encbench confirm' again"
        ) from error
    _check_hash(path, verdict.hash)
    return verdict


BY_CELL = ("scores", "tasks", "by_seed", "parent")
"""Fields of TrainedEncoder that are keyed by cell."""


def _by_cell(table: dict[str, Any]) -> dict[Cell, Any]:
    return {Cell.parse(key): value for key, value in table.items()}


def _check_hash(path: Path, expected: str) -> None:
    raw = {k: v for k, v in read_json(path).items() if k != "hash"}
    if digest(raw) != expected:
        raise RecordError(f"{path} was changed after it was made (its hash does not fit)")


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
