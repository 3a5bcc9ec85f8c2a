"""Fields whose average velocity is known, as networks that need no training (float64).

Each is called as ``net(z, r, t, cond)`` and gives u = (z_t - z_r) / (t - r), where z_r lies on the
path of dz/dt = v(z, t) through z_t; at r = t it gives v.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


def no_condition(n: int):
    from encbench.flow.meanflow import Condition

    return Condition(torch.zeros(n, 1, 1, dtype=torch.float64), torch.ones(n, 1, dtype=torch.bool))


class Field(ABC):
    """``flow``: z_r of z_t; ``velocity``: dz/dt."""

    prediction = "u"

    @abstractmethod
    def velocity(self, z: Tensor, t: Tensor) -> Tensor: ...

    @abstractmethod
    def flow(self, z: Tensor, r: Tensor, t: Tensor) -> Tensor: ...

    def __call__(self, z, r, t, cond):
        gap = (t - r)[:, None]
        moved = (z - self.flow(z, r, t)) / torch.where(gap == 0, 1.0, gap)
        return torch.where(gap == 0, self.velocity(z, t), moved)


class Linear(Field):
    """dz/dt = A z, so z_r = exp(-(t - r) A) z_t."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def velocity(self, z, t):
        return z @ self.matrix.T

    def flow(self, z, r, t):
        return torch.einsum(
            "bij,bj->bi", torch.linalg.matrix_exp((r - t)[:, None, None] * self.matrix), z
        )


class Rotation(Field):
    """dz/dt = 2 t J z: by the angle t^2 - r^2, a field that depends on time."""

    def velocity(self, z, t):
        return 2 * t[:, None] * torch.stack([-z[:, 1], z[:, 0]], 1)

    def flow(self, z, r, t):
        angle = r**2 - t**2
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos * z[:, 0] - sin * z[:, 1], sin * z[:, 0] + cos * z[:, 1]], 1)


class Gaussian(Field):
    """The marginal field of data N(mean, scale^2): z_t ~ N((1 - t) mean, s_t^2) with
    s_t^2 = (1 - t)^2 scale^2 + t^2, and paths keep (z - mean_t) / s_t."""

    def __init__(self, mean: Tensor, scale: float) -> None:
        self.mean, self.scale = mean, scale

    def spread(self, t: Tensor) -> Tensor:
        return (((1 - t) * self.scale) ** 2 + t**2).sqrt()[:, None]

    def centered(self, z, t):
        return z - (1 - t)[:, None] * self.mean

    def velocity(self, z, t):
        growth = (t - (1 - t) * self.scale**2)[:, None] / self.spread(t) ** 2
        return growth * self.centered(z, t) - self.mean

    def flow(self, z, r, t):
        ratio = self.spread(r) / self.spread(t)
        return (1 - r)[:, None] * self.mean + ratio * self.centered(z, t)


class Mixture(Field):
    """The marginal field of Gaussians N(mean_k, scale_k^2) of equal weight: the mean of their
    fields by their share in z_t; followed by ``steps`` steps of Runge and Kutta."""

    def __init__(self, means: Tensor, scales: Tensor, steps: int) -> None:
        self.means, self.scales, self.steps = means, scales, steps

    def velocity(self, z, t):
        t = t[:, None]
        variance = ((1 - t) * self.scales) ** 2 + t**2  # of each component, (B, K)
        centered = z[:, None] - (1 - t)[..., None] * self.means
        logs = -centered.square().sum(2) / (2 * variance) - z.shape[1] / 2 * variance.log()
        growth = (t - (1 - t) * self.scales**2) / variance
        fields = growth[..., None] * centered - self.means
        return (logs.softmax(1)[..., None] * fields).sum(1)

    def flow(self, z, r, t):
        h = (r - t) / self.steps
        w = h[:, None]
        for i in range(self.steps):
            now = t + i * h
            a = self.velocity(z, now)
            b = self.velocity(z + w / 2 * a, now + h / 2)
            c = self.velocity(z + w / 2 * b, now + h / 2)
            d = self.velocity(z + w * c, now + h)
            z = z + w / 6 * (a + 2 * b + 2 * c + d)
        return z
