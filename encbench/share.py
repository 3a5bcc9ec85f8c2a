"""Carry results to and from the Hugging Face hub: a run's records, or an exported model.

Records go to a dataset, each run in a folder of its own, so that many people share one; they are
what ``encbench board`` merges. Nothing is uploaded unless the caller says so.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .data.transfer import download_files, upload_files
from .errors import DataError, EncbenchError, RecordError, UsageError
from .files import EXPORT_FORMAT, digest_files, read_json, replace_on_success, slug
from .records import find_records, read_record

RECORDS = ("records/**/*.json", "records/**/*.csv.gz", "prediction.json", "confirm/verdict.json")
MODEL = (
    "*.json", "*.safetensors", "README.md", "example.py", "scheduler/*.json", "transformer/*.json",
    "transformer/*.safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Upload:
    """The files of an upload.

    Attributes:
        kind: of the repository: 'dataset' (records) or 'model' (an exported model).
        name: folder in a dataset; '' for a model.
        files: by their names in the repository.
    """

    repo: str
    kind: str
    name: str
    files: dict[str, Path]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


def plan_upload(folder: Path, repo: str, name: str | None = None) -> Upload:
    """The files of a folder to upload: records, prediction and verdict of a run, or all files of an
    exported model. Nothing is sent.

    Args:
        name: of the run in the dataset; by default its folder's.

    Raises:
        UsageError: if the folder holds neither.
        RecordError: naming a record that is damaged.
    """
    exported = _is_export(folder)
    records = find_records(folder)
    for path in records:
        read_record(path)
    if not exported and not records:
        hint = "; export it first: encbench export" if (folder / "final").is_dir() else ""
        raise UsageError(f"{folder} holds neither a run's records nor an exported model{hint}")
    kind, under = ("model", "") if exported else ("dataset", slug(name or folder.resolve().name))
    chosen = _select(folder, MODEL if exported else RECORDS)
    prefix = f"{under}/" if under else ""
    return Upload(repo, kind, under, {prefix + key: path for key, path in chosen.items()})


def push(upload: Upload, *, public: bool = False, replace: bool = False) -> str:
    """Send the files; returns the address of the commit.

    Args:
        public: whether a repository that is made is public.
        replace: overwrite a run of that name, or the model.

    Raises:
        DownloadError: if the hub cannot be reached or refuses, or a run of that name is there.
    """
    under = f"{upload.name}/" if upload.name else ""
    return upload_files(
        upload.repo, upload.kind, upload.files, under=under, private=not public, replace=replace
    )


def pull(source: str, to: Path, *, model: bool = False) -> list[Path]:
    """Fetch the runs of a dataset, or an exported model, into folders below ``to``.

    A folder that is there already and holds the same stays.

    Args:
        source: OWNER/NAME, or OWNER/NAME@REVISION.
        model: fetch an exported model.

    Raises:
        DataError: if the repository holds none, or a folder here holds something else.
        RecordError: naming a record that is damaged.
        DownloadError: if the hub cannot be reached or refuses.
    """
    repo, _, revision = source.partition("@")
    patterns = MODEL if model else tuple(f"*/{pattern}" for pattern in RECORDS)
    kind = "model" if model else "dataset"
    cached = download_files(repo, revision or None, kind, [p.replace("**/", "") for p in patterns])
    homes = [cached] if model else sorted(path for path in cached.glob("*") if path.is_dir())
    found = []
    for home in homes:
        if not (_is_export(home) if model else find_records(home)):
            continue
        for record in [] if model else find_records(home):
            read_record(record)
        name = slug(repo.rpartition("/")[2]) if model else slug(home.name)
        found.append(_copy(home, to / name, MODEL if model else RECORDS))
    if not found:
        what = "exported model" if model else "records (for a model: --model)"
        raise DataError(f"{source} holds no {what}")
    return found


def _copy(home: Path, target: Path, patterns: tuple[str, ...]) -> Path:
    chosen = _select(home, patterns)
    if target.exists():
        mine = _select(target, patterns)
        if mine.keys() != chosen.keys() or digest_files(mine.values(), target) != digest_files(
            chosen.values(), home
        ):
            raise DataError(f"{target} is there and holds something else; choose another --to")
        return target
    with replace_on_success(target) as temporary:
        for name, path in chosen.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
    return target


def _select(folder: Path, patterns: tuple[str, ...]) -> dict[str, Path]:
    """Files that match, by their names relative to the folder; hidden ones aside."""
    paths = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    names = {path.relative_to(folder).as_posix(): path for path in sorted(paths)}
    return {name: path for name, path in names.items() if "/." not in f"/{name}"}


def _is_export(folder: Path) -> bool:
    try:
        held = read_json(folder / "config.json", RecordError)
    except EncbenchError:
        return False
    return isinstance(held, dict) and held.get("format") == EXPORT_FORMAT
