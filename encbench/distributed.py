"""Several processes, on one machine or many: they form a group and share work in one of two ways.

Under ``accelerate launch`` or ``torchrun`` every process runs the same command line.

Most commands have a leader (:func:`run_command`). The first process alone reads data, takes
decisions, computes scores and writes records. The others serve: they wait for jobs (a picklable
callable and its tasks) and send results or errors back to the leader. So nothing is decided twice,
and no two processes can disagree.

A training has a :class:`Team`: every process takes its share of each batch, and accelerate averages
gradients. The leader alone writes.

A single process does the same work without torch.distributed.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .device import current_launch
from .errors import EncbenchError, ProcessError, UsageError, describe_error
from .group import guard, join_group, leave_group
from .progress import log

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")


@dataclass
class _Place:
    """This process's place under a leader. ``busy``: in the middle of an exchange, so that no
    other one may begin."""

    rank: int
    size: int
    busy: bool = False


_place: _Place | None = None


def is_leader() -> bool:
    """Whether this process is the only one or the first, by the environment."""
    return current_launch().rank == 0


def process_count() -> int:
    """How many processes share the leader's work. It is 1 outside of :func:`run_command`, and
    within a task that is already shared, since exchanges cannot be nested."""
    return _place.size if _place and not _place.busy else 1


def run_command(work: Callable[[], None]) -> None:
    """Run ``work`` in the leader and serve it in all other processes of a launch.

    Raises:
        ProcessError: if another process is lost.
    """
    global _place
    size = current_launch().size
    if size == 1:
        if "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ:
            log.warning(
                "accelerate launch starts one process only with --cpu; for several use "
                "'accelerate launch --multi_gpu' or 'torchrun --nproc-per-node N -m encbench ...'"
            )
        work()
        return
    join_group()
    place = _place = _Place(current_launch().rank, size)
    try:
        if place.rank:
            _serve(place)
        else:
            log.info("%d processes share the encoding", size)
            work()
    finally:
        _place = None
        if not place.busy and place.rank == 0:  # else they learn it from the connection that closes
            _send(None)
        leave_group()


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
    assert _place is not None
    assert _place.rank == 0
    _place.busy = True
    _send((job, list(tasks)))
    failure = _rounds(_place, own or job, tasks, keep)
    _place.busy = False
    if failure is not None:
        raise failure


def _serve(place: _Place) -> None:
    """Run the leader's jobs until it ends the work."""
    log.setLevel(logging.WARNING)
    while True:
        place.busy = True
        said = guard(_receive)
        place.busy = False
        if said is None:
            return
        job, tasks = said
        place.busy = True
        _rounds(place, job, tasks, lambda number, result: None)
        place.busy = False


def _rounds(
    place: _Place,
    job: Callable[[Any], Any],
    tasks: Sequence[Any],
    keep: Callable[[int, Any], None],
) -> BaseException | None:
    """This process's share of the tasks; returns the error that ended it for all, if any."""
    from torch import distributed

    failure: BaseException | None = None
    # the last round only tells failures
    for first in range(0, len(tasks) + place.size, place.size):
        result: Any = None
        if failure is None and first + place.rank < len(tasks):
            try:
                result = job(tasks[first + place.rank])
            except (Exception, SystemExit) as error:  # whatever it is, the leader decides
                failure = error
        told: list[Any] = [None] * place.size
        mine = _told(failure, place.rank)
        guard(partial(distributed.all_gather_object, told, mine))
        others = [row for row in told if row is not None]
        if others:
            return failure or _error(others[0])
        if first >= len(tasks):
            break
        results: list[Any] | None = None if place.rank else [None] * place.size
        guard(partial(distributed.gather_object, result, results))
        if results is not None:
            try:
                for number in range(first, min(first + place.size, len(tasks))):
                    keep(number, results[number - first])
            except Exception as error:  # reported to the others in the next round
                failure = error
    return None


def _told(error: BaseException | None, rank: int) -> tuple[type[EncbenchError], str] | None:
    """An error as it is sent to the leader: some exceptions cannot be pickled."""
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

    guard(lambda: distributed.broadcast_object_list([what], src=0))


def _receive() -> Any:
    from torch import distributed

    said: list[Any] = [None]
    distributed.broadcast_object_list(said, src=0)
    return said[0]


# ---------------------------------------------------------------------------- one training


class Team:
    """The processes that train one model together, through accelerate: all of a launch, or this
    one by itself.

    As a context manager: after it succeeded, the process leaves the group when it ends.

    Args:
        device: where this process computes.
        alone: train in this process only, whatever started it (one model a device).
    """

    def __init__(self, device: torch.device, *, alone: bool = False) -> None:
        launch = current_launch()
        self.device = device
        self.rank, self.size = (0, 1) if alone else (launch.rank, launch.size)
        if self.size > 1:
            join_group()

    @cached_property
    def _accelerator(self) -> Any:
        from accelerate import Accelerator

        return Accelerator(cpu=self.device.type == "cpu")

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None and self.size > 1:
            atexit.register(leave_group)  # not yet: another training may follow

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wrap(self, module: torch.nn.Module, *, unused: bool = False) -> torch.nn.Module:
        """The module, averaging its gradients over all processes.

        Args:
            unused: whether some parameters may have no part in a step.
        """
        if self.size == 1:
            return module
        from accelerate import DistributedDataParallelKwargs

        self._accelerator.ddp_handler = DistributedDataParallelKwargs(
            find_unused_parameters=unused, broadcast_buffers=False
        )
        wrapped: torch.nn.Module = self._accelerator.prepare_model(module)
        return wrapped

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a part of a batch."""
        if self.size == 1:
            loss.backward()
        else:
            self._accelerator.backward(loss)

    def quiet(self, module: Any, *, when: bool) -> AbstractContextManager[Any]:
        """No exchange of gradients inside; for all but the last part of a batch."""
        if self.size == 1 or not when:
            return nullcontext()
        return cast(AbstractContextManager[Any], self._accelerator.no_sync(module))

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return values
        summed: torch.Tensor = guard(partial(self._accelerator.reduce, values, reduction="sum"))
        return summed

    def check_same(self, number: int, what: str) -> None:
        """
        Raises:
            ProcessError: in all processes, if they found different numbers in ``what``.
        """
        import torch

        found = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        found[self.rank] = number
        numbers = self.total(found).tolist()
        if len(set(numbers)) > 1:
            raise ProcessError(
                f"the processes see different {what} (up to step "
                f"{' and '.join(map(str, sorted(set(numbers))))}): put the folder on a file system "
                "that all hosts share"
            )

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            guard(self._accelerator.wait_for_everyone)

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The first process runs the block before the others, which find what it made."""
        if self.leads:
            yield
        self.wait()
        if not self.leads:
            yield


def share_batch(batch: int, parts: int, processes: int) -> int:
    """Images of one part of a batch in one of several processes.

    Raises:
        UsageError: if they cannot be shared evenly.
    """
    if batch % (parts * processes):
        raise UsageError(
            f"--batch {batch} cannot be shared by {processes} processes in {parts} parts; "
            f"take a multiple of {parts * processes}"
        )
    return batch // (parts * processes)
