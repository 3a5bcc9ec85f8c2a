"""The published Inception network and its features, shared by FID, KID and the Inception score.

The network and its exact TensorFlow 1 resizing are torch-fidelity's (extra ``metrics``). Two
conventions of resizing to 299 x 299 disagree in public, so the record names the one that was used:
``tf1`` (bilinear without antialiasing, as the first FID code, ADM and torch-fidelity resize) and
``clean`` (Pillow's antialiased bicubic on floats, as clean-fid does, arXiv 2104.11222).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..data.hub import ResolvedModel, cache_dir
from ..errors import (
    DataError,
    DownloadError,
    MissingLibraryError,
    ModelError,
    UnknownNameError,
    UsageError,
)
from ..files import digest_files, expand_home, read_table, replace_on_success
from ..listing import list_images
from ..progress import bar, log
from ..types import ImagePrompt, ImageRecord, MetricSpec
from ..vision import ReEncoderSpec, open_image
from .similarity import read_pinned

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
RESIZES = ("tf1", "clean")
SIDE = 299
BATCH = 32
OPTIONS = {
    "resize": "tf1 (as torch-fidelity and ADM) or clean (as clean-fid) [tf1]",
    "weights": f"folder that holds {FILE} [downloaded]",
}


class InceptionMetric:
    """Base of the three :class:`~encbench.types.SetMetric`: features of each image.

    Args:
        spec: of the metric.
        given: its options; a source is the reference set.
        layer: 'pool' (2048 features) or 'logits' (1008, without bias).
    """

    def __init__(
        self, spec: MetricSpec, given: ReEncoderSpec, device: torch.device, layer: str
    ) -> None:
        self.spec, self.device, self.layer = spec, device, layer
        self.resize = given.get("resize", "tf1")
        if self.resize not in RESIZES:
            raise UnknownNameError(f"resize of {spec.name}", self.resize, RESIZES)
        if given.revision:
            raise UsageError(f"'{given}' takes no revision; its weights are pinned")
        self.reference_path = expand_home(given.source) if given.source else None
        options = [("resize", self.resize)]
        if self.reference_path is not None:
            options.insert(0, ("reference", self.reference_id))
        source = self.reference_path.name if self.reference_path else ""
        self.name = str(ReEncoderSpec(spec.name, source, None, tuple(options)))
        self.trunk, self.head = load_inception(given.get("weights"), device)

    @cached_property
    def reference_id(self) -> str:
        """Identifies the reference set."""
        assert self.reference_path is not None
        path = self.reference_path
        files = [path] if path.is_file() else list(list_images(path, below=True).paths)
        if not files:
            raise DataError(f"the reference set {path} holds no images")
        return digest_files(files, path if path.is_dir() else path.parent)[:12]

    @torch.inference_mode()
    def extract(
        self, prompts: Sequence[ImagePrompt], images: Sequence[Image.Image]
    ) -> Float[np.ndarray, "N F"]:
        """Features of each image."""
        found = []
        for start in range(0, len(images), BATCH):
            pixels = torch.stack([self._prepare(image) for image in images[start : start + BATCH]])
            found.append(self._features(pixels.to(self.device)).float().cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

    def _prepare(self, image: Image.Image) -> Float[Tensor, "3 299 299"]:
        """Pixels from 0 to 255, resized by the convention asked for."""
        image = image.convert("RGB")
        if self.resize == "clean":
            size, way = (SIDE, SIDE), Image.Resampling.BICUBIC
            channels = [
                np.asarray(channel.convert("F").resize(size, way)).clip(0, 255)
                for channel in image.split()
            ]
            return torch.from_numpy(np.stack(channels))
        from torch_fidelity.interpolate_compat_tensorflow import (
            interpolate_bilinear_2d_like_tensorflow1x,
        )

        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(
            pixels, size=(SIDE, SIDE), align_corners=False
        )
        return resized[0]

    def _features(self, pixels: Float[Tensor, "B 3 299 299"]) -> Float[Tensor, "B F"]:
        pooled: Tensor = self.trunk((pixels - 128) / 128).flatten(1)
        return pooled @ self.head.T if self.layer == "logits" else pooled

    @cached_property
    def reference(self) -> Float[np.ndarray, "M F"]:
        """Features of the reference images; kept in the cache, as a memory map.

        Raises:
            DataError: if one cannot be read.
        """
        path = self.reference_path
        assert path is not None
        if not path.is_dir():
            raise DataError(f"{self.spec.name} needs a folder of reference images, not {path}")
        kept = cache_dir() / "references" / f"{self.reference_id}-{self.layer}-{self.resize}.npy"
        if not kept.is_file():
            files = list_images(path, below=True).paths
            log.info("features of the %d reference images in %s", len(files), path)
            width = len(self.head) if self.layer == "logits" else self.head.shape[1]
            shape = (len(files), width)
            with (
                replace_on_success(kept) as temporary,
                bar("reference", len(files)) as advance,
                ThreadPoolExecutor(8) as pool,
            ):
                table = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
                for start in range(0, len(files), BATCH):
                    some = files[start : start + BATCH]
                    images = list(pool.map(_open, some))
                    table[start : start + len(some)] = self.extract([], images)
                    advance(len(some))
                table.flush()
                del table
        found: Float[np.ndarray, "M F"] = read_table(kept)
        return found


def _open(path: Path) -> Image.Image:
    return open_image(ImageRecord(0, path.name, path, 0, 0))


def require_reference(spec: ReEncoderSpec, forms: str) -> Path:
    """The reference set that a spec names.

    Raises:
        UsageError: if it names none.
        DataError: if it is not there.
    """
    if not spec.source:
        raise UsageError(f"'{spec}' names no reference set; write {spec.family}:{forms}")
    path = expand_home(spec.source)
    if not path.exists():
        raise DataError(f"there is no reference set {path}; name {forms}")
    return path


def load_inception(
    folder: str | None, device: torch.device
) -> tuple[torch.nn.Module, Float[Tensor, "1008 2048"]]:
    """The network up to its pooled features, and the weights of its logits.

    Raises:
        MissingLibraryError: if torch-fidelity is not installed.
        DownloadError: if the weights cannot be downloaded.
        ModelError: if the file is another one than published.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise MissingLibraryError("torch-fidelity", "encbench[metrics]", "FID") from error
    place = expand_home(folder) if folder else cache_dir() / "inception"
    path = place / FILE
    if not path.is_file():
        if folder:
            raise ModelError(f"{place} holds no {FILE}; download it from {URL}")
        _download(path)
    read_pinned(ResolvedModel(place, SHA256), FILE, "sha256", SHA256)
    # it loads the file again, without torch's check for code: that has been done by now
    net: Any = FeatureExtractorInceptionV3(
        "inception", ["2048"], feature_extractor_weights_path=str(path)
    )
    *layers, head = net.children()
    return torch.nn.Sequential(*layers).eval().to(device), head.weight.to(device)


def _download(path: Path) -> None:
    log.info("downloading %s (about 96 MB)", URL)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256, progress=False)
    except (OSError, RuntimeError) as error:  # no network, or another file
        raise DownloadError(
            f"{URL} cannot be downloaded ({error}): check the network, or put the file into a "
            "folder and name it with ?weights=FOLDER"
        ) from error


def moments(
    features: Float[np.ndarray, "N F"], block: int = 4096
) -> tuple[Float[np.ndarray, " F"], Float[np.ndarray, "F F"]]:
    """Mean and covariance in float64, block by block: a memory map is never whole in memory."""
    starts = range(0, len(features), block)
    total = sum(features[i : i + block].astype(np.float64).sum(0) for i in starts)
    mean = np.asarray(total) / len(features)
    scatter = np.zeros((len(mean), len(mean)))
    for i in starts:
        centered = features[i : i + block] - mean
        scatter += centered.T @ centered
    return mean, scatter / (len(features) - 1)
