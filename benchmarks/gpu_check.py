"""What encbench does on a GPU, measured in a fixed number of minutes, the most important first.

    python benchmarks/gpu_check.py --minutes 8 --out runs/gpu-check

1. agreement: kernels, du/dt and gradients against the CPU and float64.
2. encode: tokens a second of encoders at true sizes, and the share of the matrix rate.
3. step: a training step over one of flow matching, and its share of the matrix rate, for networks
   of 35M and 150M parameters and of SANA's size.
4. sampling: images a second while sampling and judging.
5. confirm: as much as fits of `encbench confirm --preset full`, after a ranking of two encoders.

Weights are random or embedded: nothing is downloaded. Each part runs in a process of its own, which
is ended when its time is up, so a crash or a hang costs that part alone. OUT/gpu.json is written
again after each part, and a part's own file after each number. What needs a library that is not
installed is left out with the reason. On a CPU the same runs in miniature.

encbench itself must be installed: pip install --no-deps --no-build-isolation -e .
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # the parent leaves CUDA to the parts

import throughput
import torch
import train_step
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from encbench.device import choose_device
from encbench.errors import describe_error
from encbench.files import read_json, write_json
from encbench.flow.meanflow import Condition
from encbench.records import clean, provenance

SHARES = {"agreement": 0.25, "encode": 0.3, "step": 0.4, "sampling": 0.25, "confirm": 1.0}
"""The most of all the time that each part may take, so that none leaves nothing for the others."""
ENCODERS = ("zoo:mini-t5", "zoo:mini-clip", "zoo:mini-gemma", "zoo:mini-blip3o")
LEAST = 5.0  # seconds that a part needs at least
SANA = {  # of Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers, at 512 px
    "in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32,
    "num_layers": 20, "num_cross_attention_heads": 20, "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240, "caption_channels": 2304, "mlp_ratio": 2.5, "sample_size": 16,
    "patch_size": 1, "qk_norm": "rms_norm_across_heads",
}  # fmt: skip
SMALL_SANA = {
    **SANA, "num_attention_heads": 2, "num_layers": 2, "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 32, "cross_attention_dim": 64, "sample_size": 4,
}  # fmt: skip

FULL_CONFIRM = {"run": ["--probes", "reader"], "confirm": ["--preset", "full"]}
SMALL_CONFIRM = {
    "run": ["--probes", "retrieval", "--re-encoder", "none", "--pools", "max", "--limit", "12"],
    "confirm": [
        "--preset", "cpu", "--steps", "2", "--seeds", "1", "--per-task", "1", "--images", "1",
        "--set", "images=16", "--set", "batch=4", "--set", "warmup=1",
    ],
}  # fmt: skip
"""Options of `encbench run` and `encbench confirm`."""


class Report:
    """What a part has found so far, on disk after each number."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, dict[str, Any]()

    def add(self, name: str, work: Callable[[], Any]) -> None:
        """Measure one thing; if it fails, say why and go on."""
        begun = time.perf_counter()
        try:
            found = work()
        except Exception as error:
            found = {"failed": describe_error(error)}
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
        self.rows[name] = clean(found)
        write_json(self.path, self.rows)
        print(f"{name} ({time.perf_counter() - begun:.0f} s): {self.rows[name]}", flush=True)


class Asked(NamedTuple):
    """Device, whether all is in miniature, folder for results, seconds until the end."""

    device: torch.device
    small: bool
    out: Path
    left: float


# ------------------------------------------------------------------------------- agreement


