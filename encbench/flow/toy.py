"""MeanFlow in two dimensions: densities conditioned on a label, learned in under a minute.

    python -m encbench.flow.toy docs/figures/flow-2d.png

The whole method on a network of a few thousand weights: flow matching first, then MeanFlow, then
samples in 1, 4 and 64 steps. They are compared with data that training never saw.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .. import registry
from ..errors import UsageError
from ..progress import bar
from ..training import descend
from .loss import objective_loss
from .meanflow import Condition, sample_flow
from .objectives.base import Objective
from .times import LogitNormal, TimeSampler, flow_matching_first

LABELS = ("rings", "moons", "spiral", "board")
STEPS = (1, 4, 64)


def density(
    label: Int[Tensor, " n"], generator: torch.Generator | None = None
) -> Float[Tensor, "n 2"]:
    """Points of the density of each label (by its place in :data:`LABELS`), of about unit
    spread: two rings, two half moons, a spiral, the black squares of a board."""
    n = len(label)
    a, b, side = torch.rand(3, n, generator=generator)
    jitter = torch.randn(n, 2, generator=generator)
    sign = torch.where(side < 0.5, -1.0, 1.0)

    def polar(radius: Tensor, angle: Tensor) -> Tensor:
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)

    rings = polar(torch.where(side < 0.4, 0.7, 1.6), 2 * torch.pi * a) + 0.06 * jitter
    shift = torch.stack([0.5 * sign, -0.3 * sign], 1)
    moons = 1.2 * (sign[:, None] * polar(torch.ones(n), torch.pi * a) - shift) + 0.07 * jitter
    spiral = polar(0.3 + 1.5 * a.sqrt(), 3 * torch.pi * a.sqrt()) + 0.05 * jitter
    column, row = (4 * a).floor(), 2 * (2 * b).floor()
    inside = torch.stack([(4 * a) % 1, (2 * b) % 1], 1)
    board = torch.stack([column, row + column % 2], 1) - 2 + inside
    kinds = torch.stack([rings, moons, spiral, 0.9 * board])
    return kinds[label, torch.arange(n)]


def one_hot(label: Int[Tensor, " n"]) -> Condition:
    """A label as a prompt of one token, which is its pooled vector, too."""
    pooled = nn.functional.one_hot(label, len(LABELS)).float()
    return Condition(pooled[:, None], torch.ones(len(label), 1, dtype=torch.bool), pooled)


class ToyNet(nn.Module):
    """A VelocityNet of points: residual layers over z and its waves, modulated by t, t - r and
    the label."""

    rates: Tensor

    def __init__(
        self, width: int = 128, depth: int = 2, prediction: Literal["u", "x"] = "u"
    ) -> None:
        super().__init__()
        self.prediction = prediction
        self.register_buffer("rates", torch.pi * 2.0 ** torch.arange(-1, 3))
        waves = 2 * 2 * len(self.rates)
        self.modulation = nn.Sequential(
            nn.Linear(waves + len(LABELS), width), nn.SiLU(), nn.Linear(width, 2 * depth * width)
        )
        self.first, self.last = nn.Linear(2 + waves, width), nn.Linear(width, 2)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(
        self,
        z: Float[Tensor, "B 2"],
        r: Float[Tensor, " B"],
        t: Float[Tensor, " B"],
        cond: Condition,
    ) -> Float[Tensor, "B 2"]:
        assert cond.pooled is not None
        moment = self._waves(torch.stack([t, t - r], 1))
        modulation = self.modulation(torch.cat([moment, cond.pooled], 1))
        x = self.first(torch.cat([z, self._waves(z / 2)], 1))
        parts = modulation.unflatten(1, (len(self.layers), 2, -1)).unbind(1)
        for layer, part in zip(self.layers, parts, strict=True):
            x = x + layer(nn.functional.silu(x * (1 + part[:, 0]) + part[:, 1]))
        out: Tensor = self.last(x)
        return out

    def _waves(self, values: Float[Tensor, "B 2"]) -> Float[Tensor, "B W"]:
        angles = (values[..., None] * self.rates).flatten(1)
        return torch.cat([angles.sin(), angles.cos()], 1)


def train_toy(
    net: nn.Module,
    objective: Objective,
    *,
    steps: int = 3500,
    batch: int = 512,
    lr: float = 3e-3,
    times: TimeSampler | None = None,
    seed: int = 0,
) -> nn.Module:
    """Train on fresh points; the running mean of the weights is returned.

    Args:
        times: by default flow matching for the first quarter, then r != t in three quarters of the
            points, with long intervals.
    """
    generator = torch.Generator().manual_seed(seed)
    times = times or flow_matching_first(LogitNormal(0.3, 2.0, 0.75), 0.25)
    mean = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, lr / 50)
    with bar(f"{objective.name} in 2-D", steps) as advance:
        for step in range(steps):
            label = torch.randint(len(LABELS), (batch,), generator=generator)
            x, noise = density(label, generator), torch.randn(batch, 2, generator=generator)
            r, t = times.sample(batch, step / steps, generator)
            terms = objective_loss(net, x, one_hot(label), noise, r, t, objective=objective)  # type: ignore[arg-type]
            descend(terms.loss, optimizer, net.parameters(), None, f"the loss at step {step}")
            schedule.step()
            decay = min(0.995, step / (step + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(mean.parameters()), list(net.parameters()), 1 - decay)
            advance(1)
    return mean.eval()


def draw_points(
    net: nn.Module, label: int, n: int, steps: int, seed: int = 0
) -> Float[Tensor, "n 2"]:
    """Samples of one label."""
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return sample_flow(net, one_hot(torch.full((n,), label)), noise, steps)  # type: ignore[arg-type]


def sliced_wasserstein(
    a: Float[Tensor, "n 2"], b: Float[Tensor, "n 2"], directions: int = 64
) -> float:
    """2-Wasserstein distance of the projections on evenly spread directions, root mean square
    (Rabin et al. 2011); both sets of n points."""
    angle = torch.arange(directions) * torch.pi / directions
    lines = torch.stack([angle.cos(), angle.sin()])
    ordered = [(points @ lines).sort(0).values for points in (a, b)]
    return float((ordered[0] - ordered[1]).square().mean().sqrt())


def distances(
    net: nn.Module, steps: tuple[int, ...] | None = None, n: int = 8000, seed: int = 1
) -> Mapping[str, Mapping[int, float]]:
    """Sliced Wasserstein distance of samples to held-out data, by label and number of steps;
    at 0 steps that of two sets of data, which no model can be sure to beat."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    found: dict[str, dict[int, float]] = {}
    for place, label in enumerate(LABELS):
        data, again = (density(torch.full((n,), place), generator) for _ in range(2))
        found[label] = {0: sliced_wasserstein(data, again)} | {
            many: sliced_wasserstein(draw_points(net, place, n, many, seed), data)
            for many in steps or STEPS
        }
    return found


