"""From an encoder's width to the network's: the only part of a model that is specific to its
encoder."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import UsageError
from .meanflow import Condition
from .whitening import fit_whitening

EPS = 1e-6


def even_scale(rows: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    """What brings each dimension to root mean square 1; a dead dimension is not blown up."""
    size = rows.double().square().mean(0).sqrt()
    floor = 1e-3 * size.square().mean().sqrt() + 1e-12
    return 1 / size.clamp(min=floor)


class Connector(nn.Module):
    """Linear, GELU (tanh), Linear, RMSNorm, as between BLIP3o-NEXT's language model and its
    diffusion transformer (arXiv 2510.15857).

    Hidden states of different encoders differ in scale by orders of magnitude, most of all in
    single dimensions, so one learning rate would act differently on each. :meth:`calibrate` evens
    that out; until it is called the connector is exactly the published one.

    Args:
        cond_dim: width of the encoder's features.
        width: width of the output.
    """

    scale: Tensor
    mean: Tensor | None
    whitener: Tensor | None

    def __init__(self, cond_dim: int, width: int) -> None:
        super().__init__()
        self.cond_dim = cond_dim
        self.first = nn.Linear(cond_dim, width)
        self.second = nn.Linear(width, width)
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.register_buffer("scale", torch.ones(cond_dim))
        self.register_buffer("mean", None)
        self.register_buffer("whitener", None)

    def add_whitening(self) -> None:
        """Whiten the input: by statistics that :meth:`calibrate` finds or a checkpoint holds."""
        self.mean = torch.zeros(self.cond_dim)
        self.whitener = torch.eye(self.cond_dim)

    def forward(self, features: Float[Tensor, "*B D"]) -> Float[Tensor, "*B W"]:
        """Zeros (no condition, and padding) give one vector, the same wherever they stand; with
        whitening it is that of the mean token, which becomes zero there.

        Raises:
            UsageError: if the features have another width.
        """
        if features.shape[-1] != self.cond_dim:
            raise UsageError(
                f"the text features are {features.shape[-1]} wide, but this model takes "
                f"{self.cond_dim}: use the encoder that it was trained with"
            )
        scaled = self._whiten(features) * self.scale
        hidden = nn.functional.gelu(self.first(scaled), approximate="tanh")
        out: Tensor = self.norm(self.second(hidden))
        return out

    def _whiten(self, features: Tensor) -> Tensor:
        if self.mean is None:
            return features
        features = torch.where(features.any(-1, keepdim=True), features, self.mean)
        if self.whitener is None:  # it was folded into the first layer
            return features
        kind = "cpu" if features.is_meta else features.device.type
        with torch.autocast(kind, enabled=False):  # bf16 would lose small directions
            return (features - self.mean) @ self.whitener

    @torch.no_grad()
    def fold_whitening(self) -> None:
        """Move the whitening into the first linear layer, which then does both: W' = W S and
        b' = b - W' m. Sampling costs no more than without; training would be another one."""
        if self.mean is None or self.whitener is None:
            return
        weight = (self.first.weight.double() * self.scale.double()) @ self.whitener.double().T
        self.first.bias.copy_(self.first.bias.double() - weight @ self.mean.double())
        self.first.weight.copy_(weight)
        self.scale.fill_(1)
        self.whitener = None

    @torch.no_grad()
    def fold_scale(self) -> None:
        """Move the scale into the first linear layer."""
        self.first.weight.mul_(self.scale)
        self.scale.fill_(1)

    @torch.no_grad()
    def calibrate(
        self,
        features: Float[Tensor, "B L D"],
        mask: Bool[Tensor, "B L"] | None = None,
        what: str = "the features",
    ) -> None:
        """Bring every dimension of the input to root mean square 1 over real tokens of the
        training set (not centered: no condition stays zero); after whitening, if it was added.

        Args:
            what: names the features in messages.

        Raises:
            WhiteningError: see :func:`~encbench.flow.whitening.fit_whitening`.
        """
        rows = features.flatten(0, -2) if mask is None else features[mask]
        if self.mean is not None and self.whitener is not None:
            found = fit_whitening(rows, what)
            self.mean.copy_(found.mean)
            self.whitener.copy_(found.matrix)
            rows = self._whiten(rows)
        self.scale.copy_(even_scale(rows))


class TextCondition(NamedTuple):
    """The text input of a network: tokens, their mask, and one pooled vector."""

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

    def calibrate(self, cond: Condition, spec: str = "the encoder") -> None:
        """See :meth:`Connector.calibrate`."""
        self.tokens.calibrate(cond.tokens, cond.mask, f"the tokens of {spec}")
        if self.pooled is not None and cond.pooled is not None:
            self.pooled.calibrate(cond.pooled[:, None], what=f"the pooled vectors of {spec}")


def connectors(net: nn.Module) -> list[Connector]:
    """All connectors of a network."""
    return [part for part in net.modules() if isinstance(part, Connector)]
