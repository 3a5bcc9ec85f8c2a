"""Downloads models; nothing else does. Every file is pinned and checked.

A model named by a spec is either a local folder or a hub repository. Folders are pinned by
the content hash of their files, repositories by their 40-hex revision; one that was named
without a revision is resolved at its first download and written to a lock file, which later
runs hold to.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from rich.filesize import decimal

from ..errors import (
    DataError,
    DownloadError,
    EncbenchError,
    ModelError,
    StoreError,
    first_line,
    from_os_error,
)
from ..files import digest_file, expand_home, read_json, read_text, write_json
from ..progress import log
from ..schema import check_value, get_field, read_model_config
from .hub_facts import facts_of

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
SAFETENSORS = "*.safetensors"
OTHER_WEIGHTS = ("*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.npz", "*.tflite")
DATA_FILES = (
    "*.parquet", "*.arrow", "*.json", "*.jsonl", "*.csv", "*.tsv",
    "*.jpg", "*.jpeg", "*.png", "*.webp",
)  # fmt: skip
"""What is fetched of a dataset's repository: data, never code."""
ADAPTER = "adapter_config.json"
CARD = "README.md"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ResolvedModel:
    """Where a model's files are and what pins them.

    Attributes:
        path: folder with the files; None where there are none (controls, Python code).
        revision: 40-hex hub revision, or a content hash.
        license: as the model card says; 'unknown' if it doesn't.
        tokenizer: folder of the tokenizer where that is not ``path``.
        prompt: text that the model puts before every prompt; vectors depend on it.
        quantization: of the weights as they are stored, such as 'Q4_K_M'; '' = none.
    """

    path: Path | None
    revision: str
    license: str = "unknown"
    tokenizer: Path | None = None
    prompt: str = ""
    quantization: str = ""

    @property
    def folder(self) -> Path:
        """``path`` of a model that has one.

        Raises:
            ModelError: if it has no files.
        """
        if self.path is None:
            raise ModelError(f"revision {self.revision} has no files")
        return self.path


@dataclass(frozen=True)
class PlannedDownload:
    """What a run would fetch of one repository.

    Attributes:
        repo: hub id or local folder.
        revision: pinned, locked or cached; None if it is resolved at the first download.
        cached: True if weights of that revision are on disk.
        bytes: size on disk if cached, else about what would be downloaded; None if unknown.
        parameters: of all weights in it; None if unknown.
    """

    repo: str
    revision: str | None
    cached: bool
    bytes: int | None
    parameters: int | None = None


def cache_dir() -> Path:
    """encbench's own cache folder: ``$ENCBENCH_CACHE``, else ``~/.cache/encbench``."""
    return Path(os.environ.get("ENCBENCH_CACHE") or "~/.cache/encbench").expanduser()


def resolve_model(
    source: str,
    revision: str | None,
    *,
    patterns: Sequence[str],
    pickle: bool = False,
    weights_in: Sequence[str] | None = None,
) -> ResolvedModel:
    """Find a model's files, downloading those that are not there.

    Every file that matches is part of the pin. Of pickled weights only those are taken (and
    need ``pickle``) that lie in a folder without safetensors.

    Args:
        source: a local folder, else a hub id.
        revision: hub commit, tag or branch; None = what the lock file says, else 'main'. For a
            folder, the content hash that it must have.
        patterns: which files, as shell patterns over paths inside the repository
            (``*`` matches ``/`` too); the model card is fetched in any case.
        pickle: also take pickled weights (:data:`PICKLES`).
        weights_in: folders inside the repository ('' = its root) that must hold weights. By
            default the one folder for which a pattern names safetensors; none if there are
            several such folders.

    Raises:
        ModelError: if the folder or the weights are not there, or a file was changed.
        DownloadError: if the hub cannot be reached or refuses.
        StoreError: if the disk is full or the cache cannot be written.
    """
    if weights_in is None:
        named = sorted({_home(p) for p in patterns if p.endswith(".safetensors")})
        weights_in = named if len(named) == 1 else ()
    wanted = WantedFiles(tuple(patterns), pickle, tuple(weights_in))
    folder = expand_home(source)
    if folder.is_dir():
        return _resolve_folder(folder, revision, wanted)
    if folder.exists():
        raise ModelError(f"{source} is a file; name the folder that it lies in, or a .gguf file")
    if source.startswith(("/", ".", "~")) or "\\" in source or source.count("/") > 1:
        raise ModelError(f"there is no folder {source}; check the path, or name a hub repository")
    return _resolve_repository(source, revision, wanted)


