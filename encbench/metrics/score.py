"""From images to scores, by any metric: images in memory, or a folder of them.

What is found in each prompt's images of a folder is kept in a file of its own, so that a run
that was stopped goes on where it was. Images are scored in chunks that depend on the folder
alone: a model's last bits may depend on what it is given together.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.geneval import GenevalPrompt, from_metadata, to_metadata
from ..errors import DataError, EncbenchError, ImageError, RecordError
from ..files import digest, read_json, write_json
from ..progress import bar, log
from ..schema import get_field, load_dataclass
from ..types import ImageMetric, ImagePrompt, ImageRecord, ImageScore
from ..vision import ReEncoderSpec, open_image
from .folder import ImageFolder, SampleFile

VERSION = 1  # of the files that are written
CHUNK = 64  # images in memory at a time
PIXELS = CHUNK * 1024 * 1024  # at a time, but for a single prompt's images


@dataclass(frozen=True)
class ImageResult:
    """What became of one image.

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
    """A prompt and what became of its images."""

    prompt: GenevalPrompt
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
        return [i for r in self.results for i in r.images if i.score.value is None]

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
    scores: list[ImageScore] = []
    for start in range(0, len(images), CHUNK):
        part = images[start : start + CHUNK]
        found = metric.score(prompts[start : start + CHUNK], part)
        if len(found) != len(part):
            raise EncbenchError(
                f"{metric.name} returned {len(found)} scores for {len(part)} images"
            )
        scores += found
    return scores


def score_folder(
    folder: ImageFolder, out: Path, metric: ImageMetric, kind: type[ImageScore] = ImageScore
) -> Scoring:
    """Score all images of a folder, or those that have not been scored yet.

    Writes ``prompts/00000.json`` and so on, and ``scoring.json``.

    Args:
        kind: class of the metric's scores.

    Raises:
        StoreError: if the results cannot be written.
    """
    out = Path(out)
    results: list[PromptResult] = []
    again = 0
    with bar("scoring", sum(map(len, folder.samples.values()))) as advance:
        for part in _chunks(folder):
            keys = [digest([metric.spec.version, metric.name, to_metadata(p)]) for p in part]
            kept = [
                _read_kept(
                    _place(out, prompt.prompt_id), key, folder.samples[prompt.prompt_id], kind
                )
                for prompt, key in zip(part, keys, strict=True)
            ]
            found = [result for result in kept if result is not None]
            again += len(found)
            if len(found) < len(part):
                found = _score_chunk(metric, part, folder, kind)
                for result, key in zip(found, keys, strict=True):
                    written = {"key": key} | _to_json(result)
                    write_json(_place(out, result.prompt.prompt_id), written)
            results += found
            advance(sum(len(result.images) for result in found))
    if 0 < again < len(results):
        log.info("%d of %d prompts had been scored already", again, len(results))
    notes = list(folder.notes)
    broken = [i for r in results for i in r.images if i.score.value is None and i.sha256]
    if broken:
        notes.append(f"{len(broken):,} images have no score (first: {broken[0].score.problem})")
    images = folder.root.resolve()
    scoring = Scoring(images, metric.name, tuple(results), tuple(notes))
    about = {
        "version": VERSION,
        "metric": metric.name,
        "images": images.name,
        "path": os.path.relpath(images, out.resolve()),
        "notes": notes,
        "prompts": [result.prompt.prompt_id for result in results],
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
        raise RecordError(f"{out} holds no scores; make them by 'encbench geneval score'")
    about, where = read_json(path, _damaged), str(path)
    version = get_field(about, "version", int, where, _damaged)
    if version != VERSION:
        raise RecordError(f"{path} is of another version of encbench; score the images again")
    if "metric" in about:
        metric = get_field(about, "metric", str, where, _damaged)
        images = (path.parent / get_field(about, "path", str, where, _damaged)).resolve()
    else:  # written before there were other metrics
        options = [(k, str(get_field(about, k, Any, where, _damaged))) for k in _SETTINGS]
        metric = str(ReEncoderSpec("geneval", options=tuple((k, v) for k, v in options if v)))
        images = Path(get_field(about, "images", str, where, _damaged))
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


def _score_chunk(
    metric: ImageMetric, part: Sequence[GenevalPrompt], folder: ImageFolder, kind: type[ImageScore]
) -> list[PromptResult]:
    samples = [sample for prompt in part for sample in folder.samples[prompt.prompt_id]]
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(_load, samples))
    owners = [prompt for prompt in part for _ in folder.samples[prompt.prompt_id]]
    usable = [i for i, (image, _, _) in enumerate(loaded) if image is not None]
    images = [image for image, _, _ in loaded if image is not None]
    scores = score_images(metric, [owners[i] for i in usable], images)
    found = dict(zip(usable, scores, strict=True))
    rows: dict[int, list[ImageResult]] = {prompt.prompt_id: [] for prompt in part}
    for i, (image, problem, sha256) in enumerate(loaded):
        score = found.get(i) or kind(problem=problem)
        size = image.size if image is not None else (0, 0)
        row = ImageResult(samples[i].file, size, sha256, score)
        rows[owners[i].prompt_id].append(row)
    return [PromptResult(prompt, tuple(rows[prompt.prompt_id])) for prompt in part]


