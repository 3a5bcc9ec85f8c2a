"""Low-rank adapters for a pretrained SANA (LoRA, arXiv 2106.09685), by peft.

A frozen weight W computes as W + B A with a small A and B, which are trained: in the attention
layers, and in the embedding of the interval, which the pretrained model lacks. B starts at zero, so
the network starts as its parent. Checkpoints leave the frozen weights out and hold their sha256.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from torch import Tensor, nn

from ..errors import MissingLibraryError, UsageError

ADAPTED = re.compile(r"\.attn\d\.to_|^time_embed\.interval\.")
ADAPTER = ".lora_"
"""In the names of peft's weights."""


def add_adapters(transformer: Any, rank: int) -> None:
    """Put adapters into the attention layers of diffusers' transformer and its embedding of the
    interval; everything else is frozen. A is drawn from torch's global generator.

    Raises:
        MissingLibraryError: if peft is not installed.
        UsageError: if there are no attention layers, or the rank is above their width.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise MissingLibraryError("peft", "encbench[lora]", "--trainable lora") from error
    chosen = {
        name: part
        for name, part in transformer.named_modules()
        if isinstance(part, nn.Linear) and ADAPTED.search(name)
    }
    if not any(".attn" in name for name in chosen):
        raise UsageError(
            "this SANA has no attention layers, which --trainable lora adapts: take --trainable all"
        )
    most = min(min(part.weight.shape) for part in chosen.values())
    if rank > most:
        raise UsageError(
            f"--lora-rank {rank} is above the width of this SANA's layers ({most}): take a lower "
            "one, or --trainable emf"
        )
    # alpha = rank: W + B A as it stands
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(chosen)))


def has_adapters(net: nn.Module) -> bool:
    return any(ADAPTER in name for name, _ in net.named_parameters())


def merge_adapters(net: nn.Module) -> None:
    """Add B A to the weights and take the adapters out; a network without adapters stays."""
    if has_adapters(net):
        transformer: Any = net.transformer
        transformer.fuse_lora()
        transformer.unload_lora()


def frozen_weights(net: nn.Module) -> dict[str, Tensor]:
    """The weights under adapters, which checkpoints leave out; none of a network without."""
    if not has_adapters(net):
        return {}
    return {
        name: weight.detach()
        for name, weight in net.named_parameters()
        if name.startswith("transformer.") and ADAPTER not in name
    }


def pin_frozen(net: nn.Module) -> str:
    """sha256 of the weights under adapters; '' without adapters.

    The embeddings of time are not counted: ``--sana-times rescaled`` fits one of them, which can
    differ in the last bits between machines.
    """
    frozen = frozen_weights(net)
    if not frozen:
        return ""
    found = hashlib.sha256()
    for name in sorted(name for name in frozen if ".time_embed." not in name):
        found.update(name.encode())
        found.update(frozen[name].cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
