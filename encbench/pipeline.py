"""The main job: encoders through probes into records, then the ranking, then the report.

Probes and reports come in through the registry. Everything that is finished is on disk, so
the same command, started again, goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import registry
from .config import RunConfig
from .context import Context, Data, Images, load_images, load_run_data
from .device import choose_device
from .encode import StoredEncoder, identity_of
from .encoders import EncoderSpec, family_of
from .encoders.control import CONTROLS
from .errors import (
    DataError,
    EncbenchError,
    ProcessError,
    RecordError,
    StoreError,
    UsageError,
)
from .files import digest, slug, write_json
from .lock import lock_folder
from .media import write_gallery
from .progress import log
from .ranking import predict
from .records import (
    Failure,
    Prediction,
    RunRecord,
    clean,
    find_records,
    provenance,
    read_record,
    write_prediction,
    write_record,
)
from .store import Store
from .types import (
    ImageTextDataset,
    Probe,
    PromptSet,
)
from .zoo.catalog import ENCODERS

GENERIC = ("model", "checkpoint", "weights", "final", "text_encoder", "snapshot")
"""Folder names that say nothing about what is in them."""


@dataclass(frozen=True)
class Outcome:
    """What a run ended with."""

    prediction: Prediction | None
    report: Path | None
    failed: tuple[Failure, ...]


def specs_of(config: RunConfig, *, known: bool = True) -> list[EncoderSpec]:
    """The candidates in the order given (without any, on scenes, the zoo's), then all controls:
    the five, and a shuffle of each candidate but those that are an earlier step of another, whose
    geometry is much the same. A control that was also named as an encoder comes once.

    Raises:
        UsageError: for a spec that is not one, is given twice, or (if ``known``) is of no
            registered family.
    """
    given = [EncoderSpec.parse(text) for text in candidates_of(config)]
    for spec in given:
        if known:
            family_of(spec.shuffled or spec)
        if given.count(spec) > 1:
            raise UsageError(f"'{spec}' is given twice")
    candidates = [spec for spec in given if spec.family != "control"]
    finished = [s for s in candidates if not (s.get("step") and _finished(s) in candidates)]
    shuffles = [EncoderSpec.parse(f"control:shuffle({spec})") for spec in finished]
    named = [spec for spec in given if spec.family == "control"]
    controls = [EncoderSpec.parse(text) for text in CONTROLS]
    return list(dict.fromkeys([*candidates, *named, *controls, *shuffles]))


def candidates_of(config: RunConfig) -> tuple[str, ...]:
    """The encoders that were named; where neither they nor data were, the zoo's."""
    return config.encoders or (ENCODERS if config.on_scenes else ())


def _finished(spec: EncoderSpec) -> EncoderSpec:
    """The same encoder without its step."""
    options = tuple((k, v) for k, v in spec.options if k != "step")
    return dataclasses.replace(spec, options=options)


def names_of(specs: Sequence[EncoderSpec]) -> dict[EncoderSpec, str]:
    """A short name for each spec, unique among them: the last part of the source, with the
    options where two share it."""

    def short(spec: EncoderSpec) -> str:
        if spec.shuffled:
            return f"shuffle({short(spec.shuffled)})"
        if spec.family == "control":
            return spec.source
        if spec.family == "python":
            return spec.source.rsplit("/", 1)[-1]
        parts = [part for part in spec.source.split("/") if part]
        if not Path(spec.source).exists() and spec.family == "clip":
            return spec.source  # architecture and tag belong together
        telling = [part for part in parts if part not in GENERIC]
        return (telling or parts)[-1]

    found = {spec: short(spec) for spec in specs}
    for spec, name in found.items():
        same = [other for other in specs if short(other) == name]
        if len(same) > 1:
            options = "&".join(f"{k}={v}" for k, v in (spec.shuffled or spec).options)
            found[spec] = f"{name}?{options}" if options else f"{spec.family}:{name}"
    for spec, name in list(found.items()):
        if sum(other == name for other in found.values()) > 1:
            found[spec] = str(spec)
    return found


def probe_all(config: RunConfig, data: Data | None = None) -> tuple[list[Path], list[Failure]]:
    """Every encoder and control through every probe. An encoder that fails is told and noted,
    and the others go on.

    Returns:
        the records of this run, and the specs that failed with their errors.

    Raises:
        EncbenchError: for what concerns all encoders: data, re-encoder, store, output folder,
            which no other process may be writing.
    """
    specs = specs_of(config)
    config = dataclasses.replace(config, encoders=candidates_of(config))
    device = choose_device(config.device)
    probes = load_probes(config)
    store = Store(config.store)
    with lock_folder(config.out):
        return _probe_all(config, specs, data or load_run_data(config), store, device, probes)


def _probe_all(
    config: RunConfig,
    specs: Sequence[EncoderSpec],
    data: Data,
    store: Store,
    device: torch.device,
    probes: Sequence[Probe],
) -> tuple[list[Path], list[dict[str, str]]]:
    write_json(
        config.out / "config.json",
        clean({**config.as_dict(), "re_encoder": config.chosen_re_encoder}),
    )
    for note in (*_notes(data.captions), *_notes(data.prompts)):
        log.info(note)
    images = load_images(config, data, store, device)
    probes = [p for p in probes if _possible(p, data)]
    names = names_of(specs)
    records: list[Path] = []
    failed: list[Failure] = []
    candidates = [spec for spec in specs if spec.family != "control"]
    for number, spec in enumerate(specs):
        if spec.shuffled is not None and any(row.spec == str(spec.shuffled) for row in failed):
            continue
        if failed and number == len(failed) == len(candidates):  # candidates come first
            others = f" ({number - 1} others failed, too)" if number > 1 else ""
            raise EncbenchError(f"{failed[0].spec} failed: {failed[0].error}{others}")
        try:
            records += _probe_one(config, spec, names[spec], data, images, store, device, probes)
        except (StoreError, DataError, ProcessError):
            raise  # it would hit the next encoder, too
        except EncbenchError as error:
            log.warning("%s failed; going on with the others", names[spec])
            failed.append(Failure(str(spec), str(error)))
    return records, failed


def run(config: RunConfig) -> Outcome:
    """Probe, rank and report.

    Raises:
        EncbenchError: if nothing could be ranked.
    """
    records, failed = probe_all(config)
    prediction = rank(config.out, records=records, failed=failed)
    return Outcome(prediction, report(config.out), tuple(failed))


def rank(
    folder: Path,
    *,
    records: Sequence[Path] | None = None,
    failed: Sequence[Failure] = (),
) -> Prediction:
    """Write ``prediction.json`` from a run's records, or from all that the folder holds.

    Raises:
        EncbenchError: if there is nothing to rank, or a file is damaged.
    """
    if records is None:
        records = find_records(folder)
    if not records:
        raise EncbenchError(f"no records under {folder}; run 'encbench probe --out {folder}' first")
    with lock_folder(folder):
        return write_prediction(folder / "prediction.json", predict(records, failed=failed))


def report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a run; returns its HTML page.

    Raises:
        EncbenchError: if there is no prediction, or a file is damaged.
    """
    build = registry.get("report", "default")
    return build(folder, out)


def load_probes(config: RunConfig) -> list[Probe]:
    """The probes that the configuration names, or all.

    Raises:
        UnknownNameError: for one that is not registered.
    """
    return [registry.get("probe", name)() for name in config.probes or registry.names("probe")]


def _possible(probe: Probe, data: Data) -> bool:
    """Whether the data that the probe needs were given; if not, that is told."""
    given = {
        "captions": (data.captions, "captions", "--coco FOLDER"),
        "prompts": (data.prompts, "long prompts", "--dpg PATH"),
    }
    missing = [given[kind][1:] for kind in probe.spec.needs if given[kind][0] is None]
    for what, flag in missing:
        log.warning("%s is left out: no %s given (%s)", probe.spec.name, what, flag)
    return not missing


def _notes(dataset: ImageTextDataset | PromptSet | None) -> list[str]:
    return [f"{dataset.name}: {note}" for note in dataset.notes] if dataset else []


def _probe_one(
    config: RunConfig,
    spec: EncoderSpec,
    name: str,
    data: Data,
    images: Images | None,
    store: Store,
    device: torch.device,
    probes: Sequence[Probe],
) -> list[Path]:
    """One encoder, as it is ranked and under its variants."""
    main = StoredEncoder(spec, store, device, _pools(config, spec), seed=config.seed)
    written = [
        _record(config, main, spec.pool, "", spec, name, data, images, probe) for probe in probes
    ]
    if spec.family != "control":
        retrieval = [probe for probe in probes if probe.spec.name == "retrieval"]
        for layer, pool in _variants(config, spec):
            encoder = main
            if layer is not None or pool == "mean-padded":
                main.release()
                changed = spec.with_options(layer=layer or spec.get("layer"), pool=pool)
                encoder = StoredEncoder(changed, store, device, _pools(config, spec))
            variant = f"layer={layer}&pool={pool}" if layer else f"pool={pool}"
            for probe in retrieval:
                try:
                    written.append(
                        _record(config, encoder, pool, variant, spec, name, data, images, probe)
                    )
                except UsageError as error:  # this encoder has no such layer or pooling
                    log.info("%s, %s: left out, %s", name, variant, error)
    main.release()
    return written


def _pools(config: RunConfig, spec: EncoderSpec) -> tuple[str, ...]:
    """Poolings to store in one pass: those of the same features."""
    if spec.family == "control":
        return (spec.pool,)
    same = [pool for pool in config.pools if pool != "mean-padded"]
    return tuple(dict.fromkeys([spec.pool, *same]))


def _variants(config: RunConfig, spec: EncoderSpec) -> list[tuple[str | None, str]]:
    """(layer, pooling) beside the one that is ranked; layer None = as ranked."""
    layers = [None, *(layer for layer in config.layers if layer != spec.layer)]
    pools = list(dict.fromkeys([spec.pool, *config.pools]))
    return [(la, po) for la in layers for po in pools if (la, po) != (None, spec.pool)]


def _record(
    config: RunConfig,
    encoder: StoredEncoder,
    pool: str,
    variant: str,
    ranked: EncoderSpec,
    name: str,
    data: Data,
    images: Images | None,
    probe: Probe,
) -> Path:
    """The record of one encoder through one probe: the one on disk if it says the same thing,
    else a new one."""
    options = config.probe_options(probe.spec.name)
    dataset = data.of(probe.spec)
    key = digest(
        clean(
            {
                "encoder": identity_of(encoder, pool),
                "probe": [probe.spec.name, probe.spec.version],
                "data": dataset,
                "re-encoder": [images.card.spec, images.card.revision] if images else None,
                "options": options,
                "limit": config.limit,
                "seed": config.seed,
            }
        )
    )
    folder = config.out / "records" / f"{slug(str(ranked))}-{digest(str(ranked))[:8]}"
    file = slug(variant) if variant else "main"
    path = folder / f"{probe.spec.name}.{file}.json"
    if path.exists():
        try:
            old = read_record(path)
            if old.key == key and path.with_name(old.items).exists():
                if old.name != name:  # unique names depend on who else is in the run
                    write_record(path, dataclasses.replace(old, name=name))
                if not variant:  # a kill may have come between the record and its gallery
                    write_gallery(config.out, str(ranked), old.series.get("gallery"), data.captions)
                return path
        except RecordError as error:
            log.warning("%s: measured again", error)
    log.info("%s: %s%s", name, probe.spec.name, f" ({variant})" if variant else "")
    started = time.perf_counter()
    context = Context(encoder, pool, data, images, options)
    found = probe.run(context, seed=config.seed, limit=config.limit)
    if images and "images" in probe.spec.reads:
        dataset += f" + {images.card.spec}@{images.card.revision}"
    main_metric = found.main_metric or probe.spec.main_metric
    record = RunRecord(
        key=key,
        name=name,
        card=dataclasses.replace(encoder.card, spec=str(encoder.spec)),
        pooling=pool,
        probe=dataclasses.replace(probe.spec, dataset=dataset, main_metric=main_metric),
        scores=dict(found.scores),
        item_scores={score: list(columns) for score, columns in found.item_scores.items()},
        series=dict(found.series),
        notes=[*encoder.about.get("notes", ()), *found.notes],
        config=config.as_dict(),
        seed=config.seed,
        provenance=provenance() | {"device": _device_name(encoder.device)},
        seconds=time.perf_counter() - started,
        variant=variant,
        variant_of=str(ranked) if variant else "",
    )
    write_record(path, record, found.items)
    if not variant:
        write_gallery(config.out, str(ranked), found.series.get("gallery"), data.captions)
    return path


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
