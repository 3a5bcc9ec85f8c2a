"""From images to scores, by any metric: images in memory, or a folder of them.

The results of each prompt of a folder are kept in a file, so that a stopped run resumes. Images are
scored in chunks that depend on the folder alone, since a batch can change a model's last bits.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from PIL import Image

from .. import distributed
from ..errors import DataError, EncbenchError, ImageError, ModelError, RecordError
from ..files import (
    digest,
    digest_file,
    read_json,
    read_table,
    replace_on_success,
    write_atomic,
    write_json,
)
from ..images import count_pixels
from ..progress import bar, log
from ..schema import get_field, load_dataclass
from ..types import ImageMetric, ImagePrompt, ImageRecord, ImageScore, Metric, SetMetric
from ..vision import ReEncoderSpec, open_image
from . import load_metric
from .folder import ImageFolder, SampleFile
from .prompts import prompt_record, read_prompt

VERSION = 1  # of the files that are written
CHUNK = 64  # images in memory at a time
PIXELS = CHUNK * 1024 * 1024  # at a time, but for a single prompt's images
FEATURES = "features.npy"
T = TypeVar("T")


@dataclass(frozen=True)
class ImageResult:
    """The result of one image.

    Attributes:
        file: its name inside the folder.
        size: (width, height) in pixels; (0, 0) if it could not be read.
        sha256: of the file; '' if it is not there.
    """

    file: str
    size: tuple[int, int]
    sha256: str
    score: ImageScore


@dataclass(frozen=True)
class PromptResult:
    """A prompt and the results of its images."""

    prompt: ImagePrompt
    images: tuple[ImageResult, ...]

    @property
    def values(self) -> list[float]:
        """Of the images that could be scored."""
        return [i.score.value for i in self.images if i.score.value is not None]


@dataclass(frozen=True)
class Scoring:
    """Everything about one scored folder.

    Attributes:
        images: the folder.
        metric: the metric's name, a spec string with models and settings.
        notes: what is lacking, in words.
    """

    images: Path
    metric: str
    results: tuple[PromptResult, ...]
    notes: tuple[str, ...]

    @property
    def unscored(self) -> list[ImageResult]:
        return [i for r in self.results for i in r.images if i.score.problem]

    def setting(self, name: str, default: str = "") -> str:
        """An option in the metric's name."""
        return ReEncoderSpec.parse(self.metric).get(name, default)


def score_images(
    metric: ImageMetric, prompts: Sequence[ImagePrompt], images: Sequence[Image.Image]
) -> list[ImageScore]:
    """A score for each image, in chunks.

    Raises:
        EncbenchError: if the metric does not return one for each.
    """
    parts = _in_chunks(metric.score, metric.name, prompts, images)
    return [_with_reason(score, metric.name) for part in parts for score in part]


def _with_reason(score: ImageScore, name: str) -> ImageScore:
    """A score without a finite value always says why: an unscored image never counts as 0."""
    if score.problem or (score.value is not None and np.isfinite(score.value)):
        return score
    return replace(score, value=None, problem=f"{name} gave {score.value}")


def extract_features(
    metric: SetMetric, prompts: Sequence[ImagePrompt], images: Sequence[Image.Image]
) -> Float[np.ndarray, "N F"]:
    """Features of each image, in chunks; no columns without images.

    Raises:
        EncbenchError: if the metric does not return a row for each.
    """
    parts = list(_in_chunks(metric.extract, metric.name, prompts, images))
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _in_chunks(
    call: Callable[[Sequence[ImagePrompt], Sequence[Image.Image]], T],
    name: str,
    prompts: Sequence[ImagePrompt],
    images: Sequence[Image.Image],
) -> Iterator[T]:
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        found: Any = call(prompts[start : start + CHUNK], part)
        if len(found) != len(part):
            raise EncbenchError(f"{name} returned {len(found)} scores for {len(part)} images")
        yield found


