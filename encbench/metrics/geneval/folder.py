"""Folders of images in GenEval's layout, made by anyone.

``00000/metadata.jsonl`` (one record), ``00000/samples/0000.png``, ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.geneval import TASKS, GenevalPrompt, parse_metadata, to_metadata
from ...errors import DataError
from ...files import canonical

METADATA = "metadata.jsonl"
SAMPLES = "samples"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LAYOUT = f"expected 00000/{METADATA}, 00000/{SAMPLES}/0000.png and so on"
PUBLISHED = {
    "single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100,
    "color_attr": 100,
}  # fmt: skip
"""How many prompts of each task were published."""


@dataclass(frozen=True)
class SampleFile:
    """One image that should be there. ``path`` is None where it is not; ``file`` is its name
    inside the folder."""

    file: str
    path: Path | None


@dataclass(frozen=True)
class ImageFolder:
    """What a folder holds.

    Attributes:
        root: the folder.
        prompts: in the order of their numbers.
        samples: the images of each prompt, by prompt_id; missing ones included.
        notes: what makes it a part of something, in words; empty if nothing does.
    """

    root: Path
    prompts: tuple[GenevalPrompt, ...]
    samples: dict[int, tuple[SampleFile, ...]]
    notes: tuple[str, ...]


def read_folder(
    root: Path,
    *,
    images_per_prompt: int | None = None,
    expected: Sequence[GenevalPrompt] | None = None,
) -> ImageFolder:
    """Read the layout; opens no image.

    Args:
        images_per_prompt: how many there should be; None = as many as the prompt with most has.
        expected: the prompts that there should be; None = an unbroken row of numbers.

    Raises:
        DataError: in one line: no such folder, another layout, a broken metadata line, no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; {LAYOUT}")
    numbered = {int(d.name): d for d in root.iterdir() if d.name.isdecimal() and d.is_dir()}
    if not numbered:
        raise DataError(f"{root} is not in GenEval's layout: it has no numbered folder; {LAYOUT}")
    folders = dict(sorted(numbered.items()))
    prompts = tuple(_prompt(folder, number) for number, folder in folders.items())
    there = {number: _images(folder / SAMPLES) for number, folder in folders.items()}
    if not any(there.values()):
        raise DataError(f"{root} holds no images: nothing in any {SAMPLES} folder; {LAYOUT}")
    wanted = images_per_prompt or max(map(len, there.values()))
    stems = sorted({path.stem for paths in there.values() for path in paths})
    samples = {n: _samples(folders[n], there[n], stems, wanted) for n in folders}
    notes = _gaps(prompts, expected)
    missing = sum(sample.path is None for row in samples.values() for sample in row)
    if missing:
        total = sum(map(len, samples.values()))
        notes.append(f"{missing:,} of {total:,} images are missing")
    return ImageFolder(root, prompts, samples, tuple(notes))


def meaning(prompt: GenevalPrompt) -> bytes:
    """The same for two prompts with the same task, clauses and text, whatever their numbers."""
    return canonical(to_metadata(prompt))


def _prompt(folder: Path, number: int) -> GenevalPrompt:
    path = folder / METADATA
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}); {LAYOUT}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text (byte {error.start:,})") from error
    return parse_metadata(text, number, str(path))


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.stem.isdecimal()
    )


def _samples(
    folder: Path, there: Sequence[Path], stems: Sequence[str], wanted: int
) -> tuple[SampleFile, ...]:
    def name(path: Path) -> str:
        return path.relative_to(folder.parent).as_posix()

    rows = [SampleFile(name(path), path) for path in there[:wanted]]
    have = {path.stem for path in there}
    # named as its neighbors' images are, and simply numbered where those do not tell
    spare = [stem for stem in stems if stem not in have]
    spare += [f"{i:04d}" for i in range(wanted) if f"{i:04d}" not in {*have, *stems}]
    for stem in spare[: max(wanted - len(rows), 0)]:
        rows.append(SampleFile(f"{folder.name}/{SAMPLES}/{stem}.png", None))
    return tuple(sorted(rows, key=lambda sample: sample.file))


def _gaps(prompts: Sequence[GenevalPrompt], expected: Sequence[GenevalPrompt] | None) -> list[str]:
    notes = []
    have = {prompt.prompt_id for prompt in prompts}
    if expected is not None:
        known = {meaning(prompt): prompt for prompt in prompts}
        lost = [prompt.text for prompt in expected if meaning(prompt) not in known]
        of = len(expected)
    else:
        of = max(have) + 1
        lost = [f"{number:05d}" for number in range(of) if number not in have]
    if lost:
        notes.append(f"{len(lost):,} of {of:,} prompts are missing (first: {lost[0]})")
    counts = {task: sum(prompt.task == task for prompt in prompts) for task in TASKS}
    absent = [task for task in TASKS if not counts[task]]
    if absent:
        notes.append(f"no prompt of {', '.join(absent)}: the mean is over the other tasks")
    return notes
