"""The jobs of ``encbench score`` and ``encbench compare``: any metrics of any folder of images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..config import ScoreConfig
from ..errors import DataError, EncbenchError, RecordError, UsageError
from ..files import read_json, slug, write_json
from ..lock import lock_folder
from ..progress import log
from ..records import clean
from ..schema import load_dataclass
from ..types import ImageScore, MetricSpec, Score, SetMetric
from . import find_family, load_metric
from .folder import ImageFolder, read_images
from .geneval.metric import SPEC as GENEVAL
from .geneval.metric import Judgment
from .score import load_features, load_scoring, score_folder
from .tables import (
    OVERALL,
    SetValue,
    compare_scorings,
    compare_sets,
    part_scores,
    set_value,
    task_scores,
)

RECORD, VERSION = "scores.json", 1
SHOWN = 5  # problems and notes of a metric in the terminal


@dataclass(frozen=True)
class MetricRecord:
    """The result of one metric for a folder.

    Attributes:
        name: of the metric with its models and settings.
        folder: with the results of each image, beside the record.
        scores: by task, and overall; with 95 % intervals clustered on prompts.
        parts: of groups of parts, e.g. DPG-Bench's categories.
        whole_set: of a metric of whole sets, what its interval and comparisons are made of.
        unscored: image -> why; never counted as 0.
    """

    spec: MetricSpec
    name: str
    folder: str
    scores: Mapping[str, Score]
    parts: Mapping[str, Score] = field(default_factory=dict)
    whole_set: SetValue | None = None
    unscored: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoreRecord:
    """``scores.json``: a folder of images, scored."""

    version: int
    images: str
    prompts: int
    seed: int
    metrics: tuple[MetricRecord, ...]
    failed: Mapping[str, str] = field(default_factory=dict)


def score_all(config: ScoreConfig) -> ScoreRecord:
    """Score a folder by each metric in turn; resumes after a stop. Each metric writes its results
    to its own folder in ``out``; ``scores.json`` with all of them is written after each metric. A
    metric that fails does not stop the others.

    Raises:
        UsageError: without metrics, or if one is named twice or is unknown.
        DataError: if the folder is in no layout that is read.
        EncbenchError: in one line, if all metrics fail.
    """
    if not config.metrics:
        raise UsageError("name at least one metric: --metrics geneval clipscore ...")
    folders = [slug(find_family("metric", text)[0].spec.name) for text in config.metrics]
    twice = [name for name in folders if folders.count(name) > 1]
    if twice:
        raise UsageError(f"--metrics {twice[0]} is named twice; score it again into another folder")
    folder = read_images(
        config.images,
        prompts=config.prompts,
        grid=config.grid,
        images_per_prompt=config.images_per_prompt,
    )
    rows: list[MetricRecord] = []
    failed: dict[str, str] = {}
    last: EncbenchError | None = None
    root, prompts = folder.root.resolve().name, len(folder.prompts)
    with lock_folder(config.out):
        for text, name in zip(config.metrics, folders, strict=True):
            try:
                rows.append(_score(folder, config, text, name))
            except EncbenchError as error:
                log.warning("%s: %s", text, error)
                failed[text], last = str(error), error
            record = ScoreRecord(VERSION, root, prompts, config.seed, tuple(rows), failed)
            write_json(config.out / RECORD, clean(asdict(record)))
    if not rows and last is not None:
        raise last
    return record


def _score(folder: ImageFolder, config: ScoreConfig, text: str, name: str) -> MetricRecord:
    metric, place = load_metric(text, config.device), config.out / name
    check = getattr(metric, "check", None)
    if check is not None:  # of all prompts, before anything is computed
        check(folder.prompts)
    kind = score_kind(metric.spec)
    scoring = score_folder(folder, place, metric, kind, source=(text, config.device))
    whole_set = None
    if isinstance(metric, SetMetric):
        if len(scoring.unscored) == sum(len(r.images) for r in scoring.results):
            raise DataError(f"no image could be scored: {scoring.unscored[0].score.problem}")
        whole_set = set_value(metric, load_features(place), scoring.results)
        scores = {OVERALL: whole_set.score()}
    else:
        scores = task_scores(scoring.results, metric.spec, seed=config.seed)
    if not scores:
        raise DataError(f"no image could be scored: {scoring.unscored[0].score.problem}")
    unscored = {image.file: image.score.problem for image in scoring.unscored}
    parts = part_scores(scoring.results, seed=config.seed)
    return MetricRecord(
        metric.spec, metric.name, name, scores, parts, whole_set, unscored, scoring.notes
    )


def score_kind(spec: MetricSpec) -> type[ImageScore]:
    """Class of a metric's scores on disk."""
    return Judgment if spec.name == GENEVAL.name else ImageScore