def agreement(report: Report, asked: Asked) -> None:
    """Each number is a relative error: |found - exact| / |exact|, exact in float64 on the CPU."""
    device = asked.device
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report.add("machine", lambda: _machine(device))
    for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        report.add(f"attention {name.lower()} bf16", lambda n=name: _attention(n, device))
    options = Namespace(size="1M" if asked.small else "10M", side=16, patch=4, device=device)
    net = train_step.make_net(options, "u")
    batch = train_step.make_batch(16, 8, 0.75, device)
    report.add("forward fp32", lambda: _forward(net, batch, bf16=False))
    report.add("forward bf16", lambda: _forward(net, batch, bf16=True))
    report.add("du/dt fp32, by mode", lambda: train_step.errors(net, batch))
    for mode in ("jvp", "forward", "central"):
        report.add(f"gradient of meanflow, {mode}", lambda m=mode: _gradient(net, batch, m))
    report.add("sampled images", lambda: _sampled(net, device))
    for name in ENCODERS[:1] if asked.small else ENCODERS:
        report.add(f"{name} (1 - cosine of tokens)", lambda n=name: _encoder(n, device))


def _machine(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {
            "card": card.name, "memory_gb": card.total_memory / 1e9, "cuda": torch.version.cuda,
            "capability": f"{card.major}.{card.minor}",
        }  # fmt: skip
    return found


def _relative(found: Tensor, exact: Tensor) -> float:
    exact = exact.double().cpu()
    return float((found.detach().double().cpu() - exact).norm() / exact.norm())


def _attention(name: str, device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 8, 256, 64, generator=generator)
    scores = (q.double() @ k.double().transpose(-1, -2) / 8).softmax(-1)
    with sdpa_kernel(getattr(SDPBackend, name)):
        made = nn.functional.scaled_dot_product_attention(
            *(each.to(device, torch.bfloat16) for each in (q, k, v))
        )
    return _relative(made, scores @ v.double())


def _exact(net: nn.Module, batch: train_step.Batch) -> tuple[nn.Module, train_step.Batch]:
    """The same network and batch in float64 on the CPU."""
    tokens, mask, pooled = batch.cond.tokens, batch.cond.mask, batch.cond.pooled
    wide = Condition(tokens.double(), mask, None if pooled is None else pooled.double())
    cond = wide.to(torch.device("cpu"))
    others = {k: v.double().cpu() for k, v in batch._asdict().items() if k != "cond"}
    return copy.deepcopy(net).cpu().double(), train_step.Batch(cond=cond, **others)


@torch.no_grad()
def _forward(net: nn.Module, batch: train_step.Batch, *, bf16: bool) -> float:
    exact_net, exact = _exact(net, batch)
    with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=bf16):
        found = net(batch.x, batch.r, batch.t, batch.cond)
    return _relative(found, exact_net(exact.x, exact.r, exact.t, exact.cond))


def _gradient(net: nn.Module, batch: train_step.Batch, mode: str) -> float:
    """Against the exact derivative's, so a difference's own error is in it."""
    from encbench import registry
    from encbench.flow.loss import objective_loss

    rows = []
    for which, each, how in ((net, batch, mode), (*_exact(net, batch), "jvp")):
        which.zero_grad()
        objective_loss(
            which, *each, objective=registry.get("objective", "meanflow")(how)
        ).loss.backward()
        grads = [p.grad for p in which.parameters() if p.grad is not None]
        rows.append(torch.cat([grad.double().cpu().flatten() for grad in grads]))
        which.zero_grad()
    return _relative(*rows)


def _sampled(net: nn.Module, device: torch.device) -> dict[str, int]:
    """The largest difference of a pixel, of 255, between devices, at 4 steps."""
    from encbench.flow.features import PromptFeatures
    from encbench.flow.sample import sample_images
    from encbench.flow.spaces import PixelSpace

    width = train_step.TEXT[1]
    texts = [PromptFeatures(torch.randn(5 + i, width), torch.randn(width)) for i in range(6)]
    found = [
        sample_images(
            copy.deepcopy(net).to(where), PixelSpace(16), texts, range(6), device=where, batch=2
        )
        for where in (device, torch.device("cpu"))
    ]
    return {"largest_difference": int((found[0].int() - found[1].int()).abs().max())}


