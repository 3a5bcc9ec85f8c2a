"""What it costs to train from files, tars and parquet over having all batches in memory.

    python benchmarks/data.py [--images 512] [--turns 3]

The same images (JPEGs of scenes, 256 px, quality 90), captions, order and network throughout: the
network of `scenes-cpu` at 64 px by flow matching, or on latents. All variants run in turn, in
another order each time; a number is the median over the turns, with the lowest and highest.
`--parts` measures some of it and keeps the rest of the result file.

- loader: images a second that are read, decoded and scaled, without training.
- steps-1, steps-2: seconds of a training step over those with the same images in memory, measured
  right before. Each image comes once, so nothing is read twice. With one thread for the network,
  and with two: on two cores the second case leaves no core free, so decoding adds what it costs.
  Images that fit into 2 GB are decoded in the first round only; later rounds are not measured here.
- latents: seconds of a step that encodes its images by an autoencoder (random weights), over one
  that reads the latents, which were made before; and what making them cost.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from provenance import RESULTS, keep

from encbench.data.scenes.dataset import training_scenes
from encbench.data.scenes.world import GRID
from encbench.files import read_json
from encbench.flow.config import TrainConfig, training_config
from encbench.flow.data import (
    ImageSet,
    ImagesInMemory,
    Picks,
    load_batches,
    load_image,
    load_training_images,
    picks,
    training_images,
)
from encbench.flow.features import Features, PromptEncoder
from encbench.flow.presets import scenes_cpu
from encbench.flow.train import Moment, train

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import flow_checkpoints
import packed

CPU = torch.device("cpu")
SOURCE, SIDE, BATCH = 256, 64, 64
PARTS = ("loader", "steps-1", "steps-2", "latents")
WARM = 2  # steps before the clock starts: workers have begun and read ahead by then


def write_images(folder: Path, count: int) -> dict[str, str]:
    """The same JPEGs with captions as loose files, tars and parquet; their specs."""
    data = training_images(training_scenes(GRID, count, captions=1, long_share=0.0), SOURCE)
    pairs = []
    (folder / "files").mkdir()
    for number, captions in enumerate(data.of):
        pixels = data.read(Picks(np.array([number]), np.array([0]))).pixels[0]
        buffer = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=90)
        name, texts = f"{number:06d}.jpg", [data.texts[i] for i in captions]
        (folder / "files" / name).write_bytes(buffer.getvalue())
        (folder / "files" / name).with_suffix(".txt").write_text("\n".join(texts))
        pairs.append((name, buffer.getvalue(), texts))
    return {
        "files": f"folder:{folder / 'files'}",
        "tars": packed.write_tars(folder / "tars", pairs, shard=512),
        "parquet": packed.write_parquet(folder / "parquet", pairs, shard=512),
    }


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def in_turns(work: dict[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(work[name]())
            print(f"turn {turn + 1}, {name}: {found[name][-1]:.4g}", flush=True)
    return found


def settings(folder: Path, spec: str, steps: int, **more: Any) -> TrainConfig:
    return training_config(
        {
            **scenes_cpu(), "objective": "flow-matching", "images": 0, "side": SIDE,
            "batch": BATCH, "steps": steps, "data": spec,
            "encoder": "control:word-position?dim=64", "device": "cpu", "log_every": 0,
            "checkpoint_every": 0, "sample_prompts": 0, "store": folder / "store",
            "out": Path(tempfile.mkdtemp(dir=folder)), **more,
        }
    )  # fmt: skip


def encoder() -> PromptEncoder:
    return PromptEncoder("control:word-position?dim=64", None, CPU)


def seconds_a_step(config: TrainConfig, data: ImageSet, features: Features) -> float:
    """Wall-clock seconds, after the first steps."""
    seen: list[float] = []

    def look(moment: Moment) -> None:
        seen.append(time.perf_counter())

    train(config, data=data, features=features, callback=look, at=(WARM, config.steps))
    return (seen[-1] - seen[0]) / (config.steps - WARM)


def measure_loader(specs: dict[str, str], folder: Path, turns: int) -> dict[str, Any]:
    """Images a second, from the first batch on."""

    def read(spec: str, workers: int) -> float:
        data = load_training_images(settings(folder, spec, 1))
        count = len(data.of) // BATCH
        batches = load_batches(data, (picks(data, n, BATCH, 0) for n in range(count)), workers)
        next(batches)
        begun = time.perf_counter()
        for _ in batches:
            pass
        return (count - 1) * BATCH / (time.perf_counter() - begun)

    work = {
        f"{kind}, workers {workers}": partial(read, spec, workers)
        for kind, spec in specs.items()
        for workers in (0, 1, 2)
    }
    return {name: summary(values) for name, values in in_turns(work, turns).items()}


def decoding(folder: Path) -> float:
    """Milliseconds of one core for an image."""
    files = sorted((folder / "files").glob("*.jpg"))[:200]
    begun = time.process_time()
    for file in files:
        load_image(file, SIDE)
    return 1000 * (time.process_time() - begun) / len(files)


def measure_steps(specs: dict[str, str], folder: Path, turns: int, threads: int) -> dict[str, Any]:
    first = load_training_images(settings(folder, specs["files"], 1))
    features = encoder().bank(first.texts)
    everything = Picks(np.arange(len(first.of)), np.array([of[0] for of in first.of]))
    pixels = first.read(everything).pixels
    memory = ImagesInMemory(first.name, first.pin, first.texts, first.of, pixels)

    def timed(spec: str, workers: int, held: ImageSet | None = None) -> float:
        config = settings(folder, spec, len(first.of) // BATCH, workers=workers)
        return seconds_a_step(config, held or load_training_images(config), features)

    torch.set_num_threads(threads)
    base: list[float] = []

    def ratio(spec: str, workers: int) -> float:
        """Right after one in memory, since a machine's speed changes."""
        base.append(timed(specs["files"], 0, memory))
        return timed(spec, workers) / base[-1]

    kinds = [("files", 0), ("files", 1), *([("tars", 1), ("parquet", 1)] if threads == 1 else [])]
    work = {f"{kind}, workers {n}": partial(ratio, specs[kind], n) for kind, n in kinds}
    found = {name: summary(values) for name, values in in_turns(work, turns).items()}
    return {"memory_seconds_a_step": summary(base), "over_memory": found}


