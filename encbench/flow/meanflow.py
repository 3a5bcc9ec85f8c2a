"""MeanFlow: identity, losses and sampler.

Convention: t in [0, 1], t = 0 data x, t = 1 noise e; z_t = (1 - t) x + t e with velocity
v = e - x; u(z_t, r, t) is the average velocity over [r, t], r <= t, and z_r = z_t - (t - r) u.
Differentiating the latter along the path gives the identity that all losses rest on,

    u = v - (t - r) du/dt,      du/dt = v . grad_z u + d_t u        (:mod:`.derivative`)

Sources: MeanFlow arXiv 2505.13447, EMF 2604.18168, iMF 2512.02012, pMF 2601.22158.
Every function takes its randomness (noise, times, what to drop) as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import UsageError
from .derivative import Mode, along, lacks_precision, total_derivative

T_CLIP = 0.05
"""Below this t the velocity of an x-predicting network is (z - x_hat) / T_CLIP (pMF)."""

Name = Literal["flow-matching", "meanflow", "emf", "imf", "pmf"]
GUIDED = ("meanflow", "imf", "pmf")  # objectives whose target may hold guidance
OWN_TANGENT = ("imf", "pmf")  # objectives that differentiate along the network's own velocity


@dataclass(frozen=True)
class Condition:
    """Text features of B prompts, as tensors. ``mask``: True = real token."""

    tokens: Float[Tensor, "B L D"]
    mask: Bool[Tensor, "B L"]
    pooled: Float[Tensor, "B P"] | None = None

    def _map(self, change: Callable[[Tensor], Tensor]) -> Condition:
        pooled = None if self.pooled is None else change(self.pooled)
        return Condition(change(self.tokens), change(self.mask), pooled)

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
        return Condition(tokens, mask, pooled)

    def and_without(self) -> Condition:
        """2B rows: all prompts, then as many rows without one. For guidance in one forward."""
        none = self.drop(torch.ones(len(self.mask), dtype=torch.bool, device=self.mask.device))
        pooled = None if self.pooled is None else torch.cat([self.pooled, none.pooled])  # type: ignore[list-item]
        return Condition(
            torch.cat([self.tokens, none.tokens]), torch.cat([self.mask, none.mask]), pooled
        )


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


@dataclass(frozen=True)
class Objective:
    """What to train for.

    Attributes:
        name: 'flow-matching' (r = t everywhere), 'meanflow', 'emf' (MeanFlow with its own
            schedule of times), 'imf' (velocity-space loss, the network's own velocity as tangent)
            or 'pmf' (the same for a network that predicts x).
        derivative: how du/dt is computed, and its ``step`` (None: the mode's default).
        omega, kappa: guidance inside the target; 1 and 0 are none. The model then samples as if
            guided by omega / (1 - kappa), without a second forward.
        guidance_span: the t in which that guidance holds.
        dropout: share of samples to train without their prompt, drawn by the trainer.
        weight_power, weight_eps: p and eps of the adaptive weight; p = 0 is the plain mean.
        head_weight: of the auxiliary velocity head's own loss, if the network has one.
        perceptual: distance of (x_hat, x) in each row, for 'pmf', where t < ``perceptual_below``;
            it has its weight inside.

    Raises:
        UsageError: if a value makes no sense or does not go with the objective.
    """

    name: str = "meanflow"
    derivative: str = "jvp"
    step: float | None = None
    omega: float = 1.0
    kappa: float = 0.0
    guidance_span: tuple[float, float] = (0.0, 1.0)
    dropout: float = 0.1
    weight_power: float = 1.0
    weight_eps: float = 1e-3
    head_weight: float = 1.0
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    perceptual_below: float = 0.8

    def __post_init__(self) -> None:
        if self.name not in get_args(Name):
            raise UsageError(f"no objective '{self.name}'; there are {', '.join(get_args(Name))}")
        if self.derivative not in get_args(Mode):
            known = ", ".join(get_args(Mode))
            raise UsageError(f"no derivative '{self.derivative}'; there are {known}")
        if not 0 <= self.kappa < 1:
            raise UsageError(f"kappa must lie in [0, 1), not {self.kappa}")
        if self.guided and self.name not in GUIDED:
            raise UsageError(
                f"objective {self.name} has no guidance in its target; "
                f"guide when sampling, or take one of {', '.join(GUIDED)}"
            )
        if self.perceptual is not None and self.name != "pmf":
            raise UsageError("a perceptual loss needs predicted images: use objective pmf")
        if not 0 <= self.dropout <= 1:
            raise UsageError(f"dropout must lie in [0, 1], not {self.dropout}")
        if self.weight_power < 0 or self.weight_eps <= 0:
            raise UsageError("the adaptive weight needs a power of at least 0 and eps above 0")

    @property
    def guided(self) -> bool:
        return self.omega != 1 or self.kappa != 0


class LossTerms(NamedTuple):
    """What one step gives. Only ``loss`` carries a graph.

    Attributes:
        loss: to be minimized.
        error: unweighted squared error of each row, mean over its elements.
        gap: |u - v| / |v| of each row, v being the target velocity.
        interval: True where r < t.
    """

    loss: Float[Tensor, ""]
    error: Float[Tensor, " B"]
    gap: Float[Tensor, " B"]
    interval: Bool[Tensor, " B"]


def interpolate(x: Tensor, noise: Tensor, t: Float[Tensor, " B"]) -> Tensor:
    """z_t = (1 - t) x + t e (MeanFlow, section 3)."""
    return (1 - along(t, x)) * x + along(t, x) * noise


def target_velocity(net: VelocityNet, x: Tensor, noise: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """v = e - x, and for a network that predicts x (z - x) / max(t, .05), as its own velocity is
    (pMF): they differ below the clip, where only the latter can be met by a perfect x_hat."""
    return noise - x if net.prediction == "u" else as_velocity(net, x, z, t)


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


def meanflow_error(u: Tensor, v: Tensor, correction: Tensor) -> Tensor:
    """u - sg(v - (t - r) du/dt) (MeanFlow, Eq. 9 to 11; EMF). ``correction``: (t - r) du/dt."""
    return u - (v - correction).detach()


def velocity_error(u: Tensor, v: Tensor, correction: Tensor) -> Tensor:
    """V - v with V = u + (t - r) sg(du/dt) (iMF; pMF): the same number, but a regression of the
    data's velocity once du/dt is taken along the network's own."""
    return (u + correction.detach()) - v.detach()


def guided_velocity(
    net: VelocityNet, z: Tensor, t: Tensor, cond: Condition, v: Tensor,
    objective: Objective, drop: Bool[Tensor, " B"] | None,
) -> Tensor:  # fmt: skip
    """omega v + kappa u(z, t, t | c) + (1 - omega - kappa) u(z, t, t | none) (MeanFlow, Eq. 19
    and appendix), in rows that keep their prompt and whose t lies in the span; v elsewhere."""
    low, high = objective.guidance_span
    keep = (t >= low) & (t <= high)
    rows = (keep if drop is None else keep & ~drop).nonzero()[:, 0]
    if not objective.guided or not len(rows):
        return v
    with torch.no_grad():
        both, times = torch.cat([z[rows]] * 2), torch.cat([t[rows]] * 2)
        u = average_velocity(net, both, times, times, cond.rows(rows).and_without())
        given, none = u.chunk(2)
        guided = objective.omega * v[rows] + objective.kappa * given
        return v.index_copy(0, rows, guided + (1 - objective.omega - objective.kappa) * none)


def adaptive(error: Float[Tensor, "B ..."], power: float, eps: float) -> Float[Tensor, ""]:
    """Mean over rows of err / sg(err + eps)^p, err summed over a row's n elements (MeanFlow,
    Eq. 22); times n^(p - 1), so that p = 1 is as published and p = 0 the mean squared error."""
    summed = error.flatten(1).square().sum(1)
    weight = (summed.detach() + eps) ** -power
    return (weight * summed).mean() * error[0].numel() ** (power - 1)


def objective_loss(
    net: VelocityNet, x: Float[Tensor, "B ..."], cond: Condition, noise: Float[Tensor, "B ..."],
    r: Float[Tensor, " B"], t: Float[Tensor, " B"], *,
    objective: Objective, drop: Bool[Tensor, " B"] | None = None,
) -> LossTerms:  # fmt: skip
    """One objective on one batch.

    All rows go through one forward with a graph. du/dt is computed without one, and only in
    rows with r < t. Forward hooks of data-parallel wrappers need :class:`LossModule`.

    Args:
        r, t: interval ends, r <= t; flow matching ignores r.
        drop: rows to train without their prompt.

    Raises:
        UsageError: if the network's prediction does not go with the objective.
    """
    if objective.name == "pmf" and net.prediction != "x":
        raise UsageError("objective pmf needs a network that predicts x; with one of u, use imf")
    if objective.name == "flow-matching":
        r = t
    cond = cond if drop is None else cond.drop(drop)
    z = interpolate(x, noise, t)
    v = target_velocity(net, x, noise, z, t)
    v = guided_velocity(net, z, t, cond, v, objective, drop)

    head = None
    if objective.name in OWN_TANGENT and getattr(net, "velocity_head", False):
        prediction, head = net.with_velocity(z, r, t, cond)  # type: ignore[attr-defined]
        u, head = as_velocity(net, prediction, z, t), head.to(z.dtype)
    else:
        u = average_velocity(net, z, r, t, cond)

    rows = (r < t).nonzero()[:, 0]
    correction = torch.zeros_like(u, requires_grad=False)
    if len(rows):
        correction[rows] = _correction(net, z, r, t, cond, v, u, head, rows, objective)

    measure = velocity_error if objective.name in OWN_TANGENT else meanflow_error
    error = measure(u, v, correction)
    total = adaptive(error, objective.weight_power, objective.weight_eps)
    if head is not None:  # the head learns the instantaneous velocity (iMF, pMF)
        own = adaptive(head - v.detach(), objective.weight_power, objective.weight_eps)
        total = total + objective.head_weight * own
    if objective.perceptual is not None:
        total = total + _perceptual(objective, x, z, u, t)
    with torch.no_grad():
        size = v.flatten(1).norm(dim=1).clamp(min=1e-12)
        gap = (u - v).flatten(1).norm(dim=1) / size
        return LossTerms(total, error.flatten(1).square().mean(1), gap, r < t)


def _correction(
    net: VelocityNet, z: Tensor, r: Tensor, t: Tensor, cond: Condition, v: Tensor, u: Tensor,
    head: Tensor | None, rows: Tensor, objective: Objective,
) -> Tensor:  # fmt: skip
    """(t - r) du/dt in the given rows. The tangent is the target velocity (MeanFlow, EMF), or the
    network's own: its output at r = t (iMF), or its velocity head's (pMF)."""
    z, r, t, cond = z[rows], r[rows], t[rows], cond.rows(rows)
    if objective.name not in OWN_TANGENT:
        tangent = v[rows]
    elif head is not None:
        tangent = head[rows]
    else:
        with torch.no_grad():
            tangent = average_velocity(net, z, t, t, cond)
    # Forward-mode AD does not go through a compiled module, and under autocast or TF32 u
    # is too coarse to be a point of a difference.
    plain = getattr(net, "_orig_mod", net) if objective.derivative == "jvp" else net
    derivative = total_derivative(
        lambda z, r, t: average_velocity(plain, z, r, t, cond), z, r, t, tangent,
        mode=objective.derivative, step=objective.step,
        base=None if lacks_precision(z.device) else u[rows],
    )  # fmt: skip
    return (along(t - r, z) * derivative).to(u.dtype)


def _perceptual(objective: Objective, x: Tensor, z: Tensor, u: Tensor, t: Tensor) -> Tensor:
    """Distance of x_hat and x where the noise is low enough for x_hat to be an image (pMF);
    zero in the other rows of the mean."""
    rows = (t < objective.perceptual_below).nonzero()[:, 0]
    if objective.perceptual is None or not len(rows):
        return u.new_zeros(())
    x_hat = z[rows] - along(t[rows].clamp(min=T_CLIP), u[rows]) * u[rows]
    return objective.perceptual(x_hat, x[rows]).sum() / len(x)


class LossModule(nn.Module):
    """:func:`objective_loss` as a module's forward, to be wrapped for data-parallel training:
    gradients are synchronized only for what goes through the wrapped module's own forward."""

    def __init__(self, net: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.net, self.objective = net, objective

    def forward(
        self, x: Tensor, cond: Condition, noise: Tensor, r: Tensor, t: Tensor,
        drop: Tensor | None = None,
    ) -> LossTerms:  # fmt: skip
        return objective_loss(self.net, x, cond, noise, r, t, objective=self.objective, drop=drop)  # type: ignore[arg-type]


@torch.no_grad()
def velocity_gap(
    net: VelocityNet, z: Tensor, r: Tensor, t: Tensor, cond: Condition
) -> Float[Tensor, " B"]:
    """|u(z, r, t) - u(z, t, t)| / |u(z, t, t)|: how far the network's average and instantaneous
    velocity part (EMF's mechanism: small where the condition tells images apart)."""
    u, v = (average_velocity(net, z, start, t, cond).flatten(1) for start in (r, t))
    return (u - v).norm(dim=1) / v.norm(dim=1).clamp(min=1e-12)


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