def download_plan(
    repos: Iterable[tuple[str, str | None]], *, ask: bool = False
) -> list[PlannedDownload]:
    """What :func:`resolve_model` would fetch.

    Args:
        ask: ask the hub for sizes that are not known, where it can be reached.
    """
    from huggingface_hub import constants

    plan = []
    for repo, revision in repos:
        folder: Path | None = expand_home(repo)
        if not (folder and folder.is_dir()):
            home = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
            revision = _locked(repo, revision).revision or revision
            if not _COMMIT.fullmatch(revision or ""):
                reference = home / "refs" / (revision or "main")
                if reference.is_file():
                    revision = read_text(reference, ModelError).strip()
            folder = home / "snapshots" / revision if revision else None
        files = _select(folder, ["*"], ()) if folder and folder.is_dir() else {}
        cached = any(_matches(name, [SAFETENSORS, *PICKLES]) for name in files)
        known = facts_of(repo)
        size, parameters = known.bytes, known.parameters
        if cached:
            size = sum(p.stat().st_size for p in files.values())
            parameters = parameters or _count_parameters(files)
        elif ask and not (size and parameters) and not constants.HF_HUB_OFFLINE:
            told, count = _ask_size(repo, revision)
            size, parameters = size or told, parameters or count
        plan.append(PlannedDownload(repo, revision, cached, size, parameters))
    return plan


def parameters_in(folder: Path) -> int | None:
    """Elements of all tensors in a folder's safetensors files; None without such files."""
    return _count_parameters({path.name: path for path in folder.glob("*.safetensors")})


def _count_parameters(files: Mapping[str, Path]) -> int | None:
    """Elements of all tensors, by the headers of safetensors files; None without such files."""
    from safetensors import SafetensorError, safe_open

    total = 0
    for name, path in files.items():
        if _matches(name, [SAFETENSORS]):
            try:
                with safe_open(path, "np") as file:
                    names = file.keys()
                    total += sum(math.prod(file.get_slice(n).get_shape()) for n in names)
            except (OSError, SafetensorError):  # the loader reports what is wrong
                return None
    return total or None


def _ask_size(repo: str, revision: str | None) -> tuple[int | None, int | None]:
    """Bytes of all safetensors (of all pickles where there are none) with configuration and
    tokenizer, and parameters, as the hub says; None for what it does not say, or if it cannot be
    reached."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        told = api.model_info(repo, revision=revision, files_metadata=True, timeout=10)
        sizes = {file.rfilename: file.size or 0 for file in told.siblings or ()}
    except Exception:  # the hub's client raises a dozen kinds, its http client more
        return None, None
    weights = [n for n in sizes if _matches(n, [SAFETENSORS])]
    weights = weights or [n for n in sizes if _matches(n, PICKLES)]
    small = [n for n in sizes if _matches(n, ["*.json", "*.txt", "*.model"])]
    parameters = told.safetensors.total if told.safetensors else None
    return sum(sizes[n] for n in {*weights, *small}) if weights else None, parameters


# ---------------------------------------------------------------------------- local folders


def _resolve_folder(folder: Path, revision: str | None, wanted: WantedFiles) -> ResolvedModel:
    content = combine_hashes(digest_each(wanted.choose(folder, (), str(folder))))
    if revision and not content.startswith(revision):
        raise ModelError(
            f"{folder} has content hash {content[:12]}..., not {revision}; "
            "leave out '@...' to take the folder as it is"
        )
    return ResolvedModel(folder, content, _license(folder))


def _select(folder: Path, allow: Sequence[str], ignore: Sequence[str]) -> dict[str, Path]:
    """Files by their name inside the folder, hidden ones left out, in name order."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if not hidden and _matches(name, allow) and not _matches(name, ignore) and path.is_file():
            found[name] = path
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _home(name: str) -> str:
    return name.rpartition("/")[0]


def _inside(who: str, home: str) -> str:
    return f"{who}/{home}" if home else who


