"""DINOv3 (arXiv 2508.10104) and DINOv2 (arXiv 2304.07193), from timm or transformers.

Both libraries' published layouts are read: timm's ``config.json`` names an ``architecture``,
transformers' a ``model_type``. Weights are safetensors, loaded strictly, from a folder that
``data.hub`` found; images are prepared as the model's own configuration says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ..data.hub import ResolvedModel, resolve_model
from ..encoders.hf import quiet
from ..errors import ModelError, UsageError
from ..files import expand_home
from ..schema import read_model_config
from ..types import ImageRecord, ReEncoderCard
from . import ReEncoderFamily, ReEncoderSpec, in_batches, open_image

PATTERNS = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
)
OPTIONS = {
    "token": "cls: the class token (default); mean: the mean over patches",
    "size": "side of the square that the model sees, in pixels; by default its own",
}
BATCH = 32


@dataclass(frozen=True)
class Backbone:
    """A network of either library behind one interface.

    Attributes:
        model: the network, in eval mode.
        prepare: an RGB image -> the model's input (3, H, W).
        tokens: inputs (B, 3, H, W) -> all tokens after the final norm (B, T, D).
        prefix: how many tokens stand before the patches (class token, registers).
        dim: width D.
    """

    model: nn.Module
    prepare: Callable[[Image.Image], Float[Tensor, "3 H W"]]
    tokens: Callable[[Float[Tensor, "B 3 H W"]], Float[Tensor, "B T D"]]
    prefix: int
    dim: int


class DinoReEncoder:
    """A self-supervised vision transformer."""

    def __init__(self, card: ReEncoderCard, backbone: Backbone, token: str, device: Any) -> None:
        self.card = card
        self.backbone = backbone
        self.token = token
        self.device = torch.device(device)

    @torch.inference_mode()
    def encode(self, images: Sequence[ImageRecord]) -> Float[Tensor, "N P"]:
        """One vector for each image, float32 on the CPU.

        Raises:
            ImageError: naming the file, if one cannot be read.
        """
        rows = [torch.zeros(0, self.card.dim)]
        for batch in in_batches(self._load, images, BATCH):
            tokens = self.backbone.tokens(torch.stack(batch).to(self.device))
            if self.token == "cls":
                vectors = tokens[:, 0]
            else:
                vectors = tokens[:, self.backbone.prefix :].mean(1)
            rows.append(vectors.float().cpu())
        return torch.cat(rows)

    def _load(self, image: ImageRecord) -> Float[Tensor, "3 H W"]:
        return self.backbone.prepare(open_image(image))


@dataclass(frozen=True)
class Kind:
    """The differences between the two families."""

    name: str
    title: str
    default: str
    model_types: tuple[str, ...]

    def repository(self, spec: ReEncoderSpec) -> str:
        """The folder or hub id of a spec; a name without a slash is one of timm's."""
        source = spec.source or self.default
        if "/" in source or "\\" in source or expand_home(source).is_dir():
            return source
        return f"timm/{source}"

    def resolve(self, spec: ReEncoderSpec) -> ResolvedModel:
        _token(spec), _size(spec)  # a wrong option fails before anything is downloaded
        return resolve_model(self.repository(spec), spec.revision, patterns=PATTERNS)

    def load(
        self, spec: ReEncoderSpec, resolved: ResolvedModel, device: torch.device
    ) -> DinoReEncoder:
        folder = resolved.folder
        config = read_model_config(folder)
        architecture = str(config.get("architecture", ""))
        if self.name in architecture:
            backbone = _from_timm(folder, _size(spec))
        elif config.get("model_type") in self.model_types:
            backbone = _from_transformers(folder, _size(spec))
        else:
            what = architecture or config.get("model_type") or "of no known kind"
            raise ModelError(
                f"{folder} holds no {self.title} (its config.json says: {what}); expected a timm "
                f"architecture with '{self.name}' in its name or model_type "
                f"{' or '.join(self.model_types)}"
            )
        backbone.model.to(device)
        card = ReEncoderCard(
            spec=str(spec),
            revision=resolved.revision,
            dim=backbone.dim,
            license=resolved.license,
            parameters=sum(weight.numel() for weight in backbone.model.parameters()),
        )
        return DinoReEncoder(card, backbone, _token(spec), device)


def _token(spec: ReEncoderSpec) -> str:
    token = spec.get("token", "cls")
    if token not in ("cls", "mean"):
        raise UsageError(f"unknown token '{token}' in '{spec}'; known: cls, mean")
    return token


def _size(spec: ReEncoderSpec) -> int | None:
    value = spec.get("size", "")
    if not value:
        return None
    if not value.isascii() or not value.isdigit() or not 0 < int(value) <= 4096:
        raise UsageError(f"size={value} in '{spec}' must be a number of pixels up to 4096")
    return int(value)


