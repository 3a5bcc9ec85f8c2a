"""From a folder of images to verdicts on disk: detect, name colors, judge.

What is found in each prompt's images is kept in a file of its own, so that a run that was
stopped goes on where it was, and nothing is detected twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL.Image import Image

from ...data.geneval import Clause, GenevalPrompt, from_metadata, to_metadata
from ...errors import DataError, EncbenchError, ImageError, RecordError
from ...files import digest, read_json, write_atomic, write_json
from ...progress import bar, log
from ...types import Detection, ImageRecord
from ...vision import open_image
from .colors import ColorClassifier, Crop
from .detect import Detector
from .folder import ImageFolder, SampleFile
from .verdict import ClauseResult, ImageVerdict, judge_image, keep_objects, needs_color

VERSION = 1  # raised whenever the same images would be judged otherwise
CHUNK = 64  # images in memory at a time; all their crops are named together


@dataclass(frozen=True)
class ImageResult:
    """What became of one image.

    Attributes:
        file: its name inside the folder.
        size: (width, height) in pixels; (0, 0) if it could not be read.
        problem: why it could not be scored; '' if it was.
        objects: what was detected, without masks.
        verdict: None if it could not be scored.
        sha256: of the file; '' if it is not there.
    """

    file: str
    size: tuple[int, int]
    problem: str
    objects: tuple[Detection, ...]
    verdict: ImageVerdict | None
    sha256: str = ""


@dataclass(frozen=True)
class PromptResult:
    """A prompt and what became of its images."""

    prompt: GenevalPrompt
    images: tuple[ImageResult, ...]

    @property
    def scored(self) -> int:
        return sum(image.verdict is not None for image in self.images)

    @property
    def right(self) -> int:
        return sum(image.verdict is not None and image.verdict.correct for image in self.images)


@dataclass(frozen=True)
class Scoring:
    """Everything about one scored folder. ``images`` is the folder, ``notes`` what is lacking."""

    images: Path
    detector: str
    colors: str
    overlap_limit: float
    results: tuple[PromptResult, ...]
    notes: tuple[str, ...]


def score_folder(
    folder: ImageFolder,
    out: Path,
    detector: Detector,
    colors: Callable[[], ColorClassifier] | None = None,
    *,
    colors_name: str = "",
    overlap_limit: float = 1.0,
) -> Scoring:
    """Judge all images of a folder, or those that have not been judged yet.

    Writes ``prompts/00000.json`` and so on, ``results.jsonl`` with the published evaluator's
    columns (scored images only), and ``scoring.json``.

    Args:
        colors: loads the classifier; called when the first color is needed that the detector
            does not give. None = there is no classifier.
        colors_name: what tells the classifier's results from others', before it is loaded.
        overlap_limit: see :func:`~encbench.metrics.geneval.verdict.judge_image`.

    Raises:
        DataError: if the prompts have a class that the detector does not know, or need colors
            that nobody names.
        StoreError: if the results cannot be written.
    """
    check_classes(folder.prompts, detector)
    settings = [VERSION, detector.name, colors_name, overlap_limit]
    held: dict[int, PromptResult] = {}
    with bar("looking for finished work", len(folder.prompts)) as advance:
        for prompt in folder.prompts:
            samples = folder.samples[prompt.prompt_id]
            kept = _kept(_place(out, prompt), settings, prompt, samples)
            if kept is not None:
                held[prompt.prompt_id] = kept
            advance(1)
    todo = [prompt for prompt in folder.prompts if prompt.prompt_id not in held]
    if held and todo:
        log.info("%d of %d prompts are scored already", len(held), len(folder.prompts))
    work = _Work(detector, colors, overlap_limit)
    with bar("scoring", sum(len(folder.samples[p.prompt_id]) for p in todo)) as advance:
        for part in _chunks(todo, folder):
            for result in work.judge([(p, folder.samples[p.prompt_id]) for p in part]):
                written = {"key": digest([settings, to_metadata(result.prompt)])}
                write_json(_place(out, result.prompt), written | _to_json(result))
                held[result.prompt.prompt_id] = result
                advance(len(result.images))
    results = tuple(held[prompt.prompt_id] for prompt in folder.prompts)
    notes = list(folder.notes)
    broken = [i for result in results for i in result.images if i.verdict is None and i.sha256]
    if broken:
        notes.append(f"{len(broken):,} images cannot be read (first: {broken[0].problem})")
    scoring = Scoring(folder.root, detector.name, colors_name, overlap_limit, results, tuple(notes))
    _write(scoring, out)
    return scoring


def check_classes(prompts: Sequence[GenevalPrompt], detector: Detector) -> None:
    """Raise DataError if a prompt has a class that the detector cannot find."""
    for prompt in prompts:
        for clause in (*prompt.include, *prompt.exclude):
            if clause.label not in detector.labels:
                known = ", ".join(detector.labels[:4])
                raise DataError(
                    f"prompt {prompt.prompt_id:05d} ('{prompt.text}') needs the class "
                    f"'{clause.label}', which {detector.name} does not know (it knows {known}, "
                    "...); use another detector"
                )


def load_scoring(out: Path) -> Scoring:
    """Read what :func:`score_folder` wrote.

    Raises:
        RecordError: in one line, naming the file, if it is missing, damaged or of another version.
    """
    path = Path(out) / "scoring.json"
    if not path.is_file():
        raise RecordError(f"{out} holds no scores; make them by 'encbench geneval score'")
    about = read_json(path)
    try:
        if about["version"] != VERSION:
            raise RecordError(f"{path} is of another version of encbench; score the images again")
        results = []
        for number in about["prompts"]:
            record = read_json(Path(out) / "prompts" / f"{number:05d}.json")
            results.append(_from_json(record))
        return Scoring(
            images=Path(about["images"]),
            detector=about["detector"],
            colors=about["colors"],
            overlap_limit=about["overlap_limit"],
            results=tuple(results),
            notes=tuple(about["notes"]),
        )
    except (KeyError, TypeError, ValueError, IndexError, DataError) as error:
        raise RecordError(
            f"{path} or a file beside it is damaged; score the images again"
        ) from error


# -------------------------------------------------------------------------------- judging


class _Work:
    """Images of some prompts at a time: one detection, one naming of all crops."""

    def __init__(
        self,
        detector: Detector,
        colors: Callable[[], ColorClassifier] | None,
        overlap_limit: float,
    ) -> None:
        self.detector, self.colors, self.limit = detector, colors, overlap_limit
        self.classifier: ColorClassifier | None = None

    def judge(
        self, part: Sequence[tuple[GenevalPrompt, Sequence[SampleFile]]]
    ) -> list[PromptResult]:
        samples = [sample for _, row in part for sample in row]
        with ThreadPoolExecutor(8) as pool:
            loaded = list(pool.map(_load, samples))
        readable = [image for image, _, _ in loaded if image is not None]
        objects_of = self.detector.detect(readable) if readable else []
        if len(objects_of) != len(readable):
            raise EncbenchError(
                f"{self.detector.name} returned {len(objects_of)} lists of objects for "
                f"{len(readable)} images"
            )
        detected = iter(objects_of)
        found = [list(next(detected)) if image is not None else [] for image, _, _ in loaded]
        owners = [prompt for prompt, row in part for _ in row]
        self._name_colors(owners, [image for image, _, _ in loaded], found)
        results, place = [], 0
        for prompt, row in part:
            images = []
            for sample in row:
                image, problem, sha256 = loaded[place]
                objects = found[place]
                verdict = (
                    judge_image(objects, prompt, overlap_limit=self.limit)
                    if image is not None
                    else None
                )
                plain = tuple(replace(each, mask=None) for each in objects)
                size = image.size if image is not None else (0, 0)
                images.append(ImageResult(sample.file, size, problem, plain, verdict, sha256))
                place += 1
            results.append(PromptResult(prompt, tuple(images)))
        return results

    def _name_colors(
        self,
        prompts: Sequence[GenevalPrompt],
        images: Sequence[Image | None],
        found: Sequence[list[Detection]],
    ) -> None:
        places: list[tuple[int, int]] = []
        crops: list[Crop] = []
        for i, (prompt, image, objects) in enumerate(zip(prompts, images, found, strict=True)):
            for j in needs_color(objects, prompt, overlap_limit=self.limit):
                assert image is not None  # nothing was found in one that is not there
                places.append((i, j))
                crops.append((image, objects[j]))
        if crops and self.colors is not None:
            self.classifier = self.classifier or self.colors()
            for (i, j), color in zip(places, self.classifier.classify(crops), strict=True):
                found[i][j] = replace(found[i][j], color=color)


def _load(sample: SampleFile) -> tuple[Image | None, str, str]:
    """The image, why it cannot be had ('' if it can), and the sha256 of its file."""
    if sample.path is None:
        return None, f"{sample.file} is missing", ""
    try:
        content = sample.path.read_bytes()
        record = ImageRecord(0, sample.file, sample.path, 0, 0)
        return open_image(record), "", hashlib.sha256(content).hexdigest()
    except ImageError as error:
        return None, str(error), hashlib.sha256(content).hexdigest()
    except OSError as error:
        return None, f"cannot read the image {sample.path}: {error.strerror}", "unreadable"


def _chunks(prompts: Sequence[GenevalPrompt], folder: ImageFolder) -> Iterator[list[GenevalPrompt]]:
    part: list[GenevalPrompt] = []
    size = 0
    for prompt in prompts:
        part.append(prompt)
        size += len(folder.samples[prompt.prompt_id])
        if size >= CHUNK:
            yield part
            part, size = [], 0
    if part:
        yield part


# -------------------------------------------------------------------------------- on disk


def _place(out: Path, prompt: GenevalPrompt) -> Path:
    return Path(out) / "prompts" / f"{prompt.prompt_id:05d}.json"


def _kept(
    path: Path, settings: list[Any], prompt: GenevalPrompt, samples: Sequence[SampleFile]
) -> PromptResult | None:
    """What was found before, if it is of the same images, prompt and settings."""
    if not path.is_file():
        return None
    try:
        record = read_json(path)
        if record.get("key") != digest([settings, to_metadata(prompt)]):
            return None
        result = _from_json(record)
        before = [(image.file, image.sha256) for image in result.images]
        now = [(sample.file, _sha256(sample)) for sample in samples]
        return result if before == now else None
    except (EncbenchError, OSError, AttributeError, KeyError, TypeError, ValueError, IndexError):
        return None  # damaged or of another version: made again


def _sha256(sample: SampleFile) -> str:
    if sample.path is None:
        return ""
    with sample.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_json(result: PromptResult) -> dict[str, Any]:
    def written(image: ImageResult) -> dict[str, Any]:
        record = asdict(image) | {"verdict": None}
        record["objects"] = [
            {"label": d.label, "box": list(d.box), "score": d.score, "color": d.color}
            for d in image.objects
        ]
        if image.verdict is not None:
            record["verdict"] = {
                "correct": image.verdict.correct,
                "reason": image.verdict.reason,
                "clauses": [
                    {"correct": c.correct, "objects": list(c.objects), "reason": c.reason}
                    for c in image.verdict.clauses
                ],
            }
        return record

    return {
        "prompt_id": result.prompt.prompt_id,
        "metadata": to_metadata(result.prompt),
        "images": [written(image) for image in result.images],
    }


def _from_json(record: dict[str, Any]) -> PromptResult:
    prompt = from_metadata(record["metadata"], record["prompt_id"])
    clauses: list[tuple[Clause, bool]] = [(clause, False) for clause in prompt.include]
    clauses += [(clause, True) for clause in prompt.exclude]
    images = []
    for entry in record["images"]:
        said, verdict = entry["verdict"], None
        if said is not None:
            parts = [
                ClauseResult(clause, out, c["correct"], tuple(c["objects"]), c["reason"])
                for (clause, out), c in zip(clauses, said["clauses"], strict=True)
            ]
            verdict = ImageVerdict(said["correct"], said["reason"], tuple(parts))
        objects = tuple(
            Detection(d["label"], tuple(d["box"]), d["score"], color=d["color"])
            for d in entry["objects"]
        )
        width, height = entry["size"]
        images.append(
            ImageResult(
                entry["file"], (width, height), entry["problem"], objects, verdict, entry["sha256"]
            )
        )
    return PromptResult(prompt, tuple(images))


def _write(scoring: Scoring, out: Path) -> None:
    lines = [
        json.dumps(official(result, image, scoring), ensure_ascii=False) + "\n"
        for result in scoring.results
        for image in result.images
        if image.verdict is not None
    ]
    write_atomic(Path(out) / "results.jsonl", "".join(lines).encode())
    about = {
        "version": VERSION,
        "images": str(scoring.images.resolve()),
        "detector": scoring.detector,
        "colors": scoring.colors,
        "overlap_limit": scoring.overlap_limit,
        "notes": list(scoring.notes),
        "prompts": [result.prompt.prompt_id for result in scoring.results],
    }
    write_json(Path(out) / "scoring.json", about)


def official(result: PromptResult, image: ImageResult, scoring: Scoring) -> dict[str, Any]:
    """A scored image in the published evaluator's columns, which its summary reads."""
    assert image.verdict is not None
    prompt = result.prompt
    kept = keep_objects(image.objects, prompt.task, scoring.overlap_limit)
    details = {
        label: [[*image.objects[i].box, image.objects[i].score] for i in places]
        for label, places in kept.items()
    }
    return {
        "filename": (scoring.images / image.file).as_posix(),
        "tag": prompt.task,
        "prompt": prompt.text,
        "correct": image.verdict.correct,
        "reason": image.verdict.reason,
        "metadata": json.dumps(to_metadata(prompt)),
        "details": json.dumps(details),
    }
