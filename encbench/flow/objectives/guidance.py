"""Classifier-free guidance inside the target, which a model then samples in one forward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UsageError
from ..meanflow import average_velocity
from .base import Batch, Objective


@dataclass(frozen=True)
class GuidedObjective(Objective):
    """The base of objectives whose target may hold guidance.

    Attributes:
        omega, kappa: scales; 1 and 0 are none. The model samples as if guided by
            omega / (1 - kappa).
        guidance_span: the t in which guidance holds.
    """

    omega: float = 1.0
    kappa: float = 0.0
    guidance_span: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.kappa < 1:
            raise UsageError(f"kappa must lie in [0, 1), not {self.kappa}")

    def target(self, batch: Batch) -> Float[Tensor, "B ..."]:
        """omega v + kappa u(z, t, t | c) + (1 - omega - kappa) u(z, t, t | none) (MeanFlow,
        Eq. 19 and appendix), in rows that keep their prompt and whose t lies in the span."""
        v = super().target(batch)
        low, high = self.guidance_span
        inside = (batch.t >= low) & (batch.t <= high)
        rows = (inside if batch.drop is None else inside & ~batch.drop).nonzero()[:, 0]
        if (self.omega == 1 and self.kappa == 0) or not len(rows):
            return v
        with torch.no_grad():
            z, t = torch.cat([batch.z[rows]] * 2), torch.cat([batch.t[rows]] * 2)
            u = average_velocity(batch.net, z, t, t, batch.cond.rows(rows).and_without())
            given, none = u.chunk(2)
            guided = self.omega * v[rows] + self.kappa * given
            return v.index_copy(0, rows, guided + (1 - self.omega - self.kappa) * none)
