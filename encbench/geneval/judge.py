"""The scene judge: a small detector for images of scenes, right on generated ones too.

A fully convolutional network finds objects as centres (Zhou et al., 'Objects as Points', arXiv
1904.07850), here with a softmax over the shapes and 'nothing' in each cell of a 16 x 16 map, so
that one place has one shape and a score is the probability that a person would name the object
so. Recipe: ``judge_train``; weights come with encbench.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, pixel_unshuffle, relu

from ..data.scenes.world import COLORS, SHAPES
from ..errors import ModelError, UsageError
from ..files import digest, write_atomic
from ..shipped import read_manifest, shipped
from ..types import Detection
from .verdict import THRESHOLD

WEIGHTS = Path(__file__).parent / "weights" / "scene-judge"
SIDE = 64  # pixels that the network sees
STRIDE = 4  # pixels a cell
BATCH = 64  # images at a time: on a CPU, what lies between two layers stays in its cache
APART = 2  # cells; of two centres no farther apart, in x and y, the lesser is dropped
_COLORS = tuple(COLORS)


class Maps(NamedTuple):
    """What the network says in each cell: logits of the shapes and of 'nothing' (last), logits
    of the colours, and the box: offset of its centre from the cell's and log of its size, in
    cells."""

    shape: Float[Tensor, "N 13 h w"]
    color: Float[Tensor, "N 10 h w"]
    box: Float[Tensor, "N 4 h w"]


@dataclass(frozen=True)
class JudgeConfig:
    """Widths at 2, 4 and 8 pixels a cell, and blocks at 4, 8 and again 4; ``temperature``
    divides the shapes' logits."""

    widths: tuple[int, int, int] = (24, 48, 96)
    blocks: tuple[int, int, int] = (1, 1, 1)
    temperature: float = 1.0


