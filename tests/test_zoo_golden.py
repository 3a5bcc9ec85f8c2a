"""Shipped weights give the committed scores. Written anew by: python tests/test_zoo_golden.py"""

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from encbench.context import Context, Data, Images
from encbench.data.scenes.default import scene_captions, scene_prompts_long
from encbench.encode import StoredEncoder
from encbench.encoders import EncoderSpec
from encbench.files import write_json
from encbench.probes.ablation import AblationProbe
from encbench.probes.decodability import DecodabilityProbe
from encbench.probes.minimal_pairs import MinimalPairsProbe
from encbench.probes.retrieval import RetrievalProbe
from encbench.store import Store
from encbench.vision import load_reencoder
from encbench.zoo.catalog import ENCODERS

GOLDEN = Path(__file__).parent / "golden" / "zoo_scores.json"
SPECS = ENCODERS[:4]
TOLERANCE = 1e-3
LIMIT = 60
OPTIONS = {"ks": (2,), "queries": 80, "draws": 1, "shares": (0.5,)}
KEPT = {
    "retrieval": ("scaled@2", "published@2", "recall@2", "text-to-image@2"),
    "ablation": ("published", "calibrated", "identification"),
    "minimal-pairs": ("scaled", "swapped"),
    "decodability": ("tokens", "pooled", "image/pooled"),
}
PROBES = (RetrievalProbe(), AblationProbe(), MinimalPairsProbe(), DecodabilityProbe())


def measure(specs: tuple[str, ...], folder: Path) -> dict[str, dict[str, float]]:
    """Some scores of encoders on a few scenes; retrieval's images by mini-dinov3."""
    device = torch.device("cpu")
    store = Store(folder)
    data = Data(scene_captions(images=80), scene_prompts_long(prompts=16))
    images = Images(load_reencoder("mini-dinov3", device), store, device, skip_broken=False)
    found: dict[str, dict[str, float]] = {}
    for spec in specs:
        encoder = StoredEncoder(EncoderSpec.parse(spec), store, device)
        context = Context(encoder, "mean", data, images, OPTIONS)
        found[spec] = {}
        for probe in PROBES:
            scores = probe.run(context, seed=0, limit=LIMIT).scores
            for name in KEPT[probe.spec.name]:
                if name in scores:
                    found[spec][f"{probe.spec.name}/{name}"] = round(scores[name].value, 5)
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, dict[str, float]]:
    return measure(SPECS, tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("spec", SPECS)
def test_scores_are_those_on_record(spec, measured, monkeypatch):
    expected = json.loads(GOLDEN.read_text())[spec]
    assert set(measured[spec]) == set(expected)
    for name, value in expected.items():
        assert measured[spec][name] == pytest.approx(value, abs=TOLERANCE), name


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        write_json(GOLDEN, measure(SPECS, Path(temporary)))
    sys.exit(0)
