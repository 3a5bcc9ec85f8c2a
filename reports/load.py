"""A finished run, read from its folder alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from encbench import registry
from encbench.errors import EncbenchError, RecordError
from encbench.files import read_json, with_current_names
from encbench.records import (
    Prediction,
    Ranked,
    RunRecord,
    find_records,
    read_prediction,
    read_record,
)
from encbench.schema import check_value
from encbench.types import EncoderCard, Estimate, ProbeDisplay, ProbeSpec, Score

from .text import is_number, short_names

SHUFFLE = "control:shuffle("
Entry = Estimate | Score


def shuffled_spec(spec: str) -> str | None:
    """The spec inside 'control:shuffle(<spec>)', else None."""
    return spec[len(SHUFFLE) :].rpartition(")")[0] if spec.startswith(SHUFFLE) else None


@dataclass(frozen=True)
class Run:
    """The data of a report.

    ``records`` are those behind the prediction and the variants of its encoders, by file name;
    records that an earlier run left in the folder are not among them. An encoder in an absolute
    folder is named by the folder's own name and its content hash.
    """

    folder: Path
    prediction: Prediction
    records: tuple[RunRecord, ...]
    config: dict[str, Any] = field(default_factory=dict)
    gallery: dict[str, Any] = field(default_factory=dict)
    hide: Callable[[str], str] = str
    """Takes the absolute folders out of a text."""

    @cached_property
    def _base(self) -> dict[tuple[str, str], RunRecord]:
        """The record of each encoder and probe under the pooling that was ranked."""
        first: dict[tuple[str, str], RunRecord] = {}
        fits: dict[tuple[str, str], RunRecord] = {}
        pooling = {row.spec: row.pooling for row in self.prediction.order}
        for record in self.records:
            if not record.variant:
                key = (record.card.spec, record.probe.name)
                first.setdefault(key, record)
                if record.pooling == pooling.get(key[0], record.pooling):
                    fits.setdefault(key, record)
        return {**first, **fits}

    def record(self, spec: str, probe: str) -> RunRecord | None:
        return self._base.get((spec, probe))

    def score(self, spec: str, probe: str, name: str) -> Entry | None:
        """One score of one encoder, or None."""
        record = self.record(spec, probe)
        entry = record.scores.get(name) if record else None
        return entry if entry and is_number(entry.value) else None

    @cached_property
    def probes(self) -> dict[str, ProbeSpec]:
        """All probes that ran, by name, the primary one first; each as its records describe it.

        A record from before there were such descriptions has that of the installed probe, if
        that is of the same version.
        """
        specs: dict[str, ProbeSpec] = {}
        for record in self.records:
            spec = record.probe
            if spec.name not in specs and not record.variant:
                known = spec.display != ProbeDisplay()
                display = spec.display if known else _installed_display(spec)
                specs[spec.name] = dataclasses.replace(spec, display=display)
        order = sorted(specs, key=lambda name: (name != self.primary[0], name))
        return {name: specs[name] for name in order}

    @cached_property
    def primary(self) -> tuple[str, str]:
        """Probe and score that order the encoders, as the prediction's rule says."""
        return self.prediction.rule.probe, self.prediction.rule.metric

    @property
    def score_name(self) -> str:
        """The primary score's name."""
        return self.primary[1]

    @cached_property
    def candidates(self) -> tuple[Ranked, ...]:
        """Best first."""
        rows = [row for row in self.prediction.order if not row.control]
        return tuple(sorted(rows, key=lambda row: (row.rank is None, row.rank or 0)))

    @cached_property
    def controls(self) -> tuple[Ranked, ...]:
        return tuple(row for row in self.prediction.order if row.control)

    @cached_property
    def rows(self) -> tuple[Ranked, ...]:
        """Candidates, then controls that are not a candidate's own shuffle: what small plots
        show, so that they stay readable."""
        return (*self.candidates, *(c for c in self.controls if shuffled_spec(c.spec) is None))

    @cached_property
    def names(self) -> dict[str, str]:
        """Spec -> name, for every encoder that is mentioned anywhere."""
        names = {row.spec: row.name for row in self.prediction.order}
        for record in self.records:
            names.setdefault(record.card.spec, record.name)
        return names

    @cached_property
    def brief(self) -> dict[str, str]:
        """Spec -> a name short enough for a sentence."""
        return short_names(self.names, 40)

    def own_shuffle(self, spec: str) -> Ranked | None:
        """The control that permutes this encoder's embeddings."""
        return next((row for row in self.controls if shuffled_spec(row.spec) == spec), None)

    @cached_property
    def choice(self) -> str | None:
        """Spec of the encoder that the advice names, if any."""
        return self._spec_of(self.prediction.advice.use)

    @cached_property
    def ties(self) -> tuple[str, ...]:
        """Specs that the advice calls not distinguishable from it."""
        specs = (self._spec_of(name) for name in self.prediction.advice.tied)
        return tuple(spec for spec in specs if spec is not None)

    def _spec_of(self, name: Any) -> str | None:
        rows = self.prediction.order
        return next((row.spec for row in rows if name in (row.spec, row.name)), None)

    @cached_property
    def advice(self) -> str:
        """The sentence of advice."""
        return self.prediction.advice.text or "No advice: no candidate was ranked."

    @cached_property
    def reencoder(self) -> str:
        """What re-encoded the images; '' where none were."""
        used = any("floor" in record.scores for record in self.records)
        return str(self.config.get("re_encoder") or "") if used else ""

    def cost(self, spec: str) -> dict[str, Any]:
        """The cost of an encoder as far as it is known: from its card and the series 'cost' of a
        probe."""
        row = next((row for row in self.prediction.order if row.spec == spec), None)
        cost: dict[str, Any] = {"parameters": row.parameters or None} if row else {}
        records = [record for (of, _), record in self._base.items() if of == spec]
        for record in records[:1]:
            card = record.card
            cost |= {"license": card.license, "max_tokens": card.max_tokens, "dim": card.dim}
            cost["parameters"] = cost.get("parameters") or card.parameters
        series = [r.series["cost"] for r in records if isinstance(r.series.get("cost"), Mapping)]
        return cost | {k: v for s in series[:1] for k, v in s.items() if v is not None}


