"""Writes a list of images with captions as tars and as parquet, for tests and benchmarks."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from encbench.types import ImageTextDataset

Pairs = Sequence[tuple[str, bytes, Sequence[str]]]
"""File name, bytes and captions of each image."""


def png(value: int) -> bytes:
    """A small image of one red."""
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def red_pairs(count: int = 5) -> Pairs:
    """Images of ever more red, with two captions each."""
    return [(f"{i:03d}.png", png(10 * i), [f"color {i}", f"the color {i}"]) for i in range(count)]


def texts_of(data: ImageTextDataset) -> list[str]:
    return [caption.text for caption in data.captions]


def write_tars(folder: Path, pairs: Pairs, shard: int = 40) -> str:
    """WebDataset tars of ``shard`` samples each; their spec."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(pairs), shard)
    for number, start in enumerate(starts):
        members = [
            member
            for name, data, texts in pairs[start : start + shard]
            for member in (
                (name, data),
                (f"{Path(name).with_suffix('')}.txt", "\n".join(texts).encode()),
            )
        ]
        write_tar(folder / f"{number:03d}.tar", members)
    return f"webdataset:{folder}/{{000..{len(starts) - 1:03d}}}.tar"


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_parquet(folder: Path, pairs: Pairs, shard: int = 40, **columns: Sequence[Any]) -> str:
    """Parquet files of ``shard`` rows each, with an image column of ``datasets``; their spec."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": data, "path": name} for name, data, _ in pairs],
            "captions": [list(texts) for _, _, texts in pairs],
            **columns,
        }
    ).cast_column("image", datasets.Image())
    for number, start in enumerate(range(0, len(pairs), shard)):
        rows = range(start, min(start + shard, len(pairs)))
        table.select(rows).to_parquet(folder / f"{number:03d}.parquet")
    return f"datasets:{folder}/*.parquet"