class _Conv(nn.Module):
    """3 x 3 convolution; batch normalisation only while it learns (see :func:`folded`)."""

    def __init__(self, wide: int, out: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide, out, 3, stride, padding=1, bias=not norm)
        self.norm: nn.Module = nn.BatchNorm2d(out) if norm else nn.Identity()

    def forward(self, x: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        return self.norm(self.conv(x))


class _Block(nn.Module):
    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.one, self.two = _Conv(width, width, 1, norm), _Conv(width, width, 1, norm)

    def forward(self, x: Float[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        return relu(x + self.two(relu(self.one(x))))


class SceneNet(nn.Module):
    """Images of 64 x 64 pixels to :class:`Maps` of 16 x 16 cells.

    Args:
        norm: with batch normalisation, for training.
    """

    def __init__(self, config: JudgeConfig, *, norm: bool = False) -> None:
        super().__init__()
        (fine, mid, coarse), (before, below, after) = config.widths, config.blocks
        self.config = config
        self.stem = _Conv(12, fine, 1, norm)
        self.down = _Conv(fine, mid, 2, norm)
        self.before = nn.Sequential(*(_Block(mid, norm) for _ in range(before)))
        self.lower = _Conv(mid, coarse, 2, norm)
        self.below = nn.Sequential(*(_Block(coarse, norm) for _ in range(below)))
        self.up = nn.Conv2d(coarse, mid, 1)
        self.after = nn.Sequential(*(_Block(mid, norm) for _ in range(after)))
        self.head = nn.Conv2d(mid, len(SHAPES) + 1 + len(_COLORS) + 4, 1)

    def forward(self, images: Float[Tensor, "N 3 64 64"]) -> Maps:
        x = pixel_unshuffle(images * 2 - 1, 2).contiguous(memory_format=torch.channels_last)
        x = self.before(relu(self.down(relu(self.stem(x)))))
        wide = self.below(relu(self.lower(x)))
        x = self.after(x + interpolate(self.up(wide), scale_factor=2))
        return Maps(*self.head(x).float().split([len(SHAPES) + 1, len(_COLORS), 4], dim=1))


def folded(net: SceneNet) -> SceneNet:
    """The same network with its batch normalisation (in evaluation) inside the convolutions."""
    plain = SceneNet(net.config)
    state = {name: value for name, value in net.state_dict().items() if ".norm." not in name}
    for name, part in net.named_modules():
        if isinstance(part, _Conv) and isinstance(part.norm, nn.BatchNorm2d):
            norm = part.norm
            assert norm.running_mean is not None
            assert norm.running_var is not None
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            state[f"{name}.conv.weight"] = part.conv.weight * scale[:, None, None, None]
            state[f"{name}.conv.bias"] = norm.bias - norm.running_mean * scale
    plain.load_state_dict({name: value.detach().clone() for name, value in state.items()})
    return plain.eval()


class SceneJudge:
    """Finds the shapes of scenes, with their colours. A :class:`~.detect.Detector`.

    Args:
        name: what tells its results from those of other weights.
        net: with batch normalisation folded in.
        threshold: lowest score to report.
    """

    labels = SHAPES

    def __init__(self, name: str, net: SceneNet, *, threshold: float = THRESHOLD) -> None:
        self.name, self.threshold = name, threshold
        moved: Any = net.eval().requires_grad_(False)
        self.net: SceneNet = moved.to(memory_format=torch.channels_last)
        self.device = next(net.parameters()).device

    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        """The objects of each image, best first, with scores from .3 up."""
        found: list[list[Detection]] = [[] for _ in images]
        by_size: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            by_size.setdefault(image.size, []).append(place)
        for places in by_size.values():
            for start in range(0, len(places), BATCH):
                part = places[start : start + BATCH]
                pixels = np.stack([np.asarray(images[i].convert("RGB")) for i in part])
                tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
                for place, detections in zip(part, self.detect_tensor(tensor), strict=True):
                    found[place] = detections
        return found

    @torch.inference_mode()
    def detect_tensor(self, images: Float[Tensor, "N 3 H W"]) -> list[list[Detection]]:
        """The objects of images with values from 0 to 1, boxes in pixels of these images.

        Any side will do: the network sees them at 64 x 64.
        """
        high, wide = images.shape[2:]
        scale = torch.tensor([wide, high, wide, high]) / SIDE
        found: list[list[Detection]] = []
        for start in range(0, len(images), BATCH):
            part = fit(images[start : start + BATCH].to(self.device, torch.float32))
            found += self._read(self.net(part), scale)
        return found

    def _read(self, maps: Maps, scale: Float[Tensor, " 4"]) -> list[list[Detection]]:
        image, shape, color, score, box = (each.cpu() for each in self._peaks(maps))
        rows = zip(
            image.tolist(), shape.tolist(), color.tolist(), score.tolist(),
            (box * scale).tolist(), strict=True,
        )  # fmt: skip
        found: list[list[Detection]] = [[] for _ in maps.shape]
        for i, kind, hue, value, corners in rows:
            found[i].append(Detection(SHAPES[kind], tuple(corners), value, color=_COLORS[hue]))
        return [sorted(row, key=lambda each: -each.score) for row in found]

    def _peaks(self, maps: Maps) -> tuple[Tensor, Tensor, Tensor, Tensor, Float[Tensor, "n 4"]]:
        likely = (maps.shape / self.net.config.temperature).softmax(1)[:, :-1]
        score, shape = likely.max(1)
        best = max_pool2d(score[:, None], 2 * APART + 1, 1, APART)[:, 0]
        image, row, column = ((score >= self.threshold) & (score == best)).nonzero(as_tuple=True)
        dx, dy, wide, high = maps.box[image, :, row, column].unbind(1)
        x, y = column + 0.5 + dx, row + 0.5 + dy
        wide, high = wide.exp() / 2, high.exp() / 2
        box = (torch.stack([x - wide, y - high, x + wide, y + high], 1) * STRIDE).clamp(0, SIDE)
        color = maps.color[image, :, row, column].argmax(1)
        return image, shape[image, row, column], color, score[image, row, column], box


def fit(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 64 64"]:
    """Images at the side that the network sees, smoothed where they get smaller.

    Raises:
        UsageError: if they have no pixels.
    """
    if not min(images.shape[2:]):
        raise UsageError("the scene judge needs images with at least one pixel a side")
    if images.shape[2:] == (SIDE, SIDE):
        return images
    return interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True).clamp_(0, 1)


# --------------------------------------------------------------------------------- on disk


def save_net(net: SceneNet, folder: Path) -> None:
    """Write a folded network as ``model.safetensors`` and ``config.json``.

    Raises:
        StoreError: if it cannot be written.
    """
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    write_atomic(folder / "model.safetensors", save(state))
    about = {"shapes": SHAPES, "colors": _COLORS, **asdict(net.config)}
    write_atomic(folder / "config.json", (json.dumps(about, indent=1) + "\n").encode())


def load_judge(device: str | torch.device = "cpu", folder: Path = WEIGHTS) -> SceneJudge:
    """The judge with the weights that come with encbench, or others made by ``judge_train``.

    Raises:
        ModelError: naming the file that is missing, damaged, or made for other shapes.
    """
    from safetensors.torch import load

    shipped(folder)
    about = json.loads((folder / "config.json").read_bytes())
    if (about["shapes"], about["colors"]) != (list(SHAPES), list(_COLORS)):
        raise ModelError(f"{folder / 'config.json'} is of other shapes or colours; train it again")
    config = JudgeConfig(tuple(about["widths"]), tuple(about["blocks"]), about["temperature"])
    net = SceneNet(config)
    net.load_state_dict(load((folder / "model.safetensors").read_bytes()))
    revision = digest(read_manifest(folder)["files"])
    return SceneJudge(f"scenes@{revision[:12]}", net.to(device))
