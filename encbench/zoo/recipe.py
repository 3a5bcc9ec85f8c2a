"""What a recipe of the zoo is: a network, its loss at a step, and how it is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..encoders.hf import quiet
from ..files import write_atomic
from .text import CONTEXT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXTS = 98_304  # that every text encoder reads
WIDTH, DEPTH, HEADS = 128, 3, 4
MLP = 4 * WIDTH
GATED_MLP = 344  # three matrices of this height hold as much as two of MLP's


@dataclass(frozen=True)
class Schedule:
    """AdamW with warm-up and cosine decay.

    Attributes:
        steps: in all.
        batch: scenes (each with a text, where texts are read) a step.
        rate: learning rate at its highest.
        warmup: share of the steps in which the rate rises.
        decay: weight decay of matrices.
        beta2: of AdamW.
        clip: greatest norm of the gradient.
    """

    steps: int
    batch: int
    rate: float
    warmup: float = 0.05
    decay: float = 0.05
    beta2: float = 0.98
    clip: float = 1.0


@dataclass(frozen=True)
class StepContext:
    """A point in training: step ``number`` (from 0) of ``steps``; ``seed`` of the run."""

    number: int
    steps: int
    seed: int

    @property
    def progress(self) -> float:
        return self.number / self.steps

    def generator(self, salt: int = 0) -> torch.Generator:
        """Randomness of this step alone, so that a run that was stopped goes on the same."""
        mixed = (self.seed * 1_000_003 + self.number) * 64 + salt
        return torch.Generator().manual_seed(mixed)


class ZooRecipe(ABC):
    """One member of the zoo.

    Attributes:
        name: as in the catalog.
        objective: what it is trained to do, in a few words.
        schedule: how long and how fast.
    """

    name: str
    objective: str
    schedule: Schedule

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, initialized by torch's global seed."""

    @abstractmethod
    def loss(self, model: Any, at: StepContext) -> Tensor:
        """The loss of a step's batch, which depends on ``at`` alone; a scalar."""

    def after(self, model: Any, at: StepContext) -> None:
        """What else happens after a step of the optimizer."""
        return

    @abstractmethod
    def save(self, model: Any, folder: Path) -> int:
        """Write the network in its published layout, weights in bfloat16.

        Returns:
            The parameters that encode (a text, or an image for a re-encoder).
        """


def save_halved(model: Any, folder: Path) -> None:
    """A transformers model with its weights rounded to bfloat16; the one in memory is kept."""
    exact = {name: value.detach().clone() for name, value in model.state_dict().items()}
    with quiet():
        model.to(torch.bfloat16).save_pretrained(folder)
    model.to(torch.float32).load_state_dict(exact)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """The tokenizer's files, without what earlier use left in it (truncation, padding)."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


def save_card(folder: Path, name: str, text: str) -> None:
    """A model card with the license, as the hub has them."""
    body = f"---\nlicense: apache-2.0\n---\n\n# {name}\n\n{text}\n"
    write_atomic(folder / "README.md", body.encode())


def parameters_of(*modules: nn.Module) -> int:
    return sum({id(p): p.numel() for m in modules for p in m.parameters()}.values())


__all__ = [
    "CONTEXT",
    "DEPTH",
    "GATED_MLP",
    "HEADS",
    "MLP",
    "TEXTS",
    "WIDTH",
    "Schedule",
    "StepContext",
    "ZooRecipe",
    "parameters_of",
    "save_card",
    "save_halved",
    "save_tokenizer",
]
