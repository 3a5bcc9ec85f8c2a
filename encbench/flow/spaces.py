"""The space of the flow: pixels, or latents of a pretrained autoencoder of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.hub import resolve_model
from ..errors import ModelError, UsageError
from ..schema import read_model_config
from .sana import diffusers, load_diffusers_part

PATTERNS = (
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "config.json",
    "diffusion_pytorch_model.safetensors",
)
CLASSES = ("AutoencoderDC", "AutoencoderKL")
BATCH = 8


class PixelSpace:
    """Images as they are, from [0, 1] to [-1, 1].

    Attributes:
        shape: (channels, side, side).
    """

    def __init__(self, side: int) -> None:
        self.shape = (3, side, side)

    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C H W"]:
        """
        Raises:
            UsageError: if the images have another size.
        """
        _check_side(images, self.shape[1])
        return images * 2 - 1

    def decode(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 S S"]:
        return (x.clamp(-1, 1) + 1) / 2


class LatentSpace:
    """Latents of diffusers' AutoencoderDC or AutoencoderKL, shifted and scaled as its
    configuration says: x = (latent - shift) * scale. Of a variational autoencoder's posterior
    the mode is taken, so that an image has one latent.

    Args:
        source: folder or hub id, of a pipeline (with the folder vae/) or of the autoencoder alone.
        side: of the images in pixels.
        revision: of the hub repository, or the content hash that a folder must have.

    Attributes:
        shape: (channels, height, width) of a latent.
        revision: of the autoencoder.
        identity: what a latent depends on beside its image; JSON-ready.

    Raises:
        MissingLibraryError: if diffusers is not installed.
        ModelError: if there is no such autoencoder or it is damaged.
        UsageError: if ``side`` is not a multiple of what it shrinks by.
        DownloadError: if the hub cannot be reached.
    """

    def __init__(
        self,
        source: str,
        side: int,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        library = diffusers("A latent space")
        resolved = resolve_model(source, revision, patterns=PATTERNS)
        self.revision = resolved.revision
        name = _class_name(resolved.folder)
        model = load_diffusers_part(getattr(library, name), resolved.folder, "vae")
        self.model = model.to(device).eval().requires_grad_(False)
        self.device, self.side = torch.device(device), side
        config: Any = model.config
        channels = config.get("encoder_block_out_channels") or config["block_out_channels"]
        shrink = 2 ** (len(channels) - 1)
        if side % shrink:
            raise UsageError(f"{source} shrinks images by {shrink}: side {side} is no multiple")
        self.shape = (config.latent_channels, side // shrink, side // shrink)
        self.shift, self.scale = _affine(config, self.device)
        self.identity = {"autoencoder": name, "revision": self.revision, "dtype": "torch.float32"}

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1] to latents, float32 on the space's device.

        The autoencoder always sees batches of one size, so that a latent does not depend on the
        images beside it, not even by rounding.

        Raises:
            UsageError: if the images have another size.
        """
        _check_side(images, self.side)
        parts = []
        for some in images.split(BATCH):
            filled = torch.cat([some, some[-1:].expand(BATCH - len(some), -1, -1, -1)])
            encoded = self.model.encode(filled.to(self.device) * 2 - 1)
            is_posterior = hasattr(encoded, "latent_dist")
            latent = encoded.latent_dist.mode() if is_posterior else encoded.latent
            parts.append(((latent.float() - self.shift) * self.scale)[: len(some)])
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 S S"]:
        """Latents to images in [0, 1], float32."""
        parts = []
        for some in x.split(BATCH):
            latent = some.to(self.device).float() / self.scale + self.shift
            parts.append(self.model.decode(latent).sample.float())
        return (torch.cat(parts).clamp(-1, 1) + 1) / 2


def _check_side(images: Tensor, side: int) -> None:
    if images.shape[1:] != (3, side, side):
        raise UsageError(
            f"this space takes RGB images of {side} x {side} pixels, not "
            f"{' x '.join(map(str, images.shape[1:]))}"
        )


def _class_name(folder: Path) -> str:
    home = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    name = str(read_model_config(home).get("_class_name"))
    if name not in CLASSES:
        raise ModelError(
            f"{home} holds no {' or '.join(CLASSES)} (its config.json says: {name}); name the "
            "folder of an autoencoder, or of a pipeline with vae/"
        )
    return name


def _affine(config: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shift and scale, each one number or one for each channel (1, C, 1, 1)."""
    shift = torch.tensor(float(config.get("shift_factor") or 0.0))
    scale = torch.tensor(float(config["scaling_factor"]))
    if config.get("latents_mean") and config.get("latents_std"):
        shift = torch.tensor(config["latents_mean"], dtype=torch.float32).view(1, -1, 1, 1)
        scale = scale / torch.tensor(config["latents_std"], dtype=torch.float32).view(1, -1, 1, 1)
    return shift.to(device), scale.to(device)