def _installed_display(spec: ProbeSpec) -> ProbeDisplay:
    try:
        probe = registry.get("probe", spec.name)
    except EncbenchError:
        return spec.display
    here = getattr(probe, "spec", None)
    if isinstance(here, ProbeSpec) and here.version == spec.version:
        return here.display
    return spec.display


# -------------------------------------------------------------------------------- reading


def load_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        RecordError: in one line, naming the file and the key that is missing, damaged or newer.
    """
    prediction_file = folder / "prediction.json"
    if not prediction_file.is_file():
        raise RecordError(
            f"{folder} holds no prediction.json; run 'encbench rank' on it first, or name the "
            "folder of a finished run"
        )
    prediction = read_prediction(prediction_file)
    keys, specs = set(prediction.records), {row.spec for row in prediction.order}
    records = [
        record
        for record in map(read_record, find_records(folder))
        if not keys or record.key in keys or record.variant_of in specs
    ]
    hide = hide_folders([record.card for record in records])
    shared = ("key", "name", "card", "probe", "notes", "variant_of")
    return Run(
        folder=folder,
        prediction=change_texts(prediction, hide),
        records=tuple(
            dataclasses.replace(
                r, **{name: change_texts(getattr(r, name), hide) for name in shared}
            )
            for r in records
        ),
        config=change_texts(read_object(folder / "config.json"), hide),
        gallery=change_texts(read_object(folder / "media" / "gallery.json"), hide),
        hide=hide,
    )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object, or {} where there is no such file."""
    if not path.exists():
        return {}
    where = f"{path} (remove it and run again)"
    value: dict[str, Any] = check_value(dict[str, Any], with_current_names(read_json(path)), where)
    return value


# --------------------------------------------------------------------- folders of encoders

_FOLDERS = re.compile(r"(?<![\w.…/:@<-])/(?:[^/\s?&'\"<>]+/)+|(?<=[a-z]:)/(?:[^/\s?&'\"<>]+/)+")


def hide_folders(cards: Sequence[EncoderCard]) -> Callable[[str], str]:
    """A function that removes private paths from a text: the folder of a card becomes its name with
    the first 12 digits of its content hash, and any other absolute path its last part."""
    names = {
        card.source: f"{Path(card.source).name}@{card.revision[:12]}"
        for card in cards
        if Path(card.source).is_absolute()
    }
    ordered = sorted(names, key=len, reverse=True)  # one folder may lie in another

    def hide(text: str) -> str:
        for source in ordered:
            text = text.replace(source, names[source])
        return _FOLDERS.sub("…/", text)

    return hide


def change_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of JSON or of a dataclass with every text in it changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        texts = {name: change_texts(getattr(value, name), change) for name in fields}
        return dataclasses.replace(value, **texts)
    if isinstance(value, Mapping):
        return {change_texts(k, change): change_texts(v, change) for k, v in value.items()}
    if type(value) in (list, tuple):  # not a Cell, which is a named tuple
        return type(value)(change_texts(item, change) for item in value)
    return value
