"""The processes that train one model together, through accelerate; or a process by itself."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed
from ..device import current_launch
from ..errors import UsageError


class Team:
    """Who trains: this process alone, or all that ``accelerate launch`` or ``torchrun`` started.

    As a context: after it, unless it failed, the process leaves the others when it ends.

    Args:
        device: where to compute; with several processes accelerate chooses the card.
        alone: train in this process only, whatever started it (one model a device).
    """

    def __init__(self, device: torch.device, *, alone: bool = False) -> None:
        self.rank, self.size, self.device = 0, 1, device
        self._accelerator: Any = None
        if not alone and current_launch().size > 1:
            from accelerate import Accelerator

            distributed.before_group()
            self._accelerator = Accelerator(cpu=device.type == "cpu")
            self.rank = self._accelerator.process_index
            self.size = self._accelerator.num_processes
            self.device = self._accelerator.device

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None and self._accelerator is not None:  # not yet: another training may follow
            from accelerate import PartialState

            atexit.register(PartialState().destroy_process_group)  # the state holds no model

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module, *, unused: bool = False) -> nn.Module:
        """The module, averaging its gradients over all processes.

        Args:
            unused: whether some parameters may have no part in a step.
        """
        if self._accelerator is None:
            return module
        from accelerate import DistributedDataParallelKwargs

        self._accelerator.ddp_handler = DistributedDataParallelKwargs(
            find_unused_parameters=unused, broadcast_buffers=False
        )
        return self._accelerator.prepare_model(module)

    def backward(self, loss: Tensor) -> None:
        if self._accelerator is None:
            loss.backward()
        else:
            self._accelerator.backward(loss)

    def quiet(self, module: nn.Module, *, when: bool) -> AbstractContextManager[Any]:
        """Without an exchange of gradients, for all but the last part of a batch."""
        if self._accelerator is None or not when:
            return nullcontext()
        return self._accelerator.no_sync(module)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        if self._accelerator is None:
            return values
        return self._accelerator.reduce(values, reduction="sum")

    def wait(self) -> None:
        """Until all processes are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The first process goes through before the others, which find what it made."""
        if self.leads:
            yield
        self.wait()
        if not self.leads:
            yield

    def share(self, batch: int, parts: int) -> int:
        """Images of one part of a batch in one process.

        Raises:
            UsageError: if they cannot be shared evenly.
        """
        if batch % (parts * self.size):
            raise UsageError(
                f"--batch {batch} cannot be shared by {self.size} processes in {parts} parts; "
                f"take a multiple of {parts * self.size}"
            )
        return batch // (parts * self.size)
