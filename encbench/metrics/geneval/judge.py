"""The scene judge: a small detector for images of scenes, right on generated ones too.

A fully convolutional network finds objects as centers (Zhou et al., 'Objects as Points', arXiv
1904.07850), here with a softmax over the shapes and 'nothing' in each cell of a 16 x 16 map, so
that one place has one shape. A second look at the pixels (``judge_look``) names the color and
turns the score into the probability that a person would name the object so. Recipe:
``judge_train``; weights come with encbench.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, pixel_unshuffle, relu

from ...checkpoint import load_weights, read_tensors
from ...data.scenes.world import COLORS, SHAPES
from ...errors import ModelError, UsageError
from ...files import digest, read_json, write_atomic, write_json
from ...schema import load_dataclass
from ...shipped import read_manifest, shipped
from ...types import Detection
from .judge_look import SecondLook, measure_objects
from .verdict import THRESHOLD

WEIGHTS = Path(__file__).parent / "weights" / "scene-judge"
SIDE = 64  # pixels that the network sees
STRIDE = 4  # pixels a cell
BATCH = 64  # images at a time: on a CPU, what lies between two layers stays in its cache
FIRST = 0.1  # lowest probability that gets a second look
APART = 2  # cells; of two centers no farther apart, in x and y, the lesser is dropped
_COLORS = tuple(COLORS)


class Maps(NamedTuple):
    """Output of the network in each cell: logits of the shapes and of 'nothing' (last), logits of
    the colors (an auxiliary task; the second look names colors), and the
    box: offset of its center from the cell's and log of its size, in cells."""

    shape: Float[Tensor, "N 13 h w"]
    color: Float[Tensor, "N 10 h w"]
    box: Float[Tensor, "N 4 h w"]


@dataclass(frozen=True)
class JudgeConfig:
    """Widths at 2, 4 and 8 pixels a cell, and blocks at 4, 8 and again 4."""

    widths: tuple[int, int, int] = (24, 48, 96)
    blocks: tuple[int, int, int] = (1, 1, 1)