def score_folder(
    folder: ImageFolder,
    out: Path,
    metric: Metric,
    kind: type[ImageScore] = ImageScore,
    *,
    source: tuple[str, str] | None = None,
) -> Scoring:
    """Score all images of a folder, or those that have not been scored yet.

    Writes ``prompts/00000.json`` and so on, and ``scoring.json``; of a metric of whole sets also
    ``prompts/00000.npy`` and all features in ``features.npy``.

    Args:
        kind: class of the metric's scores.
        source: spec and device by which the other processes of a launch load the metric, to
            share the work; None = this process does it alone.

    Raises:
        StoreError: if the results cannot be written.
    """
    out = Path(out)
    chunks = list(_chunks(folder))
    keys = {
        prompt.prompt_id: digest([metric.spec.version, metric.name, prompt_record(prompt)])
        for prompt in folder.prompts
    }
    results: dict[int, PromptResult] = {}
    todo: list[Chunk] = []
    again = 0
    with bar("scoring", sum(map(len, folder.samples.values()))) as advance:
        for chunk in chunks:
            kept = [
                found
                for prompt in chunk.prompts
                if (found := _read_kept(out, prompt, keys, chunk, metric, kind)) is not None
            ]
            again += len(kept)
            if len(kept) < len(chunk.prompts):
                todo.append(chunk)
                continue
            results |= {result.prompt.prompt_id: result for result in kept}
            advance(sum(len(result.images) for result in kept))

        def keep(number: int, found: list[ChunkResult]) -> None:
            for result, features in found:
                place = _place(out, result.prompt.prompt_id)
                if features is not None:
                    written = io.BytesIO()
                    np.save(written, features)
                    write_atomic(place.with_suffix(".npy"), written.getvalue())
                write_json(place, {"key": keys[result.prompt.prompt_id]} | _to_json(result))
                results[result.prompt.prompt_id] = result
                advance(len(result.images))

        if source is not None and distributed.process_count() > 1:
            job = ChunkJob(*source, metric.name, kind)
            distributed.share_tasks(job, todo, keep, lambda chunk: score_chunk(metric, chunk, kind))
        else:
            for number, chunk in enumerate(todo):
                keep(number, score_chunk(metric, chunk, kind))
    if 0 < again < len(results):
        log.info("%d of %d prompts had been scored already", again, len(results))
    ordered = tuple(results[prompt.prompt_id] for prompt in folder.prompts)
    notes = list(folder.notes)
    broken = [i for r in ordered for i in r.images if i.score.problem and i.sha256]
    if broken:
        notes.append(f"{len(broken):,} images have no score (first: {broken[0].score.problem})")
    images = folder.root.resolve()
    scoring = Scoring(images, metric.name, ordered, tuple(notes))
    if isinstance(metric, SetMetric):
        _gather_features(out, ordered)
    about = {
        "version": VERSION,
        "metric": metric.name,
        "images": images.name,
        "path": os.path.relpath(images, out.resolve()),
        "notes": notes,
        "prompts": [result.prompt.prompt_id for result in ordered],
    }
    write_json(out / "scoring.json", about)
    return scoring


def load_scoring(out: Path, kind: type[ImageScore] = ImageScore) -> Scoring:
    """Read what :func:`score_folder` wrote.

    Raises:
        RecordError: in one line, naming the file, if it is missing, damaged or of another version.
    """
    path = Path(out) / "scoring.json"
    if not path.is_file():
        raise RecordError(f"{out} holds no scores; make them with 'encbench geneval score'")
    about, where = read_json(path, _damaged), str(path)
    version = get_field(about, "version", int, where, _damaged)
    if version != VERSION:
        raise RecordError(f"{path} is of another version of encbench; score the images again")
    if "metric" in about:
        metric = get_field(about, "metric", str, where, _damaged)
        images = (path.parent / get_field(about, "path", Path, where, _damaged)).resolve()
    else:  # written before there were other metrics
        options = [(k, str(get_field(about, k, Any, where, _damaged))) for k in _SETTINGS]
        metric = str(ReEncoderSpec("geneval", options=tuple((k, v) for k, v in options if v)))
        images = get_field(about, "images", Path, where, _damaged)
    results = []
    for number in get_field(about, "prompts", list[int], where, _damaged):
        place = _place(Path(out), number)
        results.append(_from_json(read_json(place, _damaged), str(place), kind))
    notes = get_field(about, "notes", tuple[str, ...], where, _damaged)
    return Scoring(images, metric, tuple(results), notes)


_SETTINGS = ("colors", "detector", "overlap_limit")


def _damaged(message: str) -> RecordError:
    return RecordError(f"{message}; it is damaged, score the images again")


