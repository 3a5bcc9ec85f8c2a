"""Folders of generated images, made by anyone, in one of three layouts.

GenEval's: ``00000/metadata.jsonl`` (one record), ``00000/samples/0000.png``, ...
Captions': images and one ``captions.jsonl`` with ``file_name`` and ``text`` in each line.
A benchmark's: images named by their prompt's id, as DPG-Bench has them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from os.path import isfile  # unlike Path's, it says no to an impossible name
from pathlib import Path

from ..data.dpg import load_prompts
from ..data.geneval import FREE, TASKS, GenevalPrompt, parse_metadata
from ..errors import DataError
from ..files import parse_json, read_json_lines, read_text
from ..listing import IMAGES, is_hidden, list_images, name_uniquely, number_names
from ..schema import check_text, get_field
from ..types import ImagePrompt
from .prompts import TextPrompt, meaning

METADATA = "metadata.jsonl"
SAMPLES = "samples"
CAPTIONS = "captions.jsonl"
LAYOUT = f"expected 00000/{METADATA}, 00000/{SAMPLES}/0000.png and so on"


LAYOUTS = (
    f"GenEval's layout (00000/{METADATA}, 00000/{SAMPLES}/0000.png), images with a captions.jsonl "
    "('file_name' and 'text' in each line), or images named by their prompt's id with --prompts"
)


@dataclass(frozen=True)
class SampleFile:
    """One image that should be there.

    Attributes:
        file: its name inside the folder.
        path: None where it is not there.
        tile: (n, i) for the i-th of n x n images, row by row, in one file.
    """

    file: str
    path: Path | None
    tile: tuple[int, int] = (1, 0)


@dataclass(frozen=True)
class ImageFolder:
    """The content of a folder.

    Attributes:
        root: the folder.
        prompts: in the order of their numbers.
        samples: the images of each prompt, by prompt_id; missing ones included.
        notes: what is missing from a complete folder, in words; empty if nothing is.
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


def read_images(
    root: Path, *, prompts: Path | None = None, grid: int = 1, images_per_prompt: int | None = None
) -> ImageFolder:
    """Read a folder in any of the layouts; opens no image.

    Args:
        prompts: what the files are named by: prompts with ids, in a form that
            :func:`~encbench.data.dpg.load_prompts` reads, e.g. DPG-Bench's csv.
        grid: each file holds ``grid`` x ``grid`` images, row by row, as DPG-Bench's do.
        images_per_prompt: how many there should be; None = as many as the prompt with most has.

    Raises:
        DataError: in one line: no such folder, no layout, broken lines, no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; it must have {LAYOUTS}")
    if prompts is not None:
        return _named_by_prompt(root, prompts, grid, images_per_prompt)
    if (root / CAPTIONS).is_file():
        return _listed(root, grid, images_per_prompt)
    if not number_names(_visible(root, Path.is_dir))[0]:
        raise DataError(f"{root} holds no images with prompts; it must have {LAYOUTS}")
    if grid > 1:
        raise DataError(f"--grid {grid}: a folder in GenEval's layout has one image in each file")
    return read_folder(root, images_per_prompt=images_per_prompt)


def _listed(root: Path, grid: int, images_per_prompt: int | None) -> ImageFolder:
    """A folder with a captions.jsonl: ``file_name``, ``text``, and maybe ``id`` and ``style``.
    Images with the same text, id and style are of one prompt."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for where, row in read_json_lines(root / CAPTIONS, DataError):
        name = get_field(row, "file_name", str, where, DataError)
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name or not name:
            raise DataError(f"{where}: {name!r} does not name a file inside the folder; refused")
        key = "caption" if "text" not in row and "caption" in row else "text"
        text = get_field(row, key, str, where, DataError)
        number = str(get_field(row, "id", str | int, where, DataError, default=""))
        style = get_field(row, "style", str, where, DataError, default="")
        for each in (name, text, number, style):
            check_text(each, where, DataError)
        names, name = found.setdefault((text.strip(), number, style), []), Path(name).as_posix()
        if name in names:
            raise DataError(f"{where} names {name} for this prompt a second time; remove one line")
        names.append(name)
    if not found:
        raise DataError(f"{root / CAPTIONS} holds no lines; write 'file_name' and 'text' in each")
    asked = [TextPrompt(i, *key) for i, key in enumerate(found)]
    files = {
        prompt.prompt_id: [(name, root / name) for name in names]
        for prompt, names in zip(asked, found.values(), strict=True)
    }
    known = {name for names in found.values() for name in names}
    listing = list_images(root, below=True)
    spare = [p for p in listing.paths if p.relative_to(root).as_posix() not in known]
    notes = [*listing.notes, *_left_out(spare, f"images have no line in {CAPTIONS}", root)]
    return _collected(root, asked, files, grid, images_per_prompt, notes)


