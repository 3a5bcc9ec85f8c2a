"""Perceptual distances of images, as a training loss (pMF, arXiv 2601.22158, section 4.4): LPIPS
with VGG-16 (arXiv 1801.03924), and the squared distance of a ConvNeXt's pooled last feature.

Both networks see the same random crop of the two images, resized to 224 pixels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.hub import resolve_model
from ..errors import DownloadError, MissingLibraryError, ModelError, UsageError
from ..schema import read_model_config
from ..vision.dino import load_timm

WEIGHTS = {"lpips": 0.4, "convnext": 0.1}
"""pMF's weights."""
SOURCES = {"lpips": "timm/vgg16.tv_in1k", "convnext": "timm/convnextv2_base.fcmae_ft_in22k_in1k"}
"""Hub repositories that carry the networks in safetensors; the first holds torchvision's VGG-16."""
EPS = 0.01
"""Of the adaptive weight of each distance."""
CROP, AREA, RATIO = 224, (0.08, 1.0), (3 / 4, 4 / 3)
"""Side of a crop after resizing, its share of the image's area, and its width over its height."""
PATTERNS = ("config.json", "model.safetensors")

Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


def perceptual_loss(spec: str, device: torch.device | str = "cpu") -> Distance:
    """A loss (x_hat, x, uniform) -> (B,) of images in [-1, 1]: the sum over the distances d of
    weight x d / (sg(d) + .01), as in pMF's code. ``uniform`` (B, 4), drawn from [0, 1), places
    the crops.

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
        parts.append((WEIGHTS[name], made.to(device).eval().requires_grad_(False)))

    def distance(
        x_hat: Float[Tensor, "B C H W"], x: Float[Tensor, "B C H W"], uniform: Float[Tensor, "B 4"]
    ) -> Float[Tensor, " B"]:
        if x.shape[1] != 3:
            raise UsageError("a perceptual loss needs images: train in pixels, without autoencoder")
        pair = same_crops(torch.stack([x_hat, x], 1), uniform).unbind(1)
        total = x.new_zeros(len(x))
        for weight, network in parts:
            apart = network(*pair)
            total = total + weight * apart / (apart.detach() + EPS)
        return total

    return distance


def same_crops(
    images: Float[Tensor, "B N C H W"], uniform: Float[Tensor, "B 4"]
) -> Float[Tensor, "B N C S S"]:
    """One crop of each row's N images, resized to CROP pixels (bicubic, as pMF's code).

    Args:
        uniform: from [0, 1), by which area, ratio (its logarithm), top and left are drawn.
    """
    from torchvision.transforms.v2 import InterpolationMode  # type: ignore[import-untyped]
    from torchvision.transforms.v2.functional import resized_crop  # type: ignore[import-untyped]

    height, width = images.shape[-2:]
    low, high = map(math.log, RATIO)
    crops = []
    for row, (area, ratio, top, left) in zip(images, uniform.tolist(), strict=True):
        area = height * width * (AREA[0] + area * (AREA[1] - AREA[0]))
        ratio = math.exp(low + ratio * (high - low))
        w = min(max(round(math.sqrt(area * ratio)), 1), width)
        h = min(max(round(math.sqrt(area / ratio)), 1), height)
        top, left = int(top * (height - h + 1)), int(left * (width - w + 1))
        crops.append(resized_crop(row, top, left, h, w, [CROP, CROP], InterpolationMode.BICUBIC))
    return torch.stack(crops)


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
    except Exception as error:  # any error is about the file
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
    """Squared distance of the last feature, pooled and normalized, summed over its channels."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return (self.features(x_hat) - self.features(x)).square().sum(1)

    def features(self, x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B F"]:
        last = self.network.forward_features(((x + 1) / 2 - self.mean) / self.std)
        pooled: Tensor = self.network.forward_head(last, pre_logits=True)
        return pooled


def _convnext(folder: Path) -> nn.Module:
    from timm.data import resolve_data_config

    said = str(read_model_config(folder).get("architecture", "nothing"))
    if "convnext" not in said:
        raise ModelError(f"{folder} holds no ConvNeXt of timm (its config.json says: {said})")
    network = load_timm(folder)
    settings = resolve_data_config(model=network)
    return _Features(network, settings["mean"], settings["std"])
