"""The base class of the zoo's recipes: a network, its loss at a step, and how it is saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..encoders.hf import quiet
from ..files import write_atomic
from .text import CaptionedScenes, Padded, by_length, caption_scenes

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
        """Random generator of this step, so that a stopped run resumes identically."""
        mixed = (self.seed * 1_000_003 + self.number) * 64 + salt
        return torch.Generator().manual_seed(mixed)


class ZooRecipe(ABC):
    """One member of the zoo.

    Attributes:
        name: as in the catalog.
        objective: the training objective in a few words.
        schedule: length and learning rate.
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
        """Called after each optimizer step."""
        return

    @abstractmethod
    def save(self, model: Any, folder: Path) -> int:
        """Write the network in its published layout, weights in bfloat16.

        Returns:
            The parameters that encode (a text, or an image for a re-encoder).
        """


class TextRecipe(ZooRecipe):
    """A text encoder, which reads each batch of captions in ``parts`` of like length."""

    schedule = Schedule(steps=TEXTS // 96, batch=96, rate=2e-3)
    parts = 4
    tokenizer: PreTrainedTokenizerFast

    def captions(self, at: StepContext) -> CaptionedScenes:
        """The scenes of a step with their captions."""
        return caption_scenes(at.number * self.schedule.batch, self.schedule.batch, at.seed)

    def split(self, ids: Sequence[Sequence[int]]) -> Iterator[Padded]:
        """A batch in its parts."""
        return by_length(ids, self.schedule.batch // self.parts)

    def save_encoder(self, model: Any, folder: Path, *encoding: nn.Module) -> int:
        """Write network and tokenizer, without what earlier use left in it (truncation,
        padding); the number of parameters of the modules that encode."""
        save_halved(model, folder)
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.save_pretrained(folder)
        return parameters_of(*encoding)


def save_halved(model: Any, folder: Path) -> None:
    """A transformers model with its weights rounded to bfloat16; the one in memory is kept."""
    exact = {name: value.detach().clone() for name, value in model.state_dict().items()}
    with quiet():
        model.to(torch.bfloat16).save_pretrained(folder)
    model.to(torch.float32).load_state_dict(exact)


def save_card(folder: Path, name: str, text: str) -> None:
    """A model card with the license, as the hub has them."""
    body = f"---\nlicense: apache-2.0\n---\n\n# {name}\n\n{text}\n"
    write_atomic(folder / "README.md", body.encode())


def parameters_of(*modules: nn.Module) -> int:
    return sum({id(p): p.numel() for m in modules for p in m.parameters()}.values())
