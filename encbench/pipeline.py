"""The main job: encoders through probes into records, then the ranking, then the report.

Probes and reports come from the registry. Finished work is on disk, so the same command resumes
after a stop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import registry
from .bench import Bench, load_probes, missing_data, share_encoders
from .config import RunConfig
from .context import Data, load_run_data
from .device import choose_device
from .encoders import EncoderSpec, family_of
from .encoders.control import CONTROLS
from .encoders.detect import complete_spec
from .encoders.local import folder_name, public_spec
from .errors import EncbenchError, UsageError
from .files import digest, write_json
from .lock import lock_folder
from .progress import log, show_table
from .ranking import predict
from .records import Failure, Prediction, clean, find_records, write_prediction
from .rules import DEFAULTS, load_rule
from .store import Store
from .types import ImageTextDataset, PromptSet
from .zoo.catalog import ENCODERS


@dataclass(frozen=True)
class Measured:
    """Files of records, and encoders that failed."""

    records: tuple[Path, ...]
    failed: tuple[Failure, ...]


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    prediction: Prediction | None
    report: Path | None
    failed: tuple[Failure, ...]


def specs_of(config: RunConfig, *, known: bool = True) -> list[EncoderSpec]:
    """The candidates in the order given (by default, on scenes, the zoo), then all controls: the
    five, and a shuffle of each candidate. An earlier step of another candidate gets no shuffle,
    since its geometry is much the same. A control that was also named as an encoder comes once.

    Raises:
        UsageError: for text that is no spec, a spec that is given twice, or (if ``known``) one of
            no registered family.
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
    """Measure every encoder and control with every probe. An encoder that fails is reported and
    skipped.

    Returns:
        the records of this run, and the specs that failed with their errors.

    Raises:
        EncbenchError: for problems of all encoders: data, re-encoder, store, or an output folder
            that another process is writing.
    """
    specs = specs_of(config)
    config = dataclasses.replace(config, encoders=candidates_of(config))
    device = choose_device(config.device)
    probes = load_probes(config)
    store = Store(config.store)
    with lock_folder(config.out):
        data = data or load_run_data(config)
        write_json(
            config.out / "config.json",
            clean({**config.as_dict(), "re_encoder": config.chosen_re_encoder}),
        )
        for note in (*_notes(data.captions), *_notes(data.prompts)):
            log.info(note)
        for probe in probes:
            for what, flag in missing_data(probe, data):
                log.warning("%s is left out: no %s given (%s)", probe.spec.name, what, flag)
        return _probe_all(Bench.of(config, data, store, device), specs)


def _probe_all(bench: Bench, specs: Sequence[EncoderSpec]) -> tuple[list[Path], list[Failure]]:
    names = names_of(specs)
    records: list[Path] = []
    failed: dict[EncoderSpec, str] = {}
    candidates = [spec for spec in specs if spec.family != "control"]
    rows = {names[spec]: [p.spec.name for p in bench.probes_of(spec)] for spec in specs}
    with show_table(rows, [probe.spec.name for probe in bench.probes]) as table:
        bench = dataclasses.replace(bench, table=table)
        made = share_encoders(bench, [(spec, names[spec]) for spec in specs])
        for number, spec in enumerate(specs):
            if spec.shuffled in failed:
                table.fail(names[spec])
                continue
            if failed and number == len(failed) == len(candidates):  # candidates come first
                others = f" ({number - 1} others failed, too)" if number > 1 else ""
                first = candidates[0]
                raise EncbenchError(f"{public_spec(first)} failed: {failed[first]}{others}")
            found = made.get(spec) or bench.attempt(spec, names[spec])
            if found.error:
                log.warning("%s failed; continuing with the others", names[spec])
                failed[spec] = found.error
                table.fail(names[spec])
            bench.publish(spec, found.records)
            records += found.records
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
        [what for probe in rule.probes for what in missing_data(registry.get("probe", probe), data)]
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


def _notes(dataset: ImageTextDataset | PromptSet | None) -> list[str]:
    return [f"{dataset.name}: {note}" for note in dataset.notes] if dataset else []
