"""Images as they come: every mode, damaged metadata, files that are none."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, TiffImagePlugin

from encbench.errors import EncbenchError, ImageError
from encbench.images import LIMIT, open_image
from encbench.types import ImageRecord


def record(path: Path | None, number: int = 1) -> ImageRecord:
    return ImageRecord(number, path.name if path else "gone.jpg", path, 0, 0)


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


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
    with pytest.raises(ImageError, match=r"gone\.jpg\) is missing"):
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


def test_real_images(shared: Path) -> None:
    for path in sorted((shared / "coco" / "val2017").glob("*.jpg")):
        assert open_image(record(path)).mode == "RGB"


# ------------------------------------------------------------------------ damaged metadata


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of (tag, type, number of values, value) as they stand, right or wrong."""
    body, rest = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)), b""
    for tag, kind, count, value in entries:
        body += struct.pack("<HHI", tag, kind, count)
        if len(value) <= 4:
            body += value.ljust(4, b"\0")
        else:
            body += struct.pack("<I", 14 + 12 * len(entries) + len(rest))
            rest += value
    return body + b"\0\0\0\0" + rest


TURN = (0x112, 3, 1, struct.pack("<H", 6))
DAMAGED = {
    "a width that is a text": exif(TURN, (0x100, 2, 5, b"4000\0")),
    "a pointer that is a text": exif(TURN, (0x8769, 2, 4, b"abc\0")),
    "a pointer to nowhere": exif(TURN, (0x8769, 4, 1, struct.pack("<I", 999_999))),
    "an orientation that is a text": exif((0x112, 2, 4, b"abc\0")),
    "an orientation of 99": exif((0x112, 3, 1, struct.pack("<H", 99))),
    "an unknown type": exif((0x112, 77, 1, b"abcd")),
    "more entries than there are": b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 30,
    "another header": b"\0\x08\0\x02\x01\x12\0\x03garbage",
    "nothing": b"",
    "noise": bytes(range(200)),
}


def jpeg_with(image: Image.Image, segments: list[tuple[int, bytes]]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    added = [struct.pack(">BBH", 0xFF, kind, len(body) + 2) + body for kind, body in segments]
    return b"".join([data[:2], *added, data[2:]])


def png_with(image: Image.Image, kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = buffer.getvalue()
    check = zlib.crc32(kind + body) if crc is None else crc
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)
    return data[:33] + chunk + data[33:]  # after IHDR


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_damaged_exif_does_not_matter(tmp_path: Path, name: str, ending: str) -> None:
    image = Image.new("RGB", (60, 40), (200, 100, 50))
    path = tmp_path / f"x.{ending}"
    if ending == "jpg":
        path.write_bytes(jpeg_with(image, [(0xE1, b"Exif\0\0" + DAMAGED[name])]))
    elif ending == "png":
        path.write_bytes(png_with(image, b"eXIf", DAMAGED[name]))
    elif ending == "webp":
        image.save(path, exif=DAMAGED[name], lossless=True)
    else:  # of a TIFF the EXIF block is a directory of its own
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[0x8769] = 999_999
        tags[700] = DAMAGED[name] or b"x"
        image.save(path, tiffinfo=tags)
    opened = open_image(record(path))
    assert opened.size in ((60, 40), (40, 60))
    assert np.asarray(opened).mean((0, 1)) == pytest.approx([200, 100, 50], abs=2)


BROKEN_SEGMENTS = {
    "multi-picture index": (0xE2, b"MPF\0MM\0*\0\0\0\x08\0\x02" + b"\xff" * 40),
    "color profile": (0xE2, b"ICC_PROFILE\0\x07\x02" + b"\0" * 40),
    "photoshop": (0xED, b"Photoshop 3.0\x008BIM\x04\x04" + b"\xff" * 9),
    "xmp": (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><unclosed"),
    "comment": (0xFE, b"\xff\xfe not text"),
}


@pytest.mark.parametrize("name", BROKEN_SEGMENTS)
def test_other_damaged_metadata_of_a_jpeg_do_not_matter(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg_with(noise(), [BROKEN_SEGMENTS[name]]))
    assert same(open_image(record(path)), Image.open(io.BytesIO(jpeg_with(noise(), []))))


BROKEN_CHUNKS = {
    "a text that unpacks to 100 MB": (b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20)), None),
    "a wrong checksum": (b"tEXt", b"a\0b", 1),
    "a profile that is none": (b"iCCP", b"a\0\0garbage", None),
    "a time that is short": (b"tIME", b"\0", None),
    "a resolution that is short": (b"pHYs", b"\0", None),
}


