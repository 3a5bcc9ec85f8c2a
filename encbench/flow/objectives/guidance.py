"""Classifier-free guidance inside the target, which a model then samples in one forward."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from ...errors import UsageError
from ..derivative import along
from ..meanflow import Condition, average_velocity
from .base import GUIDANCE, Batch, Objective


@dataclass(frozen=True)
class GuidedObjective(Objective):
    """The base of objectives whose target may hold guidance.

    Attributes:
        omega, kappa: scales; 1 and 0 are none. The model samples as if guided by
            omega / (1 - kappa).
        guidance_span: the t in which guidance holds.
        guidance_max: above 1, each row draws its own scale w from 1 to this (density 1 / w) and
            its own span, which the network gets as inputs (iMF, section 3.3; pMF).
    """

    omega: float = 1.0
    kappa: float = 0.0
    guidance_span: tuple[float, ...] = (0.0, 1.0)
    guidance_max: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.kappa < 1:
            raise UsageError(f"kappa must lie in [0, 1), not {self.kappa}")
        check_span(self.guidance_span)
        if self.guidance_max < 1:
            raise UsageError(f"the largest guidance scale is at least 1, not {self.guidance_max}")
        if self.guidance_max > 1 and (self.omega, self.kappa) != (1, 0):
            raise UsageError("give either --guidance-max or --omega and --kappa, not both")

    def prepare(self, batch: Batch) -> Batch:
        """Draws each row's guidance: its start uniform in [0, .5), its end in [.5, 1); all t where
        r = t."""
        if self.guidance_max == 1 or batch.uniform is None:
            return batch
        scale, low, high = batch.uniform[:, GUIDANCE].to(batch.x.dtype).unbind(1)
        kappa = 1 - torch.exp(-math.log(self.guidance_max) * scale)
        whole = batch.r == batch.t
        low, high = (low / 2).masked_fill(whole, 0), (0.5 + high / 2).masked_fill(whole, 1)
        return replace(batch, cond=batch.cond.guided(torch.stack([kappa, low, high], 1)))

    def target(self, batch: Batch) -> Float[Tensor, "B ..."]:
        """omega v + kappa u(z, t, t | c) + (1 - omega - kappa) u(z, t, t | none) (MeanFlow,
        Eq. 19 and appendix), in rows that keep their prompt and whose t lies in the span. With
        drawn guidance omega = 1 and kappa = 1 - 1 / w (iMF, section 3.3)."""
        v = super().target(batch)
        if (self.omega, self.kappa, self.guidance_max) == (1, 0, 1):
            return v
        inside = in_span(batch, self.guidance_span)
        rows = (inside if batch.drop is None else inside & ~batch.drop).nonzero()[:, 0]
        if not len(rows):
            return v
        cond, kappa = batch.cond.rows(rows), cast(float | Tensor, self.kappa)
        if cond.guidance is not None:
            kappa = along(cond.guidance[:, 0], v[rows])
            cond = at_all_times(cond)
        z, t = torch.cat([batch.z[rows]] * 2), torch.cat([batch.t[rows]] * 2)
        given, none = self.velocity(batch, z, t, cond.and_without()).chunk(2)
        guided = self.omega * v[rows] + kappa * given
        return v.index_copy(0, rows, guided + (1 - self.omega - kappa) * none)

    def velocity(
        self, batch: Batch, z: Float[Tensor, "N ..."], t: Float[Tensor, " N"], cond: Condition
    ) -> Float[Tensor, "N ..."]:
        """The network's velocity at r = t, without a graph."""
        with torch.no_grad():
            return average_velocity(batch.net, z, t, t, cond)


def check_span(span: tuple[float, ...]) -> None:
    """
    Raises:
        UsageError: unless these are two times, 0 <= first < second <= 1.
    """
    if len(span) != 2 or not 0 <= span[0] < span[1] <= 1:
        given = " ".join(map(str, span))
        raise UsageError(f"--guidance-span takes two times from 0 to 1, such as .2 .8, not {given}")


def in_span(batch: Batch, span: tuple[float, ...]) -> Tensor:
    """True in rows whose t lies in their own span of guidance, or in this one."""
    low, high = span if batch.cond.guidance is None else batch.cond.guidance[:, 1:].unbind(1)
    return (batch.t >= low) & (batch.t <= high)


def at_all_times(cond: Condition) -> Condition:
    """The same scales of guidance, for all t: how a velocity at r = t is asked for."""
    assert cond.guidance is not None
    scale = cond.guidance[:, :1]
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    return cond.guided(torch.cat([scale, zero, one], 1))