@dataclass(frozen=True)
class WantedFiles:
    """Which files of a model are used: see :func:`resolve_model`."""

    patterns: tuple[str, ...]
    pickle: bool
    weights_in: tuple[str, ...]

    def choose(self, folder: Path, listing: Sequence[str], who: str) -> dict[str, Path]:
        """The files of a folder that are used, by name.

        Args:
            listing: names that the repository has, also of files that are not in the folder.

        Raises:
            ModelError: if weights or parts of them are missing, or are pickled without leave.
        """
        files = _select(folder, self.patterns, ())
        for part in shards_of(files):
            if not (folder / part).is_file():
                raise ModelError(f"{who} lacks {part}, a part of its weights")
            files[part] = folder / part
        safe = {_home(name) for name in files if _matches(name, [SAFETENSORS])}
        there = [*files, *(name for name in listing if _matches(name, self.patterns))]
        pickled = [n for n in there if _matches(n, PICKLES) and _home(n) not in safe]
        if pickled and not self.pickle:
            home, _, name = pickled[0].rpartition("/")
            raise ModelError(
                f"{_inside(who, home)} has only pickled weights ({name}), which can run code when "
                "loaded; add ?pickle=true to its spec if you trust them"
            )
        for home in self.weights_in:
            if home not in safe | {_home(name) for name in pickled}:
                raise self._lacks_weights(folder, home, listing, who)
        used = {n: p for n, p in files.items() if n in pickled or not _matches(n, PICKLES)}
        if not used:
            raise ModelError(f"{who} holds none of {', '.join(self.patterns)}")
        return used

    def _lacks_weights(
        self, folder: Path, home: str, listing: Sequence[str], who: str
    ) -> ModelError:
        """What was looked for, what is there instead, and what to do about it."""
        names = listing or list(_select(folder, ["*"], ()))
        beside = [n.rpartition("/")[2] for n in names if _home(n) == home]
        where = _inside(who, home)
        if ADAPTER in beside:
            return ModelError(f"{where} is {describe_adapter(folder / home)}")
        looked = [p.rpartition("/")[2] for p in self.patterns if _home(p) == home]
        looked = [p for p in looked if _matches(p, [SAFETENSORS, *PICKLES])]
        other = [n for n in beside if _matches(n, [SAFETENSORS, *PICKLES, *OTHER_WEIGHTS])]
        instead = f"; it has {', '.join(other[:3])}: rename or convert it" if other else ""
        return ModelError(f"{where} holds no weights (looked for {', '.join(looked)}){instead}")


def describe_adapter(folder: Path) -> str:
    """What a folder with a LoRA adapter is and how it can be used, for an error."""
    try:
        base = read_model_config(folder, ADAPTER)["base_model_name_or_path"]
    except (EncbenchError, KeyError):
        base = "another model"
    return (
        f"a LoRA adapter of {base}, no whole model: merge it into that model (peft: "
        "merge_and_unload), save the result, and name its folder"
    )


def shards_of(files: Mapping[str, Path]) -> list[str]:
    """The parts that indices of sharded weights name, where there is no whole file beside.

    Raises:
        ModelError: if an index is damaged.
    """
    found: set[str] = set()
    for name, path in files.items():
        whole = name.removesuffix(".index.json")
        if whole == name or whole in files or not _matches(whole, [SAFETENSORS, *PICKLES]):
            continue
        parts = set(read_weight_map(path).values())
        found |= {f"{_home(name)}/{part}".lstrip("/") for part in parts}
    return sorted(found)


def read_weight_map(path: Path) -> dict[str, str]:
    """The file that holds each tensor, by an index of sharded weights.

    Raises:
        ModelError: if it is damaged, or names files elsewhere.
    """
    index = read_model_config(path.parent, path.name)
    parts: dict[str, str] = get_field(index, "weight_map", dict[str, str], str(path), ModelError)
    strange = [part for part in parts.values() if not re.fullmatch(r"[^/\\]+", part)]
    if strange:
        raise ModelError(f"{path}: {strange[0]!a} is not a file name; download it again")
    return parts


def _license(folder: Path) -> str:
    card = folder / CARD
    if not card.is_file():
        return "unknown"
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(card) or {}
    except Exception:  # the model can be used whatever is wrong with its card
        return "unknown"
    license = metadata.get("license") or "unknown"
    if license == "other":
        license = metadata.get("license_name") or "other"
    return ", ".join(map(str, license)) if isinstance(license, list) else str(license)


# ------------------------------------------------------------------------- content hashes


