"""Folders of generated images, made by anyone, in GenEval's layout: ``00000/metadata.jsonl`` (one
record), ``00000/samples/0000.png``, ..."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ..data.geneval import TASKS, GenevalPrompt, parse_metadata
from ..errors import DataError
from ..files import read_text
from ..listing import IMAGES, is_hidden, number_names
from ..types import ImagePrompt
from .prompts import meaning

METADATA = "metadata.jsonl"
SAMPLES = "samples"
LAYOUT = f"expected 00000/{METADATA}, 00000/{SAMPLES}/0000.png and so on"


@dataclass(frozen=True)
class SampleFile:
    """One image that should be there.

    Attributes:
        file: its name inside the folder.
        path: None where it is not there.
    """

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
    prompts: tuple[ImagePrompt, ...]
    samples: Mapping[int, tuple[SampleFile, ...]]
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
        DataError: in one line: no such folder, another layout, a broken metadata line, no images,
            two folders or two images of one number.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; {LAYOUT}")
    folders, strangers = number_names(_visible(root, Path.is_dir))
    if not folders:
        raise DataError(f"{root} is not in GenEval's layout: it has no numbered folder; {LAYOUT}")
    prompts = tuple(_read_prompt(folder, number) for number, folder in folders.items())
    images: dict[int, dict[int, Path]] = {}
    others: list[Path] = []
    for number, folder in folders.items():
        files = _visible(folder / SAMPLES, Path.is_file)
        usable = [file for file in files if file.suffix.lower() in IMAGES]
        images[number], unnamed = number_names(usable)
        others += [file for file in files if file not in usable] + unnamed
    notes = _left_out(sorted(others), "files are not images named by a number", root)
    if not any(images.values()):
        reason = notes[0] if notes else f"nothing is in any {SAMPLES} folder"
        raise DataError(f"{root} holds no images that can be used: {reason}; {LAYOUT}")
    notes += _left_out(strangers, "folders are not named by a number", root)
    wanted = images_per_prompt or max(map(len, images.values()))
    spare = [path for row in images.values() for path in [*row.values()][wanted:]]
    notes += _left_out(spare, f"images come after the first {wanted} of their prompt", root)
    names = {i: path.stem for row in images.values() for i, path in row.items()}
    samples = {n: _samples(root, folders[n], images[n], names, wanted) for n in folders}
    notes += _gaps(prompts, expected)
    missing = sum(sample.path is None for row in samples.values() for sample in row)
    if missing:
        total = sum(map(len, samples.values()))
        notes.append(f"{missing:,} of {total:,} images are missing")
    return ImageFolder(root, prompts, samples, tuple(notes))


def _read_prompt(folder: Path, number: int) -> GenevalPrompt:
    path = folder / METADATA
    text = read_text(path, lambda message: DataError(f"{message}; {LAYOUT}"))
    return parse_metadata(text, number, str(path))


def _visible(folder: Path, kind: Callable[[Path], bool]) -> list[Path]:
    """What a folder holds but for hidden entries, which macOS and notebooks leave behind."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if kind(p) and not is_hidden(p.name))


def _left_out(paths: Sequence[Path], what: str, root: Path) -> list[str]:
    if not paths:
        return []
    first = paths[0].relative_to(root).as_posix()
    return [f"{len(paths):,} {what}, and are left out (first: {first})"]


def _samples(
    root: Path, folder: Path, images: Mapping[int, Path], names: Mapping[int, str], wanted: int
) -> tuple[SampleFile, ...]:
    """The first images of a prompt, and those that are missing by the names that they have in
    other folders."""
    rows = dict(list(images.items())[:wanted])
    missing = [i for i in sorted(names) if i not in images] + [
        i for i in range(wanted) if i not in {*images, *names}
    ]
    found = {i: SampleFile(path.relative_to(root).as_posix(), path) for i, path in rows.items()}
    for i in missing[: max(wanted - len(rows), 0)]:
        name = f"{folder.name}/{SAMPLES}/{names.get(i, f'{i:04d}')}.png"
        found[i] = SampleFile(name, None)
    return tuple(found[i] for i in sorted(found))


def _gaps(prompts: Sequence[GenevalPrompt], expected: Sequence[GenevalPrompt] | None) -> list[str]:
    notes = []
    if expected is not None:
        of, lost, have = len(expected), [], Counter(map(meaning, prompts))
        for prompt in expected:  # each as often as it is expected
            have[meaning(prompt)] -= 1
            lost += [prompt.text] if have[meaning(prompt)] < 0 else []
        missing, first = len(lost), lost[0] if lost else ""
    else:
        numbers = {prompt.prompt_id for prompt in prompts}
        of = max(numbers) + 1
        missing = of - len(numbers)
        first = f"{next(number for number in count() if number not in numbers):05d}"
    if missing:
        notes.append(f"{missing:,} of {of:,} prompts are missing (first: {first})")
    absent = [task for task in TASKS if task not in {prompt.task for prompt in prompts}]
    if absent:
        notes.append(f"no prompt of {', '.join(absent)}: the mean is over the other tasks")
    return notes
