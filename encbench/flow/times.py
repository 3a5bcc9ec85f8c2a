"""Samplers of the interval (r, t) for training: r <= t, t = 0 is data, t = 1 noise.

A sampler gets a random generator and the progress of training (0 to 1), so that it can follow a
schedule.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UsageError


class Times(NamedTuple):
    """Interval ends for n samples, float32, 0 <= r <= t <= 1."""

    r: Float[Tensor, " n"]
    t: Float[Tensor, " n"]


@runtime_checkable
class TimeSampler(Protocol):
    """Draws n intervals at a point of training; on the generator's device (CPU without one)."""

    def sample(
        self, n: int, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Times: ...


@dataclass(frozen=True)
class Uniform:
    """Both ends uniform in [0, 1]. ``share`` as in :class:`LogitNormal`."""

    share: float = 0.25

    def __post_init__(self) -> None:
        _check_share(self.share)

    def sample(
        self, n: int, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Times:
        device = generator.device if generator is not None else None
        ends = torch.rand(2, n, generator=generator, device=device, dtype=torch.float64)
        return _intervals(ends, self.share, generator)


@dataclass(frozen=True)
class LogitNormal:
    """Both ends sigmoid(mu + sigma N(0, 1)) (MeanFlow, arXiv 2505.13447, section 4.3).

    The larger end is t. A ``share`` of the samples, drawn at random, keeps r != t; in the others
    r becomes t. At share 0, plain flow matching, t is one draw, not the larger of two.

    Attributes:
        r_mu, r_sigma: of one of the two draws, which is usually r (DMF, arXiv 2510.24474); None =
            as the other's.
        uniform_share: of the samples, whose two draws are uniform in [0, 1] (pMF's code: .1).
    """

    mu: float = -0.4
    sigma: float = 1.0
    share: float = 0.25
    r_mu: float | None = None
    r_sigma: float | None = None
    uniform_share: float = 0.0

    def __post_init__(self) -> None:
        _check_share(self.share)
        if not 0 <= self.uniform_share <= 1:
            raise UsageError(f"the share of uniform times is in [0, 1], not {self.uniform_share}")
        if not min(self.sigma, self.r_sigma or self.sigma) > 0:
            raise UsageError(f"sigma of the times must be above 0, not {self.sigma}")

    def sample(
        self, n: int, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Times:
        device = generator.device if generator is not None else None
        like: dict[str, Any] = {"generator": generator, "device": device, "dtype": torch.float64}
        normal = torch.randn(2, n, **like)
        ends = torch.sigmoid(self.mu + self.sigma * normal)
        if self.r_mu is not None or self.r_sigma is not None:
            mu = self.mu if self.r_mu is None else self.r_mu
            ends[1] = torch.sigmoid(mu + (self.r_sigma or self.sigma) * normal[1])
        if self.uniform_share:
            uniform = torch.rand(n, **like) < self.uniform_share
            ends = torch.where(uniform, torch.rand(2, n, **like), ends)
        return _intervals(ends, self.share, generator)


@dataclass(frozen=True)
class EMFSchedule:
    """A logit-normal that drifts linearly over training, each pair from its first value to its
    second. The defaults are EMF's (arXiv 2604.18168): ever later times, ever more intervals.
    ``uniform_share`` as in :class:`LogitNormal`."""

    mus: tuple[float, float] = (-0.5, 0.5)
    sigmas: tuple[float, float] = (1.0, 2.0)
    shares: tuple[float, float] = (0.25, 0.75)
    uniform_share: float = 0.0

    def __post_init__(self) -> None:
        for progress in (0.0, 1.0):  # raises on a bad end
            self.at(progress)

    def at(self, progress: float) -> LogitNormal:
        """The distribution at a point of training."""
        p = min(max(progress, 0.0), 1.0)
        mu, sigma, share = (a + p * (b - a) for a, b in (self.mus, self.sigmas, self.shares))
        return LogitNormal(mu, sigma, share, uniform_share=self.uniform_share)

    def sample(
        self, n: int, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Times:
        return self.at(progress).sample(n, generator=generator)


@dataclass(frozen=True)
class Phases:
    """One sampler up to ``switch``, then another; each sees its own progress from 0 to 1.

    By default flow matching (share 0) for the first 60 % and MeanFlow after it: a network that
    knows the instantaneous velocity learns the average one with less noise in its targets.
    """

    first: TimeSampler = field(default_factory=lambda: LogitNormal(share=0.0))
    then: TimeSampler = field(default_factory=lambda: LogitNormal(share=0.5))
    switch: float = 0.6

    def __post_init__(self) -> None:
        if not 0 <= self.switch <= 1:
            raise UsageError(f"the switch of phases must lie in [0, 1], not {self.switch}")

    def sample(
        self, n: int, progress: float = 0.0, generator: torch.Generator | None = None
    ) -> Times:
        if progress < self.switch:
            return self.first.sample(n, progress / self.switch, generator)
        rest = 1 - self.switch
        return self.then.sample(n, (progress - self.switch) / rest if rest else 1.0, generator)


def flow_matching_first(then: Uniform | LogitNormal, switch: float = 0.6) -> Phases:
    """``then`` with r = t everywhere up to ``switch``, and as it is after it."""
    return Phases(replace(then, share=0.0), then, switch)


def _intervals(
    ends: Float[Tensor, "2 n"], share: float, generator: torch.Generator | None
) -> Times:
    """Sort the ends, and set r = t in all but a share of the samples.

    Their number is n x share, rounded at random so that the share is exact on average and,
    where n x share is whole, in every batch: a constant shape is faster.
    """
    n = ends.shape[1]
    if not share:
        t = ends[0].float()
        return Times(t, t.clone())
    r, t = ends.amin(0), ends.amax(0)
    draw = torch.rand((), generator=generator, device=ends.device, dtype=torch.float64)
    keep = torch.randperm(n, generator=generator, device=ends.device)
    keep = keep < torch.floor(n * share + draw)
    t = t.float()
    return Times(torch.where(keep, r.float(), t), t)


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise UsageError(f"the share of samples with r != t must lie in [0, 1], not {share}")
