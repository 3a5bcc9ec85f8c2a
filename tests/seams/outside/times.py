"""A sampler of times."""

from dataclasses import dataclass

import torch

from encbench.flow.times import Times


@dataclass(frozen=True)
class Ends:
    """The whole way in every sample: r = 0, t = 1."""

    share: float = 0.5

    def sample(self, n, progress=0.0, generator=None):
        return Times(torch.zeros(n), torch.ones(n))
