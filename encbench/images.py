"""Reads users' images; damaged metadata do not matter."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from .errors import ImageError, UsageError
from .files import write_atomic
from .types import ImageRecord, ImageSource

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
"""Formats by their content, whatever the file's name: Pillow's others start programs (EPS) or
are not images."""
MAX_PIXELS = 89_000_000  # just below where Pillow begins to warn of a decompression bomb
LIMIT = "ENCBENCH_MAX_PIXELS"  # environment variable that raises it
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How an image is turned upright, by the value of EXIF's orientation."""


def open_image(image: ImageRecord) -> Image.Image:
    """An image as RGB, rotated as its EXIF data says. Truncated and broken images are refused.

    Transparency is dropped, and of several frames the first is taken. 16-bit gray values are
    scaled to 8 bits, and floating-point values from 0 to 1, too. Damaged metadata do not matter.

    Raises:
        ImageError: naming the file, if it is missing, damaged, of another format, or of more
            pixels than allowed (89 million, or the environment variable ENCBENCH_MAX_PIXELS).
    """
    path = image.path
    if path is None:
        raise ImageError(f"the file of image {image.image_id} ({image.file_name}) is missing")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have switched it on
    try:
        if isinstance(path, Path) and path.exists() and not path.is_file():
            raise ImageError(f"cannot read the image {path}: it is not a file")  # a pipe waits
        try:
            file: Path | io.BytesIO
            file = path if isinstance(path, Path) else io.BytesIO(path.read_bytes())
            return _decode(file, path)
        except (ImageError, FileNotFoundError, PermissionError):
            raise
        except Exception as error:
            pixels_only = _strip_metadata(path.read_bytes())
            if pixels_only is None:
                raise
            try:
                return _decode(io.BytesIO(pixels_only), path)
            except Exception:  # the pixels are damaged, too
                raise error from None
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; set {LIMIT} if the file is right") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"cannot read the image {path}: it is damaged, or not an image in one of the formats "
            f"{', '.join(FORMATS)}"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ImageError(f"cannot read the image {path}: {reason}") from error
    except Exception as error:  # decoders raise many errors on a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"cannot read the image {path}: {reason}") from error


def count_pixels(path: Path) -> int:
    """Width times height, as the file's header says; 0 where it cannot be read."""
    with suppress(Exception), _open(path) as opened:  # decoders raise many errors
        return opened.width * opened.height
    return 0


def _open(file: Path | io.BytesIO) -> Image.Image:
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(_max_pixels(), Image.MAX_IMAGE_PIXELS)
    return Image.open(file, formats=_readable())


def _decode(file: Path | io.BytesIO, path: ImageSource) -> Image.Image:
    limit = _max_pixels()
    with _open(file) as opened:
        if opened.width * opened.height > limit:
            raise ImageError(
                f"{path} claims {opened.width} x {opened.height} pixels, more than {limit:,}: "
                f"refused as a decompression bomb; set {LIMIT} if the file is right"
            )
        if isinstance(opened, TiffImageFile):
            turn = opened.tag_v2.get(0x0112)
            # Pillow's own reads all other metadata, too, and may fail
            opened.load_end = lambda: None  # type: ignore[method-assign]
            opened.load()
        else:
            opened.load()
            turn = _orientation(opened)
        pixels = _as_rgb(opened, path)
    return pixels.transpose(_TURNS[turn]) if turn in _TURNS else pixels


@cache
def _readable() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _max_pixels() -> int:
    text = os.environ.get(LIMIT, "")
    if text and not text.isdecimal():
        raise UsageError(f"{LIMIT} must be a whole number of pixels, not '{text}'")
    return int(text or MAX_PIXELS)


def _orientation(opened: Image.Image) -> object:
    try:
        value = opened.getexif().get(0x0112)
        return value if isinstance(value, int) else None
    except Exception:  # damaged EXIF data: the pixels are whole
        return None


def _as_rgb(opened: Image.Image, path: ImageSource) -> Image.Image:
    if opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format == "PPM"):
        opened = opened.point(lambda value: value / 256).convert("L")
    elif opened.mode == "I":
        raise ImageError(
            f"{path} has pixels of 32-bit integers, whose value range is unknown; convert it to 8 "
            "or "
            "16 bits"
        )
    elif opened.mode == "F":
        import numpy as np

        values = np.asarray(opened.copy())  # a turned TIFF itself claims the size it gets later
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise ImageError(
                f"{path} has floating-point pixels from {low:g} to {high:g}, not from 0 to 1; "
                "convert it to 8 bits"
            )
        opened = Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    return opened.convert("RGB")


def write_image(path: Path, image: Image.Image, kind: str = "PNG", **options: int) -> None:
    """Write an image completely or not at all, with Pillow's options for that kind of file.

    Raises:
        StoreError: if it cannot be written.
    """
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    write_atomic(path, buffer.getvalue())


def is_whole(path: Path, kind: str = "PNG") -> bool:
    """Whether an image of that kind is there and undamaged."""
    try:
        with Image.open(path, formats=(kind,)) as image:
            image.load()
    except (OSError, ValueError, SyntaxError):
        return False
    return True


def _strip_metadata(data: bytes) -> bytes | None:
    """A PNG or JPEG without anything but what its pixels need; None for other formats."""
    kept, place = [], 2
    if data.startswith(b"\xff\xd8"):
        kept.append(data[:2])
        while data[place : place + 1] == b"\xff" and place + 4 <= len(data):
            kind, size = data[place + 1], int.from_bytes(data[place + 2 : place + 4], "big")
            if kind == 0xDA:  # the scan: pixels to the end
                return b"".join([*kept, data[place:]])
            comment = kind == 0xFE or (0xE1 <= kind <= 0xEF and kind != 0xEE)  # EE: color transform
            if not comment:
                kept.append(data[place : place + 2 + size])
            place += 2 + size
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        kept, place = [data[:8]], 8
        while place + 12 <= len(data):
            size = int.from_bytes(data[place : place + 4], "big")
            if data[place + 4 : place + 8] in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
                kept.append(data[place : place + 12 + size])
            place += 12 + size
        return b"".join(kept)
    return None
