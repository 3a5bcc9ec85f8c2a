"""The main job: encoders through probes into records, then the ranking, then the report.

Probes and reports come in through the registry. Everything that is finished is on disk, so
the same command, started again, goes on where it was.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import registry
from .config import RunConfig
from .context import Context, Data, Images, load_images, load_run_data
from .device import card_name, choose_device
from .encode import StoredEncoder, identity_of
from .encoders import EncoderSpec, family_of
from .encoders.control import CONTROLS
from .encoders.detect import complete_spec
from .encoders.local import folder_name, hide_folder, public_spec, save_place
from .errors import (
    DataError,
    EncbenchError,
    ProcessError,
    RecordError,
    StoreError,
    UsageError,
    describe_error,
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
from .rules import DEFAULTS, load_rule
from .store import Store
from .types import (
    ImageTextDataset,
    Probe,
    PromptSet,
)
from .vision import reencoder_family
from .zoo.catalog import ENCODERS


@dataclass(frozen=True)
class Measured:
    """Files of records, and encoders that failed."""

    records: tuple[Path, ...]
    failed: tuple[Failure, ...]


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
            _check_family(spec.shuffled or spec)
        if given.count(spec) > 1:
            raise UsageError(f"'{spec}' is given twice")
    candidates = [spec for spec in given if spec.family != "control"]
    finished = [s for s in candidates if not (s.get("step") and _finished(s) in candidates)]
    shuffles = [EncoderSpec.parse(f"control:shuffle({spec})") for spec in finished]
    named = [spec for spec in given if spec.family == "control"]
    controls = [EncoderSpec.parse(text) for text in CONTROLS]
    return list(dict.fromkeys([*candidates, *named, *controls, *shuffles]))


def _check_family(spec: EncoderSpec) -> None:
    """Raise for a family or option that is not there; an extension that cannot be imported fails
    by itself later."""
    try:
        family_of(spec)
    except UsageError:
        raise
    except EncbenchError as error:
        log.debug("%s", error)


def candidates_of(config: RunConfig) -> tuple[str, ...]:
    """The encoders that were named, with their families; where neither they nor data were, the
    zoo's."""
    return tuple(map(complete_spec, config.encoders)) or (ENCODERS if config.on_scenes else ())


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
        if spec.pair:
            return "+".join(map(short, spec.pair))
        if spec.family == "control":
            return spec.source
        if spec.family == "python":
            return spec.source.rsplit("/", 1)[-1]
        if not Path(spec.source).exists() and spec.family == "clip":
            return spec.source  # architecture and tag belong together
        return folder_name(spec.source)

    found = {spec: short(spec) for spec in specs}
    for spec, name in found.items():
        same = [other for other in specs if short(other) == name]
        if len(same) > 1:
            options = "&".join(f"{k}={v}" for k, v in (spec.shuffled or spec).options)
            found[spec] = f"{name}?{options}" if options else f"{spec.family}:{name}"
    for spec, name in list(found.items()):
        if sum(other == name for other in found.values()) > 1:
            local = public_spec(spec) != spec
            found[spec] = f"{name}#{digest(str(spec))[:6]}" if local else str(spec)
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
) -> tuple[list[Path], list[Failure]]:
    write_json(
        config.out / "config.json",
        clean({**config.as_dict(), "re_encoder": config.chosen_re_encoder}),
    )
    for note in (*_notes(data.captions), *_notes(data.prompts)):
        log.info(note)
    used = [probe for probe in probes if _possible(probe, data)]
    images = load_images(config, data, store, device) if read_images(used) else None
    bench = _Bench(config, data, images, store, device, used)
    names = names_of(specs)
    records: list[Path] = []
    failed: dict[EncoderSpec, str] = {}
    candidates = [spec for spec in specs if spec.family != "control"]
    for number, spec in enumerate(specs):
        if spec.shuffled in failed:
            continue
        if failed and number == len(failed) == len(candidates):  # candidates come first
            others = f" ({number - 1} others failed, too)" if number > 1 else ""
            first = candidates[0]
            raise EncbenchError(f"{public_spec(first)} failed: {failed[first]}{others}")
        try:
            records += bench.measure(spec, names[spec])
        except (StoreError, DataError, ProcessError):
            raise  # it would hit the next encoder, too
        except (Exception, SystemExit) as error:  # encoders and their libraries raise anything
            log.warning("%s failed; continuing with the others", names[spec])
            log.debug("%s", spec, exc_info=error)
            failed[spec] = hide_folder(describe_error(error), spec)
    return records, [Failure(str(public_spec(spec)), text) for spec, text in failed.items()]


