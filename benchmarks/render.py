"""Scenes a second: drawn, rendered and told, so that training never waits for its data.

    python benchmarks/render.py [--device cuda] [--sides 16 32 64]

The rates are medians over turns that take all measurements in turn, with the lowest and highest
beside them. The aim is 20,000 images/s at 32 px on 2 cores. On cores that are busy with other
work, one thread is faster than two, which wait for each other: it is measured, too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from provenance import keep

from encbench.data.scenes.captions import STYLES, caption
from encbench.data.scenes.render import masks, render
from encbench.data.scenes.sampler import sample_scenes
from encbench.data.scenes.world import EASY, SCENES

AIM = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--pixels", type=int, default=1 << 22, help="rendered in a turn")
    options = parser.parse_args()
    if 32 not in options.sides:
        parser.error("--sides must hold 32, for which the aim is stated")
    device = torch.device(options.device)
    batch = sample_scenes("generator-train", 16384)
    scenes = list(sample_scenes("encoder-train", 2000))

    def rendering(draw: Callable, side: int) -> tuple[int, Callable[[], object]]:
        many = min(len(batch), max(64, options.pixels // side**2))
        part = batch.take(slice(0, many))
        return many, lambda: draw(part, side, device)

    def telling(tier: str, style: str) -> tuple[int, Callable[[], object]]:
        return len(scenes), lambda: [caption(scene, tier, style) for scene in scenes]

    threads = torch.get_num_threads()

    def alone(do: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            torch.set_num_threads(1)
            do()
            torch.set_num_threads(threads)

        return run

    work = {f"render {side} px": rendering(render, side) for side in options.sides}
    many, do = rendering(render, 32)
    work["render 32 px, 1 thread"] = many, alone(do)
    work["masks 32 px"] = rendering(masks, 32)
    for world in (SCENES, EASY):
        work[f"sample {world.name}"] = (
            8192, lambda world=world: sample_scenes("generator-train", 8192, seed=1, world=world)
        )  # fmt: skip
    for style in STYLES:
        work[f"caption {style}"] = telling("B", style)

    rates: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(options.turns + 1):
        for name, (many, do) in work.items():
            begun = time.perf_counter()
            do()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first one warms up
                rates[name].append(many / (time.perf_counter() - begun))
    result = {
        name: {
            "per_second": round(statistics.median(found)),
            "low": round(min(found)),
            "high": round(max(found)),
        }
        for name, found in rates.items()
    }
    reached = max(result[n]["per_second"] for n in ("render 32 px", "render 32 px, 1 thread"))
    keep(
        f"render-{device.type}",
        {
            "unit": "scenes a second, median of the turns, with the lowest and highest",
            "turns": options.turns,
            "threads": threads,
            "rates": result,
            "aim_at_32_px": AIM,
            "reached": reached >= AIM,
        },
    )


if __name__ == "__main__":
    main()
