"""Pixel MeanFlow (pMF, arXiv 2601.22158)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..derivative import along
from .base import CROP, Batch, Velocities
from .imf import IMF


@dataclass(frozen=True)
class PMF(IMF):
    """iMF for a network that predicts x, with a velocity head; a perceptual loss as an option.

    Attributes:
        perceptual: loss of (x_hat, x) in each row, its weight inside; its third argument are
            four of the row's uniform numbers.
        perceptual_below: t below which x_hat is enough of an image to be looked at.
    """

    perceptual: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    perceptual_below: float = 0.8

    name: ClassVar[str] = "pmf"
    prediction: ClassVar[str | None] = "x"
    velocity_head: ClassVar[bool] = True

    def further_terms(
        self, batch: Batch, v: Float[Tensor, "B ..."], velocities: Velocities
    ) -> Iterator[Float[Tensor, ""]]:
        """The head's loss, and the perceptual loss where noise is low; zero in the other rows of
        the mean. x_hat = z - t u, as in pMF's code: above t = .05 this is the network's output,
        below it a mixture of that and z, in which the output's share is t / .05."""
        yield from super().further_terms(batch, v, velocities)
        rows = (batch.t < self.perceptual_below).nonzero()[:, 0]
        if self.perceptual is not None and batch.uniform is not None and len(rows):
            u = velocities.u[rows]
            x_hat = batch.z[rows] - along(batch.t[rows], u) * u
            crops = batch.uniform[rows][:, CROP]
            yield self.perceptual(x_hat, batch.x[rows], crops).sum() / len(batch.x)