def digest_each(files: Mapping[str, Path]) -> dict[str, str]:
    """sha256 of each file's bytes, by name.

    A file is read once: its hash is kept under its path, size and time of change, since
    reading 40 GB of weights again for each run would take longer than the run.

    Raises:
        StoreError: if a file cannot be read.
    """
    memory_file = cache_dir() / "file-hashes.json"
    memory = _memory(memory_file)
    fresh: dict[str, tuple[int, int, str]] = {}
    found = {}
    for name, path in files.items():
        try:
            real = path.resolve()
            stat = real.stat()
            known = memory.get(str(real))
            if known and known[:2] == (stat.st_size, stat.st_mtime_ns):
                found[name] = known[2]
                continue
            found[name] = digest_file(real)
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from error
        fresh[str(real)] = (stat.st_size, stat.st_mtime_ns, found[name])
    if fresh:
        try:
            write_json(memory_file, _memory(memory_file) | fresh)
        except StoreError as error:  # only time is lost without it
            log.warning("cannot cache the hashes of weights: %s", error)
    return found


def _memory(path: Path) -> dict[str, tuple[int, int, str]]:
    """Size, time of the last change and hash of files; nothing if it is missing or damaged."""
    with suppress(EncbenchError):
        return dict(check_value(dict[str, tuple[int, int, str]], read_json(path), str(path)))
    return {}


def combine_hashes(hashes: Mapping[str, str]) -> str:
    """One hash over names and contents; the same as ``files.digest_files`` over the files."""
    text = "".join(f"{name}\0{hashes[name]}\n" for name in sorted(hashes, key=Path))
    return hashlib.sha256(text.encode()).hexdigest()


# ------------------------------------------------------------------------ hub repositories


def _resolve_repository(repo: str, revision: str | None, wanted: WantedFiles) -> ResolvedModel:
    locked = _locked(repo, revision)
    allow = [*wanted.patterns, CARD]
    folder = download_snapshot(repo, locked.revision or revision, allow, PICKLES)
    commit = folder.name
    files = _select(folder, wanted.patterns, PICKLES)
    safe = {_home(name) for name in files if _matches(name, [SAFETENSORS])}
    listing: Sequence[str] = ()
    if wanted.pickle:
        allow = [p for p in allow if not (_matches(p, PICKLES) and _home(p) in safe)]
    elif not safe.issuperset(wanted.weights_in):
        listing = _listing(repo, commit, folder)
    parts = shards_of(files)
    if wanted.pickle or parts:
        folder = download_snapshot(repo, commit, [*allow, *parts], () if wanted.pickle else PICKLES)
    files = wanted.choose(folder, listing, repo)
    hashes = digest_each(files)
    _verify(repo, files, hashes, locked.files)
    if locked.revision != commit or not hashes.items() <= locked.files.items():
        kept = locked.files if locked.revision == commit else {}
        _lock(repo, revision, _Locked(commit, {**kept, **hashes}))
    return ResolvedModel(folder, commit, _license(folder))


def resolve_dataset(repo: str, revision: str | None) -> tuple[Path, str]:
    """A dataset's data files (:data:`DATA_FILES`), downloaded if they are not there; folder and
    commit. No script is ever fetched.

    Raises:
        DataError: if the repository has no data files.
        DownloadError: if the hub cannot be reached or refuses, or a file was changed.
    """
    key = f"datasets/{repo}"
    locked = _locked(key, revision)
    allow = [*DATA_FILES, CARD]
    folder = download_snapshot(repo, locked.revision or revision, allow, (), kind="dataset")
    files = _select(folder, DATA_FILES, ())
    if not files:
        raise DataError(
            f"the dataset {repo} has no data files ({', '.join(DATA_FILES)}); no script is run: "
            "take @refs/convert/parquet, or download it by hand and name the folder"
        )
    hashes = digest_each(files)
    _verify(repo, files, hashes, locked.files)
    if locked.revision != folder.name or locked.files != hashes:
        _lock(key, revision, _Locked(folder.name, hashes))
    return folder, folder.name