def run(config: RunConfig) -> Outcome:
    """Probe, rank and report.

    Raises:
        UsageError: if the probe by which encoders are ranked is left out.
        EncbenchError: if nothing could be ranked.
    """
    return run_with_records(config)[1]


def run_with_records(config: RunConfig) -> tuple[list[Path], Outcome]:
    """As :func:`run`, with the records of this run."""
    data = _check_rankable(config)
    records, failed = probe_all(config, data)
    prediction = rank(config.out, records=records, failed=failed, rule=config.rule)
    return records, Outcome(prediction, report(config.out), tuple(failed))


def _check_rankable(config: RunConfig) -> Data:
    """The data of a run. Raises if they or its probes allow no ranking, before the work."""
    rules = [load_rule(name) for name in ([config.rule] if config.rule else DEFAULTS)]
    wanted = {probe.spec.name for probe in load_probes(config)}
    measured = [rule for rule in rules if set(rule.probes) <= wanted]
    if not measured:
        probes = " or ".join(" and ".join(rule.probes) for rule in rules)
        raise UsageError(
            f"encoders are ranked by the {probes} probe, which --probes leaves out; add it, or "
            "measure without ranking: encbench probe"
        )
    data = load_run_data(config)
    lacking = [
        [what for probe in rule.probes for what in _missing(registry.get("probe", probe), data)]
        for rule in measured
    ]
    if all(lacking):
        what, flag = lacking[0][0]
        raise UsageError(
            f"the rule {measured[0].name} needs {what}, and none were given: add {flag}, or "
            "measure without ranking: encbench probe"
        )
    return data


def rank(
    folder: Path,
    *,
    records: Sequence[Path] | None = None,
    failed: Sequence[Failure] = (),
    rule: str | None = None,
) -> Prediction:
    """Write ``prediction.json`` from a run's records, or from all that the folder holds.

    Args:
        rule: see :func:`~encbench.ranking.predict`.

    Raises:
        EncbenchError: if there is nothing to rank, or a file is damaged.
    """
    if records is None:
        records = find_records(folder)
    if not records:
        raise EncbenchError(f"no records under {folder}; run 'encbench probe --out {folder}' first")
    with lock_folder(folder):
        return write_prediction(
            folder / "prediction.json", predict(sorted(records), rule=rule, failed=failed)
        )


def report(folder: Path, out: Path | None = None, beside: Path | None = None) -> Path:
    """Write the report of a run, then those of other packages; returns its HTML page. With
    another run ``beside`` it, only the page that shows both.

    Raises:
        EncbenchError: if there is no prediction, or a file is damaged.
    """
    page: Path = registry.get("report", "default")(folder, out, beside)
    for name in registry.names("report") if beside is None else ():
        if name != "default":
            registry.get("report", name)(folder, page.parent)
    return page


def load_probes(config: RunConfig) -> list[Probe]:
    """The probes that the configuration names, or all but those that say ``on_request``.

    Raises:
        UnknownNameError: for one that is not registered.
    """
    made = [registry.get("probe", name)() for name in config.probes or registry.names("probe")]
    return [probe for probe in made if config.probes or not getattr(probe, "on_request", False)]


def read_images(probes: Iterable[Probe]) -> bool:
    """Whether any of the probes needs a re-encoder."""
    return any("images" in probe.spec.reads for probe in probes)


def _missing(probe: Probe | type[Probe], data: Data) -> list[tuple[str, str]]:
    """What a probe needs that was not given, with the flag that gives it."""
    given = {
        "captions": (data.captions, "captions", "--coco FOLDER or --captions FILE"),
        "prompts": (data.prompts, "long prompts", "--dpg PATH or --prompts FILE"),
    }
    return [given[kind][1:] for kind in probe.spec.needs if given[kind][0] is None]


def _possible(probe: Probe, data: Data) -> bool:
    """Whether the data that the probe needs were given; if not, that is told."""
    missing = _missing(probe, data)
    for what, flag in missing:
        log.warning("%s is left out: no %s given (%s)", probe.spec.name, what, flag)
    return not missing


def _notes(dataset: ImageTextDataset | PromptSet | None) -> list[str]:
    return [f"{dataset.name}: {note}" for note in dataset.notes] if dataset else []


