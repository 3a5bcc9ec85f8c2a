"""What re-encoders see of scenes: how much an image has in common with its nearest other one.

    python benchmarks/re_encoders.py

For each image of the run's default data, the nearest other image by cosine of centered vectors.
Printed: the mean overlap of the two (size of the intersection over that of the union, of
multisets) in colors, in shapes and in both together, and how often they share the ground. The
first row is a random other image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from provenance import keep

from encbench.data.scenes.default import scene_batch, scene_captions
from encbench.data.scenes.world import Scene, SceneObject
from encbench.vision import load_reencoder
from encbench.vision.labels import LabelReEncoder

SPECS = ("pixels", "mini-dinov3?step=3pct", "mini-dinov3?step=20pct", "mini-dinov3", "labels")
LOOKS: dict[str, Callable[[SceneObject], Hashable]] = {
    "colors": lambda o: o.color,
    "shapes": lambda o: o.shape,
    "colored shapes": lambda o: (o.color, o.shape),
}


def common(a: Scene, b: Scene, look: Callable[[SceneObject], Hashable]) -> float:
    one, other = (Counter(map(look, scene.objects)) for scene in (a, b))
    return (one & other).total() / (one | other).total()


def row(scenes: Sequence[Scene], other: Sequence[int]) -> dict[str, float]:
    pairs = [(scene, scenes[i]) for scene, i in zip(scenes, other, strict=True)]
    found = {name: np.mean([common(*pair, look) for pair in pairs]) for name, look in LOOKS.items()}
    found["ground"] = np.mean([a.ground == b.ground for a, b in pairs])
    return {name: round(float(value), 3) for name, value in found.items()}


def main() -> None:
    scenes, captions = list(scene_batch()), scene_captions()
    count = len(scenes)
    shift = np.random.default_rng(0).integers(1, count, count)
    result = {"a random other image": row(scenes, (np.arange(count) + shift) % count)}
    for spec in SPECS:
        reencoder = load_reencoder(spec, torch.device("cpu"))
        if isinstance(reencoder, LabelReEncoder):
            reencoder = reencoder.with_labels(captions.labels)
        vectors = reencoder.encode(captions.images).double()
        unit = torch.nn.functional.normalize(vectors - vectors.mean(0), dim=1)
        nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
        result[spec] = row(scenes, nearest.tolist())
    keep("re_encoders", {"images": count, "overlap with the nearest other image": result})


if __name__ == "__main__":
    main()