def _load(sample: SampleFile) -> tuple[Image.Image | None, str, str]:
    """The image, why it cannot be had ('' if it can), and the sha256 of its file."""
    if sample.path is None:
        return None, f"{sample.file} is missing", ""
    try:
        sha256 = _sha256(sample)
        return open_image(ImageRecord(0, sample.file, sample.path, 0, 0)), "", sha256
    except ImageError as error:
        return None, str(error).replace(str(sample.path), sample.file), sha256
    except OSError as error:
        return None, f"cannot read the image {sample.file}: {error.strerror}", "unreadable"


def _chunks(folder: ImageFolder) -> Iterator[list[GenevalPrompt]]:
    """Prompts whose images are loaded together, by the number of these and their pixels."""
    part: list[GenevalPrompt] = []
    count = pixels = 0
    for prompt in folder.prompts:
        samples = folder.samples[prompt.prompt_id]
        more = sum(map(_pixels, samples))
        if part and (count >= CHUNK or pixels + more > PIXELS):
            yield part
            part, count, pixels = [], 0, 0
        part.append(prompt)
        count, pixels = count + len(samples), pixels + more
    if part:
        yield part


def _pixels(sample: SampleFile) -> int:
    """As the file's header says; 0 where it cannot be read."""
    with suppress(Exception):  # decoders raise whatever a broken file makes them stumble over
        if sample.path is not None:
            with Image.open(sample.path) as opened:
                return opened.width * opened.height
    return 0


# -------------------------------------------------------------------------------- on disk


def _place(out: Path, prompt_id: int) -> Path:
    return out / "prompts" / f"{prompt_id:05d}.json"


def _read_kept(
    path: Path, key: str, samples: Sequence[SampleFile], kind: type[ImageScore]
) -> PromptResult | None:
    """What was found before, if it is of the same images, prompt and metric."""
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        if get_field(record, "key", str, str(path)) != key:
            return None
        result = _from_json(record, str(path), kind)
        before = [(image.file, image.sha256) for image in result.images]
        return result if before == [(s.file, _sha256(s)) for s in samples] else None
    except (EncbenchError, OSError):
        return None  # damaged: made again


def _sha256(sample: SampleFile) -> str:
    if sample.path is None:
        return ""
    with sample.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_json(result: PromptResult) -> dict[str, Any]:
    def without_none(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in pairs if value not in (None, {})}

    images = [
        {"file": i.file, "size": i.size, "sha256": i.sha256}
        | asdict(i.score, dict_factory=without_none)
        for i in result.images
    ]
    prompt = result.prompt
    return {"prompt_id": prompt.prompt_id, "metadata": to_metadata(prompt), "images": images}


def _from_json(record: Any, where: str, kind: type[ImageScore]) -> PromptResult:
    number = get_field(record, "prompt_id", int, where, _damaged)
    try:
        prompt = from_metadata(get_field(record, "metadata", Any, where, _damaged), number)
    except DataError as error:
        raise _damaged(f"{where}: metadata: {error}") from error
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
