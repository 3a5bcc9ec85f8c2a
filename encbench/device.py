"""The device of this process, its rank in a launch, and running out of memory.

torch is loaded only when it is needed, so that the command line can ask for its rank at no cost.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from .errors import UsageError

if TYPE_CHECKING:
    import torch

DEVICE_HELP = "auto (CUDA if there is a card, else the CPU), cpu, cuda, cuda:N or mps."


class Launch(NamedTuple):
    """This process among those that ``torchrun`` or ``accelerate launch`` started; 0, 0, 1 if it is
    alone.

    Attributes:
        rank: number of the process among all; 0 leads.
        local_rank: number of the process on its machine, which chooses its card.
        size: how many processes there are.
    """

    rank: int
    local_rank: int
    size: int


def current_launch() -> Launch:
    """This process's place in the launch, from the environment alone."""
    rank, local, size = (
        int(os.environ.get(name) or default)
        for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    return Launch(rank, local, size)


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """The device to compute on. Under a launch of several processes each gets a card of its own.

    Args:
        device: 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'; a torch.device is returned as it is.
            'auto' never takes 'mps', which has no float64.

    Raises:
        UsageError: if there is no such device, naming those that there are.
    """
    import torch

    if isinstance(device, torch.device):
        return device
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    launch = current_launch()
    if device == "cpu" or (device == "auto" and not cards):
        return torch.device("cpu")
    if device == "mps":
        if not torch.backends.mps.is_available():
            raise UsageError("--device mps: this machine has no usable MPS device; use cpu")
        return torch.device("mps")
    kind, colon, number = device.partition(":")
    if device != "auto" and (kind != "cuda" or (colon and not number.isdecimal())):
        raise UsageError(f"--device {device}: known: auto, cpu, cuda, cuda:N, mps")
    if not cards:
        raise UsageError(f"--device {device}: this machine has no usable CUDA device; use cpu")
    if colon and launch.size > 1:
        raise UsageError(
            f"--device {device}: {launch.size} processes cannot share one card; give --device "
            "cuda, and each process gets a card of its own"
        )
    if colon and int(number) >= cards:
        known = "cuda:0" if cards == 1 else f"cuda:0 to cuda:{cards - 1}"
        raise UsageError(f"--device {device}: this machine has {known}")
    if colon:
        return torch.device("cuda", int(number))
    return torch.device(f"cuda:{launch.local_rank % cards}" if launch.size > 1 else "cuda")


def device_name(device: torch.device) -> str:
    """The device name to pass on, which :func:`choose_device` of each process turns into its own
    device."""
    return device.type if current_launch().size > 1 else str(device)


def card_name(device: torch.device) -> str:
    """The device as records name it: a GPU by its model."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: CUDA's own, Python's, or that of torch's
    allocator on the CPU, which is a plain RuntimeError."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in text or "out of memory" in text
    )
