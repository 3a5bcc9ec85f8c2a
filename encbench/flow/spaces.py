"""Where the flow lives: pixels, or the latents of a pretrained autoencoder of diffusers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.hub import resolve_model
from ..errors import ModelError, UsageError
from ..files import digest
from ..schema import read_model_config
from ..store import Store, StoreEntry
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
        cache: folder to keep latents in, by hash of the image and of the autoencoder; None = keep
            none. A damaged file in it is named in the log and its latents are made again.

    Attributes:
        shape: (channels, height, width) of a latent.
        revision: of the autoencoder.

    Raises:
        MissingLibraryError: if diffusers is not installed.
        ModelError: if there is no such autoencoder or it is damaged.
        UsageError: if ``side`` is no multiple of what it shrinks by.
        StoreError: if the cache cannot be written.
        DownloadError: if the hub cannot be reached.
    """

    def __init__(
        self,
        source: str,
        side: int,
        *,
        revision: str | None = None,
        cache: Path | None = None,
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
        self.cache = None if cache is None else LatentCache(cache, self._identity(name))

    def encode(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C H W"]:
        """Images in [0, 1] to latents, float32 on the space's device.

        Raises:
            UsageError: if the images have another size.
            StoreError: if the disk is full.
        """
        _check_side(images, self.side)
        if self.cache is None:
            return self._encode(images)
        return self.cache.rows(images, self._encode).to(self.device)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        parts = []
        for some in images.split(BATCH):
            said = self.model.encode(some.to(self.device) * 2 - 1)
            latent = said.latent_dist.mode() if hasattr(said, "latent_dist") else said.latent
            parts.append((latent.float() - self.shift) * self.scale)
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 S S"]:
        """Latents to images in [0, 1], float32."""
        parts = []
        for some in x.split(BATCH):
            latent = some.to(self.device).float() / self.scale + self.shift
            parts.append(self.model.decode(latent).sample.float())
        return (torch.cat(parts).clamp(-1, 1) + 1) / 2

    def _identity(self, name: str) -> dict[str, Any]:
        return {
            "what": "latents",
            "version": 1,
            "autoencoder": name,
            "revision": self.revision,
            "dtype": "torch.float32",
        }


class LatentCache:
    """Latents on disk and, once read, in memory. Each batch of new ones is a file of its own,
    named by the images in it, so that several processes can share a folder.

    Args:
        folder: of the store.
        identity: everything that a latent depends on, but the image.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.entry: StoreEntry = Store(folder).entry(identity)
        self.known: dict[str, Tensor] = {}
        for path in sorted(self.entry.folder.glob("*.latents.safetensors")):
            found = self.entry.read(int(path.name.split(".")[0]), "latents")
            if found is None:
                path.unlink(missing_ok=True)
                continue
            self.known.update(zip(found[1]["images"], found[0]["latents"], strict=True))

    def rows(self, images: Tensor, compute: Any) -> Tensor:
        """The latents of images, computed where they are not known, on the CPU."""
        keys = [_hash(image) for image in images.float().cpu()]
        new = {key: row for row, key in enumerate(keys) if key not in self.known}
        if new:
            latents = compute(images[list(new.values())]).cpu()
            number = int(digest(list(new))[:15], 16)
            self.entry.write(number, "latents", {"latents": latents}, {"images": list(new)})
            self.known.update(zip(new, latents, strict=True))
        return torch.stack([self.known[key] for key in keys])


def _hash(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


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