def _encoder(spec: str, device: torch.device) -> float:
    from encbench.encoders import load_encoder

    prompts = ["a red circle left of two blue stars", "a dog", "seven green squares in a row " * 4]
    found, exact = (load_encoder(spec, where).encode(prompts) for where in (device, "cpu"))
    a, b = found.tokens[found.mask].double().cpu(), exact.tokens[exact.mask].double()
    return float((1 - nn.functional.cosine_similarity(a, b)).max())


# --------------------------------------------------------------------------- encode and step


def encode(report: Report, asked: Asked) -> None:
    names = list(throughput.MODELS)[-1:] if asked.small else list(throughput.MODELS)
    count, rounds = (4, 1) if asked.small else (1065, 3)
    for name in names:
        report.add(
            name, lambda n=name: throughput.measure(n, asked.device, asked.small, count, rounds)
        )
        if asked.device.type == "cuda":
            torch.cuda.empty_cache()


def step(report: Report, asked: Asked) -> None:
    """Batches as in the presets: 256 images of 64 px, 256 latents of 8 x 8, 64 of SANA's."""
    sizes = (("1M", 16, 4, 4),) if asked.small else (("35M", 64, 8, 256), ("150M", 64, 8, 256))
    device = str(asked.device)
    precision = "fp32" if asked.small else "bf16"
    common = {"device": device, "clock": "wall", "turns": 1 if asked.small else 5}
    common["only"] = ["meanflow, forward"] if asked.small else ["meanflow"]
    for size, side, patch, count in sizes:
        options = Namespace(size=size, side=side, patch=patch, batch=count, **common)
        report.add(
            f"{size}, {count} images of {side} px",
            lambda o=options: train_step.measure(o, precision, 0.5),
        )
    count = 2 if asked.small else 64
    options = Namespace(batch=count, **{**common, "only": ["meanflow, forward"]})

    def sana() -> dict[str, Any]:
        net = _sana(asked)
        runner = train_step.Runner(net, precision, asked.device)
        runners = {"u": runner, "x": runner}
        batch = _latents(net, count, asked.device)
        parameters = sum(w.numel() for w in net.parameters())
        return {
            "parameters": parameters,
            **train_step.compare(options, precision, 0.5, runners, batch),
        }

    report.add(f"SANA's size, {count} latents", sana)


def _sana(asked: Asked) -> nn.Module:
    from encbench.flow.sana import SanaVelocity, diffusers

    model = diffusers("SANA's network").SanaTransformer2DModel
    torch.manual_seed(0)
    with asked.device:
        return SanaVelocity(model(**(SMALL_SANA if asked.small else SANA)), None, "unscaled")