# -------------------------------------------------------------------------------- scoring


class Chunk(NamedTuple):
    """Prompts whose images are loaded and scored together, with the images of each."""

    prompts: tuple[ImagePrompt, ...]
    samples: tuple[tuple[SampleFile, ...], ...]


ChunkResult = tuple[PromptResult, Float[np.ndarray, "_ _"] | None]
"""A prompt's result, and of a metric of whole sets the features of its images that have any."""


@dataclass(frozen=True)
class ChunkJob:
    """Scores chunks in any process of a launch; picklable.

    Attributes:
        spec, device: how the metric is loaded there.
        name: of the metric as the leader loaded it.
        kind: class of its scores.
    """

    spec: str
    device: str
    name: str
    kind: type[ImageScore]

    def __call__(self, chunk: Chunk) -> list[ChunkResult]:
        metric = _held_metric(self.spec, self.device)
        if metric.name != self.name:
            raise ModelError(
                f"{self.spec}: processes see different files ({self.name} and {metric.name}); pin "
                "them by @revision, or make the folders the same"
            )
        return score_chunk(metric, chunk, self.kind)


@lru_cache(maxsize=1)
def _held_metric(spec: str, device: str) -> Metric:
    """A metric in a process that serves: the last one asked for is kept."""
    return load_metric(spec, device)


def score_chunk(metric: Metric, chunk: Chunk, kind: type[ImageScore]) -> list[ChunkResult]:
    """Load the images of a chunk and score those that can be read."""
    samples = [sample for row in chunk.samples for sample in row]
    owners = [prompt for prompt, row in zip(chunk.prompts, chunk.samples, strict=True) for _ in row]
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(_load, samples))
    usable = [i for i, (image, _, _) in enumerate(loaded) if image is not None]
    images = [image for image, _, _ in loaded if image is not None]
    asked = [owners[i] for i in usable]
    found: dict[int, ImageScore] = {}
    features: Float[np.ndarray, "n F"] | None = None
    if isinstance(metric, SetMetric):
        features = extract_features(metric, asked, images)
        sound = np.isfinite(features).all(axis=1)
        for place, good in zip(usable, sound, strict=True):
            found[place] = kind(problem="" if good else f"{metric.name} gave NaN")
        features = features[sound]
    else:
        found = dict(zip(usable, score_images(metric, asked, images), strict=True))
    rows: dict[int, list[ImageResult]] = {prompt.prompt_id: [] for prompt in chunk.prompts}
    for i, (image, problem, sha256) in enumerate(loaded):
        score = found.get(i) or kind(problem=problem)
        size = image.size if image is not None else (0, 0)
        rows[owners[i].prompt_id].append(ImageResult(samples[i].file, size, sha256, score))
    made = [PromptResult(prompt, tuple(rows[prompt.prompt_id])) for prompt in chunk.prompts]
    if features is None:
        return [(result, None) for result in made]
    ends = np.cumsum([sum(not i.score.problem for i in result.images) for result in made])
    return list(zip(made, np.split(features, ends[:-1]), strict=True))


def scored_counts(results: Sequence[PromptResult]) -> list[int]:
    """How many images of each prompt have a score."""
    return [sum(not image.score.problem for image in result.images) for result in results]


def load_features(out: Path) -> Float[np.ndarray, "N F"]:
    """All features of a folder scored by a metric of whole sets, prompt by prompt, as a memory
    map: they need not fit into memory.

    Raises:
        RecordError: if they are missing or damaged.
    """
    found: Float[np.ndarray, "N F"] = read_table(out / FEATURES, _damaged)
    return found


def _gather_features(out: Path, results: Sequence[PromptResult]) -> None:
    counts, path, row = scored_counts(results), out / FEATURES, 0
    width = 0
    for result in results:  # the first that has a scored image
        part = read_table(_place(out, result.prompt.prompt_id).with_suffix(".npy"), _damaged)
        if len(part):
            width = part.shape[1]
            break
    if not width:
        path.unlink(missing_ok=True)
        return
    with replace_on_success(path) as temporary:
        table = np.lib.format.open_memmap(temporary, "w+", np.float32, (sum(counts), width))
        for result, count in zip(results, counts, strict=True):
            if count:
                place = _place(out, result.prompt.prompt_id).with_suffix(".npy")
                table[row : row + count] = read_table(place, _damaged)
                row += count
        table.flush()
        del table


