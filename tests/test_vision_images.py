"""Spec strings of re-encoders, and images as they come."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

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


# --------------------------------------------------------------------------------- images


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode in ("CMYK", "YCbCr") else "x.png")
    noise().convert("RGB").convert(mode).save(path)
    opened = open_image(record(path))
    assert (opened.mode, opened.size) == ("RGB", (64, 48))


def test_cmyk_keeps_its_colors(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (32, 32), (250, 20, 20)).convert("CMYK").save(path, quality=95)
    red, green, blue = np.asarray(open_image(record(path))).mean((0, 1))
    assert red > 200 > 60 > max(green, blue)


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(path)
    assert np.asarray(open_image(record(path))).mean() == pytest.approx(128, abs=1)


def test_exif_orientation_is_honored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    noise(64, 48).save(tmp_path / "x.jpg", exif=exif)
    assert open_image(record(tmp_path / "x.jpg")).size == (48, 64)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif"])
def test_cut_files_are_refused_and_named(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"cut.{ending}"
    noise(200, 200).save(path)
    content = path.read_bytes()
    for keep in (len(content) // 2, 20, 0):
        path.write_bytes(content[:keep])
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some libraries do
        with pytest.raises(ImageError, match=rf"cut\.{ending}") as caught:
            open_image(record(path))
        assert "\n" not in str(caught.value)


def test_what_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "page.jpg"
    path.write_text("<html>404</html>")
    with pytest.raises(ImageError, match=r"page\.jpg"):
        open_image(record(path))
    with pytest.raises(ImageError, match=r"none\.jpg: No such file"):
        open_image(record(tmp_path / "none.jpg"))
    with pytest.raises(ImageError, match=r"gone\.jpg.* not there"):
        open_image(record(None))
    with pytest.raises(ImageError):
        open_image(record(tmp_path))


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 9_000)).save(path)
    with pytest.raises(ImageError, match=r"bomb\.png"):
        open_image(record(path))
    path = tmp_path / "bigger.gif"  # a few bytes that claim 65,000 x 65,000 pixels
    path.write_bytes(b"GIF89a" + (65_000).to_bytes(2, "little") * 2 + b"\x00\x00\x00")
    with pytest.raises(ImageError, match=r"bigger\.gif"):
        open_image(record(path))


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


def test_real_images(shared: Path) -> None:
    for path in sorted((shared / "coco" / "val2017").glob("*.jpg")):
        assert open_image(record(path)).mode == "RGB"