def download_snapshot(
    repo: str,
    revision: str | None,
    allow: Sequence[str],
    ignore: Sequence[str],
    kind: str = "model",
) -> Path:
    """The folder of the hub's cache that holds a repository's files at one revision; no request is
    made if they are all there.

    Args:
        allow, ignore: patterns of the files' names.
        kind: 'model' or 'dataset'.

    Raises:
        DownloadError, ModelError: see :func:`download_error`.
        EncbenchError: if the disk is full or the cache cannot be written.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    download = partial(
        snapshot_download,
        repo,
        repo_type=kind,
        revision=revision,
        allow_patterns=list(allow),
        ignore_patterns=list(ignore),
    )
    try:
        if _COMMIT.fullmatch(revision or ""):
            try:
                return Path(download(local_files_only=True))
            except LocalEntryNotFoundError:
                pass
        if kind != "model":
            log.info("looking for the dataset %s on the hub", repo)
        elif not download_plan([(repo, revision)])[0].cached:
            size = facts_of(repo).bytes
            log.info("downloading %s%s", repo, f" (about {decimal(size)})" if size else "")
        return Path(download(endpoint=os.environ.get("HF_ENDPOINT") or None))
    except Exception as error:  # the hub's client raises a dozen kinds, its http client more
        raise download_error(error, repo, revision) from error


def _listing(repo: str, commit: str, folder: Path) -> list[str]:
    """All names in a repository, to say which pickle it is that would be needed."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        return sorted(api.list_repo_files(repo, revision=commit))
    except Exception:  # offline: the files that are there must do
        return list(_select(folder, ["*"], ()))


def _verify(
    repo: str, files: Mapping[str, Path], hashes: Mapping[str, str], locked: Mapping[str, str]
) -> None:
    for name, found in hashes.items():
        blob = files[name].resolve()
        # the hub's cache names a large file by the sha256 that the hub announced for it
        announced = blob.name if _SHA256.fullmatch(blob.name) else None
        if found != locked.get(name, found) or found != (announced or found):
            raise DownloadError(
                f"checksum mismatch: {name} of {repo} is not what the hub announced or what was "
                f"downloaded before; remove {blob} and run again"
            )


def lock_file() -> Path:
    """Where the revision and hashes of every downloaded repository are kept."""
    return cache_dir() / "hub-lock.json"


@dataclass(frozen=True)
class _Locked:
    """What the lock file says of a repository: its commit, and the sha256 of files by name."""

    revision: str
    files: Mapping[str, str]


def _read_lock() -> dict[str, _Locked]:
    path = lock_file()
    if not path.exists():
        return {}

    def damaged(text: str) -> ModelError:
        return ModelError(
            f"the lock file is damaged ({text}); repair it, or remove it to resolve revisions anew"
        )

    held = read_json(path, damaged)
    entries: dict[str, _Locked] = check_value(dict[str, _Locked], held, str(path), damaged)
    return entries


def _locked(repo: str, revision: str | None) -> _Locked:
    return _read_lock().get(_lock_key(repo, revision), _Locked("", {}))


def _lock(repo: str, revision: str | None, entry: _Locked) -> None:
    held = {**_read_lock(), _lock_key(repo, revision): entry}
    write_json(lock_file(), {key: asdict(held[key]) for key in sorted(held)})


def _lock_key(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision}" if revision else repo


def download_error(error: Exception, repo: str, revision: str | None) -> EncbenchError:
    """What the hub's client raised, in one line that says what to do."""
    from huggingface_hub import constants, errors

    hub = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    instead = "or give a local folder in place of the hub id"
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return DownloadError(
            f"{repo} is gated: accept the conditions at https://huggingface.co/{repo} and set "
            f"HF_TOKEN or run `hf auth login`, {instead}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return DownloadError(
            f"{repo} has no revision '{revision}'; name a branch, tag or commit that is listed at "
            f"https://huggingface.co/{repo}/commits"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return DownloadError(
            f"there is no repository {repo} on the hub, or it is private: check the name, set "
            f"HF_TOKEN or run `hf auth login`, {instead}"
        )
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"'{repo}' is neither a folder here nor a hub id (owner/name)")
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return DownloadError(
            f"{repo} is not in the cache and HF_HUB_OFFLINE is set: unset it to download, {instead}"
        )
    if status is not None:
        return DownloadError(f"{hub} answered {status} for {repo}; try again later, {instead}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
        return from_os_error(error, f"downloading {repo} to {constants.HF_HUB_CACHE}")
    if "onsistency check" in str(error):
        return DownloadError(f"checksum mismatch: {hub} sent a damaged file of {repo}; run again")
    return DownloadError(
        f"{hub} cannot be reached for {repo} ({first_line(cause or error)}): "
        f"check the network, set HF_HUB_OFFLINE=1 to use only what is in the cache, {instead}"
    )
