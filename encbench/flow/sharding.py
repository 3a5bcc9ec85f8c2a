"""Sharded training: weights, gradients and optimizer state are divided among all processes.

By torch's FSDP2 (``fully_shard``, arXiv 2304.11277): every process holds its part of each tensor,
and the parts of one block are put together while it computes. Checkpoints hold whole tensors, as
those of any other training, so they load on any number of processes, sharded or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..group import group_mesh
from .config import TrainConfig


def check_sharding(config: TrainConfig) -> None:
    """
    Raises:
        UsageError: if a setting does not go with --shard.
    """
    if config.shard and config.compile:
        raise UsageError("--shard and --compile do not go together: add --no-compile")
    if config.shard and (config.omega, config.kappa, config.guidance_max) != (1, 0, 1):
        raise UsageError("--shard and guidance inside the target do not go together")
    if config.shard and config.optimizer == "muon":
        raise UsageError(
            "--shard needs --optimizer adamw: a step of Muon needs whole matrices in one place"
        )


def shard(net: nn.Module, device: torch.device) -> None:
    """Shard a network over all processes, in place, a block at a time.

    All processes must hold the same weights before. It is moved to the device.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = group_mesh(device.type)
    for block in transformer_blocks(net):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh, reshard_after_forward=True)  # also where no backward follows
    if hasattr(net, "with_velocity"):
        register_fsdp_forward_method(net, "with_velocity")
    for buffer in net.buffers():
        buffer.data = buffer.data.to(device)


def transformer_blocks(net: nn.Module) -> list[nn.Module]:
    """Transformer blocks of a DiT or a SANA: entries of the outermost lists of modules."""
    found: list[nn.Module] = []
    for part in net.children():
        if isinstance(part, nn.ModuleList):
            found += [block for block in part if any(True for _ in block.children())]
        else:
            found += transformer_blocks(part)
    return found


def whole(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """The same tensors put together one by one, on the CPU of the processes that ``keep`` them.
    All processes must call it, with the same names in the same order."""
    held = {}
    for name, tensor in tensors.items():
        full = gather(tensor)
        if keep:
            held[name] = full.cpu()
    return held


def gather(tensor: Tensor) -> Tensor:
    """A tensor put together in all processes; one that is not sharded as it is."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def spread(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that all processes hold, sharded as ``like`` is."""
    if not hasattr(like, "device_mesh") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    made: Any = like
    given = tensor.to(like.device)
    return distribute_tensor(given, made.device_mesh, made.placements, src_data_rank=None)


def recompute_activations(net: Any) -> None:
    """Keep only what enters each block for the backward pass, and compute the rest again
    (arXiv 1604.06174). du/dt is computed without a graph, so nothing of it is kept anyway."""
    transformer = getattr(net, "transformer", None)
    if transformer is not None:
        transformer.enable_gradient_checkpointing()
    else:
        net.recompute = True


def clip(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """Clip the gradient's norm; what it was before."""
    norm = nn.utils.clip_grad_norm_(list(parameters), most, foreach=True)
    return gather(norm)
