"""A run folder as the pipeline writes one, with simulated numbers: for tests of reports.

Each encoder has a latent quality; its per-query scores scatter around it. The prediction is
made from these records by the real ranking.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from encbench.files import digest, write_json
from encbench.ranking import predict
from encbench.records import (
    Failure,
    RunRecord,
    find_records,
    write_prediction,
    write_record,
)
from encbench.types import EncoderCard, ProbeSpec, Score

KS = (1, 2, 5, 10)
PROVENANCE = {
    "commit": "0123456789abcdef0123456789abcdef01234567",
    "dirty": False,
    "packages": {"encbench": "0.1.0", "torch": "2.15.0", "numpy": "2.4.6"},
    "python": "3.13.0",
    "platform": "Linux-test",
    "cpu_count": 2,
    "created": "2025-01-01T00:00:00+00:00",
}


@dataclass(frozen=True)
class Fake:
    """One simulated encoder: quality and anisotropy in 0..1, retrieval at random = 0."""

    spec: str
    name: str
    quality: float
    parameters: int = 0
    license: str = "apache-2.0"
    anisotropy: float = 0.05
    truncation: float = 0.0
    control: bool = False


FOUR = (
    Fake("clip:ViT-L-14/openai", "CLIP ViT-L/14", 0.86, 123_650_304, "mit", 0.42, 0.60),
    Fake("st:sentence-transformers/all-MiniLM-L6-v2", "MiniLM-L6", 0.84, 22_713_216),
    Fake(
        "gemma:google/gemma-2-2b-it?recipe=sana", "Gemma-2-2b-it", 0.74, 2_614_341_888, "gemma",
        0.71,
    ),
    Fake("t5:google/t5-v1_1-xxl", "T5 v1.1 XXL", 0.52, 4_762_310_656, "apache-2.0", 0.18),
)  # fmt: skip
CONTROLS = (
    Fake("control:bag-of-words", "bag-of-words", 0.62, anisotropy=0.11, control=True),
    Fake("control:word-position", "word-position", 0.5, anisotropy=0.13, control=True),
    Fake("control:random-transformer", "random-transformer", 0.33, anisotropy=0.8, control=True),
    Fake("control:constant", "constant", 0.0, anisotropy=1.0, control=True),
    Fake("control:random", "random", 0.0, anisotropy=0.0, control=True),
)
VARIANTS = ("pool=max", "layer=penultimate&pool=mean", "layer=penultimate&pool=max")


def many(n: int = 20) -> tuple[Fake, ...]:
    """Encoders with long, similar names, in clusters of nearly equal quality and size."""
    rng = np.random.default_rng(5)
    return tuple(
        Fake(
            f"st:/models/organization-{i % 3}/a-rather-long-encoder-name-v{i}-multilingual-instruct"
            f"?layer=penultimate&pool=mean",
            f"a-rather-long-encoder-name-v{i}-multilingual-instruct (penultimate)",
            float(0.9 - 0.06 * (i // 3) + rng.normal(0, 0.01)),
            int(10 ** (7.2 + 0.5 * (i // 4) + rng.normal(0, 0.05))),
            "cc-by-nc-4.0" if i % 5 == 0 else "apache-2.0",
            float(rng.uniform(0, 0.8)),
            float(rng.choice([0, 0.3])),
        )
        for i in range(n)
    )


def build(
    folder: Path,
    encoders: Sequence[Fake] = FOUR,
    *,
    controls: Sequence[Fake] = CONTROLS,
    images: bool = True,
    prompts: bool = True,
    diagnostics: bool = True,
    gallery: bool = True,
    variants: bool = True,
    failed: bool = False,
    n: int = 79,
    caption: str = "",
) -> Path:
    """Write a whole run folder and return it.

    Args:
        encoders: the candidates; each also gets its own shuffle if there are controls.
        images, prompts, diagnostics, gallery, variants: leave a part out by False.
        failed: one more encoder that could not be measured.
        n: queries.
        caption: put into the gallery as the first caption.
    """
    config = {
        "encoders": [e.spec for e in encoders], "coco": "data/coco", "dpg": "data/dpg.jsonl",
        "re_encoder": "labels" if images else "none", "queries": n, "seed": 0, "device": "cpu",
    }  # fmt: skip
    write_json(folder / "config.json", config)
    simulation = Simulation(folder, config, images, n)
    shuffles = [
        Fake(f"control:shuffle({e.spec})", f"shuffle({e.name})", 0.0, control=True)
        for e in encoders
    ]
    for fake in (*encoders, *controls, *(shuffles if controls else [])):
        simulation.retrieval(fake)
        if prompts:
            simulation.ablation(fake)
        if diagnostics and not fake.control:
            simulation.diagnostics(fake)
        for variant in VARIANTS if variants and not fake.control else ():
            simulation.retrieval(fake, variant)
    missing = [Failure("t5:google/umt5-xxl", "hub unreachable; set HF_HUB_OFFLINE=0")]
    prediction = predict(find_records(folder), failed=missing if failed else [])
    write_prediction(folder / "prediction.json", prediction)
    if gallery:
        _gallery(folder, encoders, simulation.ids[:8], images, caption)
    return folder


def change_prediction(folder: Path, **fields: Any) -> None:
    """Set top-level fields of a prediction and make its hash fit again."""
    path = folder / "prediction.json"
    body = {k: v for k, v in {**json.loads(path.read_text()), **fields}.items() if k != "hash"}
    path.write_text(json.dumps({**body, "hash": digest(body)}))


def _entry(value: float, margin: float, n: int, unscored: int = 0) -> Score:
    return Score(float(value), n, float(value - margin), float(value + margin), unscored)


@dataclass
class Simulation:
    """Writes records; all encoders share floor and ceiling, as they would in a run."""

    folder: Path
    config: dict[str, Any]
    images: bool
    n: int
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.ids = [str(1000 + 7 * i) for i in range(self.n)]
        self.floor = self.rng.normal(0.32, 0.05, self.n)
        self.span = self.rng.normal(0.45, 0.06, self.n)

    def retrieval(self, fake: Fake, variant: str = "") -> None:
        rng, n = self.rng, self.n
        quality = fake.quality + (rng.normal(0, 0.06) if variant else 0)
        table: dict[str, Any] = {"item": self.ids}
        names: dict[str, list[str]] = {}
        unscored = 3 if self.images else 0
        recall = (rng.uniform(0, 1, n) < quality * 0.8).astype(float)
        scores = {}
        for k in KS:
            table[f"recall@{k}"] = recall
            names[f"recall@{k}"] = [f"recall@{k}"]
            scores[f"recall@{k}"] = _entry(recall.mean(), recall.std() / n**0.5 * 2, n)
        for k in KS if self.images else ():
            noise = rng.normal(0, 0.25, n)
            noise -= noise.mean() if fake.quality == 0 else 0  # chance is chance
            table["floor"] = self.floor
            table[f"ceiling@{k}"] = self.floor + self.span * (1 - 0.01 * k)
            table[f"published@{k}"] = self.floor + self.span * (quality * (1 - 0.02 * k) + noise)
            for name in ("floor", f"ceiling@{k}", f"published@{k}"):
                names[name] = [name]
                column = table[name]
                scores[name] = _entry(column.mean(), column.std() / n**0.5 * 2, n, unscored)
            names[f"scaled@{k}"] = [f"published@{k}", "floor", f"ceiling@{k}"]
            floor, top = self.floor.mean(), table[f"ceiling@{k}"].mean()
            value = (table[f"published@{k}"].mean() - floor) / (top - floor)
            scores[f"scaled@{k}"] = _entry(value, 0.5 / n**0.5, n, unscored)
        self._save(
            fake, "retrieval", "scaled@2" if self.images else "recall@2", "Discriminability",
            scores, pd.DataFrame(table), names, variant=variant,
            notes=["3 images cannot be read and are unscored"] if self.images else [],
            series={"similarity": self._similarity(fake, 0.35)},
        )  # fmt: skip

    def ablation(self, fake: Fake) -> None:
        base, n, shares = fake.anisotropy, 1065, np.arange(1, 10) / 10
        curves = []
        for unit, place, slope in (
            ("words", "anywhere", 1.0), ("words", "start", 1.15), ("words", "end", 0.85),
            ("sentences", "anywhere", 0.7),
        ):  # fmt: skip
            left = 1 - slope * (0.2 + 0.6 * (1 - fake.quality)) * shares**1.2
            left = np.clip(left if fake.quality else 0 * left, 0, 1)
            cosine = base + (1 - base) * left
            at = slice(None) if (unit, place) == ("words", "anywhere") else slice(2, 7, 2)
            columns = {
                "shares": shares, "cosine": cosine, "baseline": 0 * shares + base,
                "calibrated": left, "low": np.clip(cosine - 0.02, 0, 1),
                "high": np.clip(cosine + 0.02, 0, 1),
            }  # fmt: skip
            plain = {name: [float(x) for x in column[at]] for name, column in columns.items()}
            curves.append({"unit": unit, "place": place, **plain})
        half = curves[0]["calibrated"][4]
        scores = {
            "published": _entry(base + (1 - base) * half, 0.003, n),
            "baseline": _entry(base, 0.002, n),
            "calibrated": _entry(half, 0.012, n),
            "identification": _entry(0.985 + 0.01 * fake.quality if fake.quality else 0, 0.005, n),
            "identification-distractors": _entry(0.9 * fake.quality, 0.1, n),
            "monotonicity": _entry(0.8 * fake.quality, 0.1, n),
        }
        for name in ("centered", "whitened", "untruncated"):
            kept = round(n * (1 - fake.truncation)) if name == "untruncated" else n
            scores[f"published/{name}"] = _entry(half, 0.01, kept)
            scores[f"calibrated/{name}"] = _entry(half, 0.01, kept)
        series = {"curves": curves, "similarity": self._similarity(fake, 0.6)}
        self._save(
            fake, "ablation", "calibrated", "Disentanglement", scores,
            orders=["published", "identification"], series=series,
        )  # fmt: skip

    def diagnostics(self, fake: Fake) -> None:
        speed = 3e4 / max(fake.parameters, 1) ** 0.5
        scores = {
            "anisotropy": _entry(fake.anisotropy, 0.01, 2000),
            "effective-rank": _entry(200 * (1 - fake.anisotropy) + 1, 20, 2000),
            "norm-spread": _entry(0.1, 0.01, 2000),
            "truncation": _entry(fake.truncation, 0.0, 1065),
        }
        cost = {
            "prompts_per_second": speed * 100, "tokens_per_second": speed * 1400,
            "latency_ms": 1000 / speed, "parameters": fake.parameters,
            "memory_bytes": fake.parameters * 4, "license": fake.license,
        }  # fmt: skip
        series = {"cost": cost}
        self._save(
            fake, "diagnostics", "effective-rank", "Diagnostics", scores, series=series
        )  # fmt: skip

    def _similarity(self, fake: Fake, gap: float) -> dict[str, Any]:
        edges = np.linspace(-1.0, 1.0, 101)
        middle = fake.anisotropy * 0.9
        wide = 0.0 if fake.anisotropy == 1 else 0.09
        found = {"edges": [float(x) for x in edges]}
        for name, shift in (("own", gap * fake.quality * (1 - middle)), ("random", 0.0)):
            values = np.clip(self.rng.normal(middle + shift, wide, 4000), -1, 1)
            found[name] = [float(x) for x in np.histogram(values, edges)[0] / 4000]
        return found

    def _save(
        self,
        fake: Fake,
        probe: str,
        metric: str,
        title: str,
        scores: dict[str, Score],
        items: pd.DataFrame | None = None,
        item_scores: dict[str, list[str]] | None = None,
        *,
        orders: Sequence[str] = (),
        variant: str = "",
        **more: Any,
    ) -> None:
        card = {
            "spec": f"{fake.spec}&{variant}" if variant else fake.spec,
            "family": fake.spec.partition(":")[0], "revision": "ef" * 20, "dim": 384,
            "source": fake.spec.partition(":")[2].partition("?")[0],
            "max_tokens": 77 if fake.truncation else 512, "license": fake.license,
            "recipe": "plain", "layer": "last", "pooling": "mean", "dtype": "float32",
            "parameters": fake.parameters, "stage": "final", "control": fake.control,
        }  # fmt: skip
        dataset = "dpg-bench@" + "cd" * 32 if probe == "ablation" else "coco-val2017@" + "ab" * 32
        spec = {
            "name": probe, "version": 1, "main_metric": metric, "title": title,
            "dataset": dataset, "direction": "higher", "orders": tuple(orders),
        }  # fmt: skip
        record = RunRecord(
            key=digest([fake.spec, probe, variant]), name=fake.name, card=EncoderCard(**card),
            pooling="mean", probe=ProbeSpec(**spec), scores=scores,
            item_scores=item_scores or {}, config=self.config,
            provenance=PROVENANCE, seconds=1.0, variant=variant,
            variant_of=fake.spec if variant else "", **more,
        )  # fmt: skip
        folder = re.sub(r"[^A-Za-z0-9.-]+", "-", fake.name) + "-" + digest(fake.spec)[:8]
        file = re.sub(r"[^a-z]+", "-", variant) or "main"
        rows = items if items is not None else pd.DataFrame({"item": ["0"]})
        write_record(self.folder / "records" / folder / f"{probe}.{file}.json", record, rows)


def _gallery(
    folder: Path, encoders: Sequence[Fake], ids: list[str], images: bool, caption: str
) -> None:
    rng = np.random.default_rng(1)
    things = ("a red bus at a stop", "two dogs on a beach", "some pasta", "a tall clock tower")
    sides = ("left", "right")
    captions = {i: f"{things[j % 4]}, seen from the {sides[j % 2]}" for j, i in enumerate(ids)}
    if caption:
        captions[ids[0]] = caption
    for j, image_id in enumerate(ids if images else []):
        picture = Image.new("RGB", (160, 110 if j % 2 else 200), _color(rng))
        draw = ImageDraw.Draw(picture)
        for x, y in rng.integers(0, 90, (4, 2)):
            draw.ellipse((int(x), int(y), int(x) + 50, int(y) + 40), fill=_color(rng))
        (folder / "media").mkdir(parents=True, exist_ok=True)
        picture.save(folder / "media" / f"{image_id}.jpg", quality=80)

    def case(query: str) -> dict[str, Any]:
        others = [i for i in ids if i != query]
        found = [others[int(j)] for j in rng.choice(len(others), 3, replace=False)]
        retrieved = [
            {
                "image_id": int(i), "caption": captions[i], "cosine": float(rng.uniform(0.5, 0.9)),
                "similarity": float(rng.uniform(0, 1)) if images else None,
            }
            for i in found
        ]  # fmt: skip
        shown = {"image_id": int(query), "caption": captions[query]}
        return {"query": shown, "score": float(rng.uniform(0, 1)), "retrieved": retrieved}

    gallery = {
        "images": {
            i: {
                "thumb": f"media/{i}.jpg" if images and i != ids[-1] else None,
                "caption": captions[i], "license": "CC BY 2.0",
                "url": f"https://example.org/{i}.jpg",
            }
            for i in ids
        },
        "encoders": {
            e.spec: {"best": [case(i) for i in ids[:3]], "worst": [case(i) for i in ids[3:6]]}
            for e in encoders
        },
    }  # fmt: skip
    write_json(folder / "media" / "gallery.json", gallery)


def _color(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(x) for x in rng.integers(60, 220, 3))
