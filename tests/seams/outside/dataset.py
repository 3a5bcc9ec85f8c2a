"""A dataset: twelve plain images that it makes itself, two captions each."""

from pathlib import Path

from PIL import Image

from encbench.data.datasets import DatasetFamily
from encbench.types import Caption, ImageRecord


class Stripes:
    """Not a CaptionSet: any class with these attributes will do."""

    name, pin, labels, notes = "stripes", "0" * 64, (), ("made up",)

    def __init__(self, folder):
        self.images, self.captions = [], []
        for i in range(12):
            path = Path(folder) / f"{i}.png"
            Image.new("RGB", (20, 20), (20 * i, 0, 255 - 20 * i)).save(path)
            self.images.append(ImageRecord(i, path.name, path, 20, 20))
            self.captions += [Caption(2 * i + k, i, f"stripe {i} told {k}") for k in range(2)]


FAMILY = DatasetFamily(
    name="stripes",
    summary="Twelve stripes.",
    examples=("stripes:FOLDER",),
    load=lambda spec, use: Stripes(spec.source),
)