def _load(sample: SampleFile) -> tuple[Image.Image | None, str, str]:
    """The image, why it cannot be had ('' if it can), and the sha256 of its file."""
    if sample.path is None:
        return None, f"{sample.file} is missing", ""
    try:
        sha256 = _sha256(sample)
        image = open_image(ImageRecord(0, sample.file, sample.path, 0, 0))
        return _cut_tile(image, *sample.tile), "", sha256
    except ImageError as error:
        return None, str(error).replace(str(sample.path), sample.file), sha256
    except OSError as error:
        return None, f"cannot read the image {sample.file}: {error.strerror}", "unreadable"


def _cut_tile(image: Image.Image, side: int, number: int) -> Image.Image:
    """One of ``side`` x ``side`` images of equal size in one file, counted row by row."""
    if side == 1:
        return image
    wide, high = image.width // side, image.height // side
    x, y = number % side * wide, number // side * high
    return image.crop((x, y, x + wide, y + high))


def _chunks(folder: ImageFolder) -> Iterator[Chunk]:
    """Prompts whose images are loaded together, by the number of these and their pixels."""

    def chunk() -> Chunk:
        return Chunk(tuple(part), tuple(folder.samples[prompt.prompt_id] for prompt in part))

    part: list[ImagePrompt] = []
    count = pixels = 0
    for prompt in folder.prompts:
        samples = folder.samples[prompt.prompt_id]
        more = sum(count_pixels(sample.path) for sample in samples if sample.path is not None)
        if part and (count >= CHUNK or pixels + more > PIXELS):
            yield chunk()
            part, count, pixels = [], 0, 0
        part.append(prompt)
        count, pixels = count + len(samples), pixels + more
    if part:
        yield chunk()


# -------------------------------------------------------------------------------- on disk


def _place(out: Path, prompt_id: int) -> Path:
    return out / "prompts" / f"{prompt_id:05d}.json"


def _read_kept(
    out: Path,
    prompt: ImagePrompt,
    keys: Mapping[int, str],
    chunk: Chunk,
    metric: Metric,
    kind: type[ImageScore],
) -> PromptResult | None:
    """What was found before, if it is of the same images, prompt and metric."""
    path = _place(out, prompt.prompt_id)
    if not path.is_file():
        return None
    samples = chunk.samples[chunk.prompts.index(prompt)]
    try:
        record = read_json(path)
        if get_field(record, "key", str, str(path)) != keys[prompt.prompt_id]:
            return None
        result = _from_json(record, str(path), kind)
        before = [(image.file, image.sha256) for image in result.images]
        if before != [(s.file, _sha256(s)) for s in samples]:
            return None
        if isinstance(metric, SetMetric):
            features = read_table(path.with_suffix(".npy"))
            return result if [len(features)] == scored_counts([result]) else None
        return result
    except (EncbenchError, OSError):
        return None  # damaged; making it again


def _sha256(sample: SampleFile) -> str:
    return "" if sample.path is None else digest_file(sample.path)


def _to_json(result: PromptResult) -> dict[str, Any]:
    def without_none(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in pairs if value not in (None, {})}

    images = [
        {"file": i.file, "size": i.size, "sha256": i.sha256}
        | asdict(i.score, dict_factory=without_none)
        for i in result.images
    ]
    prompt = result.prompt
    return {"prompt_id": prompt.prompt_id, "metadata": prompt_record(prompt), "images": images}


def _from_json(record: Any, where: str, kind: type[ImageScore]) -> PromptResult:
    number = get_field(record, "prompt_id", int, where, _damaged)
    try:
        about = get_field(record, "metadata", Any, where, _damaged)
        prompt = read_prompt(about, number, f"{where}: metadata")
    except DataError as error:
        raise _damaged(str(error)) from error
    images = []
    for place, entry in enumerate(get_field(record, "images", list, where, _damaged)):
        at = f"{where}: images[{place}]"
        images.append(
            ImageResult(
                get_field(entry, "file", str, at, _damaged),
                get_field(entry, "size", tuple[int, int], at, _damaged),
                get_field(entry, "sha256", str, at, _damaged),
                load_dataclass(kind, entry, at, _damaged),
            )
        )
    return PromptResult(prompt, tuple(images))
