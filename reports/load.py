"""A finished run, read from its folder and from nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from encbench.errors import RecordError
from encbench.files import read_json, with_current_names
from encbench.records import (
    Prediction,
    Ranked,
    RunRecord,
    find_records,
    read_prediction,
    read_record,
)
from encbench.types import Score

from .text import short_names

SHUFFLE = "control:shuffle("


def shuffled_spec(spec: str) -> str | None:
    """The spec inside 'control:shuffle(<spec>)', else None."""
    return spec[len(SHUFFLE) :].rpartition(")")[0] if spec.startswith(SHUFFLE) else None


def uninformed(spec: str) -> bool:
    """True for a control that carries no information about its prompt: a candidate that does
    not beat it has shown nothing."""
    bare = spec.partition("?")[0]
    return bare in ("control:constant", "control:random") or spec.startswith(SHUFFLE)


@dataclass(frozen=True)
class Run:
    """All that a report may say.

    ``records`` are those that the prediction rests on and the variants of its encoders, by
    file name; what an earlier run has left in the folder is not among them.
    """

    folder: Path
    prediction: Prediction
    records: tuple[RunRecord, ...]
    config: dict[str, Any] = field(default_factory=dict)
    gallery: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _base(self) -> dict[tuple[str, str], RunRecord]:
        """The record of each encoder and probe under the pooling that was ranked."""
        found: dict[tuple[str, str], RunRecord] = {}
        pooling = {row.spec: row.pooling for row in self.prediction.order}
        fits: dict[tuple[str, str], RunRecord] = {}
        for record in self.records:
            if record.variant:
                continue
            spec, probe = str(record.card.get("spec", record.name)), str(record.probe["name"])
            found.setdefault((spec, probe), record)
            if record.pooling == pooling.get(spec, record.pooling):
                fits.setdefault((spec, probe), record)
        return {**found, **fits}

    def record(self, spec: str, probe: str) -> RunRecord | None:
        return self._base.get((spec, probe))

    def score(self, spec: str, probe: str, name: str) -> Score | None:
        """One score of one encoder: {value, n, low, high, unscored}, or None."""
        record = self.record(spec, probe)
        entry = record.scores.get(name) if record else None
        return entry if entry and entry.get("value") is not None else None

    @cached_property
    def probes(self) -> tuple[str, ...]:
        """Names of all probes that ran, the primary one first."""
        names = {str(record.probe["name"]) for record in self.records}
        known = [self.primary[0], "retrieval", "ablation"]
        first = [name for name in dict.fromkeys(known) if name in names]
        return (*first, *sorted(names.difference(first)))

    @cached_property
    def primary(self) -> tuple[str, str]:
        """Probe and score that order the encoders, as the prediction's rule says."""
        rule = self.prediction.rule
        probe = str(rule.get("probe") or "retrieval")
        return probe, str(rule.get("metric") or "score")

    @cached_property
    def k(self) -> str:
        """The '2' of a primary score such as 'scaled@2'; '2' where it has none."""
        _, _, k = self.primary[1].partition("@")
        return k or "2"

    @cached_property
    def candidates(self) -> tuple[Ranked, ...]:
        """Best first."""
        rows = [row for row in self.prediction.order if not row.control]
        return tuple(sorted(rows, key=lambda row: (row.rank is None, row.rank or 0)))

    @cached_property
    def controls(self) -> tuple[Ranked, ...]:
        return tuple(row for row in self.prediction.order if row.control)

    @cached_property
    def plotted(self) -> tuple[Ranked, ...]:
        """Candidates, then controls that are not a candidate's own shuffle: what the grids
        of small plots show, so that they stay readable."""
        return (*self.candidates, *(c for c in self.controls if shuffled_spec(c.spec) is None))

    @cached_property
    def names(self) -> dict[str, str]:
        """Spec -> name, for every encoder that is mentioned anywhere."""
        names = {row.spec: row.name for row in self.prediction.order}
        for record in self.records:
            names.setdefault(str(record.card.get("spec", record.name)), record.name)
        return names

    def name(self, spec: str) -> str:
        return self.names.get(spec, spec)

    @cached_property
    def brief(self) -> dict[str, str]:
        """Spec -> a name short enough for a sentence."""
        return short_names(self.names, 40)

    def own_shuffle(self, spec: str) -> Ranked | None:
        """The control that permutes this encoder's embeddings."""
        for row in self.controls:
            if shuffled_spec(row.spec) == spec:
                return row
        return None

    @cached_property
    def use(self) -> str | None:
        """Spec of the encoder that the advice names, if any."""
        return self._spec_of(self.prediction.advice.get("use"))

    @cached_property
    def tied(self) -> tuple[str, ...]:
        """Specs that the advice calls not distinguishable from it."""
        tied = self.prediction.advice.get("tied") or ()
        found = (self._spec_of(name) for name in tied)
        return tuple(spec for spec in found if spec is not None)

    def _spec_of(self, name: Any) -> str | None:
        for row in self.prediction.order:
            if name in (row.spec, row.name):
                return row.spec
        return None

    @cached_property
    def advice(self) -> str:
        """The sentence that everything else is there to support."""
        return str(self.prediction.advice.get("text") or "No advice: no candidate was ranked.")

    @cached_property
    def reencoder(self) -> str:
        """What re-encoded the images; '' where none were."""
        seen = any("floor" in record.scores for record in self.records)
        return str(self.config.get("re_encoder") or "") if seen else ""

    def cost(self, spec: str) -> dict[str, Any]:
        """What an encoder costs, as far as it is known: the diagnostics' series, with
        parameters and license from the card where they lack."""
        row = next((row for row in self.prediction.order if row.spec == spec), None)
        cost: dict[str, Any] = {"parameters": row.parameters or None} if row else {}
        for record in self.records:
            if record.card.get("spec") == spec and not record.variant:
                cost["license"] = record.card.get("license")
                cost["parameters"] = cost.get("parameters") or record.card.get("parameters")
                cost["max_tokens"] = record.card.get("max_tokens")
                cost["dim"] = record.card.get("dim")
                break
        for probe in ("diagnostics", *self.probes):
            record_or_none = self.record(spec, probe)
            series = record_or_none.series.get("cost") if record_or_none else None
            if isinstance(series, Mapping):
                return {**cost, **{k: v for k, v in series.items() if v is not None}}
        return cost


def load_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RecordError: in one line, naming the file that is missing, damaged or newer.
    """
    prediction_file = folder / "prediction.json"
    if not prediction_file.is_file():
        raise RecordError(
            f"{folder} holds no prediction.json; run 'encbench rank' on it first, or name the "
            "folder of a finished run"
        )
    prediction = read_prediction(prediction_file)
    keys, specs = set(prediction.records), {row.spec for row in prediction.order}
    records = tuple(
        record
        for record in map(read_record, find_records(folder))
        if not keys or record.key in keys or record.variant_of in specs
    )
    return Run(
        folder=folder,
        prediction=prediction,
        records=records,
        config=_mapping(folder / "config.json"),
        gallery=_mapping(folder / "media" / "gallery.json"),
    )


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is no such file."""
    if not path.exists():
        return {}
    value = with_current_names(read_json(path))
    if not isinstance(value, dict):
        raise RecordError(f"{path} does not hold a JSON object; remove it and run again")
    return value
