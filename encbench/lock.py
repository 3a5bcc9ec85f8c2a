"""A lock file with a heartbeat: a folder is written by one process at a time.

The lock names its holder: machine, process and when that process started. Its modification time
is the heartbeat. A lock is stale, and is taken over, if the process is gone from this machine, or
if the heartbeat of a process elsewhere (on another machine or in another container) has stopped.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from .errors import FolderInUseError, RecordError, from_os_error
from .files import parse_json, sweep_temporary
from .schema import load_dataclass

BEAT = 20.0  # seconds between heartbeats
STALE = 300.0  # seconds without a heartbeat after which a holder elsewhere counts as gone
SETTLE = 0.2  # seconds that another process may need to take over the same stale lock
ADVICE = "wait for it to end, or choose another folder"


class _Lock:
    """One lock file that this process holds."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder, self.users = path, folder, 0
        self.content = _acquire(path, folder)
        self.lost, self._end = False, threading.Event()
        self._worker = threading.get_ident()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            if _read(self.path) not in (self.content, b""):
                self.lost = True
                _interrupt(self._worker)
                return
            with suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        self._end.set()
        if _read(self.path) == self.content:
            self.path.unlink(missing_ok=True)


def _interrupt(thread: int) -> None:
    """Raise KeyboardInterrupt in a thread. A signal also ends what waits or sleeps there, but only
    the main thread gets one, and only if SIGINT does what Python makes of it: in the background of
    a script it is ignored, and a notebook has a handler of its own."""
    is_main = thread == threading.main_thread().ident
    if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.pthread_kill(thread, signal.SIGINT)
    else:
        kind = ctypes.py_object(KeyboardInterrupt)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), kind)


_held: dict[Path, _Lock] = {}


@contextmanager
def lock_folder(folder: Path, name: str = "encbench") -> Iterator[None]:
    """Hold a folder while it is written. A process may lock again what it holds.

    What killed processes left half-written in it is removed first.

    Args:
        folder: made if it is not there.
        name: what is locked, where independent things are written into one folder.

    Raises:
        FolderInUseError: if another process holds the folder, or took it over from this one,
            whose heartbeat had stopped for a while.
        StoreError: if the lock cannot be written.
    """
    path = (folder / f".{name}.lock").absolute()
    lock = _held.get(path)
    if lock is None:
        lock = _held[path] = _Lock(path, folder)
        sweep_temporary(folder)
    lock.users += 1
    try:
        yield
    except KeyboardInterrupt:
        if not lock.lost:
            raise
        raise FolderInUseError(
            f"another process took over {folder}, since this one did not respond for "
            f"{STALE:.0f} s; run the same command again when that process has ended"
        ) from None
    finally:
        lock.users -= 1
        if not lock.users:
            del _held[path]
            lock.release()


def _acquire(path: Path, folder: Path) -> bytes:
    """Write the lock; returns its content, which is this process's alone."""
    me = psutil.Process()
    mine: dict[str, object] = {"machine": _machine(), "host": socket.gethostname()}
    mine |= {"process": me.pid, "started": me.create_time(), "token": uuid.uuid4().hex}
    content = json.dumps(mine).encode()
    new = path.with_name(f"{path.name}.{mine['token']}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new.write_bytes(content)
        now = new.stat().st_mtime  # by the file system's clock, which other machines share
        for left in folder.glob(f"{path.name}.*"):  # of processes that were killed in here
            with suppress(FileNotFoundError):  # its process has just removed it
                if _is_alive(_read(left)) is False or now - left.stat().st_mtime > STALE:
                    left.unlink()
        with suppress(OSError):  # it is there, or the file system has no hard links
            os.link(new, path)
            return content
        theirs = _read(path)
        _refuse_if_held(path, folder, theirs, now)
        if _read(path) == theirs:  # nobody else has taken it over meanwhile
            new.replace(path)
            time.sleep(SETTLE)
        winner = _read(path)
        if winner != content:
            _refuse_if_held(path, folder, winner, now)
            raise FolderInUseError(f"another process took {folder} just now; {ADVICE}")
        return content
    except OSError as error:
        raise from_os_error(error, f"locking {folder}") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)


def _refuse_if_held(path: Path, folder: Path, content: bytes, now: float) -> None:
    """Raise if the holder of a lock is alive, as far as this machine can tell."""
    try:
        silence = now - path.stat().st_mtime
    except FileNotFoundError:
        return  # released meanwhile, or it never was there
    who, alive = "another process", _is_alive(content)
    if holder := _holder(content):
        who = f"process {holder.process} on {holder.host}"
    if alive:
        raise FolderInUseError(f"{folder} is being written by {who}; {ADVICE}")
    if alive is None and silence < STALE:
        raise FolderInUseError(
            f"{folder} is being written by {who} (last heartbeat {max(0, silence):.0f} s ago); "
            f"{ADVICE}; if it is dead, its lock expires after {STALE:.0f} s"
        )


def _is_alive(content: bytes) -> bool | None:
    """Whether the process that wrote a lock still runs; None if that cannot be told from here."""
    holder = _holder(content)
    if holder is None or holder.machine != _machine():
        return None
    try:
        return bool(abs(psutil.Process(holder.process).create_time() - holder.started) < 1)
    except (psutil.Error, ValueError, OverflowError):  # no such process
        return False


@dataclass(frozen=True)
class _Holder:
    """Who wrote a lock: ``started`` tells processes apart that have the same number."""

    machine: str
    process: int
    started: float
    host: str = "an unnamed host"


def _holder(content: bytes) -> _Holder | None:
    """None if the lock is damaged, or not yet written."""
    with suppress(RecordError):
        return load_dataclass(_Holder, parse_json(content, "the lock"), "the lock")
    return None


def _machine() -> str:
    """What two processes share for whom a process number means the same: host, boot, and
    namespace (containers may share the first two)."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
