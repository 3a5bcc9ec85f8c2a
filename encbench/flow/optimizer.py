"""Optimizers, the schedule of their rate, and their state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .config import TrainConfig


def trainable(net: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name."""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def make_optimizers(config: TrainConfig, net: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW for everything; with 'muon', torch's Muon for the blocks' matrices and AdamW for
    the rest (K. Jordan et al., 2024; steps scaled to AdamW's size as in arXiv 2502.16982, so
    that one learning rate serves both)."""
    named = trainable(net)
    matrices = [
        p for name, p in named.items() if p.ndim == 2 and "blocks." in name
    ]  # of DiT and of SANA
    adamw: list[nn.Parameter] = list(named.values())
    made: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon" and matrices:
        held = {id(p) for p in matrices}
        adamw = [p for p in adamw if id(p) not in held]
        made.append(
            torch.optim.Muon(
                matrices,
                lr=config.lr,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    made.append(
        torch.optim.AdamW(
            adamw,
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,  # one pass over each tensor
        )
    )
    return made


def learning_rate_share(config: TrainConfig, step: int) -> float:
    """The share of the peak learning rate at a step: linear up, half a cosine down."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr_end + (1 - config.lr_end) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_rate(optimizers: Sequence[torch.optim.Optimizer], value: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = value


def to_tensors(
    optimizers: Sequence[torch.optim.Optimizer], named: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """All state of optimizers, under '<parameter>|<what>'."""
    names = {id(p): name for name, p in named.items()}
    return {
        f"{names[id(p)]}|{what}": torch.as_tensor(value)
        for optimizer in optimizers
        for p, state in optimizer.state.items()
        for what, value in state.items()
    }


def from_tensors(
    optimizers: Sequence[torch.optim.Optimizer],
    named: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put state back where :func:`to_tensors` took it.

    Raises:
        ModelError: if it belongs to other parameters.
    """
    by_name: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, _, what = key.rpartition("|")
        by_name.setdefault(name, {})[what] = tensor
    if not by_name.keys() <= named.keys():
        stranger = sorted(by_name.keys() - named.keys())[0]
        raise ModelError(f"the optimizer's state is of another network: it has {stranger}")
    names = {id(p): name for name, p in named.items()}
    for optimizer in optimizers:
        held = [p for group in optimizer.param_groups for p in group["params"]]
        found = {number: by_name.get(names[id(p)]) for number, p in enumerate(held)}
        optimizer.load_state_dict(
            {**optimizer.state_dict(), "state": {n: state for n, state in found.items() if state}}
        )  # which knows what belongs on which device, and in which type
