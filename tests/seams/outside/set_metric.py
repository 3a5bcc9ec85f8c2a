"""A metric of a whole set of images: how far their mean brightness is from a reference."""

import numpy as np

from encbench.errors import DataError
from encbench.metrics import MetricFamily
from encbench.types import MetricSpec


class Spread:
    spec = MetricSpec("spread", "Spread", "gray levels", direction="lower", whole_set=True)

    def __init__(self, spec, device):
        self.name, self.reference = str(spec), float(spec.get("reference", "0"))

    def extract(self, prompts, images):
        return np.array([[np.asarray(i.convert("L")).mean(), 1] for i in images], np.float32)

    def reduce(self, features):
        if len(features) < 2:
            raise DataError("spread needs 2 images")
        return float(abs(features[:, 0].mean() - self.reference))


FAMILY = MetricFamily(
    spec=Spread.spec,
    summary="How far the mean brightness is off.",
    load=Spread,
    examples=("spread?reference=128",),
    options={"reference": "gray level"},
)
