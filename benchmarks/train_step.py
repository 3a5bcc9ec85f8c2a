"""What a MeanFlow training step costs, over plain flow matching of the same network and batch.

    python benchmarks/train_step.py [--device cuda] [--precisions fp32 bf16] [--turns 9]

A step is loss, gradient and AdamW. Each method's step is timed right after one of flow matching,
all methods in turn; the ratio is the median over the turns, its spread the lowest and highest.
The rival is EMF's way: the JVP of the whole batch inside autograd, in float32. Beside the time
are the peak of memory (weights and AdamW's state counted) over flow matching's, and the error of
du/dt against the exact one in float64. Objective emf computes what meanflow does: its schedule of
times is all that differs.

A CPU without bfloat16 instructions computes in bfloat16 many times slower than in float32: there,
take `--precisions fp32`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from provenance import keep
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from encbench import registry
from encbench.flow import dit
from encbench.flow.derivative import STEPS, total_derivative
from encbench.flow.loss import objective_loss
from encbench.flow.meanflow import Condition, average_velocity, interpolate

SHARES = (0.25, 0.75)
AIMS = {"finite difference": {0.25: 1.15, 0.75: 1.40}, "jvp": {0.25: 1.25, 0.75: 1.70}}
AIM_MEMORY = 1.2
RIVAL = "EMF's way"
Method = Callable[[Any, "Batch"], Tensor]
TEXT = (32, 384)  # tokens of a prompt and their width, as of MiniLM


class Batch(NamedTuple):
    x: Tensor
    cond: Condition
    noise: Tensor
    r: Tensor
    t: Tensor


def make_batch(side: int, size: int, share: float, device: torch.device) -> Batch:
    g = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, size, 3, side, side, generator=g)
    t = 0.05 + 0.95 * torch.rand(size, generator=g)
    r = torch.where(torch.arange(size) < round(share * size), t * torch.rand(size, generator=g), t)
    tokens, pooled = torch.randn(size, *TEXT, generator=g), torch.randn(size, TEXT[1], generator=g)
    mask = torch.arange(TEXT[0]) < torch.randint(8, TEXT[0] + 1, (size, 1), generator=g)
    cond = Condition(tokens, mask, pooled).to(device)
    return Batch(x.to(device), cond, noise.to(device), r.to(device), t.to(device))


def make_net(options: argparse.Namespace, prediction: str) -> nn.Module:
    """The DiT; its zero gates get random values, as if it had been trained."""
    torch.manual_seed(0)
    config = dit.dit_config(
        options.size, side=options.side, patch=options.patch, cond_dim=TEXT[1],
        pooled_dim=TEXT[1], prediction=prediction, velocity_head=prediction == "x",
    )  # fmt: skip
    net = dit.DiT(config)
    for weight in net.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.05)
    return net.to(options.device)


def emf_loss(net: Any, batch: Batch) -> Tensor:
    """The rival: u and du/dt of all rows by one JVP that autograd then goes through."""
    x, cond, noise, r, t = batch
    with torch.autocast(x.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        z, v = interpolate(x, noise, t), noise - x
        u, dudt = torch.func.jvp(
            lambda z, t: average_velocity(net, z, r, t, cond), (z, t), (v, torch.ones_like(t))
        )
        error = (u - (v - (t - r)[:, None, None, None] * dudt).detach()).flatten(1).square().sum(1)
        return (error / (error.detach() + 1e-3)).mean()


def methods() -> dict[str, Method]:
    """By name, 'objective, derivative'; the rival last. The tangent of 'imf' is one more forward
    at r = t, that of 'pmf' comes from a velocity head."""

    def ours(name: str, mode: str) -> Method:
        objective = registry.get("objective", name)(mode)
        return lambda net, b: objective_loss(net, *b, objective=objective).loss

    names = [(name, mode) for name in ("meanflow", "imf", "pmf") for mode in STEPS]
    return {f"{name}, {mode}": ours(name, mode) for name, mode in names} | {RIVAL: emf_loss}


class Runner:
    """Steps of one network, with its own optimizer, in one precision."""

    def __init__(self, net: nn.Module, precision: str, device: torch.device) -> None:
        self.net, self.precision, self.device = net, precision, device
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)

    def step(self, method: Method, batch: Batch) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            value = method(self.net, batch)
        self.optimizer.zero_grad()
        value.backward()
        self.optimizer.step()

    def seconds(self, method: Method, batch: Batch, clock: Callable) -> float:
        self._wait()
        begun = clock()
        self.step(method, batch)
        self._wait()
        return clock() - begun

    def peak(self, method: Method, batch: Batch) -> int:
        """Bytes at the peak of a step: weights, AdamW's state and all that the step allocates."""
        self.step(method, batch)
        self.optimizer.zero_grad()
        resident = sum(w.nbytes for w in self.net.parameters())
        resident += sum(p.nbytes for s in self.optimizer.state.values() for p in s.values())
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.step(method, batch)
            return torch.cuda.max_memory_allocated(self.device) - before + resident
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            self.step(method, batch)
        events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak + resident

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def errors(net: nn.Module, batch: Batch) -> dict[str, float]:
    """|du/dt - exact| / |exact| of each mode in float32, exact being the JVP in float64."""
    x, cond, noise, r, t = batch
    exact_net = copy.deepcopy(net).double()
    wide = Condition(cond.tokens.double(), cond.mask, cond.pooled.double())  # type: ignore[union-attr]
    points = interpolate(x, noise, t), r, t, noise - x
    exact = total_derivative(
        lambda z, r, t: average_velocity(exact_net, z, r, t, wide),  # type: ignore[arg-type]
        *(part.double() for part in points),
    )
    found = {}
    for mode in STEPS:
        near = total_derivative(
            lambda z, r, t: average_velocity(net, z, r, t, cond),
            *points,
            mode=mode,  # type: ignore[arg-type]
        )
        found[mode] = float((near - exact).norm() / exact.norm())
    return found


