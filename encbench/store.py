"""The embedding store: content-addressed, atomic, verified, resumable.

An entry's address is the hash of everything its contents depend on. It holds shards, each
one safetensors file that carries the sha256 of its own tensors. A shard is written completely or
not at all, so a stopped run resumes; one that fails its check is named in the log and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from . import distributed
from .errors import RecordError, StoreError, from_os_error
from .files import digest, digest_file, parse_json, sweep_temporary, write_atomic, write_json
from .progress import bar, log
from .schema import check_value
from .types import ImageSource

DAMAGE = (SafetensorError, RecordError, KeyError, ValueError)  # what reading a broken shard raises


class StoreEntry:
    """The shards of one identity. Make it by :meth:`Store.entry`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, shard: int, kind: str) -> Path:
        return self.folder / f"{shard:05d}.{kind}.safetensors"

    def shards(self, kind: str) -> list[int]:
        """Numbers of the shards of a kind, in their order."""
        return sorted(
            int(path.name.split(".")[0]) for path in self.folder.glob(f"*.{kind}.safetensors")
        )

    @contextmanager
    def marked(self) -> Iterator[Path]:
        """A temporary file: a process that sees it shares this folder."""
        mark = self.folder / f".shared-{uuid.uuid4().hex}"
        write_atomic(mark, b"")
        try:
            yield mark
        finally:
            mark.unlink(missing_ok=True)

    def write(
        self, shard: int, kind: str, tensors: Mapping[str, Tensor], info: Mapping[str, Any]
    ) -> None:
        """Write one shard with a JSON-ready note about it.

        Raises:
            StoreError: if the disk is full or the folder cannot be written.
        """
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {"sha256": _checksum(held), "info": json.dumps(info)}
        write_atomic(self.path(shard, kind), save(held, metadata=metadata))

    def note(self, shard: int, kind: str) -> dict[str, Any] | None:
        """A shard's note alone, without reading its tensors; None as in :meth:`read`."""
        path = self.path(shard, kind)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                return _parse_note(file.metadata() or {}, path)
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from error
        except DAMAGE:
            log.warning("damaged shard %s: made again", path)
            return None

    def read(self, shard: int, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A shard's tensors and note, or None if it is not there or damaged (then the log
        names it)."""
        path = self.path(shard, kind)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("sha256") == _checksum(tensors):
                return tensors, _parse_note(metadata, path)
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from error
        except DAMAGE:
            pass
        log.warning("damaged shard %s; making it again", path)
        return None


class Store:
    """A folder of entries.

    Args:
        root: the folder; made if it is not there.

    Raises:
        StoreError: if it cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, f"making the store {root}") from error
        if not os.access(root, os.W_OK):
            raise StoreError(f"the store {root} cannot be written; choose another with --store")

    def entry(self, identity: Mapping[str, Any]) -> StoreEntry:
        """The entry of an identity (JSON-ready: everything that the contents depend on)."""
        address = digest(identity)
        folder = self.root / address[:2] / address
        sweep_temporary(folder)
        if not (folder / "identity.json").exists():
            write_json(folder / "identity.json", identity)
        return StoreEntry(folder)

    def rows(
        self,
        identity: Mapping[str, Any],
        count: int,
        compute: Callable[[range], Float[Tensor, "n P"]],
        *,
        what: str,
        shard_size: int = 256,
        elsewhere: Callable[[range], Float[Tensor, "n P"]] | None = None,
    ) -> Float[Tensor, "N P"]:
        """``count`` vectors, computed shard by shard where they are not stored yet.

        Args:
            compute: the vectors of a span.
            elsewhere: the same, picklable: what other processes of the command call, if any.
        """
        entry = self.entry(identity)
        starts = range(0, count, shard_size)
        spans = [range(start, min(start + shard_size, count)) for start in starts]
        if elsewhere is not None and distributed.process_count() > 1:
            self._share(entry, spans, compute, elsewhere, what)
        parts: list[Tensor] = []
        with bar(what, count) as advance:
            for number, span in enumerate(spans):
                found = entry.read(number, "rows")
                if found is None:
                    rows = compute(span).float().cpu()
                    entry.write(number, "rows", {"rows": rows}, {})
                else:
                    rows = found[0]["rows"]
                parts.append(rows)
                advance(len(span))
        return torch.cat(parts) if parts else torch.zeros(0, 0)

    @staticmethod
    def _share(
        entry: StoreEntry,
        spans: Sequence[range],
        compute: Callable[[range], Tensor],
        elsewhere: Callable[[range], Tensor],
        what: str,
    ) -> None:
        """Make what is not stored in all processes of the command."""
        missing = [n for n in range(len(spans)) if entry.read(n, "rows") is None]
        with bar(what, sum(len(spans[n]) for n in missing)) as advance:

            def keep(position: int, rows: Tensor) -> None:
                number = missing[position]
                entry.write(number, "rows", {"rows": rows.float().cpu()}, {})
                advance(len(spans[number]))

            distributed.share_tasks(elsewhere, [spans[n] for n in missing], keep, compute)


def _parse_note(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    note: dict[str, Any] = parse_json(metadata["info"], str(path))
    return dict(check_value(dict[str, Any], note, str(path)))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def digest_of_files(paths: Sequence[ImageSource]) -> list[str]:
    """sha256 of each image file, several at a time, since reading waits for the disk.

    Raises:
        StoreError: naming the file that cannot be read.
    """
    from concurrent.futures import ThreadPoolExecutor

    def one(path: ImageSource) -> str:
        try:
            if isinstance(path, Path):
                return digest_file(path)
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from error

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, paths))