@dataclass(frozen=True)
class _Bench:
    """What every encoder of a run is measured with."""

    config: RunConfig
    data: Data
    images: Images | None
    store: Store
    device: torch.device
    probes: Sequence[Probe]

    def measure(self, spec: EncoderSpec, name: str) -> list[Path]:
        """One encoder, as it is ranked and under its variants."""
        pools = _pools(self.config, spec)
        main = StoredEncoder(spec, self.store, self.device, pools, self.config.seed)
        public = public_spec(spec, main.resolved.revision)
        save_place(self.config.out, public, spec)
        try:
            control = spec.family == "control"
            probes = [
                p for p in self.probes if not (control and getattr(p, "candidates_only", False))
            ]
            written = [self.record(main, spec.pool, "", public, name, p) for p in probes]
            if control:
                return written
            for layer, pool in _variants(self.config, spec):
                encoder = main
                variant = f"layer={layer}&pool={pool}" if layer else f"pool={pool}"
                # the reader reads tokens: another pooling changes nothing for it
                ranking = {"retrieval"} if pool != spec.pool else {"retrieval", "reader"}
                try:
                    if layer is not None or pool == "mean-padded":
                        main.release()
                        changed = spec.with_options(layer=layer or spec.get("layer"), pool=pool)
                        encoder = StoredEncoder(changed, self.store, self.device, pools)
                    for probe in (p for p in self.probes if p.spec.name in ranking):
                        written.append(self.record(encoder, pool, variant, public, name, probe))
                except UsageError as error:  # this encoder has no such layer or pooling
                    log.info("%s, %s: left out, %s", name, variant, error)
            return written
        finally:
            main.release()

    def record(
        self,
        encoder: StoredEncoder,
        pool: str,
        variant: str,
        ranked: EncoderSpec,
        name: str,
        probe: Probe,
    ) -> Path:
        """The record of one encoder through one probe: the one on disk if it says the same thing,
        else a new one.

        Args:
            ranked: public spec of the encoder as it is ranked.
        """
        config = self.config
        images = self.images if read_images([probe]) else None
        card = images.card if images else None
        options = config.probe_options(probe.spec.name)
        dataset = self.data.of(probe.spec)
        key = digest(
            clean(
                {
                    "encoder": identity_of(encoder, pool),
                    "probe": [probe.spec.name, probe.spec.version],
                    "data": dataset,
                    "re-encoder": [card.spec, card.revision] if card else None,
                    "options": options,
                    "limit": config.limit,
                    "seed": config.seed,
                }
            )
        )
        folder = config.out / "records" / f"{slug(str(ranked))}-{digest(str(ranked))[:8]}"
        path = folder / f"{probe.spec.name}.{slug(variant) if variant else 'main'}.json"
        if path.exists():
            try:
                old = read_record(path)
                if old.key == key and path.with_name(old.items).exists():
                    if old.name != name:  # unique names depend on who else is in the run
                        write_record(path, dataclasses.replace(old, name=name))
                    if not variant:  # an older version wrote the record before its gallery
                        self._show(ranked, old.series)
                    return path
            except RecordError as error:
                log.warning("%s; measuring it again", error)
        log.info("%s: %s%s", name, probe.spec.name, f" ({variant})" if variant else "")
        started = time.perf_counter()
        context = Context(encoder, pool, self.data, images, options)
        found = probe.run(context, seed=config.seed, limit=config.limit)
        if card:
            dataset += f" + {public_spec(reencoder_family(card.spec)[1])}@{card.revision}"
        main_metric = found.main_metric or probe.spec.main_metric
        public = public_spec(encoder.spec, encoder.resolved.revision)
        record = RunRecord(
            key=key,
            name=name,
            card=dataclasses.replace(encoder.card, spec=str(public), source=public.source),
            pooling=pool,
            probe=dataclasses.replace(probe.spec, dataset=dataset, main_metric=main_metric),
            scores=dict(found.scores),
            item_scores={score: list(columns) for score, columns in found.item_scores.items()},
            series=dict(found.series),
            notes=[*encoder.about.notes, *found.notes],
            config=_public_config(config),
            seed=config.seed,
            provenance=provenance() | {"device": card_name(encoder.device)},
            seconds=time.perf_counter() - started,
            variant=variant,
            variant_of=str(ranked) if variant else "",
        )
        if not variant:
            self._show(ranked, found.series)
        write_record(path, record, found.items)  # last: it says that all of it is there
        return path

    def _show(self, ranked: EncoderSpec, series: Mapping[str, Any]) -> None:
        """Write the retrieved images of an encoder, where they are not there."""
        write_gallery(self.config.out, str(ranked), series.get("gallery"), self.data.captions)


def _public_config(config: RunConfig) -> dict[str, Any]:
    """A configuration as records hold it: of paths, the names only."""
    encoders = [str(public_spec(EncoderSpec.parse(text))) for text in config.encoders]
    paths = {key: path.name for key, path in vars(config).items() if isinstance(path, Path)}
    return {**config.as_dict(), **paths, "encoders": encoders}


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
