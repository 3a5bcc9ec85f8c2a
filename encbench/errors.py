"""Errors that a user can act on.

Everything that encbench raises on bad input derives from :class:`EncbenchError`.
Its message is one line, names the thing that is wrong and says what to do next;
the command line prints it as it is and exits with :attr:`EncbenchError.exit_code`.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

LONGEST = 4000
"""Characters of a message. A longer one quotes something huge: its middle is left out."""

ONE_LINE = {ord("\n"): " ", ord("\r"): " "}
"""For what a message quotes."""


class EncbenchError(Exception):
    """Base of all errors with a message for the user."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        message = message.translate(ONE_LINE)
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        super().__init__(message)


class UsageError(EncbenchError):
    """The command line, a spec string or a config says something impossible."""

    exit_code = 2


class UnknownNameError(UsageError):
    """A name is not in a registry; the message lists the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
        super().__init__(f"unknown {kind} '{name}'; {hint}")


class MissingLibraryError(EncbenchError):
    """A library is not installed; ``install`` is what to give to pip."""

    def __init__(self, library: str, install: str, what: str) -> None:
        super().__init__(f'{what} needs {library}, which is not installed: pip install "{install}"')


class DataError(EncbenchError):
    """A dataset is missing, broken or not the one that was asked for."""


class ImageError(DataError):
    """One image file cannot be used; the message names it."""


class DownloadError(EncbenchError):
    """A hub or site cannot be reached, refuses access, or sent something else."""


class ModelError(EncbenchError):
    """A model's files are missing, damaged, unsafe to load or of an unknown layout."""


class EncoderOutputError(EncbenchError):
    """An encoder returned NaN, a wrong shape or something that is not TextFeatures."""


class StoreError(EncbenchError):
    """The store on disk cannot be written or read."""


class FolderInUseError(EncbenchError):
    """Another process is writing the same folder."""


class ProcessError(EncbenchError):
    """Another process of the same command was lost, or cannot be reached."""


class RecordError(EncbenchError):
    """A record or prediction on disk is damaged or of a newer schema."""


def describe_error(error: BaseException) -> str:
    """Any error in one line: encbench's own by its message, others by class and first line."""
    if isinstance(error, SystemExit):
        return f"its code called sys.exit({error.code!r})"
    try:
        text = str(error).strip()
    except Exception:  # its __str__ is foreign code, too
        text = ""
    if isinstance(error, EncbenchError):
        text = " ".join(text.split())
    else:
        kind = type(error).__name__
        text = f"{kind}: {first_line(error)}" if text else kind
    return text.encode("ascii" if not text.isprintable() else "utf-8", "backslashreplace").decode()


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, or the error's class if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def from_os_error(error: OSError, doing: str) -> EncbenchError:
    """Put an operating-system error into one line that says what to do.

    Args:
        error: the error as Python raised it.
        doing: what was being done, e.g. ``"writing /tmp/x.json"``.
    """
    reason = {
        errno.ENOSPC: "the disk is full; free some space and run the same command again, "
        "finished work is kept",
        errno.EDQUOT: "your disk quota is used up; free some space and run the same command "
        "again, finished work is kept",
        errno.EACCES: "no permission; choose another folder or change its permissions",
        errno.EPERM: "no permission; choose another folder or change its permissions",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "no such file or folder",
        errno.ENOTDIR: "a part of that path is a file, not a folder",
        errno.EISDIR: "that path is a folder, not a file",
    }.get(error.errno or 0, error.strerror or str(error))
    return StoreError(f"{doing} failed: {reason}")