def measure_latents(spec: str, folder: Path, turns: int) -> dict[str, Any]:
    """Four batches of images, so that after four steps each comes again."""
    autoencoder = flow_checkpoints.kl(folder / "kl", widths=(16, 32, 32))
    more = {"autoencoder": str(autoencoder), "patch": 2, "prediction": "u", "images": 4 * BATCH}

    def timed(store: Path | None) -> float:
        config = settings(folder, spec, WARM + 4, **more, store=store)
        data = load_training_images(config)
        return seconds_a_step(config, data, encoder().bank(data.texts))

    begun = time.perf_counter()
    timed(folder / "store")
    first, begun = time.perf_counter() - begun, time.perf_counter()
    timed(folder / "store")
    second = time.perf_counter() - begun
    work = {"encoding": partial(timed, None), "cached": partial(timed, folder / "store")}
    found = in_turns(work, turns)
    ratios = [a / b for a, b in zip(found["encoding"], found["cached"], strict=True)]
    return {
        "encoding_seconds_a_step": summary(found["encoding"]),
        "cached_seconds_a_step": summary(found["cached"]),
        "encoding_over_cached": summary(ratios),
        "making_seconds_an_image": (first - second) / (4 * BATCH),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--name", default="data-cpu", help="of the result file")
    options = parser.parse_args()
    path = RESULTS / f"{options.name}.json"
    result: dict[str, Any] = read_json(path) if path.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        specs = write_images(folder, options.images)
        for name in options.parts:
            before = os.getloadavg()[0]
            if name == "loader":
                found = {"decoding_ms_an_image": decoding(folder)}
                found["images_a_second"] = measure_loader(specs, folder, options.turns)
            elif name == "latents":
                found = measure_latents(specs["files"], folder, options.turns)
            else:
                found = measure_steps(specs, folder, options.turns, int(name[-1]))
            load = [before, os.getloadavg()[0]]
            result[name] = {**found, "images": options.images, "load_before_and_after": load}
            result |= {"cores": os.cpu_count(), "side": SIDE, "source_side": SOURCE, "batch": BATCH}
            keep(options.name, result)


if __name__ == "__main__":
    main()
