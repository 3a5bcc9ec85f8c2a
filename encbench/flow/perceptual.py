"""Perceptual distances of images, as a training loss (pMF, section 4.4): LPIPS with VGG-16
(arXiv 1801.03924) and features of a ConvNeXt of timm.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.hub import resolve_model
from ..errors import DownloadError, MissingLibraryError, ModelError, UsageError
from ..schema import read_model_config
from ..vision.dino import load_timm

WEIGHTS = {"lpips": 0.4, "convnext": 0.1}
"""pMF's weights."""
SOURCES = {"lpips": "timm/vgg16.tv_in1k", "convnext": "timm/convnextv2_base.fcmae_ft_in22k_in1k"}
"""Hub repositories that carry the networks in safetensors; the first holds torchvision's VGG-16."""
SIDES = {"lpips": 64, "convnext": 224}
"""Smaller images are enlarged to this many pixels first."""
PATTERNS = ("config.json", "model.safetensors")

Distance = Callable[[Tensor, Tensor], Tensor]


def perceptual_loss(spec: str, device: torch.device | str = "cpu") -> Distance:
    """A distance (x_hat, x) -> (B,), its weight inside, of images in [-1, 1].

    Args:
        spec: 'lpips', 'convnext' or 'lpips+convnext' as in pMF; ':SOURCE' after a name is a
            folder or hub id with timm's files in place of :data:`SOURCES`.

    Raises:
        UsageError: if there is no such distance.
        MissingLibraryError: if lpips is not installed.
        ModelError, DownloadError: if the network is not there or damaged.
    """
    parts = []
    for term in spec.split("+"):
        name, _, source = term.partition(":")
        if name not in WEIGHTS:
            raise UsageError(f"unknown perceptual loss '{name}'; known: {', '.join(WEIGHTS)}")
        made = (_lpips if name == "lpips" else _convnext)(_folder(name, source or SOURCES[name]))
        parts.append((WEIGHTS[name], SIDES[name], made.to(device).eval().requires_grad_(False)))

    def distance(
        x_hat: Float[Tensor, "B C H W"], x: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, " B"]:
        if x.shape[1] != 3:
            raise UsageError("a perceptual loss needs images: train in pixels, without autoencoder")
        total = x.new_zeros(len(x))
        for weight, side, network in parts:
            total = total + weight * network(_enlarged(x_hat, side), _enlarged(x, side))
        return total

    return distance


def _enlarged(x: Tensor, side: int) -> Tensor:
    if min(x.shape[-2:]) >= side:
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


def _folder(name: str, source: str) -> Path:
    try:
        found = resolve_model(source, None, patterns=PATTERNS).folder
    except DownloadError as error:
        raise DownloadError(
            f"the perceptual loss '{name}' needs the network {source}: {error}; a folder is named "
            f"by {name}:FOLDER, or train without this loss"
        ) from error
    if not (found / "model.safetensors").is_file():
        raise ModelError(f"{found} lacks model.safetensors")
    return found


class _Lpips(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        distances: Tensor = self.network(x_hat, x).flatten()
        return distances


def _lpips(folder: Path) -> nn.Module:
    from safetensors.torch import load_file

    try:
        import lpips
    except ImportError as error:
        raise MissingLibraryError(
            "lpips", "encbench[perceptual]", "The perceptual loss 'lpips'"
        ) from error
    try:
        given = load_file(folder / "model.safetensors")
        given = {name: given[f"features.{name}"] for name in _names()}
    except Exception as error:  # whatever is wrong, the file is to blame
        raise ModelError(
            f"{folder} holds no VGG-16 of timm or torchvision, or a damaged one"
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names torchvision's options by their old names
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    with torch.no_grad():
        for name, weight in network.net.named_parameters():  # e.g. slice1.0.weight
            weight.copy_(given[name.partition(".")[2]])
    return _Lpips(network)


def _names() -> list[str]:
    """Of the weights of VGG-16's convolutions."""
    from torchvision.models.vgg import cfgs, make_layers  # type: ignore[import-untyped]

    with torch.device("meta"):
        return list(make_layers(cfgs["D"]).state_dict())


class _Features(nn.Module):
    """Mean squared distance of the features of every stage, each of length 1 over channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        pairs = list(zip(self._stages(x_hat), self._stages(x), strict=True))
        stages = [(a - b).square().sum(1).flatten(1).mean(1) for a, b in pairs]
        return torch.stack(stages).mean(0)

    def _stages(self, x: Tensor) -> list[Tensor]:
        prepared = ((x + 1) / 2 - self.mean) / self.std
        stages = self.network.forward_intermediates(prepared, intermediates_only=True)
        return [F.normalize(stage, dim=1) for stage in stages]


def _convnext(folder: Path) -> nn.Module:
    from timm.data import resolve_data_config

    said = str(read_model_config(folder).get("architecture", "nothing"))
    if "convnext" not in said:
        raise ModelError(f"{folder} holds no ConvNeXt of timm (its config.json says: {said})")
    network = load_timm(folder)
    settings = resolve_data_config(model=network)
    return _Features(network, settings["mean"], settings["std"])
