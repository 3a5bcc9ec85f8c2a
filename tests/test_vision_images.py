"""Spec strings of re-encoders, and images as they come."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encbench import registry
from encbench.errors import EncbenchError, ImageError, UnknownNameError, UsageError
from encbench.types import ImageRecord
from encbench.vision import (
    ReEncoderSpec,
    in_batches,
    load_reencoder,
    open_image,
    reencoder_family,
)


def record(path: Path | None, number: int = 1) -> ImageRecord:
    return ImageRecord(number, path.name if path else "gone.jpg", path, 0, 0)


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


# ---------------------------------------------------------------------------------- specs


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dinov3", ReEncoderSpec("dinov3")),
        ("dinov3:a/b@main", ReEncoderSpec("dinov3", "a/b", "main")),
        ("dinov3@abc?token=mean", ReEncoderSpec("dinov3", "", "abc", (("token", "mean"),))),
        ("dinov2:/x@y/z", ReEncoderSpec("dinov2", "/x@y/z")),
        (
            "dinov3:m.n?token=cls&size=64",
            ReEncoderSpec("dinov3", "m.n", None, (("size", "64"), ("token", "cls"))),
        ),
        ("dinov2:C:/models/m", ReEncoderSpec("dinov2", "C:/models/m")),
    ],
)
def test_specs_are_read_and_written(text: str, expected: ReEncoderSpec) -> None:
    spec = ReEncoderSpec.parse(text)
    assert spec == expected
    assert ReEncoderSpec.parse(str(spec)) == spec


@pytest.mark.parametrize("text", ["", ":x", "?a=b", "dinov3?token", "dinov3?token=a&token=b"])
def test_bad_specs(text: str) -> None:
    with pytest.raises(UsageError):
        ReEncoderSpec.parse(text)


def test_unknown_names_list_the_known() -> None:
    with pytest.raises(UnknownNameError, match="did you mean dinov"):
        reencoder_family("dinov4")
    with pytest.raises(UnknownNameError, match="size, token"):
        reencoder_family("dinov3?xyz=1")
    with pytest.raises(UsageError, match="no options"):
        reencoder_family("labels?token=cls")
    for text in ("labels:coco", "pixels@1"):
        with pytest.raises(UsageError, match="takes no source"):
            load_reencoder(text, "cpu")
    with pytest.raises(EncbenchError, match="CUDA"):
        load_reencoder("pixels", "cuda:99") if not _cuda() else pytest.skip("there is CUDA")


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.mark.parametrize("name", registry.names("re-encoder"))
def test_every_registered_family_describes_itself(name: str) -> None:
    family = registry.get("re-encoder", name)
    assert family.name == name
    for example in family.examples:
        found, spec = reencoder_family(example)
        assert found is family
        assert all(repo and "/" in repo for repo, _ in family.requires(spec))


def test_batches_keep_order_and_look_only_a_little_ahead(tmp_path: Path) -> None:
    images = [record(tmp_path / f"{n}", n) for n in range(50)]
    started: list[int] = []
    lock = threading.Lock()

    def prepare(image: ImageRecord) -> int:
        with lock:
            started.append(image.image_id)
        time.sleep(0.001 * (image.image_id % 3))
        return image.image_id

    taken = []
    for batch in in_batches(prepare, images, 4):
        taken.extend(batch)
        assert len(started) <= len(taken) + 3 * 4
    assert taken == list(range(50))
    assert list(in_batches(prepare, [], 4)) == []


def test_batches_pass_errors_on(tmp_path: Path) -> None:
    noise().save(tmp_path / "0.png")
    images = [record(tmp_path / f"{n}.png", n) for n in (0, 0, 0, 1, 0)]
    batches = in_batches(open_image, images, 2)
    assert len(next(batches)) == 2
    with pytest.raises(ImageError, match=r"1\.png"):
        next(batches)
