"""MeanFlow: the identity, velocities of a network, and the sampler.

Convention: t in [0, 1], t = 0 data x, t = 1 noise e; z_t = (1 - t) x + t e with velocity
v = e - x; u(z_t, r, t) is the average velocity over [r, t], r <= t, and z_r = z_t - (t - r) u.
Differentiating z_r along the path gives the identity behind all objectives,

    u = v - (t - r) du/dt,      du/dt = v . grad_z u + d_t u        (:mod:`.derivative`)

The losses are in :mod:`.objectives` and :mod:`.loss`.

Sources: MeanFlow arXiv 2505.13447, EMF 2604.18168, iMF 2512.02012, pMF 2601.22158.
Every function takes its randomness (noise, times, what to drop) as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..errors import UsageError
from .derivative import along

T_CLIP = 0.05
"""Below this t the velocity of an x-predicting network is (z - x_hat) / T_CLIP (pMF)."""


UNGUIDED = (0.0, 0.0, 1.0)
"""Guidance of scale 1, at all t."""


@dataclass(frozen=True)
class Condition:
    """Text features of B prompts, as tensors.

    Attributes:
        mask: True = real token.
        guidance: for a network with guidance as an input, 1 - 1 / scale and the t between which
            it holds; None = :data:`UNGUIDED`.
    """

    tokens: Float[Tensor, "B L D"]
    mask: Bool[Tensor, "B L"]
    pooled: Float[Tensor, "B P"] | None = None
    guidance: Float[Tensor, "B 3"] | None = None

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        optional = (None if p is None else change(p) for p in (self.pooled, self.guidance))
        return Condition(change(self.tokens), change(self.mask), *optional)

    def guided(self, guidance: Sequence[float] | Tensor) -> Condition:
        """With this guidance, given for all rows or for each."""
        given = torch.as_tensor(guidance, dtype=self.tokens.dtype, device=self.tokens.device)
        return replace(self, guidance=given.expand(len(self.tokens), 3))

    def rows(self, index: Tensor | slice) -> Condition:
        """The features of some prompts, in the order of ``index``."""
        return self._map(lambda part: part[index])

    def to(self, device: torch.device | str) -> Condition:
        return self._map(lambda part: part.to(device))

    def drop(self, which: Bool[Tensor, " B"]) -> Condition:
        """Without the prompt in these rows: zeros, of which position 0 counts as real."""
        first = torch.arange(self.mask.shape[1], device=self.mask.device) == 0
        mask = torch.where(which[:, None], first, self.mask)
        tokens = self.tokens.masked_fill(which[:, None, None], 0)
        pooled = None if self.pooled is None else self.pooled.masked_fill(which[:, None], 0)
        return replace(self, tokens=tokens, mask=mask, pooled=pooled)

    def and_without(self) -> Condition:
        """2B rows: all prompts, then as many rows without one. For guidance in one forward."""
        rows = len(self.mask)
        both = self._map(lambda part: torch.cat([part, part]))
        if both.guidance is not None:
            both.guidance[rows:] = both.guidance.new_tensor(UNGUIDED)
        return both.drop(torch.arange(2 * rows, device=self.mask.device) >= rows)


@runtime_checkable
class VelocityNet(Protocol):
    """A torch module that predicts the average velocity u over [r, t], or the data x.

    ``prediction`` says which. A network with an auxiliary velocity head has
    ``velocity_head = True`` and ``with_velocity(z, r, t, cond)``, which gives the prediction and
    the head's instantaneous velocity in one forward.
    """

    prediction: Literal["u", "x"]

    def __call__(
        self, z: Float[Tensor, "B ..."], r: Tensor, t: Tensor, cond: Condition
    ) -> Float[Tensor, "B ..."]: ...


def interpolate(x: Tensor, noise: Tensor, t: Float[Tensor, " B"]) -> Tensor:
    """z_t = (1 - t) x + t e (MeanFlow, section 3)."""
    return (1 - along(t, x)) * x + along(t, x) * noise


def as_velocity(net: VelocityNet, prediction: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """A prediction as a velocity, in z's precision: itself, or (z - x_hat) / max(t, .05) (pMF)."""
    if net.prediction == "u":
        return prediction.to(z.dtype)
    return (z - prediction.to(z.dtype)) / along(t.clamp(min=T_CLIP).to(z.dtype), z)


def average_velocity(
    net: VelocityNet, z: Tensor, r: Tensor, t: Tensor, cond: Condition
) -> Float[Tensor, "B ..."]:
    """u(z, r, t), whichever the network predicts."""
    return as_velocity(net, net(z, r, t, cond), z, t)


def displaced(z: Tensor, u: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """z_r = z_t - (t - r) u (MeanFlow, Eq. 12)."""
    return z - along(t - r, z) * u


def time_grid(steps: int | Sequence[float]) -> list[float]:
    """Times from 1 down to 0: ``steps`` equal ones, or as given.

    Raises:
        UsageError: if there is no step, or given times do not fall from 1 to 0.
    """
    if isinstance(steps, int):
        if steps < 1:
            raise UsageError(f"sampling needs at least 1 step, not {steps}")
        return [1 - i / steps for i in range(steps)] + [0.0]
    times = [float(time) for time in steps]
    falling = all(a > b for a, b in pairwise(times))
    if len(times) < 2 or times[0] != 1 or times[-1] != 0 or not falling:
        raise UsageError(f"sampling times must fall from 1 to 0, not {times}")
    return times


@torch.no_grad()
def sample_flow(
    net: VelocityNet, cond: Condition, noise: Float[Tensor, "B ..."],
    steps: int | Sequence[float] = 1, *, guidance: float = 1.0,
) -> Float[Tensor, "B ..."]:  # fmt: skip
    """From noise to data in steps of average velocity, z_r = z_t - (t - r) u (MeanFlow, Eq. 12).

    Args:
        steps: how many, or the times themselves, from 1 to 0.
        guidance: u = u(none) + guidance (u(c) - u(none)), both in one forward; 1 is none.

    Raises:
        UsageError: on an impossible grid.
    """
    times, z = time_grid(steps), noise
    batch = cond if guidance == 1 else cond.and_without()
    for start, end in pairwise(times):
        copies = 1 if guidance == 1 else 2
        r, t = (z.new_full((copies * len(z),), time) for time in (end, start))
        u = average_velocity(net, torch.cat([z] * copies), r, t, batch)
        if guidance != 1:
            given, none = u.chunk(2)
            u = none + guidance * (given - none)
        z = displaced(z, u, r[: len(z)], t[: len(z)])
    return z
