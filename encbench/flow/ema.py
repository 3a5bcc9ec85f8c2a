"""The running mean of a network's weights, by torch.optim.swa_utils."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..checkpoint import check_weights
from ..errors import UsageError

COUNT = "n_averaged"


class EMA:
    """Exponential moving average of the weights that are trained.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the first, random weights
    are soon forgotten.

    Args:
        net: the network; a copy of it is made, which shares the weights that are not trained.
        decay: the decay reached in the end.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"the decay of the weights' mean must be in [0, 1), not {decay}")

        def update(mean: list[Tensor], now: list[Tensor], count: Tensor | int) -> None:
            n = int(count)
            get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(mean, now, count)

        self._mean = AveragedModel(nn.Identity(), multi_avg_fn=update)  # type: ignore[arg-type]
        frozen = {id(p): p for p in net.parameters() if not p.requires_grad}
        self._mean.module = copy.deepcopy(net, frozen)
        self._mean.eval()

    def update(self, net: nn.Module) -> None:
        """Update the mean with the current weights."""
        self._mean.update_parameters(net)

    @property
    def module(self) -> nn.Module:
        """The network with the averaged weights."""
        module: nn.Module = self._mean.module
        return module

    def network(self, net: nn.Module) -> nn.Module:
        """The network with the averaged weights and ``net``'s buffers. It is no copy: don't train
        it."""
        for mine, theirs in zip(self._mean.module.buffers(), net.buffers(), strict=True):
            mine.copy_(theirs)
        return self._mean.module

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by their names in the network (those that are trained), and how
        many updates they hold."""
        return {**self._trained(), COUNT: self._mean.n_averaged}

    def load_state_dict(
        self, state: Mapping[str, Tensor], where: object = "the averaged weights"
    ) -> None:
        """
        Raises:
            ModelError: beginning with ``where``, if the state is of another network.
        """
        mine = self.state_dict()
        check_weights(mine, state, where)
        with torch.no_grad():
            for name, tensor in mine.items():
                tensor.copy_(state[name])

    @staticmethod
    def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of a :meth:`state_dict`, what the network itself can load."""
        return {name: weight for name, weight in state.items() if name != COUNT}

    def _trained(self) -> dict[str, Tensor]:
        named = self._mean.module.named_parameters()
        return {name: weight.detach() for name, weight in named if weight.requires_grad}