def read_scores(out: Path) -> ScoreRecord:
    """Read what :func:`score_all` wrote.

    Raises:
        RecordError: in one line, if it is missing, damaged or of another version.
    """
    path = out / RECORD
    if not path.is_file():
        raise RecordError(
            f"{out} holds no {RECORD}; make it with: encbench score IMAGES --out {out}"
        )
    record = load_dataclass(ScoreRecord, read_json(path), str(path))
    if record.version != VERSION:
        raise RecordError(f"{path} is of another version of encbench; score the images again")
    return record


def score_lines(record: ScoreRecord) -> list[str]:
    """The table that ``encbench score`` prints."""
    lines = [f"{'':24s} {'score':>9s}   {'95 % interval':21s} prompts  unscored images"]
    for row in record.metrics:
        lower = ", lower is better" if row.spec.direction == "lower" else ""
        lines.append(f"{row.spec.title} ({row.spec.unit}{lower})")
        for name, score in {**row.scores, **row.parts}.items():
            lines.append(
                f"  {name:22s} {score.value:9.4f}   [{score.low:9.4f}, {score.high:9.4f}] "
                f"{score.n:6,d}  {score.unscored:,}"
            )
        lines += [f"  note: {note}" for note in row.notes[:SHOWN]]
        problems = list(row.unscored.values())
        lines += [f"  unscored: {problem}" for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"  unscored: {len(problems) - SHOWN:,} more, all named in {RECORD}")
    lines += [f"failed: {text}: {problem}" for text, problem in record.failed.items()]
    return lines


def compare_all(first: Path, second: Path, *, seed: int = 0) -> list[str]:
    """Two scored folders, prompt by prompt, by every metric that both have; in lines.

    Raises:
        DataError: if they have no metric in common.
    """
    one, two = ({row.spec.name: row for row in read_scores(f).metrics} for f in (first, second))
    common = [name for name in one if name in two]
    if not common:
        raise DataError(f"{first} and {second} have no metric in common")
    lines = [f"{'':24s} {'first':>9s} {'second':>9s} {'difference':>11s}   95 % interval"]
    for name in common:
        lines.append(f"{one[name].spec.title} ({one[name].spec.unit})")
        try:
            lines += _compare(one[name], two[name], first, second, seed)
        except DataError as error:
            lines.append(f"  {error}")
    lines.append("* = the interval leaves out 0; second minus first, on the prompts that both have")
    return lines


def _compare(
    one: MetricRecord, two: MetricRecord, first: Path, second: Path, seed: int
) -> Iterator[str]:
    notes: tuple[str, ...] = ()
    rows: dict[str, tuple[float, float, Score]]
    if one.whole_set is not None and two.whole_set is not None:
        change = compare_sets(one.whole_set, two.whole_set)
        rows = {OVERALL: (one.whole_set.value, two.whole_set.value, change)}
        if one.name != two.name:
            notes = (f"they were scored differently: {one.name}, and {two.name}",)
    else:
        kind = score_kind(one.spec)
        before_all = load_scoring(first / one.folder, kind)
        after_all = load_scoring(second / two.folder, kind)
        found = compare_scorings(before_all, after_all, one.spec, seed=seed)
        rows = {
            name: (found.first[name].value, found.second[name].value, change)
            for name, change in found.difference.items()
        }
        notes = found.notes
    for name, (before, after, change) in rows.items():
        sure = "  *" if change.low > 0 or change.high < 0 else ""
        yield (
            f"  {name:22s} {before:9.4f} {after:9.4f} {change.value:+11.4f}   "
            f"[{change.low:+.4f}, {change.high:+.4f}]{sure}"
        )
    for note in notes:
        yield f"  note: {note}"
