"""An objective on one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import UsageError
from .derivative import along, lacks_precision, total_derivative
from .meanflow import Condition, VelocityNet, as_velocity, average_velocity, interpolate
from .objectives.base import UNIFORM, Batch, Objective


class LossTerms(NamedTuple):
    """Results of one step. Only ``loss`` carries a graph.

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


def objective_loss(
    net: VelocityNet, x: Float[Tensor, "B ..."], cond: Condition, noise: Float[Tensor, "B ..."],
    r: Float[Tensor, " B"], t: Float[Tensor, " B"], *,
    objective: Objective, drop: Bool[Tensor, " B"] | None = None,
    uniform: Float[Tensor, "B 7"] | None = None, parent: VelocityNet | None = None,
    warmth: float = 1.0, same_calls: bool = False,
) -> LossTerms:  # fmt: skip
    """One objective on one batch.

    All rows go through one forward with a graph. du/dt is computed without one, and only in
    rows with r < t. Forward hooks of data-parallel wrappers need :class:`LossModule`.

    Args:
        r, t: interval ends, r <= t; flow matching ignores r.
        drop: rows to train without their prompt.
        uniform: numbers from [0, 1) for what the objective draws itself; one half if None.
        parent: a network of instantaneous velocity that gives v where r < t, in place of the data:
            a target without its noise.
        warmth: factor of du/dt, from 0 (flow matching of u) to 1 (sCM's tangent warm-up, arXiv
            2410.11081).
        same_calls: call the network as often whatever r and t are, as one needs it that is
            sharded over processes with other rows: each call gathers its weights from all.

    Raises:
        UsageError: if the network's prediction does not fit the objective.
    """
    check_prediction(objective, net.prediction)
    r = r if objective.intervals else t
    cond = cond if drop is None else cond.drop(drop)
    uniform = t.new_full((len(t), UNIFORM), 0.5) if uniform is None else uniform
    batch = objective.prepare(
        Batch(net, x, noise, interpolate(x, noise, t), r, t, cond, drop, uniform)
    )
    v = objective.target(batch)
    velocities = objective.predict(batch)
    u = velocities.u
    rows = (r < t).nonzero()[:, 0]
    if same_calls and objective.intervals and not len(rows):
        rows = rows.new_zeros(1)  # r = t there: its (t - r) du/dt is zero
    if parent is not None and len(rows):
        part = batch.rows(rows)
        with torch.no_grad():
            own = average_velocity(parent, part.z, part.t, part.t, part.cond)
        own = torch.where(along(part.r < part.t, own), own.to(v.dtype), v[rows])
        v = v.index_copy(0, rows, own)
    correction = torch.zeros_like(u, requires_grad=False)
    if len(rows):
        part, head = batch.rows(rows), velocities.head
        tangent = objective.tangent(part, v[rows], None if head is None else head[rows])
        correction[rows] = warmth * _correction(objective, part, tangent, u[rows], same_calls)
    error = objective.error(u, v, correction)
    total = objective.weigh(error)
    for term in objective.further_terms(batch, v, velocities):
        total = total + term
    with torch.no_grad():
        size = v.flatten(1).norm(dim=1).clamp(min=1e-12)
        gap = (u - v).flatten(1).norm(dim=1) / size
        return LossTerms(total, error.flatten(1).square().mean(1), gap, r < t)


def check_prediction(objective: Objective | type[Objective], prediction: str) -> None:
    """
    Raises:
        UsageError: if a network that predicts this cannot be trained by the objective.
    """
    wanted = objective.prediction
    if wanted not in (None, prediction):
        raise UsageError(
            f"objective {objective.name} needs a network that predicts {wanted}, and this one "
            f"predicts {prediction}: add --prediction {wanted}, or take another objective"
        )


def _correction(
    objective: Objective, batch: Batch, tangent: Tensor, u: Tensor, same_calls: bool
) -> Tensor:
    """(t - r) du/dt along the tangent."""
    # Forward-mode AD does not go through a compiled module, and under autocast or TF32 u
    # is too coarse to be a point of a difference.
    net: VelocityNet = batch.net
    if objective.derivative == "jvp":
        net = getattr(net, "_orig_mod", net)

    def velocity(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        prediction = net(z, r, t, batch.cond)
        if torch.finfo(prediction.dtype).eps > torch.finfo(z.dtype).eps:
            raise UsageError(
                f"the network computes in {str(prediction.dtype)[6:]} inside du/dt, which is then "
                "noise: keep its weights in float32 and autocast out of its own forward"
            )
        return as_velocity(net, prediction, z, t)

    derivative = total_derivative(
        velocity, batch.z, batch.r, batch.t, tangent, mode=objective.derivative,
        step=objective.step, base=None if lacks_precision(batch.z.device) else u,
        same_calls=same_calls,
    )  # fmt: skip
    return (along(batch.t - batch.r, batch.z) * derivative).to(u.dtype)


class LossModule(nn.Module):
    """:func:`objective_loss` as a module's forward, to be wrapped for data-parallel training:
    gradients are synchronized only for what goes through the wrapped module's own forward."""

    def __init__(self, net: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.net, self.objective = net, objective
        self.warmth = 1.0
        self.same_calls = False
        self.parent: Callable[[], nn.Module] | None = None  # no part of the module

    def forward(
        self, x: Tensor, cond: Condition, noise: Tensor, r: Tensor, t: Tensor,
        drop: Tensor | None = None, uniform: Tensor | None = None,
    ) -> LossTerms:  # fmt: skip
        return objective_loss(
            self.net, x, cond, noise, r, t,  # type: ignore[arg-type]
            objective=self.objective, drop=drop, uniform=uniform, warmth=self.warmth,
            same_calls=self.same_calls,
            parent=None if self.parent is None else self.parent(),  # type: ignore[arg-type]
        )  # fmt: skip
