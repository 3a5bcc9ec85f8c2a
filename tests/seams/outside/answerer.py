"""An answerer: says yes if the image is bright."""

import numpy as np

from encbench.metrics.answer import AnswererFamily


class BrightIsYes:
    def __init__(self, spec, device):
        self.name = str(spec)

    def answer(self, images, questions):
        return np.array([float(np.asarray(image.convert("L")).mean()) / 255 for image in images])


FAMILY = AnswererFamily(
    summary="Yes where the image is bright.", load=BrightIsYes, examples=("bright",)
)
