"""A metric: how bright an image is."""

import numpy as np

from encbench.metrics import MetricFamily
from encbench.types import ImageScore, MetricSpec


class Brightness:
    spec = MetricSpec("brightness", "Brightness", "share of white", direction="lower")

    def __init__(self, spec, device):
        self.name, self.floor = str(spec), float(spec.get("floor", "0"))

    def score(self, prompts, images):
        values = [float(np.asarray(image.convert("L")).mean()) / 255 for image in images]
        return [
            ImageScore(value) if value >= self.floor else ImageScore(problem="too dark")
            for value in values
        ]


FAMILY = MetricFamily(
    spec=Brightness.spec,
    summary="How bright images are.",
    load=Brightness,
    examples=("brightness?floor=.1",),
    options={"floor": "darker images are not scored"},
)
