"""Downloads of datasets: pinned, verified, resumable; the size is printed first."""

from __future__ import annotations

import errno
import hashlib
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import requests
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from ..errors import DownloadError, EncbenchError, StoreError, UsageError, from_os_error
from ..files import digest_file, replace_on_success
from ..lock import lock_folder
from ..progress import bar, console

# not https: the bucket's name has dots, so no certificate fits it; the sha256 vouches instead
COCO = "http://images.cocodataset.org"
ELLA_COMMIT = "3c228f1dc6c4d3cad0a47493816151a419f14db3"
GENEVAL_COMMIT = "af4902f24d3ca90ebbb446dd9891a59e0f82725f"
ATTEMPTS = 3  # failed attempts in a row
PAUSE = 2.0  # seconds between them
TIMEOUT = (10, 60)  # seconds to connect, and to wait for the next bytes
CHUNK = 1 << 20


@dataclass(frozen=True)
class Archive:
    """A zip file and what is taken out of it.

    Attributes:
        url: where it is.
        members: shell patterns of the members to take; they go to ``folder`` by their last name.
        folder: inside the dataset's root.
        files: how many members match.
        bytes: size of the archive; None where the server makes it anew for each download.
        unpacked: about the size of what is taken out, in bytes.
        sha256: of the archive; '' where its contents are verified instead.
        blobs: sha256 over the sorted lines '<stem> <git blob id>' of the files taken out, each
            ended by a newline; '' where the archive itself is verified.
    """

    url: str
    members: tuple[str, ...]
    folder: str
    files: int
    bytes: int | None
    unpacked: int
    sha256: str = ""
    blobs: str = ""

    @property
    def name(self) -> str:
        return PurePosixPath(self.url).name


@dataclass(frozen=True)
class FetchPlan:
    """What a download consists of. ``use`` is what, inside the root, to hand to a run."""

    name: str
    archives: tuple[Archive, ...]
    license: str
    use: str = ""

    @property
    def bytes(self) -> int | None:
        """Bytes to download in all, or None if a part is of unknown size."""
        sizes = [archive.bytes for archive in self.archives]
        return None if None in sizes else sum(size or 0 for size in sizes)

    def __str__(self) -> str:
        size = "size unknown, made by the server" if self.bytes is None else decimal(self.bytes)
        room = decimal(sum((a.bytes or 0) + a.unpacked for a in self.archives))
        lines = [
            f"{archive.url} ({decimal(archive.bytes) if archive.bytes else 'size unknown'})"
            for archive in self.archives
        ]
        return "\n".join(
            [
                f"{self.name}: {size}; needs {room} while unpacking",
                *lines,
                f"license: {self.license}",
            ]
        )


