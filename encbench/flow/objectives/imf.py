"""Improved MeanFlow (iMF, arXiv 2512.02012)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UsageError
from ..meanflow import Condition, as_velocity
from .base import Batch, Velocities
from .guidance import GuidedObjective, at_all_times, in_span


@dataclass(frozen=True)
class IMF(GuidedObjective):
    """u + (t - r) du/dt is regressed to v, with du/dt along the network's own velocity.

    That velocity is the network's output at r = t, or its velocity head's, which then learns v.

    Attributes:
        head_weight: of the head's loss.
        head_at: where the head gives the tangent: 'interval', at (r, t) in the forward that all
            rows share; or 'instant', at r = t in one of its own, and the guidance, too, as in
            the authors' code.
    """

    head_weight: float = 1.0
    head_at: str = "interval"

    name: ClassVar[str] = "imf"

    def predict(self, batch: Batch) -> Velocities:
        net: Any = batch.net
        if not getattr(net, "velocity_head", False):
            if self.head_at == "instant":
                raise UsageError(
                    "--head-at instant needs the velocity head, and this network has none: train "
                    "it with --velocity-head, or leave --head-at out"
                )
            return super().predict(batch)
        prediction, head = net.with_velocity(batch.z, batch.r, batch.t, batch.cond)
        return Velocities(
            as_velocity(batch.net, prediction, batch.z, batch.t), head.to(batch.z.dtype)
        )

    def tangent(
        self, batch: Batch, v: Float[Tensor, "B ..."], head: Float[Tensor, "B ..."] | None
    ) -> Float[Tensor, "B ..."]:
        """The network's own velocity at z, t; guided where the row's t lies in its span."""
        if head is not None and self.head_at == "interval":
            return head
        cond = batch.cond
        if cond.guidance is not None:
            inside = in_span(batch, self.guidance_span)[:, None]
            cond = at_all_times(cond.guided(cond.guidance * inside))
        return self.velocity(batch, batch.z, batch.t, cond)

    def velocity(
        self, batch: Batch, z: Float[Tensor, "N ..."], t: Float[Tensor, " N"], cond: Condition
    ) -> Float[Tensor, "N ..."]:
        """The head's, where it is asked at r = t; else the network's output there."""
        if self.head_at == "interval":
            return super().velocity(batch, z, t, cond)
        net: Any = batch.net
        with torch.no_grad():
            velocity: Tensor = net.with_velocity(z, t, t, cond)[1].to(z.dtype)
            return velocity

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
