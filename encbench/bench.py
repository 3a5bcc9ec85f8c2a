"""Measuring encoders: one through all probes, and several at once in the processes of a command.

Each measurement is written when it is done: a record and its items for each encoder and probe. A
record on disk with the same settings is not measured again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import distributed, registry
from .config import RunConfig
from .context import Context, Data, Images, load_images, load_run_data
from .data.vocabulary import Vocabulary
from .device import card_name, choose_device, current_launch
from .encode import StoredEncoder, identity_of
from .encoders import EncoderSpec, family_of, find_files
from .encoders.local import hide_folder, public_spec, save_place
from .errors import (
    DataError,
    EncbenchError,
    ProcessError,
    RecordError,
    StoreError,
    UsageError,
    describe_error,
    from_os_error,
)
from .files import digest, read_json, slug, temporary_folder, write_json
from .media import write_gallery
from .progress import RUNNING, Cells, ProgressTable, log
from .records import RunRecord, clean, provenance, read_record, write_record
from .store import Store
from .types import Probe
from .vision import reencoder_family

LIGHT = 250_000_000  # bytes of weights up to which each process measures encoders of its own
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")


def load_probes(config: RunConfig) -> list[Probe]:
    """The probes that the configuration names; by default all except those with ``on_request``.

    Raises:
        UnknownNameError: for one that is not registered.
    """
    made = [registry.get("probe", name)() for name in config.probes or registry.names("probe")]
    return [probe for probe in made if config.probes or not getattr(probe, "on_request", False)]


def read_images(probes: Iterable[Probe]) -> bool:
    """Whether any of the probes needs a re-encoder."""
    return any("images" in probe.spec.reads for probe in probes)


def missing_data(probe: Probe | type[Probe], data: Data) -> list[tuple[str, str]]:
    """What a probe needs that was not given, with the flag that gives it."""
    given = {
        "captions": (data.captions, "captions", "--coco FOLDER or --captions FILE"),
        "prompts": (data.prompts, "long prompts", "--dpg PATH or --prompts FILE"),
    }
    return [given[kind][1:] for kind in probe.spec.needs if given[kind][0] is None]


class Attempt(NamedTuple):
    """The records of an encoder, or why it failed."""

    records: list[Path]
    error: str = ""


@dataclass(frozen=True)
class Bench:
    """Probes and data that every encoder of a run is measured with. ``table`` shows the
    progress."""

    config: RunConfig
    data: Data
    images: Images | None
    store: Store
    device: torch.device
    probes: Sequence[Probe]
    table: Cells | None = None

    @classmethod
    def of(cls, config: RunConfig, data: Data, store: Store, device: torch.device) -> Bench:
        """A bench with those probes of a configuration for which there are data.

        Raises:
            EncbenchError: if the re-encoder or the vocabulary cannot be loaded.
        """
        probes = [probe for probe in load_probes(config) if not missing_data(probe, data)]
        for probe in probes:
            config.probe_options(probe.spec.name)  # raises before the work starts
        images = load_images(config, data, store, device) if read_images(probes) else None
        return cls(config, data, images, store, device, probes)

    @property
    def pin(self) -> str:
        """Content hash of all data."""
        return " + ".join(dict.fromkeys(self.data.of(probe.spec) for probe in self.probes))

    def attempt(self, spec: EncoderSpec, name: str) -> Attempt:
        """As :meth:`measure`, but a failure of the encoder is returned as one line.

        Raises:
            StoreError, DataError, ProcessError: they would stop the next encoder, too.
        """
        try:
            return Attempt(self.measure(spec, name))
        except (StoreError, DataError, ProcessError):
            raise
        except (Exception, SystemExit) as error:  # encoders and their libraries raise anything
            log.debug("%s", spec, exc_info=error)
            return Attempt([], hide_folder(describe_error(error), spec))

    def measure(self, spec: EncoderSpec, name: str) -> list[Path]:
        """Measure one encoder, as it is ranked and in its variants of layer and pooling."""
        pools = _pools(self.config, spec)
        main = StoredEncoder(spec, self.store, self.device, pools, self.config.seed)
        public = public_spec(spec, main.resolved.revision)
        try:
            written = []
            for probe in self.probes_of(spec):
                self.show(name, probe.spec.name, RUNNING)
                written.append(self.record(main, spec.pool, "", public, name, probe))
            if spec.family == "control":
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

    def probes_of(self, spec: EncoderSpec) -> list[Probe]:
        """The probes that an encoder goes through."""
        control = spec.family == "control"
        return [p for p in self.probes if not (control and getattr(p, "candidates_only", False))]

    def record(
        self,
        encoder: StoredEncoder,
        pool: str,
        variant: str,
        ranked: EncoderSpec,
        name: str,
        probe: Probe,
    ) -> Path:
        """The record of one encoder and probe: from disk if its settings are the same, else
        measured.

        Args:
            ranked: public spec of the encoder as it is ranked.
        """
        config = self.config
        images = self.images if read_images([probe]) else None
        card = images.card if images else None
        options = config.probe_options(probe.spec.name)
        dataset = self.data.of(probe.spec)
        if "vocabulary" in options:
            own = Vocabulary(**options["vocabulary"])
            dataset += f" + words of {own.name}@{own.pin}"
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
                    if old.name != name:  # unique names depend on the other encoders of the run
                        write_record(path, dataclasses.replace(old, name=name))
                    return self._done(path, old, name)
            except RecordError as error:
                log.warning("%s; measuring it again", error)
        if self.table is None or not self.table.live:
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
        write_record(path, record, found.items)  # last: it marks the record as complete
        return self._done(path, record, name)

    def publish(self, spec: EncoderSpec, records: Sequence[Path]) -> None:
        """Write what is not part of a record: the place of an encoder on this machine and the
        images that it retrieved. One process does this for all encoders."""
        for record in map(read_record, records):
            if not record.variant:
                public = record.card.spec
                save_place(self.config.out, EncoderSpec.parse(public), spec)
                write_gallery(
                    self.config.out, public, record.series.get("gallery"), self.data.captions
                )

    def _done(self, path: Path, record: RunRecord, name: str) -> Path:
        if not record.variant:
            score = record.scores.get(record.probe.main_metric)
            self.show(name, record.probe.name, f"{score.value:.3f}" if score else "done")
        return path

    def show(self, name: str, probe: str, text: str) -> None:
        """Show in the progress table how far an encoder is with a probe."""
        if self.table is not None:
            self.table.set(name, probe, text)


def _public_config(config: RunConfig) -> dict[str, Any]:
    """A configuration as records hold it: paths are cut to their names."""
    encoders = [str(public_spec(EncoderSpec.parse(text))) for text in config.encoders]
    paths = {key: path.name for key, path in vars(config).items() if isinstance(path, Path)}
    return {**config.as_dict(), **paths, "encoders": encoders}


def _pools(config: RunConfig, spec: EncoderSpec) -> tuple[str, ...]:
    """The poolings to store in one pass over the prompts: those that use the same features."""
    if spec.family == "control":
        return (spec.pool,)
    same = [pool for pool in config.pools if pool != "mean-padded"]
    return tuple(dict.fromkeys([spec.pool, *same]))


def _variants(config: RunConfig, spec: EncoderSpec) -> list[tuple[str | None, str]]:
    """(layer, pooling) beside the one that is ranked; layer None = as ranked."""
    layers = [None, *(layer for layer in config.layers if layer != spec.layer)]
    pools = list(dict.fromkeys([spec.pool, *config.pools]))
    return [(la, po) for la in layers for po in pools if (la, po) != (None, spec.pool)]


# ------------------------------------------------------------------------- several processes


def share_encoders(
    bench: Bench, named: Sequence[tuple[EncoderSpec, str]]
) -> dict[EncoderSpec, Attempt]:
    """Measure light encoders in all processes of the command; each takes the next one that is free.
    Large encoders are left to the leader, since their encoding is shared shard by shard. So is
    everything if there is one process, or another process does not see the run's folder.

    Args:
        named: specs with their names.

    Returns:
        what was measured.

    Raises:
        EncbenchError: if the next encoder would fail in the same way.
    """
    if distributed.process_count() == 1:
        return {}
    light = tuple((spec, name) for spec, name in named if is_light(spec))
    if len(light) < 2:
        return {}
    found: dict[EncoderSpec, Attempt] = {}
    with temporary_folder(bench.config.out) as board:
        everybody = range(distributed.process_count())
        seen: list[bool] = []
        distributed.share_tasks(_Sees(board), everybody, lambda _, there: seen.append(there))
        if not all(seen):
            return {}
        if bench.images is not None:  # image vectors are made once, by all processes
            first = next((pair for pair in light if str(pair[0]) == "control:constant"), light[0])
            found[first[0]] = bench.attempt(*first)
            light = tuple(pair for pair in light if pair != first)
        table, job = bench.table, EncoderJob(bench.config, bench.pin, light, board)
        if isinstance(table, ProgressTable):
            table.others = lambda: _read_cells(board)
        distributed.share_tasks(
            job, everybody, lambda _, made: found.update(made), lambda _: job.measure(bench)
        )
        if isinstance(table, ProgressTable):
            table.others = None
    return found


def is_light(spec: EncoderSpec) -> bool:
    """Whether a single process measures the encoder alone: a control, or a model with few
    weights."""
    inner = spec.shuffled or spec
    if inner.family == "control":
        return True
    try:
        path = find_files(family_of(inner), inner).path
    except (EncbenchError, SystemExit):
        return False  # the leader reports the reason
    if path is None:
        return False
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.suffix in WEIGHTS]
    return sum(file.stat().st_size for file in files) <= LIGHT


@dataclass(frozen=True)
class _Sees:
    """Whether a process sees a file; picklable."""

    path: Path

    def __call__(self, rank: int) -> bool:
        return self.path.exists()


@dataclass(frozen=True)
class EncoderJob:
    """Measures encoders in any process of the command; picklable.

    Attributes:
        config: of the run.
        pin: hash of the leader's data; other data are refused.
        named: specs with their names.
        board: a folder that all processes see. A file named after the number of an encoder means
            that it is taken; a file 'stop' means that a process failed.
    """

    config: RunConfig
    pin: str
    named: tuple[tuple[EncoderSpec, str], ...]
    board: Path

    def __call__(self, rank: int) -> dict[EncoderSpec, Attempt]:
        bench = _bench_of(self.config)
        if bench.pin != self.pin:
            raise DataError(
                f"processes see different data ({self.pin} and {bench.pin}); give all of them the "
                "same files"
            )
        return self.measure(dataclasses.replace(bench, table=_CellFiles(self.board)))

    def measure(self, bench: Bench) -> dict[EncoderSpec, Attempt]:
        """Measure encoders until none is left."""
        found = {}
        try:
            for number, (spec, name) in enumerate(self.named):
                if (self.board / "stop").exists():
                    break
                if self._take(number):
                    found[spec] = bench.attempt(spec, name)
        except BaseException:
            with suppress(OSError):
                (self.board / "stop").touch()
            raise
        return found

    def _take(self, number: int) -> bool:
        try:
            (self.board / f"{number}").touch(exist_ok=False)
        except FileExistsError:
            return False
        except OSError as error:
            raise from_os_error(error, f"writing {self.board}") from error
        return True


@lru_cache(maxsize=1)
def _bench_of(config: RunConfig) -> Bench:
    """The bench of a process that serves."""
    store, device = Store(config.store), choose_device(config.device)
    return Bench.of(config, load_run_data(config), store, device)


class _CellFiles:
    """A table whose cells are files, for the leader to read."""

    live = True

    def __init__(self, board: Path) -> None:
        self.board, self.count = board, 0

    def set(self, row: str, column: str, text: str) -> None:
        self.count += 1
        with suppress(StoreError):  # nothing but the display depends on it
            rank = current_launch().rank
            write_json(self.board / f"{rank}-{self.count:06d}.cell", [row, column, text])


def _read_cells(board: Path) -> Iterator[tuple[str, str, str]]:
    with suppress(OSError, RecordError):
        for path in sorted(board.glob("*.cell")):
            row, column, text = read_json(path)
            yield row, column, text
            path.unlink()
