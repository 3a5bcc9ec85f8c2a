"""Writing files completely or not at all, and the one way to read text, JSON and TOML.

Every reader takes the class of the error to raise, so that a message names what the file is for.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import socket
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from secrets import token_hex
from typing import Any

from .errors import EncbenchError, RecordError, UsageError, first_line, from_os_error

MakeError = Callable[[str], EncbenchError]
TEMPORARY = ".encbench-"  # how the names of files begin that are being written
IDLE = 3600.0  # seconds after which another machine's temporary file counts as abandoned
MAX_DEPTH = 100  # of nested JSON; ours and our users' files have less than ten levels
EXPORT_FORMAT = "encbench-export"  # what config.json of an exported model says

# ------------------------------------------------------------------------------- writing


@contextmanager
def replace_on_success(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` for a file or a folder. It is renamed to ``path`` when
    the block ends without an error, and removed otherwise; until then the old content stays.

    Raises:
        StoreError: one line on a full disk, a missing permission and the like.
    """
    temporary = path.with_name(_temporary_name())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if temporary.is_dir() and path.exists():
                shutil.rmtree(path)
            temporary.replace(path)
        except BaseException:
            _remove(temporary)
            raise
    except OSError as error:
        raise from_os_error(error, f"writing {path}") from error


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder below ``parent`` that is removed when the block ends.

    Raises:
        StoreError: if it cannot be made.
    """
    folder = parent / _temporary_name()
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise from_os_error(error, f"writing {folder}") from error
    try:
        yield folder
    finally:
        _remove(folder)


def _temporary_name() -> str:
    return f"{TEMPORARY}{_origin()}-{os.getpid()}-{token_hex(4)}"


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the new one, never a part.

    Raises:
        StoreError: one line on a full disk, a missing permission and the like.
    """
    with replace_on_success(path) as temporary, temporary.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sweep_temporary(folder: Path) -> None:
    """Remove half-written files of killed processes in a folder and below it.

    A file of a process that is still alive stays; one of another machine (or container) stays
    until nobody has written to it for an hour.
    """
    import psutil

    for path in folder.rglob(f"{TEMPORARY}*"):
        with suppress(OSError, ValueError, psutil.Error):
            origin, process, _ = path.name.removeprefix(TEMPORARY).split("-")
            written = path.stat().st_mtime
            if origin != _origin():
                alive = time.time() - written < IDLE
            else:  # a process that began after the file was written only has the same number
                alive = psutil.pid_exists(int(process)) and (
                    psutil.Process(int(process)).create_time() <= written + 1
                )
            if not alive:
                _remove(path)


@cache
def _origin() -> str:
    """Eight hex digits that identify host name and pid namespace, where process ids are unique."""
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def encode_text(text: str) -> bytes:
    r"""UTF-8; halves of surrogate pairs, as names that are no UTF-8 have them, become ``\udcff``.

    In JSON that is the character's own escape, so it is read back as it was.
    """
    return text.encode("utf-8", "backslashreplace")


def write_text(path: Path, text: str) -> None:
    """Write text atomically as UTF-8; see :func:`encode_text`."""
    write_atomic(path, encode_text(text))


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, since JSON has none."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_gzip(path: Path, data: bytes) -> None:
    """Write gzip atomically, with the same bytes for the same data."""
    write_atomic(path, gzip.compress(data, mtime=0))


# ----------------------------------------------------------------------------------- CSV

FORMULA = re.compile(r"'*[=+\-@\t\r]")