@pytest.mark.parametrize("name", BROKEN_CHUNKS)
def test_other_damaged_metadata_of_a_png_do_not_matter(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png_with(noise(), *BROKEN_CHUNKS[name]))
    assert same(open_image(record(path)), noise())


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "tiff", "png"])
def test_orientations_are_pillow_s(tmp_path: Path, value: int, ending: str) -> None:
    from PIL import ImageOps

    tags = Image.Exif()
    tags[0x112] = value
    path = tmp_path / f"x.{ending}"
    noise(24, 16).resize((48, 32)).save(path, exif=tags)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    assert same(open_image(record(path)), expected)


# ---------------------------------------------------------------------------- pixel values


@pytest.mark.parametrize("size", [(8, 8), (200, 3)])
def test_floats_from_0_to_1_are_scaled(tmp_path: Path, size: tuple[int, int]) -> None:
    values = np.linspace(0, 1, size[0] * size[1], dtype=np.float32).reshape(size)
    Image.fromarray(values).save(tmp_path / "x.tiff")
    found = np.asarray(open_image(record(tmp_path / "x.tiff")))[..., 0]
    assert np.abs(found / 255 - values).max() < 1 / 255


@pytest.mark.parametrize("value", range(1, 9))
def test_floats_are_turned(tmp_path: Path, value: int) -> None:
    values = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    tags = Image.Exif()
    tags[0x112] = value
    Image.fromarray(values).save(tmp_path / "x.tiff", exif=tags)
    opened = open_image(record(tmp_path / "x.tiff"))
    assert opened.size == ((6, 4) if value < 5 else (4, 6))
    assert sorted(np.asarray(opened)[..., 0].ravel()) == pytest.approx(
        (values * 255).ravel(), abs=1
    )


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 4), 200.0, np.float32),
        np.full((4, 4), -0.5, np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), np.inf, np.float32),
        np.full((4, 4), 70_000, np.int32),
        np.full((4, 4), 12, np.int32),
    ],
    ids=["0 to 255", "negative", "nan", "infinite", "wide integers", "small 32-bit integers"],
)
def test_values_of_unknown_range_are_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "x.tiff")
    with pytest.raises(ImageError, match=r"x\.tiff .*convert it to 8"):
        open_image(record(tmp_path / "x.tiff"))


@pytest.mark.parametrize("ending", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_in_any_format(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    if ending == "pgm":
        path.write_bytes(b"P5 8 8 65535\n" + b"\x80\0" * 64)
    else:
        Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(path)
    assert np.asarray(open_image(record(path))).mean() == pytest.approx(128, abs=1)


# ------------------------------------------------------------------------------- no images


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        b"%PDF-1.4\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"/* XPM */\nstatic char *a[] = {\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
)
def test_other_formats_start_nothing(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    def started(*args: object, **kwargs: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"x\.jpg: it is damaged, or not an image in one of"):
        open_image(record(path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"x\.png: it is not a file"):
        open_image(record(tmp_path / "x.png"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_number_of_pixels_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "panorama.png"
    Image.new("1", (15_000, 6_000)).save(path)
    with pytest.raises(ImageError, match=f"15000 x 6000 pixels.*set {LIMIT}"):
        open_image(record(path))
    monkeypatch.setenv(LIMIT, "90000000")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    assert open_image(record(path)).size == (15_000, 6_000)
    monkeypatch.setenv(LIMIT, "many")
    with pytest.raises(EncbenchError, match=LIMIT):
        open_image(record(path))