class _Conv(nn.Module):
    """3 x 3 convolution; batch normalization only while it learns (see :func:`folded`)."""

    def __init__(self, wide: int, out: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(wide, out, 3, stride, padding=1, bias=not norm)
        self.norm: nn.Module = nn.BatchNorm2d(out) if norm else nn.Identity()

    def forward(self, x: Float[Tensor, "N c h w"]) -> Float[Tensor, "N d i j"]:
        out: Tensor = self.norm(self.conv(x))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.one, self.two = _Conv(width, width, 1, norm), _Conv(width, width, 1, norm)

    def forward(self, x: Float[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        return relu(x + self.two(relu(self.one(x))))


class SceneNet(nn.Module):
    """Images of 64 x 64 pixels to :class:`Maps` of 16 x 16 cells.

    Args:
        norm: with batch normalization, for training.
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
    """The same network with its batch normalization (in evaluation) inside the convolutions."""
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


class Peaks(NamedTuple):
    """Objects in a batch of images: which image, shape, probability, and box in its fractions."""

    image: Int[Tensor, " n"]
    shape: Int[Tensor, " n"]
    likely: Float[Tensor, " n"]
    box: Float[Tensor, "n 4"]


def peaks(maps: Maps) -> Peaks:
    """The centers that are likely enough for a second look, row by row."""
    likely, shape = maps.shape.softmax(1)[:, :-1].max(1)
    best = max_pool2d(likely[:, None], 2 * APART + 1, 1, APART)[:, 0]
    image, row, column = ((likely >= FIRST) & (likely == best)).nonzero(as_tuple=True)
    dx, dy, wide, high = maps.box[image, :, row, column].unbind(1)
    x, y = column + 0.5 + dx, row + 0.5 + dy
    wide, high = wide.exp() / 2, high.exp() / 2
    box = torch.stack([x - wide, y - high, x + wide, y + high], 1) * (STRIDE / SIDE)
    return Peaks(image, shape[image, row, column], likely[image, row, column], box.clamp(0, 1))


class SceneJudge:
    """Finds the shapes of scenes, with their colors. A :class:`~.detect.Detector`.

    Args:
        name: identifies the weights in its results.
        net: with batch normalization folded in.
        look: names colors and scores what the network found.
    """

    labels = SHAPES

    def __init__(self, name: str, net: SceneNet, look: SecondLook) -> None:
        self.name = name
        self.look = look.eval().requires_grad_(False)
        moved: Any = net.eval().requires_grad_(False)
        self.net: SceneNet = moved.to(memory_format=torch.channels_last)
        self.device = next(net.parameters()).device

    def detect(self, images: Sequence[Image]) -> list[list[Detection]]:
        """The objects of each image, best first, with scores from .3 up."""
        # one block for all: small ones between large ones would keep the C library from reusing
        # the memory of the large ones (1.5 GB for 64 images of 1600 x 1600)
        small = torch.empty(len(images), 3, SIDE, SIDE)
        for place, image in enumerate(images):
            small[place] = self._shrink(image)[0]
        return self._detect(small, [image.size for image in images])

    @torch.inference_mode()
    def detect_tensor(self, images: Float[Tensor, "N 3 H W"]) -> list[list[Detection]]:
        """The objects of images with values from 0 to 1, boxes in pixels of these images.

        Any side will do: the network sees them at 64 x 64.
        """
        high, wide = images.shape[2:]
        small = [resize_for_judge(part) for part in images.float().split(1)]
        return self._detect(torch.cat(small), [(wide, high)] * len(images))

    def _shrink(self, image: Image) -> Float[Tensor, "1 3 64 64"]:
        pixels = torch.from_numpy(np.array(image.convert("RGB")))
        return resize_for_judge(pixels.permute(2, 0, 1)[None].float().div_(255))

    @torch.inference_mode()
    def _detect(
        self, images: Float[Tensor, "N 3 64 64"], sizes: Sequence[tuple[int, int]]
    ) -> list[list[Detection]]:
        found: list[list[Detection]] = []
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH].to(self.device)
            found += self._judge(part, torch.tensor(sizes[start : start + BATCH]).repeat(1, 2))
        return found

    def _judge(
        self, images: Float[Tensor, "N 3 64 64"], scale: Int[Tensor, "N 4"]
    ) -> list[list[Detection]]:
        at = peaks(self.net(images))
        colors, odds = self.look(measure_objects(images, at.image, at.shape, at.box), at.likely)
        rows = zip(
            at.image.tolist(), at.shape.tolist(), colors.argmax(1).tolist(),
            odds.sigmoid().tolist(), (at.box.cpu() * scale[at.image.cpu()]).tolist(), strict=True,
        )  # fmt: skip
        found: list[list[Detection]] = [[] for _ in images]
        for i, kind, hue, score, box in rows:
            if score >= THRESHOLD:
                found[i].append(Detection(SHAPES[kind], tuple(box), score, color=_COLORS[hue]))
        return [sorted(row, key=lambda each: -each.score) for row in found]


def resize_for_judge(images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 64 64"]:
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


def save_judge(net: SceneNet, second: SecondLook, folder: Path) -> None:
    """Write a folded network and its second look: ``model.safetensors`` and ``config.json``.

    Raises:
        StoreError: if it cannot be written.
    """
    from safetensors.torch import save

    parts = {"net": net, "look": second}
    state = {
        f"{part}.{name}": value.detach().cpu().contiguous()
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
    write_atomic(folder / "model.safetensors", save(state))
    write_json(folder / "config.json", {"shapes": SHAPES, "colors": _COLORS, **asdict(net.config)})


def load_judge(device: str | torch.device = "cpu", folder: Path = WEIGHTS) -> SceneJudge:
    """The judge with the weights that come with encbench, or others made by ``judge_train``.

    Raises:
        ModelError: naming the file that is missing, damaged, or made for other shapes.
    """
    shipped(folder)
    path = folder / "config.json"
    about = read_json(path, ModelError)
    config = load_dataclass(JudgeConfig, about, str(path), ModelError)
    if [about.get("shapes"), about.get("colors")] != [list(SHAPES), list(_COLORS)]:
        raise ModelError(f"{path} is of other shapes or colors; train it again")
    both = nn.ModuleDict({"net": SceneNet(config), "look": SecondLook()})
    weights = folder / "model.safetensors"
    load_weights(both, read_tensors(weights), weights)
    both.to(device)
    revision = digest(read_manifest(folder)["files"])
    net, second = both["net"], both["look"]
    assert isinstance(net, SceneNet)
    assert isinstance(second, SecondLook)
    return SceneJudge(f"scenes@{revision[:12]}", net, second)