# Sizes are what the site sends. COCO publishes no checksums; these sha256 (and the md5
# cced6f7f71b7629ddf16f17bbcfab6b2 of train2017.zip, 442b8da7639aecaf257c1dceb8ba8c80 of
# val2017.zip, f4bbac642086de4f52a3fdda2de5fa2c of the annotations) are the same in many public
# download scripts, e.g. torchvision's prototype datasets (sha256) and PaddleDetection (md5).
_IMAGES = {
    "train2017": (
        118_287,
        19_336_861_798,
        "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    "val2017": (
        5_000,
        815_585_330,
        "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
}


def fetch_plan(name: str, split: str = "val2017") -> FetchPlan:
    """What ``fetch`` would download. Uses neither disk nor network.

    Args:
        name: 'coco', 'dpg', 'dpg-questions' or 'geneval'.
        split: of COCO: 'val2017' or 'train2017'.

    Raises:
        UsageError: if there is no such dataset or split.
    """
    if name == "dpg":
        prompts = Archive(
            url=f"https://github.com/TencentQQGYLab/ELLA/archive/{ELLA_COMMIT}.zip",
            members=("*/dpg_bench/prompts/*.txt",),
            folder="prompts",
            files=1065,
            bytes=None,
            unpacked=5_000_000,
            blobs="76b2994d9dc82ed52c7a60de8ced5aa2d4f1a629e2abcd588392730e3e0f29ae",
        )
        return FetchPlan("dpg", (prompts,), "Apache-2.0 (TencentQQGYLab/ELLA)", use="prompts")
    if name == "dpg-questions":
        questions = Archive(
            url=f"https://github.com/TencentQQGYLab/ELLA/archive/{ELLA_COMMIT}.zip",
            members=("*/dpg_bench/dpg_bench.csv",),
            folder="",
            files=1,
            bytes=None,
            unpacked=10_000_000,
        )
        license = "Apache-2.0 (TencentQQGYLab/ELLA)"
        return FetchPlan(name, (questions,), license, use="dpg_bench.csv")
    if name == "geneval":
        metadata = Archive(
            url=f"https://github.com/djghosh13/geneval/archive/{GENEVAL_COMMIT}.zip",
            members=("*/prompts/evaluation_metadata.jsonl",),
            folder="",
            files=1,
            bytes=None,
            unpacked=100_000,
            blobs="fbef137b7fb248d852b88ffcd1bebb597183e42ab37d441298f5d71f236efc55",
        )
        license = "MIT (djghosh13/geneval)"
        return FetchPlan("geneval", (metadata,), license, use="evaluation_metadata.jsonl")
    if name != "coco":
        raise UsageError(f"unknown dataset '{name}'; known: coco, dpg, dpg-questions, geneval")
    if split not in _IMAGES:
        raise UsageError(f"unknown COCO split '{split}'; known: {', '.join(_IMAGES)}")
    files, size, sha256 = _IMAGES[split]
    annotations = Archive(
        url=f"{COCO}/annotations/annotations_trainval2017.zip",
        members=(f"annotations/captions_{split}.json", f"annotations/instances_{split}.json"),
        folder="annotations",
        files=2,
        bytes=252_907_541,
        unpacked=600_000_000,
        sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    )
    images = Archive(
        url=f"{COCO}/zips/{split}.zip",
        members=(f"{split}/*.jpg",),
        folder=split,
        files=files,
        bytes=size,
        unpacked=size,
        sha256=sha256,
    )
    license = "annotations CC BY 4.0 (COCO consortium), images by the terms of Flickr"
    return FetchPlan("coco", (annotations, images), license)


def fetch_dataset(
    name: str,
    root: Path,
    *,
    split: str = "val2017",
    confirm: Callable[[str], bool] | None = None,
    plan: FetchPlan | None = None,
) -> Path:
    """Download a dataset, or what is still missing of it.

    An interrupted download is resumed. Archives are verified, unpacked, then removed.

    Args:
        name: 'coco', 'dpg', 'dpg-questions' or 'geneval'.
        root: folder to download to; made if it is not there.
        split: of COCO.
        confirm: called once before the download with a description of what is missing.
        plan: another source in place of :func:`fetch_plan`'s.

    Returns:
        the folder, or file, to hand to a run.

    Raises:
        UsageError: if there is no such dataset or split, or ``confirm`` said no.
        DownloadError: if the site cannot be reached, lacks the file or sent something else.
        FolderInUseError: if another process downloads to the folder.
        StoreError: if the disk is full or the folder cannot be written.
    """
    plan = plan or fetch_plan(name, split)
    root = Path(root)
    try:
        todo = tuple(archive for archive in plan.archives if not _present(archive, root))
        if todo and confirm and not confirm(str(replace(plan, archives=todo))):
            raise UsageError(
                "nothing was downloaded: the question was not answered with yes (--yes skips it)"
            )
        with lock_folder(root):
            for archive in plan.archives:
                if archive not in todo:  # a kill may have come after the last file was unpacked
                    (root / archive.name).unlink(missing_ok=True)
            _check_space(todo, root)
            for archive in todo:
                _unpack(archive, _download(archive, root), root)
    except OSError as error:
        raise from_os_error(error, f"writing to {root}") from error
    return root / plan.use


def _present(archive: Archive, root: Path) -> bool:
    """Whether all files of an archive are there, and right where their hashes are known."""
    folder = root / archive.folder
    if not folder.is_dir():
        return False
    wanted = [PurePosixPath(pattern).name for pattern in archive.members]
    files = [p for p in folder.iterdir() if any(fnmatch(p.name, pattern) for pattern in wanted)]
    if len(files) != archive.files:
        return False
    return not archive.blobs or _blobs(files) == archive.blobs


def _check_space(archives: tuple[Archive, ...], root: Path) -> None:
    needed = 0
    for archive in archives:
        part = _part(archive, root)
        have = part.stat().st_size if part.exists() else 0
        have = archive.bytes or 0 if (root / archive.name).exists() else have
        needed += (archive.bytes or 0) - have + archive.unpacked
    free = shutil.disk_usage(root).free
    if needed > free:
        raise StoreError(
            f"{decimal(needed)} are needed in {root} and {decimal(free)} are free; free "
            "some space or choose another folder"
        )


def _part(archive: Archive, root: Path) -> Path:
    return root / f"{archive.name}.part"


# --------------------------------------------------------------------------- downloading


def _download(archive: Archive, root: Path) -> Path:
    """The verified archive on disk."""
    path, part = root / archive.name, _part(archive, root)
    if part.is_symlink():  # never write to the target of a link
        part.unlink()
    by_hand = path.exists()
    if not by_hand:
        failures = 0
        with _byte_bar(archive) as show:
            while not _complete(archive, part):
                before = _size(part)
                try:
                    _receive(archive, part, show)
                    if archive.bytes is None:
                        break
                except requests.RequestException as error:
                    failures = failures + 1 if _size(part) <= before else 0
                    if failures >= ATTEMPTS:
                        raise _unreachable(archive, part, error) from error
                    time.sleep(PAUSE)
        part.replace(path)
    if archive.sha256:
        found = digest_file(path)
        if found != archive.sha256 and by_hand:
            raise DownloadError(
                f"checksum mismatch: {path} is not the published file of {archive.url}; remove it "
                "and run again"
            )
        if found != archive.sha256:
            path.unlink()
            raise DownloadError(
                f"checksum mismatch: {archive.url} sent a file that is not the published one "
                f"(sha256 {found[:12]}..., not {archive.sha256[:12]}...); it was removed, run again"
            )
    return path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _complete(archive: Archive, part: Path) -> bool:
    return archive.bytes is not None and _size(part) >= archive.bytes


def _receive(archive: Archive, part: Path, show: Callable[[int], None]) -> None:
    """One request, resumed at the end of the partial file if the server supports it."""
    have = _size(part) if archive.bytes is not None else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(archive.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code in (404, 410):
            raise DownloadError(
                f"{archive.url} is gone ({answer.status_code}); put {archive.name} into the folder "
                "by hand, or update encbench"
            )
        if answer.status_code >= 500 or answer.status_code == 429:
            raise requests.HTTPError(f"the server answered {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise DownloadError(f"{archive.url} answered {answer.status_code}; try again later")
        goes_on = answer.status_code == 206
        if goes_on and not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            raise DownloadError(
                f"{archive.url} sent another range than the one requested; try again later"
            )
        done = have if goes_on else 0
        with part.open("ab" if goes_on else "wb") as file:
            for block in answer.iter_content(CHUNK):
                file.write(block)
                done += len(block)
                show(done)
    if archive.bytes is not None and done < archive.bytes:
        raise requests.ConnectionError("the connection was closed early")


def _unreachable(archive: Archive, part: Path, error: requests.RequestException) -> EncbenchError:
    inner = error.args[0] if error.args else error
    reason = str(getattr(inner, "reason", inner)).rpartition(": ")[2].rstrip(")>'\"")
    kept = f"; {_size(part) / 1e6:,.0f} MB are kept" if archive.bytes and _size(part) else ""
    return DownloadError(
        f"{archive.url} cannot be downloaded ({reason}): check the network and run again{kept}"
    )


@contextmanager
def _byte_bar(archive: Archive) -> Iterator[Callable[[int], None]]:
    """A progress bar over bytes; call what it yields with the number received so far."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(archive.name, total=archive.bytes)
        yield lambda done: progress.update(task, completed=done)


# ----------------------------------------------------------------------------- unpacking


def _unpack(archive: Archive, path: Path, root: Path) -> None:
    """Unpack the files, each written completely or not at all, and remove the archive. A damaged
    archive is removed, too: every rerun would fail at it again."""
    folder = root / archive.folder
    folder.mkdir(exist_ok=True)
    files = []
    try:
        with zipfile.ZipFile(path) as source:
            members = [
                info
                for info in source.infolist()
                if not info.is_dir() and any(fnmatch(info.filename, m) for m in archive.members)
            ]
            _check_members(archive, members)
            with bar(f"unpacking {archive.name}", len(members)) as advance:
                for info in members:
                    target = folder / _safe_name(info.filename, archive)
                    _write(source, info, target)
                    files.append(target)
                    advance(1)
    except DownloadError:
        path.unlink()
        raise
    except StoreError:  # an error of the disk, not of the archive
        raise
    except Exception as error:  # zipfile raises many errors on a damaged archive
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        path.unlink()
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DownloadError(
            f"{archive.url} is not an intact zip file ({reason}); it was removed, run again"
        ) from error
    if archive.blobs and _blobs(files) != archive.blobs:
        for file in [path, *files]:
            file.unlink(missing_ok=True)
        raise DownloadError(
            f"checksum mismatch: the {len(files):,} files in {archive.url} are not the "
            f"{archive.files:,} published ones; they were removed, run again"
        )
    path.unlink()


def _check_members(archive: Archive, members: list[zipfile.ZipInfo]) -> None:
    """Raise before anything is written if number or size of the files is not as published."""
    size, most = sum(info.file_size for info in members), 2 * archive.unpacked + 1_000_000
    if len(members) != archive.files or len({_safe_name(i.filename, archive) for i in members}) < (
        archive.files
    ):
        problem = f"holds {len(members):,} files, not the {archive.files:,} published ones"
    elif size > most:
        about = decimal(archive.unpacked)
        problem = f"would unpack to {decimal(size)}, not to about {about}"
    else:
        return
    raise DownloadError(
        f"checksum mismatch: {archive.url} {problem}; the archive was removed, run again"
    )


def _safe_name(member: str, archive: Archive) -> str:
    name = PurePosixPath(member).name
    if ".." in PurePosixPath(member).parts or "\\" in member or not member.isprintable():
        raise DownloadError(
            f"{archive.url} holds a path that leads out of its folder: {member!r}; refused"
        )
    return name


def _write(source: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    if _size(target) == info.file_size and target.is_file() and _crc(target) == info.CRC:
        return  # from an unpacking that was stopped
    with (
        source.open(info) as packed,
        replace_on_success(target) as part,
        part.open("xb") as file,
    ):
        shutil.copyfileobj(packed, file)


def _crc(path: Path) -> int:
    return zlib.crc32(path.read_bytes())


def _blobs(files: list[Path]) -> str:
    """See ``Archive.blobs``; a git blob id is sha1 over 'blob <length>', a zero and the bytes."""
    lines = []
    for file in files:
        content = file.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        lines.append(f"{file.stem} {blob}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()
