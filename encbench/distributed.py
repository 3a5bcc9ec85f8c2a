"""Several processes, on one machine or many: one leads, the others do shares of its work.

Under ``accelerate launch`` or ``torchrun`` every process runs the same command line. The first
one leads: it alone reads data, takes decisions, computes scores and writes records. The others
serve: they wait for jobs (a picklable callable and its tasks), and what they make or fail at
goes back to the leader. So nothing is decided twice, and no two processes can disagree.

A process by itself does the same work without any of this; torch.distributed is then not used.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from .device import choose_device, current_launch
from .errors import EncbenchError, ProcessError, describe_error
from .progress import log

T = TypeVar("T")
R = TypeVar("R")
PATIENCE = timedelta(days=30)  # the others wait while the leader computes scores
LOST = "another process of this command is gone; run the same command again, finished work is kept"


@dataclass
class _Team:
    """``busy``: in the middle of an exchange, so that no other one may begin."""

    rank: int
    size: int
    busy: bool = False


_team: _Team | None = None


def is_leader() -> bool:
    """Whether this process is the only one or the first; asks the environment alone."""
    return current_launch().rank == 0


def process_count() -> int:
    """How many processes share the leader's work: 1 outside of :func:`run_command`, and within a
    task that is shared already, since no other exchange may begin there."""
    return _team.size if _team and not _team.busy else 1


def before_group() -> None:
    """Call before a process group is made, so that its end is its end.

    torch.distributed.nn keeps the group of the moment it is imported, in arguments' defaults,
    and torch.optim imports it at its first step. Such a group outlives destroy_process_group,
    its threads outlive the interpreter, and now and then the process ends by SIGABRT.
    """
    import torch.distributed.nn  # noqa: F401


def run_command(work: Callable[[], None]) -> None:
    """Run ``work`` in the leader and serve it in all other processes of a launch.

    Raises:
        ProcessError: if another process is lost.
    """
    global _team
    size = current_launch().size
    if size == 1:
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
            log.warning(
                "accelerate launch starts one process only with --cpu; for several use "
                "'accelerate launch --multi_gpu' or 'torchrun --nproc-per-node N -m encbench ...'"
            )
        work()
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(choose_device("cuda"))
    before_group()
    try:
        distributed.init_process_group("gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise ProcessError(f"the processes cannot reach one another: {error}") from error
    team = _team = _Team(distributed.get_rank(), size)
    try:
        if team.rank:
            _serve(team)
        else:
            log.info("%d processes share the encoding", size)
            work()
    finally:
        _team = None
        if not team.busy and team.rank == 0:  # else they learn it from the connection that closes
            _send(None)
        distributed.destroy_process_group()


def share_tasks(
    job: Callable[[T], R],
    tasks: Sequence[T],
    keep: Callable[[int, R], None],
    own: Callable[[T], R] | None = None,
) -> None:
    """Do tasks in all processes, in rounds of one task each. Called by the leader.

    Args:
        job: picklable; what the others call with a task.
        tasks: picklable.
        keep: called in the leader with a task's number and result, in the order of the tasks.
        own: what the leader itself calls; the job if None.

    Raises:
        EncbenchError: the first process's error, after all have stopped at the same round. What
            ``keep`` was given before is kept.
        ProcessError: if another process is lost.
    """
    assert _team is not None
    assert _team.rank == 0
    _team.busy = True
    _send((job, list(tasks)))
    failure = _rounds(_team, own or job, tasks, keep)
    _team.busy = False
    if failure is not None:
        raise failure


def _serve(team: _Team) -> None:
    """Do what the leader says until it says that there is no more."""
    log.setLevel(logging.WARNING)
    while True:
        team.busy = True
        said = _guard(_receive)
        team.busy = False
        if said is None:
            return
        job, tasks = said
        team.busy = True
        _rounds(team, job, tasks, lambda number, result: None)
        team.busy = False


def _rounds(
    team: _Team,
    job: Callable[[Any], Any],
    tasks: Sequence[Any],
    keep: Callable[[int, Any], None],
) -> BaseException | None:
    """This process's share of the tasks; returns the error that ended it for all, if any."""
    from torch import distributed

    failure: BaseException | None = None
    for first in range(0, len(tasks) + team.size, team.size):  # the last round only tells failures
        result: Any = None
        if failure is None and first + team.rank < len(tasks):
            try:
                result = job(tasks[first + team.rank])
            except (Exception, SystemExit) as error:  # whatever it is, the leader decides
                failure = error
        told: list[Any] = [None] * team.size
        mine = _told(failure, team.rank)
        _guard(partial(distributed.all_gather_object, told, mine))
        others = [row for row in told if row is not None]
        if others:
            return failure or _error(others[0])
        if first >= len(tasks):
            break
        results: list[Any] | None = None if team.rank else [None] * team.size
        _guard(partial(distributed.gather_object, result, results))
        if results is not None:
            try:
                for number in range(first, min(first + team.size, len(tasks))):
                    keep(number, results[number - first])
            except Exception as error:  # told to the others in the next round
                failure = error
    return None


def _told(error: BaseException | None, rank: int) -> tuple[type[EncbenchError], str] | None:
    """An error as it travels: some exceptions cannot be pickled."""
    if error is None:
        return None
    if isinstance(error, EncbenchError):
        return type(error), str(error)
    if rank:
        log.error("process %d failed", rank, exc_info=error)
    return EncbenchError, f"process {rank} failed: {describe_error(error)}"


def _error(told: tuple[type[EncbenchError], str]) -> EncbenchError:
    kind, message = told
    return kind.__new__(kind, message)  # by its message alone, whatever its constructor takes


def _send(what: Any) -> None:
    from torch import distributed

    _guard(lambda: distributed.broadcast_object_list([what], src=0))


def _receive() -> Any:
    from torch import distributed

    said: list[Any] = [None]
    distributed.broadcast_object_list(said, src=0)
    return said[0]


def _guard(exchange: Callable[[], R]) -> R:
    """Turn the library's error about a closed connection into one line."""
    try:
        return exchange()
    except RuntimeError as error:
        raise ProcessError(LOST) from error
