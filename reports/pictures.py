"""Image files of a run, checked before they are shown."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError


@dataclass(frozen=True)
class ImageFile:
    """An image as it is on disk, with its size in pixels."""

    content: bytes
    kind: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        """As a page embeds it."""
        return f"data:image/{self.kind};base64,{base64.b64encode(self.content).decode()}"


def read_image(folder: Path, name: Any, most: int) -> ImageFile | None:
    """An image below a folder; None where it is missing, damaged, outside of the folder, larger
    than ``most`` bytes, or of a kind that not every browser shows."""
    if not (name and isinstance(name, str)):
        return None
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        with path.open("rb") as file:
            content = file.read(most + 1)
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")) as image:
            image.verify()
            kind, (width, height) = str(image.format).lower(), image.size
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    return ImageFile(content, kind, width, height) if len(content) <= most else None
