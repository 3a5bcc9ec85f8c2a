"""A metric and a detector as another package would bring them: one file, two entry points."""

from pathlib import Path

CODE = """
import numpy as np
from encbench.errors import DataError
from encbench.metrics import DetectorFamily, MetricFamily
from encbench.types import Detection, ImageScore, MetricSpec


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


class Dogs:
    name, labels = "dogs", ("dog",)

    def detect(self, images):
        return [[Detection("dog", (0.0, 0.0, 9.0, 9.0), 0.95, color="red")] for _ in images]


METRIC = MetricFamily(
    spec=Brightness.spec, summary="How bright images are.", load=Brightness,
    examples=("brightness?floor=.1",), options={"floor": "darker images are not scored"},
)
SPREAD = MetricFamily(
    spec=Spread.spec, summary="How far the mean brightness is off.", load=Spread,
    options={"reference": "gray level"},
)
DETECTOR = DetectorFamily(summary="Sees dogs everywhere.", load=lambda spec, device: Dogs())
"""
ENTRY_POINTS = (
    "[encbench.metrics]\nbrightness = outside_metric_code:METRIC\n"
    "spread = outside_metric_code:SPREAD\n"
    "[encbench.detectors]\ndogs = outside_metric_code:DETECTOR\n"
)


def install(site: Path) -> Path:
    """Write the package into a folder that is to be put on the path."""
    about = site / "outside_metric-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "outside_metric_code.py").write_text(CODE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-metric\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    return site