def plot_toy(net: nn.Module, path: Path, n: int = 8000) -> None:
    """Data and samples of each label, one row a label, one column a number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = distances(net, n=n)
    fig, axes = plt.subplots(
        len(LABELS), 1 + len(STEPS), figsize=(8.4, 8.6), sharex=True, sharey=True
    )
    generator = torch.Generator().manual_seed(7)
    for place, label in enumerate(LABELS):
        columns = [(label, density(torch.full((n,), place), generator))]
        for many in STEPS:
            words = f"{many} step{'s' * (many > 1)}, distance {found[label][many]:.3f}"
            columns.append((words, draw_points(net, place, n, many)))
        for ax, (words, points) in zip(axes[place], columns, strict=True):
            x, y = points.numpy().T
            counts, _, _ = np.histogram2d(x, y, bins=96, range=[(-2.4, 2.4), (-2.4, 2.4)])
            ax.imshow(counts.T**0.5, origin="lower", extent=(-2.4, 2.4) * 2, cmap="Blues")
            ax.set_title(words, fontsize=9)
            ax.set_xticks([])
            ax.set_yticks([])
    fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m encbench.flow.toy", description=__doc__)
    parser.add_argument("figure", type=Path, help="the PNG to write")
    parser.add_argument("--objective", default="meanflow", help="meanflow (default), imf, ...")
    parser.add_argument("--derivative", default="forward", help="jvp, central or forward (default)")
    parser.add_argument("--steps", type=int, default=3500, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    begun = time.perf_counter(), time.process_time()
    # With two elements the summed error varies so much that p = 1 would bias what is learned.
    try:
        objective = registry.get("objective", options.objective)(
            options.derivative, weight_power=0.5
        )
    except UsageError as error:
        parser.error(str(error))
    prediction: Literal["u", "x"] = objective.prediction or "u"
    net = train_toy(
        ToyNet(prediction=prediction), objective, steps=options.steps, seed=options.seed
    )
    wall, busy = time.perf_counter() - begun[0], time.process_time() - begun[1]
    print(f"trained in {wall:.0f} s ({busy:.0f} s of computing)")
    print("sliced Wasserstein distance to data that training never saw:")
    table = distances(net)
    print("label    data " + " ".join(f"{many:>3} step{'s' * (many > 1):1}" for many in STEPS))
    for label, row in table.items():
        print(f"{label:7}" + "".join(f"{row[many]:9.4f}" for many in (0, *STEPS)))
    plot_toy(net, options.figure)
    print(f"written to {options.figure}")


if __name__ == "__main__":
    main()
