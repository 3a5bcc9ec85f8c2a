"""The values that EMF publishes (arXiv 2604.18168, Tables 1 and 2), with the specs of their
encoders. They are shown beside a run's own values, never mixed into them: the paper does not give
most of its settings (see :data:`SILENT`), so even equal encoders on equal data may differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

REFERENCE = (
    "'Extending One-Step Image Generation from Class Labels to Text via Discriminative Text "
    "Representation' (EMF)"
)
LINK = "https://arxiv.org/abs/2604.18168"
LABEL = "published (EMF Table 1/2)"

SCORES = (
    ("discriminability", "retrieval", "published@2"),
    ("disentanglement", "ablation", "published"),
)
"""The paper's two scores, each with our probe and score that follow it. A figure of the paper
shows two retrieved captions, so k is 2."""

SILENT = {
    "Discriminability": (
        "how many captions are retrieved (a figure shows two)",
        "whether the query's own image is excluded",
        "how many captions of an image are used",
        "size, token and resolution of DINOv3",
        "whether padding counts in the mean over tokens",
        "text layer, template and maximum length",
    ),
    "Disentanglement": (
        "how much of the prompt is removed",
        "where it is removed",
        "whether words or sentences are removed",
        "how many random draws are taken",
    ),
}


@dataclass(frozen=True)
class PublishedScores:
    """One encoder's published values: mean cosines, and GenEval at four steps after
    MeanFlow training where the paper tells it."""

    name: str
    discriminability: float
    disentanglement: float
    geneval: float | None
    pattern: str  # of our spec strings; '' = no adapter measures this one


TABLE = (
    PublishedScores("BLIP3o-NEXT", 0.734, 0.999, 0.90, r"blip3o:.*blip3o-next"),
    PublishedScores(
        "CLIP ViT-L/14", 0.730, 0.967, None, r"clip:(vit-l-14/openai|.*-large-patch14)$"
    ),
    PublishedScores("Gemma (SANA-1.5)", 0.713, 0.987, 0.50, r"(gemma|causal):.*gemma-2-2b-it$"),
    # PixArt's repositories carry the same T5 encoder as safetensors.
    PublishedScores("T5 v1.1 XXL", 0.634, 0.893, None, r"t5:(.*t5-v1[_.-]1-xxl|pixart-alpha/)"),
    PublishedScores("OpenUni (InternVL3)", 0.724, 0.996, 0.70, r"queries:.*openuni_.*internvl3"),
    PublishedScores("Gemma after SFT", 0.694, 0.997, 0.47, ""),
)  # fmt: skip


def published_for(spec: str) -> PublishedScores | None:
    """The row of the paper that a spec string's weights belong to, by its hub id."""
    bare = re.sub(r"[?@].*", "", spec).lower()
    for row in TABLE:
        if row.pattern and re.match(row.pattern, bare):
            return row
    return None


@dataclass(frozen=True)
class PublishedModel:
    """A text-to-image model's published scores at a number of steps, by our metrics' names and in
    their units. Detector, prompts and sampler are the authors' own."""

    name: str
    steps: int
    scores: Mapping[str, float]


MODELS = (
    PublishedModel("EMF", 1, {"geneval": 0.74, "dpg": 0.7736, "hps-v2.1": 25.77}),
    PublishedModel("EMF", 2, {"geneval": 0.85, "dpg": 0.7944, "hps-v2.1": 27.21}),
    PublishedModel("EMF", 4, {"geneval": 0.90, "dpg": 0.8120, "hps-v2.1": 29.25}),
    PublishedModel("EMF", 8, {"dpg": 0.8194}),
    PublishedModel("BLIP3o-NEXT", 1, {"geneval": 0.46, "dpg": 0.5705}),
    PublishedModel("BLIP3o-NEXT", 2, {"geneval": 0.63, "dpg": 0.6738}),
    PublishedModel("BLIP3o-NEXT", 4, {"geneval": 0.86, "dpg": 0.7815}),
    PublishedModel("BLIP3o-NEXT", 30, {"geneval": 0.91, "dpg": 0.8205, "hps-v2.1": 29.42}),
    PublishedModel("OpenUni, flow matching", 1, {"geneval": 0.11}),
    PublishedModel("OpenUni, flow matching", 2, {"geneval": 0.31}),
    PublishedModel("OpenUni, flow matching", 4, {"geneval": 0.73}),
    PublishedModel("OpenUni, flow matching", 20, {"geneval": 0.86}),
    PublishedModel("OpenUni, MeanFlow", 1, {"geneval": 0.59}),
    PublishedModel("OpenUni, MeanFlow", 2, {"geneval": 0.61}),
    PublishedModel("OpenUni, MeanFlow", 4, {"geneval": 0.70}),
    PublishedModel("OpenUni, MeanFlow", 20, {"geneval": 0.76}),
)
"""As EMF prints them: 1.6B parameters and more, 512 px and more."""