def _latents(net: Any, size: int, device: torch.device) -> train_step.Batch:
    """Random latents with captions of 300 tokens, half of them with r < t."""
    with device:
        x, noise = torch.randn(2, size, *net.shape)
        t = 0.05 + 0.95 * torch.rand(size)
        r = torch.where(torch.arange(size) < size // 2, t * torch.rand(size), t)
        tokens = torch.randn(size, 300, net.cond_dim)
        mask = torch.ones(size, 300, dtype=torch.bool)
    return train_step.Batch(x, Condition(tokens, mask, None), noise, r, t)


# ------------------------------------------------------------------------ sampling, confirm


def sampling(report: Report, asked: Asked) -> None:
    from encbench.confirm import budget
    from encbench.confirm.config import PRESETS
    from encbench.flow.config import training_config

    values = PRESETS["cpu" if asked.small else "full"]()["train"] | {"compile": False}
    config = training_config({**values, **({"batch": 4} if asked.small else {})})
    rates = lambda: budget.measure(config, str(asked.device))._asdict()  # noqa: E731
    report.add(f"seconds of {config.network} at {config.side} px", rates)
    if not asked.small:
        report.add("GenEval's detector, images of 512 px", lambda: _detector(asked))


def _detector(asked: Asked) -> dict[str, float]:
    """Mask2Former Swin-S at its true size with random weights."""
    import geneval

    from encbench.metrics.geneval.detect import load_detector

    geneval.write_mask2former(asked.out / "mask2former", real=True)
    detector = load_detector(f"mask2former:{asked.out}/mask2former?batch=8", asked.device)
    pictures = geneval.pictures(32, 512)
    detector.detect(pictures[:8])
    begun = time.perf_counter()
    detector.detect(pictures)
    return {"images_per_second": len(pictures) / (time.perf_counter() - begun)}


def confirm(report: Report, asked: Asked) -> None:
    """A ranking of two encoders by the reader alone, then its confirmation; a command that is
    not finished in time goes on when it is given again."""
    run, store = asked.out / "run", asked.out / "store"
    common = ["--out", str(run), "--store", str(store), "--device", str(asked.device)]
    until = time.monotonic() + asked.left - LEAST
    how = SMALL_CONFIRM if asked.small else FULL_CONFIRM
    for command in (
        ["run", "--encoders", *ENCODERS[:2], *how["run"], *common],
        ["confirm", *how["confirm"], *common],
    ):
        report.add(
            f"encbench {command[0]}",
            lambda c=command: run_until([sys.executable, "-m", "encbench", *c], until, asked.out),
        )
        if report.rows[f"encbench {command[0]}"].get("status") != 0:
            break
    models = run / "confirm" / "models"
    done = sorted(path.parent.name for path in models.glob("*/result.json"))
    report.add("trainings", lambda: {"begun": len(list(models.glob("*"))), "finished": done})


def run_until(command: list[str], until: float, out: Path) -> dict[str, Any]:
    """Run a command up to a moment of the monotonic clock; its status and the end of its output."""
    log, begun = out / "commands.log", time.monotonic()
    with log.open("ab") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = child.wait(max(0.0, until - begun))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # its workers, too
            child.wait()
            status = None
    lines = log.read_text(errors="replace").splitlines()[-8:]
    ended = "out of time" if status is None else "ended"
    return {"status": status, "ended": ended, "seconds": time.monotonic() - begun, "last": lines}


# ------------------------------------------------------------------------------------- main

PARTS = (agreement, encode, step, sampling, confirm)


def run_part(part: Callable[[Report, Asked], None], out: Path, device: str, left: float) -> None:
    """In the part's own process."""
    chosen = choose_device(device)
    torch.manual_seed(0)
    part(Report(out / f"{part.__name__}.json"), Asked(chosen, chosen.type == "cpu", out, left))


def check(minutes: float, out: Path, device: str, parts: list[str]) -> dict[str, Any]:
    """All parts, one after another, until the time is up."""
    out.mkdir(parents=True, exist_ok=True)
    fork, begun = multiprocessing.get_context("fork"), time.monotonic()
    result: dict[str, Any] = {"minutes": minutes, "device": device, "parts": {}}
    for part in PARTS:
        name = part.__name__
        if name not in parts:
            continue
        started = time.monotonic()
        left = min(60 * minutes - (started - begun), 60 * minutes * SHARES[name])
        ended, own = "no time was left", out / f"{name}.json"
        own.unlink(missing_ok=True)
        if left >= LEAST:
            child = fork.Process(target=run_part, args=(part, out, device, left))
            child.start()
            child.join(left)
            ended = "whole" if child.exitcode == 0 else f"it ended with status {child.exitcode}"
            if child.is_alive():
                ended = "out of time"
                child.kill()
                child.join()
        found = read_json(own) if own.exists() else {}
        seconds = time.monotonic() - started
        result["parts"][name] = {"ended": ended, "seconds": seconds, "found": found}
        body = {"command": " ".join(["python", *sys.argv]), **result, "provenance": provenance()}
        write_json(out / "gpu.json", clean(body))
        print(f"== {name}: {ended}, {seconds:.0f} s", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", default="auto")
    names = [part.__name__ for part in PARTS]
    parser.add_argument("--parts", nargs="+", default=names, choices=names)
    given = parser.parse_args()
    check(given.minutes, given.out, given.device, given.parts)
    print(f"written to {given.out / 'gpu.json'}")


if __name__ == "__main__":
    main()
