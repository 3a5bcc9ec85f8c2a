"""Shared by the training loops: learning-rate schedule, one optimizer step, and the optimizers'
state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelError

Optimizers = Sequence[torch.optim.Optimizer]


def trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def warmup_cosine(step: int, steps: int, warmup: int, end: float = 0.0) -> float:
    """The share of the peak learning rate at a step: linear up, half a cosine down to ``end``."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_learning_rate(optimizers: Optimizers, value: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value


def descend(
    loss: Tensor, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter],
    clip: float | None, what: str,
) -> float:  # fmt: skip
    """One optimizer step with a clipped gradient; returns the loss.

    Raises:
        ModelError: beginning with ``what``, if the loss is not finite; then nothing is changed.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise ModelError(f"{what} is not finite ({value})")
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    if clip is not None:
        nn.utils.clip_grad_norm_(list(parameters), clip)
    optimizer.step()
    return value


def state_tensors(optimizers: Optimizers, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """All state of optimizers, under '<parameter>|<what>'."""
    names = {id(p): name for name, p in named.items()}
    return {
        f"{names[id(p)]}|{what}": torch.as_tensor(value)
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for what, value in state.items()
    }


def load_state_tensors(
    optimizers: Optimizers, named: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor],
    where: object = "the optimizer's state",
) -> None:  # fmt: skip
    """Put state back where :func:`state_tensors` took it.

    Raises:
        ModelError: beginning with ``where``, if it belongs to other parameters.
    """
    by_name: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, _, what = key.rpartition("|")
        if name not in named or tensor.shape not in ((), named[name].shape):
            raise ModelError(
                f"{where} belongs to another network: {key} is unknown or has another shape"
            )
        by_name.setdefault(name, {})[what] = tensor
    names = {id(p): name for name, p in named.items()}
    for optimizer in optimizers:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        found = {number: by_name.get(names[id(p)]) for number, p in enumerate(held)}
        optimizer.load_state_dict(
            {**optimizer.state_dict(), "state": {n: state for n, state in found.items() if state}}
        )  # which knows what belongs on which device, and in which type