def escape_formula(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula gets an apostrophe, which spreadsheets do
    not show (OWASP, CSV injection); anything else stays."""
    return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value


def unescape_formula(value: Any) -> Any:
    """The text that :func:`escape_formula` was given."""
    escaped = isinstance(value, str) and value.startswith("'") and FORMULA.match(value)
    return value[1:] if escaped else value


def to_csv(head: Sequence[str], rows: Iterable[Sequence[Any]], line_end: str = "\r\n") -> str:
    """Rows as CSV (RFC 4180), None as nothing, formulas escaped."""
    lines = []
    for row in (head, *rows):
        line = io.StringIO()
        csv.writer(line).writerow(map(escape_formula, row))  # with its own line end it quotes "\r"
        lines.append(line.getvalue().removesuffix("\r\n") + line_end)
    return "".join(lines)


# ------------------------------------------------------------------------------- reading


def read_bytes(path: Path, error: MakeError = RecordError) -> bytes:
    """A file's content; ``error`` names the file if it is missing or is a pipe or a device."""
    try:
        # /dev/stdin and the shell's <(...) are pipes on purpose; any other would be waited for
        if path.exists() and not (path.is_file() or path.is_dir() or path.is_relative_to("/dev")):
            raise error(f"cannot read {path}: it is a pipe or a device, not a file")
        return path.read_bytes()
    except OSError as problem:
        raise error(f"cannot read {path}: {problem.strerror}") from problem
    except ValueError as problem:  # a zero byte in the name
        raise error(f"cannot read {str(path)!r}: {problem}") from problem


def read_text(path: Path, error: MakeError = RecordError) -> str:
    """UTF-8 text, with or without a byte order mark."""
    return decode_text(read_bytes(path, error), str(path), error)


def decode_text(data: bytes, where: str, error: MakeError = RecordError) -> str:
    """UTF-8 text, with or without a byte order mark; ``error`` begins with ``where``."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{where} is not UTF-8 text (byte {problem.start:,})") from problem


def split_lines(text: str) -> list[str]:
    r"""Lines end at ``\n`` (or ``\r\n``) only: ``str.splitlines`` would also cut at U+2028, U+0085
    and others, which belong to the text."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def read_lines(path: Path, error: MakeError = RecordError) -> list[str]:
    """The lines of a UTF-8 text; see :func:`split_lines`."""
    return split_lines(read_text(path, error))


def parse_json(
    text: str | bytes, where: str, error: MakeError = RecordError, *, strict: bool = True
) -> Any:
    """JSON (UTF-8, or with the byte order mark of another UTF).

    Args:
        where: the file, and the line or key in it.
        error: the class of error to raise.
        strict: refuse NaN, infinity and repeated keys too.

    Raises:
        error: one line that begins with ``where``: syntax, NaN or infinity, a key twice in one
            object, a number of thousands of digits, nesting beyond :data:`MAX_DEPTH`.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        value = json.loads(
            text.removeprefix("\ufeff"),
            parse_constant=_refuse_constant if strict else None,
            object_pairs_hook=_unique_keys if strict else None,
        )
        _check_depth(value)
        return value
    except UnicodeDecodeError as problem:
        raise error(f"{where} is not UTF-8 text (byte {problem.start:,})") from problem
    except json.JSONDecodeError as problem:
        raise error(f"{where} is not valid JSON ({problem})") from problem
    except RecursionError as problem:
        raise error(f"{where} is not valid JSON (nested too deeply)") from problem
    except ValueError as problem:
        reason = str(problem).partition(";")[0]  # Python's own goes on about its settings
        raise error(f"{where} is not valid JSON ({reason})") from problem


def read_json(path: Path, error: MakeError = RecordError) -> Any:
    """Read JSON; see :func:`parse_json`.

    Raises:
        error: naming the file, if it is missing or not JSON.
    """
    data = read_bytes(path, error)
    ours = error is RecordError  # what encbench wrote, it can write again
    return parse_json(data, str(path), _damaged_record if ours else error)


def _damaged_record(text: str) -> RecordError:
    return RecordError(f"{text}; remove it and run again")


def read_json_lines(path: Path, error: MakeError = RecordError) -> Iterator[tuple[str, Any]]:
    """The values of a file with one JSON value a line, each with where it stands ('line 3 of
    prompts.jsonl'); blank lines are skipped."""
    for number, line in enumerate(read_lines(path, error), 1):
        if line.strip():
            where = f"line {number} of {path}"
            yield where, parse_json(line, where, error)


def read_csv(path: Path, error: MakeError = RecordError) -> tuple[list[str], list[dict[str, Any]]]:
    """Names of the columns, and the rows by these names, of a .csv or .tsv; a cell that is missing
    at the end of a row is None.

    Raises:
        error: naming the line, if a quote is not closed, a name stands over two columns, or a row
            has more cells than there are names, as a text with a comma and no quotes gives it.
    """
    content, mark = io.StringIO(read_text(path, error), newline=""), ","
    if path.suffix.lower() == ".tsv":
        mark = "\t"
    table = csv.DictReader(content, delimiter=mark, strict=True)
    rows = []
    try:
        names = [name.strip() for name in table.fieldnames or ()]
        twice = next((name for name in names if name and names.count(name) > 1), None)
        if twice is not None:
            raise error(f"{path} has two columns {twice!a}; rename or remove one")
        for row in table:
            if any(row.pop(None, ())):
                raise error(
                    f"line {table.line_num} of {path} has more cells than its first line; put "
                    "quotes around texts that hold a comma or a tab"
                )
            rows.append(row)
        return list(table.fieldnames or ()), rows
    except csv.Error as problem:
        # the number is of the last whole row
        reason = f"line {table.line_num + 1} of {path} is broken ({problem})"
        raise error(f"{reason}; write a quote inside quotes twice") from problem


def read_table(path: Path, error: MakeError = RecordError) -> Any:
    """A NumPy array of two dimensions from a .npy, as a memory map; nothing pickled is read.

    Raises:
        error: naming the file, if it is missing or damaged.
    """
    import numpy as np

    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(table, np.ndarray) or table.ndim != 2 or table.dtype.kind != "f":
            raise ValueError("it is not a table of floating-point numbers")
        return table
    except Exception as problem:  # a damaged header makes NumPy raise a dozen kinds
        raise error(f"cannot read {path} ({first_line(problem)})") from problem


def read_toml(path: Path) -> dict[str, Any]:
    """Read TOML, with or without a byte order mark.

    Raises:
        UsageError: naming the file, if it is missing or not TOML.
    """
    return parse_toml(read_text(path, UsageError), str(path))


def parse_toml(text: str, where: str, error: MakeError = UsageError) -> dict[str, Any]:
    """TOML.

    Raises:
        error: one line that begins with ``where``.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as problem:
        reason = str(problem).partition(";")[0]
        raise error(f"{where} is not valid TOML: {reason}") from problem


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!a} appears twice in one object")
    return record


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise RecursionError


# ------------------------------------------------------------------------ names and hashes


def slug(text: str, length: int = 60) -> str:
    """A file name for a text: its last ``length`` letters, digits, dots and dashes of ASCII."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in ".-") else "-" for c in text)
    return kept.strip("-.")[-length:].strip("-.") or "unnamed"


def expand_home(path: str | Path) -> Path:
    """A path with ``~`` replaced; where no such user is known here, it is a name like any other."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


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
    """Canonical JSON of a value, for hashing: sorted keys, no spaces."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8", "surrogatepass")


def digest(value: Any) -> str:
    """sha256 of a JSON-ready value, 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's content.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(paths: Iterable[Path], root: Path | None = None) -> str:
    """sha256 over the contents of files and their names (relative to ``root``), in name order."""
    total = hashlib.sha256()
    for path in sorted(paths):
        name = path.relative_to(root) if root else Path(path.name)
        total.update(os.fsencode(f"{name.as_posix()}\0{digest_file(path)}\n"))
    return total.hexdigest()