def _named_by_prompt(
    root: Path, prompts: Path, grid: int, images_per_prompt: int | None
) -> ImageFolder:
    """Images named ID.png, ID_0.png, ID_1.png, ..., or ID/0.png, ..., by the prompts' ids."""
    loaded = load_prompts(prompts)
    asked = [TextPrompt(i, p.text, p.prompt_id) for i, p in enumerate(loaded.prompts)]
    places = {prompt.name: prompt.prompt_id for prompt in asked}
    files: dict[int, list[tuple[str, Path]]] = {prompt.prompt_id: [] for prompt in asked}
    listing = list_images(root, below=True)
    spare = []
    for path in listing.paths:
        name = path.relative_to(root).with_suffix("").as_posix()
        ids = (name, re.sub(r"_\d+$", "", name), name.rpartition("/")[0])
        number = next((places[each] for each in ids if each in places), None)
        if number is None:
            spare.append(path)
        else:
            files[number].append((path.relative_to(root).as_posix(), path))
    used = [path for each in files.values() for _, path in each]
    name_uniquely(used, lambda path: path.with_suffix(""))  # 7.png and 7.jpg
    if not any(files.values()):
        first = f" (first: {spare[0].name})" if spare else ""
        raise DataError(
            f"no image in {root} is named by a prompt's id of {prompts}, such as "
            f"{asked[0].name}.png{first}"
        )
    for row in files.values():
        row.sort(key=lambda one: [int(n) for n in re.findall(r"\d+", one[0])[-1:]])
    notes = [*loaded.notes, *listing.notes]
    notes += _left_out(spare, f"images are named by no id of {prompts.name}", root)
    return _collected(root, asked, files, grid, images_per_prompt, notes)


def _collected(
    root: Path,
    prompts: Sequence[TextPrompt],
    files: Mapping[int, Sequence[tuple[str, Path]]],
    grid: int,
    images_per_prompt: int | None,
    notes: Sequence[str],
) -> ImageFolder:
    wanted = images_per_prompt or grid**2 * max(map(len, files.values()))
    samples = {}
    for prompt in prompts:
        rows = [
            SampleFile(
                name if grid == 1 else f"{name}#{i}",
                path if isfile(path) else None,  # noqa: PTH113
                (grid, i),
            )
            for name, path in files[prompt.prompt_id]
            for i in range(grid**2)
        ]
        label = prompt.name or f"prompt {prompt.prompt_id}"
        rows += [SampleFile(f"image {i} of {label}", None) for i in range(len(rows), wanted)]
        samples[prompt.prompt_id] = tuple(rows[:wanted])
    missing = sum(sample.path is None for row in samples.values() for sample in row)
    total = sum(map(len, samples.values()))
    if missing == total:
        raise DataError(f"none of the {total:,} images of {root} is there")
    lost = [f"{missing:,} of {total:,} images are missing"] if missing else []
    return ImageFolder(root, tuple(prompts), samples, (*notes, *lost))


def _read_prompt(folder: Path, number: int) -> GenevalPrompt | TextPrompt:
    path = folder / METADATA
    text = read_text(path, lambda message: DataError(f"{message}; {LAYOUT}"))
    record = parse_json(text, str(path), DataError)
    if isinstance(record, dict) and record.get("tag") == FREE:
        return TextPrompt(number, get_field(record, "prompt", str, str(path), DataError))
    return parse_metadata(text, number, str(path))


def _visible(folder: Path, kind: Callable[[Path], bool]) -> list[Path]:
    """The entries of a folder without hidden ones, which macOS and notebooks leave behind."""
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


def _gaps(prompts: Sequence[ImagePrompt], expected: Sequence[ImagePrompt] | None) -> list[str]:
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
    if 0 < len(absent) < len(TASKS):
        notes.append(f"no prompt of {', '.join(absent)}: the mean is over the other tasks")
    return notes
