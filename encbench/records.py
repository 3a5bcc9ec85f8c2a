"""What is written down: run records and predictions, as JSON with a schema version.

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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import RecordError
from .files import digest, read_json, write_gzip, write_json

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
class Pair:
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
    everything else; see :func:`prediction_hash`.
    """

    rule: dict[str, Any]
    data: dict[str, str]
    order: list[Ranked]
    pairs: list[Pair]
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


# ------------------------------------------------------------------------ reading, writing


def clean(value: Any) -> Any:
    """JSON-ready copy: numpy scalars become numbers, NaN and infinity become None."""
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
    return {k: v for k, v in value.items() if k in known}


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
        return pd.read_csv(file, dtype={"item": str}, float_precision="round_trip")
    except (OSError, EOFError, ValueError) as error:
        raise RecordError(
            f"cannot read {file} ({error}); remove {path.name} and run again"
        ) from error


def find_records(folder: Path) -> list[Path]:
    """All record files under a run's folder, sorted."""
    return sorted((folder / "records").rglob("*.json"))


def prediction_hash(prediction: Prediction) -> str:
    """sha256 over the whole prediction but its own hash."""
    body = clean(asdict(prediction))
    del body["hash"]
    return digest(body)


def write_prediction(path: Path, prediction: Prediction) -> Prediction:
    """Write a prediction with its hash. One that says the same as the file that is already
    there leaves it untouched, so that its time of creation stays.

    Returns:
        the prediction as it is on disk now.
    """
    if path.exists():
        try:
            old = read_prediction(path)
        except RecordError:
            old = None
        if old is not None:
            same = dataclasses.replace(prediction, created=old.created, hash="")
            if prediction_hash(same) == old.hash:
                return old
    prediction = dataclasses.replace(prediction, hash="")
    prediction = dataclasses.replace(prediction, hash=prediction_hash(prediction))
    write_json(path, clean(asdict(prediction)))
    return prediction


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
                "pairs": [Pair(**row) for row in value["pairs"]],
                "rivals": [RivalOrder(**row) for row in value["rivals"]],
                "sensitivity": [Variant(**row) for row in value["sensitivity"]],
            }
        )
    except (TypeError, KeyError) as error:
        raise RecordError(f"{path} lacks something: {error}; run 'encbench rank' again") from error
    raw = {k: v for k, v in read_json(path).items() if k != "hash"}
    if digest(raw) != prediction.hash:
        raise RecordError(f"{path} was changed after it was made (its hash does not fit)")
    return prediction


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
