"""A detector that sees one red circle in every image."""

from encbench.data.scenes.world import SHAPES
from encbench.metrics import DetectorFamily
from encbench.types import Detection


class Circles:
    name, labels = "circles", SHAPES

    def detect(self, images):
        return [[Detection("circle", (0.0, 0.0, 9.0, 9.0), 0.95, color="red")] for _ in images]


FAMILY = DetectorFamily(
    summary="Sees a red circle everywhere.", load=lambda spec, device: Circles()
)
