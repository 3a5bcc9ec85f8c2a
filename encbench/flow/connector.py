"""From an encoder's width to the network's: the one part of a model that belongs to its encoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import UsageError
from .meanflow import Condition

EPS = 1e-6


class Connector(nn.Module):
    """Linear, GELU (tanh), Linear, RMSNorm, as between BLIP3o-NEXT's language model and its
    diffusion transformer (arXiv 2510.15857).

    Hidden states of different encoders differ in size by orders of magnitude, in single
    dimensions most of all, which would turn one learning rate into as many. :meth:`calibrate`
    evens that out; until it is called the connector is exactly the published one.

    Args:
        cond_dim: width of what the encoder gives.
        width: width of what comes out.
    """

    scale: Tensor

    def __init__(self, cond_dim: int, width: int) -> None:
        super().__init__()
        self.cond_dim = cond_dim
        self.first = nn.Linear(cond_dim, width)
        self.second = nn.Linear(width, width)
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.register_buffer("scale", torch.ones(cond_dim))

    def forward(self, features: Float[Tensor, "*B D"]) -> Float[Tensor, "*B W"]:
        """Zeros (no condition) give one vector, the same wherever they stand.

        Raises:
            UsageError: if the features have another width.
        """
        if features.shape[-1] != self.cond_dim:
            raise UsageError(
                f"the text features are {features.shape[-1]} wide, but this model takes "
                f"{self.cond_dim}: use the encoder that it was trained with"
            )
        hidden = nn.functional.gelu(self.first(features * self.scale), approximate="tanh")
        return self.norm(self.second(hidden))

    @torch.no_grad()
    def calibrate(
        self, features: Float[Tensor, "B L D"], mask: Bool[Tensor, "B L"] | None = None
    ) -> None:
        """Bring every dimension of the input to root mean square 1 over real tokens of the
        training set (not centered: no condition stays zero)."""
        rows = features.flatten(0, -2) if mask is None else features[mask]
        size = rows.double().square().mean(0).sqrt()
        floor = 1e-3 * size.square().mean().sqrt() + 1e-12  # a dead dimension is not blown up
        self.scale.copy_(1 / size.clamp(min=floor))


class TextCondition(NamedTuple):
    """What a network reads: text tokens, which of them are real, and one vector in all."""

    tokens: Float[Tensor, "B L W"]
    mask: Bool[Tensor, "B L"]
    pooled: Float[Tensor, "B W"]


class TextConnector(nn.Module):
    """Connectors for the tokens and, where the encoder has one, for its pooled vector.

    Args:
        cond_dim: width of the tokens.
        pooled_dim: width of the pooled vector; 0 = the mean over the real tokens stands for it.
        width: of the network.
    """

    def __init__(self, cond_dim: int, pooled_dim: int, width: int) -> None:
        super().__init__()
        self.tokens = Connector(cond_dim, width)
        self.pooled = Connector(pooled_dim, width) if pooled_dim else None

    def forward(self, cond: Condition) -> TextCondition:
        """
        Raises:
            UsageError: if the condition does not have the widths that the model was made for.
        """
        tokens = self.tokens(cond.tokens)
        if self.pooled is None:
            real = cond.mask[..., None].to(tokens.dtype)
            return TextCondition(
                tokens, cond.mask, (tokens * real).sum(1) / real.sum(1).clamp(min=1)
            )
        if cond.pooled is None:
            raise UsageError(
                f"this model takes a pooled vector of width {self.pooled.cond_dim}, which the "
                "encoder does not give: use the encoder that it was trained with"
            )
        return TextCondition(tokens, cond.mask, self.pooled(cond.pooled))

    def calibrate(self, cond: Condition) -> None:
        """See :meth:`Connector.calibrate`."""
        self.tokens.calibrate(cond.tokens, cond.mask)
        if self.pooled is not None and cond.pooled is not None:
            self.pooled.calibrate(cond.pooled[:, None])
