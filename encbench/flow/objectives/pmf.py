"""Pixel MeanFlow (pMF, arXiv 2601.22158)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..derivative import along
from ..meanflow import T_CLIP
from .base import Batch, Velocities
from .imf import IMF


@dataclass(frozen=True)
class PMF(IMF):
    """iMF for a network that predicts x, with a velocity head; a perceptual loss as an option.

    Attributes:
        perceptual: distance of (x_hat, x) in each row, its weight inside.
        perceptual_below: t below which x_hat is enough of an image to be looked at.
    """

    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    perceptual_below: float = 0.8

    name: ClassVar[str] = "pmf"
    prediction: ClassVar[str | None] = "x"
    velocity_head: ClassVar[bool] = True

    def further_terms(
        self, batch: Batch, v: Float[Tensor, "B ..."], velocities: Velocities
    ) -> Iterator[Float[Tensor, ""]]:
        """The head's loss, and the distance of x_hat and x where noise is low; zero in the other
        rows of the mean."""
        yield from super().further_terms(batch, v, velocities)
        rows = (batch.t < self.perceptual_below).nonzero()[:, 0]
        if self.perceptual is not None and len(rows):
            t, u = batch.t[rows], velocities.u[rows]
            x_hat = batch.z[rows] - along(t.clamp(min=T_CLIP), u) * u
            yield self.perceptual(x_hat, batch.x[rows]).sum() / len(batch.x)
