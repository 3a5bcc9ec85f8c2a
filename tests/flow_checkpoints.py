"""Tiny random image models, written as diffusers and timm publish theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def _card(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Tiny\n")
    return folder


def sana(
    folder: Path, *, caption: int = 24, channels: int = 4, side: int = 4, **others: Any
) -> Path:
    """A SANA pipeline's folder: transformer/ (SanaTransformer2DModel), vae/ (AutoencoderDC, of
    images 4 times as large as the latent's ``side``) and model_index.json."""
    from diffusers import SanaTransformer2DModel

    torch.manual_seed(0)
    _card(folder)
    settings: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": channels,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": caption,
        "sample_size": side,
        "qk_norm": "rms_norm_across_heads",
    }
    model = SanaTransformer2DModel(**(settings | others))
    model.save_pretrained(folder / "transformer")
    dc(folder / "vae", channels=channels)
    index = {
        "_class_name": "SanaPipeline",
        "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def dc(folder: Path, *, channels: int = 4, scale: float = 0.41407) -> Path:
    """A deep-compression autoencoder (AutoencoderDC): 4 times as small."""
    from diffusers import AutoencoderDC

    torch.manual_seed(0)
    AutoencoderDC(
        latent_channels=channels,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=scale,
    ).save_pretrained(folder)
    return folder


def kl(
    folder: Path,
    *,
    channels: int = 4,
    shift: float | None = 0.0609,
    widths: tuple[int, int, int] = (8, 8, 8),
) -> Path:
    """A variational autoencoder (AutoencoderKL), with a shift as FLUX's: 4 times as small."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=widths,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.3611,
        shift_factor=shift,
    ).save_pretrained(folder)
    return folder


def convnext(folder: Path) -> Path:
    """A ConvNeXt-V2 of timm: config.json and model.safetensors."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    _card(folder)
    shape: dict[str, Any] = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24], "num_classes": 5}
    model = timm.create_model("convnextv2_atto", pretrained=False, **shape)
    config = {
        "architecture": "convnextv2_atto",
        "num_classes": 5,
        "model_args": {name: shape[name] for name in ("depths", "dims")},
        "pretrained_cfg": {
            "input_size": [3, 224, 224],
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 5,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def vgg(folder: Path) -> Path:
    """The convolutions of VGG-16 with random weights, under torchvision's and timm's names."""
    from safetensors.torch import save_file
    from torchvision.models.vgg import cfgs, make_layers

    torch.manual_seed(0)
    _card(folder)
    features = make_layers(cfgs["D"])
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"architecture": "vgg16"}))
    return folder