def matrix_rate(device: torch.device, precision: str, side: int) -> float:
    """FLOP/s of large matrix products, the best of several."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    best = 0.0
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begun = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - begun))
    return best


def flops(runner: Runner, method: Method, batch: Batch) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        runner.step(method, batch)
    return counter.get_total_flops()


def measure(options: argparse.Namespace, precision: str, share: float) -> dict[str, Any]:
    device = torch.device(options.device)
    batch = make_batch(options.side, options.batch, share, device)
    runners = {p: Runner(make_net(options, p), precision, device) for p in ("u", "x")}
    return compare(options, precision, share, runners, batch)


def compare(
    options: argparse.Namespace,
    precision: str,
    share: float,
    runners: dict[str, Runner],
    batch: Batch,
) -> dict[str, Any]:
    """Steps of networks that predict u (and x, for pmf), each beside one of flow matching."""
    device = torch.device(options.device)
    clock = time.process_time if options.clock == "process" else time.perf_counter
    plain = registry.get("objective", "flow-matching")()

    def base(net: Any, b: Batch) -> Tensor:
        return objective_loss(net, *b, objective=plain).loss

    work = {k: v for k, v in methods().items() if any(word in k for word in options.only or [k])}
    times: dict[str, list[float]] = {name: [] for name in work}
    ratios: dict[str, list[float]] = {name: [] for name in work}
    plain_times: list[float] = []
    for turn in range(options.turns + 1):
        for name, method in work.items():
            runner = runners["x" if name.startswith("pmf") else "u"]
            first = runner.seconds(base, batch, clock)
            took = runner.seconds(method, batch, clock)
            if turn:  # the first one warms up
                plain_times.append(first)
                times[name].append(took)
                ratios[name].append(took / first)
    found: dict[str, Any] = {}
    rate = matrix_rate(device, precision, 8192 if device.type == "cuda" else 1024)
    for name, method in work.items():
        runner = runners["x" if name.startswith("pmf") else "u"]
        seconds = statistics.median(times[name])
        found[name] = {
            "ratio": statistics.median(ratios[name]),
            "low": min(ratios[name]),
            "high": max(ratios[name]),
            "memory": runner.peak(method, batch) / runner.peak(base, batch),
            "images_per_second": options.batch / seconds,
        }
        if device.type == "cuda":
            work_done = flops(runner, method, batch)
            found[name]["share_of_matrix_rate"] = work_done / seconds / rate
    seconds = statistics.median(plain_times)
    images = options.batch / seconds
    print(f"\n{precision}, {share:.0%} of r != t; flow matching: {images:.0f} images/s")
    print(f"{'':20} ratio (lowest, highest)   memory")
    for name, row in found.items():
        spread = f"({row['low']:.2f}, {row['high']:.2f})"
        more = (
            f"  {row['share_of_matrix_rate']:.0%} of matrix rate" if device.type == "cuda" else ""
        )
        print(f"{name:20} {row['ratio']:.2f}  {spread:17} {row['memory']:8.2f}{more}", flush=True)
    return {
        "precision": precision,
        "share": share,
        "flow_matching_images_per_second": images,
        "matrix_rate_tflops": rate / 1e12,
        "methods": found,
    }


def reached(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of meanflow's modes against the aims, in float32."""
    found = {}
    for result in results:
        rows, share = result["methods"], result["share"]
        if result["precision"] != "fp32" or "meanflow, jvp" not in rows:
            continue
        for kind, mode in (("finite difference", "forward"), ("jvp", "jvp")):
            row = rows[f"meanflow, {mode}"]
            found[f"{kind} at {share:.0%}"] = {
                "ratio": row["ratio"],
                "aim": AIMS[kind][share],
                "reached": row["ratio"] <= AIMS[kind][share],
                "memory_reached": row["memory"] <= AIM_MEMORY,
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"]
    )
    parser.add_argument("--size", default="3M", help="of the DiT: " + ", ".join(dit.SIZES))
    parser.add_argument("--side", type=int, default=32, help="of the images, in pixels")
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--only", nargs="+", help="methods whose names hold one of these words")
    parser.add_argument(
        "--clock", choices=["wall", "process"], default="wall",
        help="process: the seconds that the process computed, for a busy machine and one thread",
    )  # fmt: skip
    parser.add_argument("--name", help="of the result file; train-step-DEVICE by default")
    options = parser.parse_args()
    if options.clock == "process" and (options.device != "cpu" or torch.get_num_threads() > 1):
        parser.error("--clock process needs --device cpu and one thread (OMP_NUM_THREADS=1)")
    net = make_net(options, "u")
    whole = make_batch(options.side, 32, 1.0, torch.device(options.device))
    results = [measure(options, p, share) for p in options.precisions for share in SHARES]
    keep(
        options.name or f"train-step-{options.device}",
        {
            "unit": "time and peak memory of a step over flow matching's, median of the turns",
            "network": {"parameters": sum(w.numel() for w in net.parameters()),
                        "tokens": (options.side // options.patch) ** 2, "text_tokens": TEXT[0]},
            "batch": options.batch,
            "turns": options.turns,
            "threads": torch.get_num_threads(),
            "clock": options.clock,
            "derivative_error": errors(net, whole),
            "derivative_step": {mode: step for mode, step in STEPS.items() if step},
            "results": results,
            "aims_in_fp32": reached(results),
            "aim_memory": AIM_MEMORY,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