def _check_size(size: int | None, patch: int) -> None:
    if size is not None and size % patch:
        near = max(round(size / patch), 1) * patch
        raise UsageError(
            f"size={size} is not a multiple of the model's {patch}-pixel patches; try {near}"
        )


def load_timm(folder: Path, **settings: Any) -> Any:
    """A network of timm, in eval mode, from a folder of timm's layout.

    Raises:
        ModelError: naming the folder, if it lacks its weights or timm cannot load it.
    """
    import timm
    from timm.models import load_checkpoint

    if not (folder / "model.safetensors").is_file():
        raise ModelError(f"{folder} lacks model.safetensors")
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=False, **settings)
        load_checkpoint(model, str(folder / "model.safetensors"), strict=True)
    except Exception as error:  # any error of timm is about the folder
        raise _unfit(folder, "timm", error) from error
    return model.eval()


def _from_timm(folder: Path, size: int | None) -> Backbone:
    from timm.data import create_transform, resolve_data_config

    model = load_timm(folder, num_classes=0)
    patch = model.patch_embed.patch_size[0]
    _check_size(size, patch)
    settings = resolve_data_config(model=model)
    if size is not None:
        model.set_input_size(img_size=(size, size))
        settings["input_size"] = (3, size, size)
    return Backbone(
        model=model,
        prepare=create_transform(**settings),
        tokens=model.forward_features,
        prefix=model.num_prefix_tokens,
        dim=model.num_features,
    )


def _from_transformers(folder: Path, size: int | None) -> Backbone:
    from transformers import AutoImageProcessor, AutoModel

    if not (folder / "preprocessor_config.json").is_file():
        raise ModelError(f"{folder} lacks preprocessor_config.json, by which images are prepared")
    try:
        with quiet():
            model, info = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that they are listed, and refused below
            )
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # any error of transformers is about the folder
        raise _unfit(folder, "transformers", error) from error
    wrong = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"{folder}: {wrong[0]} is missing or of another size in the weights ({len(wrong)} such "
            "in all); they do not fit config.json"
        )
    model.eval()
    config = model.config
    _check_size(size, config.patch_size)

    def prepare(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt", **changes)["pixel_values"][0]
        return pixels

    changes = _resized(processor, size) if size else {}
    return Backbone(
        model=model,
        prepare=prepare,
        tokens=lambda pixels: model(pixel_values=pixels).last_hidden_state,
        prefix=1 + (getattr(config, "num_register_tokens", 0) or 0),
        dim=config.hidden_size,
    )


def _resized(processor: Any, size: int) -> dict[str, Any]:
    """What to tell an image processor so that it gives another size, its crop in proportion."""
    square = {"height": size, "width": size}
    if not getattr(processor, "do_center_crop", False):
        return {"size": square}
    edge = dict(processor.size).get("shortest_edge")
    if edge is None:
        return {"size": square, "crop_size": square}
    crop = dict(processor.crop_size)["height"]
    return {"size": {"shortest_edge": math.ceil(edge * size / crop)}, "crop_size": square}


def _unfit(folder: Path, library: str, error: Exception) -> ModelError:
    lines = str(error).split("\n")
    reason = " ".join(line.strip() for line in lines[:2])[:300]
    return ModelError(f"{library} cannot load {folder}: {reason or type(error).__name__}")


_V3 = Kind("dinov3", "DINOv3", "vit_large_patch16_dinov3.lvd1689m", ("dinov3_vit",))
_V2 = Kind("dinov2", "DINOv2", "facebook/dinov2-large", ("dinov2", "dinov2_with_registers"))


def _family(kind: Kind, summary: str, examples: tuple[str, ...]) -> ReEncoderFamily:
    return ReEncoderFamily(
        name=kind.name,
        summary=summary,
        examples=examples,
        needs="pixels",
        resolve=kind.resolve,
        load=kind.load,
        requires=lambda spec: [(kind.repository(spec), spec.revision)],
        options=OPTIONS,
    )


DINOV3 = _family(
    _V3,
    "DINOv3, as published; by timm name, hub id or folder",
    (
        "dinov3",
        "dinov3:vit_base_patch16_dinov3.lvd1689m",
        "dinov3:facebook/dinov3-vitl16-pretrain-lvd1689m?token=mean",
    ),
)
DINOV2 = _family(
    _V2,
    "DINOv2, the open fallback; by hub id, timm name or folder",
    ("dinov2", "dinov2:facebook/dinov2-base", "dinov2:vit_large_patch14_dinov2.lvd142m?size=224"),
)
