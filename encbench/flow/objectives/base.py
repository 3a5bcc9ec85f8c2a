"""The base class of training objectives, which entry points of ``encbench.objectives`` name.

All objectives here regress the average velocity u by the MeanFlow identity (:mod:`..meanflow`),
and reduce to flow matching where r = t. They differ in three things, each a method:

    target    v, the velocity that the identity begins with
    tangent   dz/dt along which du/dt is taken
    error     what is squared, of u, v and (t - r) du/dt
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, get_args

from jaxtyping import Bool, Float
from torch import Tensor

from ...errors import UsageError
from ..derivative import Mode
from ..meanflow import Condition, VelocityNet, as_velocity, average_velocity

UNIFORM = 7
"""How many numbers from [0, 1) each row brings along, for what an objective draws by itself."""
CROP, GUIDANCE = slice(0, 4), slice(4, 7)
"""Those of a perceptual loss's crop, and of the guidance that pMF draws."""


@dataclass(frozen=True)
class Batch:
    """The batch of a step, B rows.

    Attributes:
        x, noise: data and noise.
        z: z_t = (1 - t) x + t e.
        r, t: ends of each row's interval, r <= t.
        cond: text features; zeros in rows whose prompt is dropped.
        drop: True in those rows.
        uniform: numbers from [0, 1), for what an objective draws itself.
    """

    net: VelocityNet
    x: Float[Tensor, "B ..."]
    noise: Float[Tensor, "B ..."]
    z: Float[Tensor, "B ..."]
    r: Float[Tensor, " B"]
    t: Float[Tensor, " B"]
    cond: Condition
    drop: Bool[Tensor, " B"] | None = None
    uniform: Float[Tensor, "B 7"] | None = None

    def rows(self, index: Tensor) -> Batch:
        """Some rows, in the order of ``index``."""
        names = ("x", "noise", "z", "r", "t", "drop", "uniform")
        parts = {name: getattr(self, name) for name in names}
        parts = {name: part[index] for name, part in parts.items() if part is not None}
        return replace(self, cond=self.cond.rows(index), **parts)


class Velocities(NamedTuple):
    """One forward's average velocity u(z, r, t), and the instantaneous velocity by the network's
    own head, where it has one that the objective reads."""

    u: Float[Tensor, "B ..."]
    head: Float[Tensor, "B ..."] | None = None


@dataclass(frozen=True)
class Objective:
    """The base of all objectives, and of a third party's: MeanFlow without guidance.

    A subclass sets ``name``, overrides what differs and may add fields. Its first sentence is
    what ``encbench list objectives`` shows.

    Attributes:
        derivative: how du/dt is computed: 'jvp', 'central' or 'forward'.
        step: of the finite difference, in units of t; None = the mode's default.
        weight_power, weight_eps: p and eps of the adaptive weight; p = 0 is the plain mean.

    Raises:
        UsageError: if a value is impossible.
    """

    derivative: str = "jvp"
    step: float | None = None
    weight_power: float = 1.0
    weight_eps: float = 1e-3

    name: ClassVar[str]
    intervals: ClassVar[bool] = True
    """Whether r counts; without, r = t in every row."""
    prediction: ClassVar[str | None] = None
    """What the network must predict, 'x' or 'u'; None = either."""
    velocity_head: ClassVar[bool] = False
    """Whether networks made for it get a head for the instantaneous velocity."""

    def __post_init__(self) -> None:
        if self.derivative not in get_args(Mode):
            known = ", ".join(get_args(Mode))
            raise UsageError(f"no derivative '{self.derivative}'; there are {known}")
        if self.weight_power < 0 or self.weight_eps <= 0:
            raise UsageError("the adaptive weight needs a power of at least 0 and eps above 0")

    def prepare(self, batch: Batch) -> Batch:
        """The batch with what the objective itself draws for each row."""
        return batch

    def target(self, batch: Batch) -> Float[Tensor, "B ..."]:
        """v = e - x, and for a network that predicts x (z - x) / max(t, .05), as its own velocity
        is (pMF): they differ below the clip, where only the latter can be met by x_hat = x."""
        if batch.net.prediction == "u":
            return batch.noise - batch.x
        return as_velocity(batch.net, batch.x, batch.z, batch.t)

    def predict(self, batch: Batch) -> Velocities:
        """The forward that carries the graph."""
        return Velocities(average_velocity(batch.net, batch.z, batch.r, batch.t, batch.cond))

    def tangent(
        self, batch: Batch, v: Float[Tensor, "B ..."], head: Float[Tensor, "B ..."] | None
    ) -> Float[Tensor, "B ..."]:
        """dz/dt: the target velocity (MeanFlow, Eq. 8). Called with the rows where r < t."""
        return v

    def error(
        self, u: Float[Tensor, "B ..."], v: Float[Tensor, "B ..."],
        correction: Float[Tensor, "B ..."],
    ) -> Float[Tensor, "B ..."]:  # fmt: skip
        """u - sg(v - (t - r) du/dt) (MeanFlow, Eq. 9 to 11). ``correction``: (t - r) du/dt."""
        return u - (v - correction).detach()

    def further_terms(
        self, batch: Batch, v: Float[Tensor, "B ..."], velocities: Velocities
    ) -> Iterator[Float[Tensor, ""]]:
        """Further terms of the loss besides the error."""
        return iter(())

    def weigh(self, error: Float[Tensor, "B ..."]) -> Float[Tensor, ""]:
        """Mean over rows of err / sg(err + eps)^p, err summed over a row's n elements (MeanFlow,
        Eq. 22); times n^(p - 1), so that p = 1 is as published and p = 0 the mean square."""
        summed = error.flatten(1).square().sum(1)
        weight = (summed.detach() + self.weight_eps) ** -self.weight_power
        loss: Tensor = (weight * summed).mean() * error[0].numel() ** (self.weight_power - 1)
        return loss
