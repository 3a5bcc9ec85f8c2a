"""Improved MeanFlow (iMF, arXiv 2512.02012)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..meanflow import as_velocity, average_velocity
from .base import Batch, Velocities
from .guidance import GuidedObjective


@dataclass(frozen=True)
class IMF(GuidedObjective):
    """u + (t - r) du/dt is regressed to v, with du/dt along the network's own velocity.

    That velocity is the network's output at r = t, or its velocity head's, which then learns v.

    Attributes:
        head_weight: of the head's loss.
    """

    head_weight: float = 1.0

    name: ClassVar[str] = "imf"

    def predict(self, batch: Batch) -> Velocities:
        net: Any = batch.net
        if not getattr(net, "velocity_head", False):
            return super().predict(batch)
        prediction, head = net.with_velocity(batch.z, batch.r, batch.t, batch.cond)
        return Velocities(
            as_velocity(batch.net, prediction, batch.z, batch.t), head.to(batch.z.dtype)
        )

    def tangent(
        self, batch: Batch, v: Float[Tensor, "B ..."], head: Float[Tensor, "B ..."] | None
    ) -> Float[Tensor, "B ..."]:
        """The network's own velocity at z, t."""
        if head is not None:
            return head
        with torch.no_grad():
            return average_velocity(batch.net, batch.z, batch.t, batch.t, batch.cond)

    def error(
        self, u: Float[Tensor, "B ..."], v: Float[Tensor, "B ..."],
        correction: Float[Tensor, "B ..."],
    ) -> Float[Tensor, "B ..."]:  # fmt: skip
        """V - v with V = u + (t - r) sg(du/dt): MeanFlow's number, but a regression of the data's
        velocity once du/dt is taken along the network's own."""
        return (u + correction.detach()) - v.detach()

    def further_terms(
        self, batch: Batch, v: Float[Tensor, "B ..."], velocities: Velocities
    ) -> Iterator[Float[Tensor, ""]]:
        """The head's own loss (iMF; pMF, section 4.3)."""
        if velocities.head is not None:
            yield self.head_weight * self.weigh(velocities.head - v.detach())
