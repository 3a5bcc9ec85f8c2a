"""Files that are either whole or not there."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import RecordError, from_os_error


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, never a part.

    Raises:
        StoreError: one line on a full disk, a missing permission and the like.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            umask = os.umask(0)
            os.umask(umask)
            Path(temporary).chmod(0o666 & ~umask)  # mkstemp's 0600 would lock out others
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, since JSON has none."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(path, (text + "\n").encode())


def write_gzip(path: Path, data: bytes) -> None:
    """Write gzip atomically, with the same bytes for the same data."""
    write_atomic(path, gzip.compress(data, mtime=0))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RecordError: naming the file, if it is missing or not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} is not valid JSON ({error}); remove it and run again") from error


OLD_NAMES = {
    "licence": "license",
    "centred": "centered",
    "calibrated/centred": "calibrated/centered",
}
"""Names in files of earlier versions, with the names that they have now."""


def with_current_names(value: Any) -> Any:
    """A JSON value with every old name replaced, in keys and in texts that are just a name."""
    if isinstance(value, dict):
        return {OLD_NAMES.get(key, key): with_current_names(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_current_names(item) for item in value]
    return OLD_NAMES.get(value, value) if isinstance(value, str) else value


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces. What hashes are taken over."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8", "surrogatepass")


def digest(value: Any) -> str:
    """sha256 of a JSON-ready value, 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_files(paths: Iterable[Path], root: Path | None = None) -> str:
    """sha256 over the contents of files and their names (relative to ``root``), in name order."""
    total = hashlib.sha256()
    for path in sorted(paths):
        name = path.relative_to(root) if root else Path(path.name)
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{name.as_posix()}\0{content}\n".encode())
    return total.hexdigest()
