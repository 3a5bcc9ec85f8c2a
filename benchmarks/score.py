"""Images per second and peak memory of each metric, at true sizes with random weights.

    python benchmarks/score.py --metrics clipscore pickscore hps-v2.1 fid --images 64

Each metric runs in a process of its own. Rounds of N images in batches alternate with the same
images one by one, four images a prompt as in GenEval; then come 2 N images, whose peak memory
should be that of N. On a CPU the clock is processor time, summed over threads, so that other work
on the machine counts less. The weights of a CLIP-H need 8 GB of disk, in a temporary folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from provenance import keep

from encbench.device import choose_device
from encbench.metrics import load_metric
from encbench.metrics.prompts import TextPrompt
from encbench.metrics.score import CHUNK, extract_features, score_images
from encbench.types import Metric, SetMetric

METRICS = ("clipscore", "pickscore", "hps-v2.1", "fid")


def write_clip(folder: Path, text: dict[str, int], vision: dict[str, int], dim: int) -> None:
    """A random transformers CLIP with the real tokenizer's vocabulary."""
    import transformers
    from open_clip.tokenizer import SimpleTokenizer

    simple = SimpleTokenizer()
    vocab = dict(simple.encoder)
    vocab["<|startoftext|>"] = vocab.pop("<start_of_text>")
    vocab["<|endoftext|>"] = vocab.pop("<end_of_text>")
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=list(simple.bpe_ranks))
    tokenizer.save_pretrained(folder)
    config = transformers.CLIPConfig(
        text_config={**text, "projection_dim": dim, "eos_token_id": 49407},
        vision_config={**vision, "projection_dim": dim},
        projection_dim=dim,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPImageProcessor().save_pretrained(folder)


def build(name: str, folder: Path) -> str:
    """Random weights of the published size and format; the metric's spec."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    if name == "clipscore":  # ViT-B/32
        write_clip(folder, {}, {}, 512)
        return f"clipscore:{folder}"
    if name == "pickscore":  # ViT-H/14
        text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                "num_attention_heads": 16}  # fmt: skip
        vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
                  "num_attention_heads": 16, "patch_size": 14}  # fmt: skip
        write_clip(folder, text, vision, 1024)
        return f"pickscore:{folder}"
    if name == "hps-v2.1":
        import open_clip

        from encbench.metrics import hps

        path = folder / hps.FILE
        torch.save({"state_dict": open_clip.create_model(hps.ARCH).state_dict()}, path)
        with path.open("rb") as file:
            hps.MD5 = hashlib.file_digest(file, "md5").hexdigest()
        return f"hps-v2.1:{folder}"
    if name == "fid":
        from torch_fidelity import feature_extractor_inceptionv3 as library

        from encbench.metrics import inception

        library.load_state_dict_from_url = lambda *args, **more: {}
        load = library.FeatureExtractorInceptionV3.load_state_dict
        library.FeatureExtractorInceptionV3.load_state_dict = lambda *args, **more: None
        net = library.FeatureExtractorInceptionV3("random", ["2048"])
        library.FeatureExtractorInceptionV3.load_state_dict = load
        torch.save(net.state_dict(), folder / inception.FILE)
        inception.SHA256 = hashlib.sha256((folder / inception.FILE).read_bytes()).hexdigest()
        for i, image in enumerate(pictures(16, 256)):
            (folder / "reference").mkdir(exist_ok=True)
            image.save(folder / "reference" / f"{i}.png")
        return f"fid:{folder / 'reference'}?weights={folder}"
    raise SystemExit(f"unknown metric {name}; known: {', '.join(METRICS)}")


def pictures(count: int, side: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]


def peak(device: torch.device) -> float:
    """Gigabytes, so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(name: str, images: int, rounds: int, side: int, device_name: str) -> dict[str, Any]:
    device = choose_device(device_name)
    with tempfile.TemporaryDirectory() as folder:  # clipscore reads its weights when it is used
        metric = load_metric(build(name, Path(folder) / "model"), device)
        return _measure(metric, images, rounds, side, device)


def _measure(
    metric: Metric, images: int, rounds: int, side: int, device: torch.device
) -> dict[str, Any]:
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def run(count: int, size: int) -> float:
        """Seconds an image for ``count`` images, ``size`` at a time, made as they are used."""
        spent = 0.0
        for start in range(0, count, size):
            some = pictures(min(size, count - start), side)
            prompts = [
                TextPrompt(i // 4, f"a photo of two dogs beside bench {i // 4}")
                for i in range(start, start + len(some))
            ]
            begun = clock()
            if isinstance(metric, SetMetric):
                extract_features(metric, prompts, some)
            else:
                score_images(metric, prompts, some)
            spent += clock() - begun
        return spent / count

    run(2, 2)
    run(1, 1)
    together, alone = [], []
    for _ in range(rounds):
        together.append(run(images, CHUNK))
        alone.append(run(min(images, 16), 1))
    first = peak(device)
    run(2 * images, CHUNK)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "clock": clock.__name__,
        "threads": torch.get_num_threads(),
        "images": images,
        "side": side,
        "images_per_second": 1 / statistics.median(together),
        "one_by_one_per_second": 1 / statistics.median(alone),
        "batched_over_one_by_one": statistics.median(alone) / statistics.median(together),
        "seconds_per_image": {"batched": together, "one_by_one": alone},
        "peak_gb": first,
        "peak_gb_twice_the_images": peak(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--metrics", nargs="+", default=list(METRICS))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--beside", default="nothing", help="what else ran on the machine")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        sizes = (given.images, given.rounds, given.side)
        print(json.dumps(measure(given.only, *sizes, given.device)))
        return
    before = os.getloadavg()[0]
    rows = {}
    for name in given.metrics:  # peak memory is a process's own
        command = [
            sys.executable, __file__, "--only", name, "--images", str(given.images), "--rounds",
            str(given.rounds), "--side", str(given.side), "--device", given.device,
        ]  # fmt: skip
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
    on = "cpu" if all(row["device"] == "cpu" for row in rows.values()) else "cuda"
    load = [before, os.getloadavg()[0]]
    keep(f"score-{on}", {"beside": given.beside, "load_before_and_after": load, "metrics": rows})


if __name__ == "__main__":
    main()
