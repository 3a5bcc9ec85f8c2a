"""Error of du/dt by finite differences, in a network that was trained.

    OMP_NUM_THREADS=1 python benchmarks/derivative.py [--steps 300] [--batch 32]

Trains the preset ``scenes-cpu`` for some steps (flow matching first, then MeanFlow), and compares
du/dt in float32 by each difference and step with the JVP in float64, on rows of the training set
with the preset's times. ``gradient`` is the error that this leaves in the gradient of the loss. A
smooth network allows coarser steps than a trained one, whose u turns faster in t.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import keep
from torch import Tensor

from encbench.flow.config import training_config
from encbench.flow.data import load_training_images, picks
from encbench.flow.derivative import STEPS, total_derivative
from encbench.flow.features import PromptEncoder
from encbench.flow.loss import objective_loss
from encbench.flow.meanflow import Condition, average_velocity, interpolate
from encbench.flow.networks import build_time_sampler
from encbench.flow.objectives.emf import EMF
from encbench.flow.presets import scenes_cpu
from encbench.flow.sample import load_checkpoint
from encbench.flow.train import train
from encbench.progress import show_log

CPU = torch.device("cpu")
POWERS = range(8, 18)
ENCODER = "control:word-position"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rows", type=int, default=64, help="that are compared")
    parser.add_argument("--out", type=Path, default=Path("runs/derivative"))
    options = parser.parse_args()
    show_log()
    config = training_config(
        {
            **scenes_cpu(), "encoder": ENCODER, "steps": options.steps, "batch": options.batch,
            "images": 2000, "device": "cpu", "sample_every": 0, "sample_prompts": 0,
            "warmup": options.steps // 10, "out": options.out, "store": options.out / "store",
        }
    )  # fmt: skip
    data = load_training_images(config)
    encoder = PromptEncoder(ENCODER, config.store, CPU, config.text_tokens)
    bank = encoder.bank(data.texts)
    train(config, data=data, features=bank, revision=encoder.revision, device=CPU, alone=True)
    model = load_checkpoint(config.out, CPU, "model")

    g = torch.Generator().manual_seed(0)
    pixels, texts = data.read(picks(data, 0, options.rows, 0))
    x = model.space.encode(pixels.float() / 255)
    cond, noise = bank.conditions(texts, CPU), torch.randn(x.shape, generator=g)
    sampler = replace(build_time_sampler(config).then.at(0.5), share=1.0)  # type: ignore[attr-defined]
    r, t = sampler.sample(options.rows, 0.0, g)
    net = model.net.requires_grad_(True)
    wide = copy.deepcopy(net).double()
    pooled = None if cond.pooled is None else cond.pooled.double()
    exact_cond = Condition(cond.tokens.double(), cond.mask, pooled)

    def derivative(n: Any, c: Condition, dtype: torch.dtype, **how: Any) -> Tensor:
        z, v = interpolate(x, noise, t).to(dtype), (noise - x).to(dtype)
        ends = r.to(dtype), t.to(dtype)
        return total_derivative(
            lambda z, r, t: average_velocity(n, z, r, t, c), z, *ends, v, **how
        ).double()

    def gradient(n: Any, c: Condition, dtype: torch.dtype, **how: Any) -> Tensor:
        n.zero_grad()
        parts = [part.to(dtype) for part in (noise, r, t)]
        objective = EMF(how.get("mode", "jvp"), how.get("step"))
        objective_loss(n, x.to(dtype), c, *parts, objective=objective).loss.backward()
        given = [p.grad.flatten() for p in n.parameters() if p.grad is not None]
        return torch.cat(given).double()

    exact = derivative(wide, exact_cond, torch.float64), gradient(wide, exact_cond, torch.float64)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for mode in ("jvp", "central", "forward"):
        for step in [0.0] if mode == "jvp" else [2.0**-power for power in POWERS]:
            how = {"mode": mode, "step": step or None}
            near = [part(net, cond, torch.float32, **how) for part in (derivative, gradient)]
            errors = [float((a - b).norm() / b.norm()) for a, b in zip(near, exact, strict=True)]
            name = f"2^-{-int(np.log2(step))}" if step else ""
            row = dict(zip(("du/dt", "gradient"), errors, strict=True))
            found.setdefault(mode, {})[name] = row
            print(f"{mode:8} {name:6} du/dt {row['du/dt']:.1e}  gradient {row['gradient']:.1e}")
    keep(
        "derivative",
        {
            "unit": "norm of the error over the norm of the JVP's value in float64",
            "trained": {"steps": options.steps, "batch": options.batch, "preset": "scenes-cpu"},
            "rows": options.rows,
            "default_steps": {mode: step for mode, step in STEPS.items() if step},
            "errors": found,
        },
    )


if __name__ == "__main__":
    main()
