"""The group of the processes of a launch: how they find one another, and how a lost one is
noticed."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from .device import Launch, choose_device, current_launch
from .errors import ProcessError, UsageError, first_line

R = TypeVar("R")
PATIENCE = timedelta(days=30)  # the others wait while the leader computes scores
CONNECT = "ENCBENCH_CONNECT_SECONDS"  # how long processes wait for one another at the start
CONNECT_SECONDS = 600.0
LOST = "another process of this command is gone; run the same command again, finished work is kept"


def join_group() -> None:
    """Form one group with the other processes of a launch. A second call changes nothing.

    Objects and CPU tensors are sent by gloo, GPU tensors by NCCL.

    Raises:
        ProcessError: if the processes cannot reach one another.
    """
    import torch

    # torch.distributed.nn keeps the group of the moment it is imported, in arguments' defaults,
    # and torch.optim imports it at its first step. Such a group outlives leave_group. So it is
    # imported before there is a group.
    import torch.distributed.nn
    from torch import distributed

    if distributed.is_initialized():
        return
    cards = torch.cuda.is_available()
    if cards:
        torch.cuda.set_device(choose_device("cuda"))
    launch, limit = current_launch(), timedelta(seconds=_connect_seconds())
    address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    _choose_interface()
    library: Any = distributed  # these two are public, but not exported for type checkers
    try:
        found, _, _ = next(library.rendezvous("env://", timeout=limit))
        store = library.PrefixStore("encbench", found)
        _await_all(store, launch, limit)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cards else "gloo", timeout=limit,
            store=store, rank=launch.rank, world_size=launch.size,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        who = "the other processes" if launch.rank == 0 else "process 0"
        raise ProcessError(
            f"process {launch.rank} of {launch.size} cannot reach {who} at {address} "
            f"({first_line(error)}); start all of them, check that this address can be reached "
            f"from every host, or wait longer than {limit.total_seconds():g} s with {CONNECT}"
        ) from error
    _set_timeout(PATIENCE)


def _connect_seconds() -> float:
    given = os.environ.get(CONNECT, "")
    try:
        return float(given or CONNECT_SECONDS)
    except ValueError:
        raise UsageError(f"{CONNECT} must be a number of seconds, not '{given}'") from None


def _await_all(store: Any, launch: Launch, limit: timedelta) -> None:
    """Wait until every process has joined.

    Raises:
        ProcessError: naming those that have not.
    """
    names = [f"here/{rank}" for rank in range(launch.size)]
    store.set(names[launch.rank], "")
    try:
        store.wait(names, limit)
    except RuntimeError as error:
        away = [str(rank) for rank, name in enumerate(names) if not store.check([name])]
        raise ProcessError(
            f"process {', '.join(away)} of {launch.size} did not come within "
            f"{limit.total_seconds():g} s; start the same command for all of them, or wait longer "
            f"with {CONNECT}"
        ) from error


def _choose_interface() -> None:
    """Tell gloo the network interface that leads to the first process. It would take the one of
    the host's own name, which on many hosts is the loopback, where no other host gets to."""
    import psutil

    address = os.environ.get("MASTER_ADDR")
    if "GLOO_SOCKET_IFNAME" in os.environ or not address:
        return
    try:
        family, kind, _, _, where = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)  # of a datagram socket: nothing is sent
            own = probe.getsockname()[0]
    except OSError:
        return  # the rendezvous says what is wrong
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == own for each in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name


def _set_timeout(limit: timedelta) -> None:
    from torch.distributed import distributed_c10d as c10d

    (getattr(c10d, "set_timeout", None) or c10d._set_pg_timeout)(limit, None)


_mesh: Any = None


def group_mesh(kind: str) -> Any:
    """All processes of the group as a mesh (:class:`torch.distributed.DeviceMesh`), over which
    tensors are sharded. It is made once, for the ``kind`` of device of the first call."""
    from torch.distributed import get_world_size
    from torch.distributed.device_mesh import init_device_mesh

    global _mesh
    if _mesh is None:
        _mesh = init_device_mesh(kind, (get_world_size(),))
    return _mesh


def leave_group() -> None:
    """Leave the group, if there is one, and end its threads.

    A thread that is still there when the interpreter ends may have to free the tensors of the last
    exchange, which have Python objects, and then the process ends by SIGABRT.
    """
    from torch import distributed

    global _mesh
    if not distributed.is_initialized():
        return
    distributed.destroy_process_group()
    if _mesh is not None:  # torch's caches keep it, so it must not keep the group
        getattr(_mesh, "_pg_registry", {}).clear()
        _mesh = None
    gc.collect()  # sharded networks are in cycles, and hold the group


def guard(exchange: Callable[[], R]) -> R:
    """Turn the library's error about a closed connection into one line."""
    try:
        return exchange()
    except RuntimeError as error:
        raise ProcessError(LOST) from error


def is_lost(error: BaseException) -> bool:
    """Whether an error during the work of a team means that another process was lost."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return False
    text = str(error).lower()
    return isinstance(error, distributed.DistError) or "gloo" in text or "nccl" in text
