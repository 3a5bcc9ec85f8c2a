"""What a training will cost, estimated before it starts. Only shapes are computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..data.hub import download_plan
from ..device import current_launch
from ..distributed import share_batch
from ..encoders import EncoderSpec, family_of
from ..errors import EncbenchError
from ..progress import format_duration
from ..training import trainable
from .config import TrainConfig
from .features import PromptEncoder, Widths
from .meanflow import Condition
from .networks import build_network, build_space, build_time_sampler, check_objective
from .sharding import check_sharding, recompute_activations, transformer_blocks

GUESS = Widths(2048, 0)
TEXT = 32  # tokens of a caption, padded
BACKWARD = 3  # a step with a graph costs three forwards


class Cost(NamedTuple):
    """Cost of a training: parameters, trained parameters, FLOPs of a step in all processes, and
    bytes in each of them."""

    parameters: int
    trained: int
    flops: float
    weights: int
    activations: int


def cost_of(
    config: TrainConfig,
    net: nn.Module,
    shape: tuple[int, int, int],
    widths: Widths,
    processes: int = 1,
) -> Cost:
    """What a step costs, by running shapes through the network.

    The derivative adds forwards over the samples with r != t: two for 'central', one for
    'forward', about three for 'jvp'; counted at the mean share of intervals. Activations that are
    computed again add one forward with a graph.

    Raises:
        UsageError: if so many processes cannot share the batch.
    """
    part = share_batch(config.batch, config.accumulate, processes)
    meta = net.to("meta")
    blocks = transformer_blocks(meta)
    per_image = _per_image(meta, shape, widths)
    held = per_image.bytes
    if config.recompute:
        recompute_activations(meta)
        inputs = _per_image(meta, shape, widths).bytes
        held = inputs + (held - inputs) / len(blocks)  # one block is computed again at a time
    more = {"central": 2, "forward": 1, "jvp": 3}[config.derivative] * _interval_share(config)
    later = 1 - config.switch / config.steps
    forwards = BACKWARD + config.recompute + later * more
    width = 2 if config.precision == "bf16" else 4
    shared = processes if config.shard else 1
    return Cost(
        _count(meta),
        sum(p.numel() for p in trainable(meta).values()),
        per_image.flops * forwards * config.batch,
        _bytes_of_weights(config, meta, blocks, shared),
        int(held * part * width / 4),
    )


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _bytes_of_weights(
    config: TrainConfig, net: nn.Module, blocks: Sequence[nn.Module], shared: int
) -> int:
    """Weights, their means, gradient and two moments of the optimizer in one process, in fp32.

    A mean has the weights that are not trained in common with the network, unless both are sharded.
    Sharded, the network outside its blocks and two blocks are whole at a time.
    """
    count, trained = _count(net), sum(p.numel() for p in trainable(net).values())
    means = 1 + len(config.more_ema)
    parent = count if config.parent_target else 0
    if shared == 1:
        return 4 * (count + parent + (means + 3) * trained)
    sizes = [_count(block) for block in blocks]
    whole = count - sum(sizes) + 2 * max(sizes)
    return 4 * ((count * (1 + means) + parent + 3 * trained) // shared + whole)


def _interval_share(config: TrainConfig) -> float:
    """The mean share of samples with r < t after the switch."""
    sampler, generator = build_time_sampler(config).then, torch.Generator().manual_seed(0)
    times = [sampler.sample(400, (part + 0.5) / 16, generator) for part in range(16)]
    return float(torch.stack([(each.r < each.t).float().mean() for each in times]).mean())


class _Run(NamedTuple):
    flops: float
    bytes: float


def _per_image(net: nn.Module, shape: tuple[int, int, int], widths: Widths) -> _Run:
    """FLOPs of a forward, and bytes that are kept for its backward, in fp32."""
    small, large = (_forward(net, shape, widths, batch) for batch in (2, 4))
    return _Run((large.flops - small.flops) / 2, (large.bytes - small.bytes) / 2)


def _forward(net: nn.Module, shape: tuple[int, int, int], widths: Widths, batch: int) -> _Run:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    z = torch.zeros(batch, *shape, device="meta")
    t = torch.ones(batch, device="meta")
    cond = Condition(
        torch.zeros(batch, TEXT, widths.tokens, device="meta"),
        torch.ones(batch, TEXT, dtype=torch.bool, device="meta"),
        torch.zeros(batch, widths.pooled, device="meta") if widths.pooled else None,
    )
    counter = FlopCounterMode(display=False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), counter:
        net(z, t, t, cond)
    return _Run(counter.get_total_flops(), sum(kept.values()))


@dataclass(frozen=True)
class TrainingPlan:
    """What ``encbench train --dry-run`` prints: ``lines``, and the numbers in them.

    Attributes:
        processes: that share the training.
        parameters, trained: numbers of weights.
        flops: floating-point operations of a step, in all processes.
        memory: bytes for weights, optimizer and activations in each process.
        seconds: at the measured rate of matrix products; the least.
    """

    encoder: str
    network: str
    device: str
    steps: int
    batch: int
    parameters: int
    trained: int
    flops: float
    memory: int
    seconds: float
    lines: tuple[str, ...]
    processes: int = 1


def plan_training(
    config: TrainConfig, rate: Callable[[torch.device], float], processes: int | None = None
) -> TrainingPlan:
    """Plan a training: what it is and what it costs.

    Args:
        rate: measured FLOPs a second of a device's matrix products.
        processes: that share the training; those of this launch if None.

    Raises:
        EncbenchError: for a configuration that makes no sense.
    """
    from ..device import choose_device

    processes = processes or current_launch().size
    check_objective(config)
    check_sharding(config)
    device = choose_device(config.device)
    if config.precision == "auto":
        config = replace(config, precision="bf16" if device.type == "cuda" else "fp32")
    shape = tuple(build_space(config, device).shape)
    widths, said = _widths(config)
    net = build_network(config, shape, widths)
    cost = cost_of(config, net, shape, widths, processes)
    speed = rate(device)
    least = cost.flops * config.steps / speed / processes
    switch = f"flow matching up to step {config.switch:,}, then {config.objective}"
    if config.switch >= config.steps:
        switch = "flow matching only"
    memory = (cost.weights + cost.activations) / 1e9
    each = f" in each of {processes} processes" if processes > 1 else ""
    where = f"{processes} devices like this" if processes > 1 else "this"
    sharing = ""
    if config.shard:
        sharing = (
            " (shared out)" if processes > 1
            else " (in one process; start the dry run by torchrun or accelerate to count --shard)"
        )  # fmt: skip
    lines = (
        f"encoder      {config.encoder}, {said}",
        f"images       {_data(config)}, {config.side} px, as {' x '.join(map(str, shape))}",
        f"network      {config.network}, {cost.parameters / 1e6:,.1f}M parameters, "
        f"{cost.trained / 1e6:,.1f}M of them trained, predicts {config.prediction}",
        f"training     {config.steps:,} steps of {config.batch} images; {switch}",
        f"computing    {cost.flops / 1e12:,.3f} TFLOP a step, "
        f"{cost.flops * config.steps / 1e15:,.2f} PFLOP in all",
        f"memory       about {memory:,.1f} GB{each}: {cost.weights / 1e9:,.1f} for weights, their "
        f"mean and the optimizer{sharing}, {cost.activations / 1e9:,.1f} for activations (text "
        "features and an autoencoder come on top)",
        f"time         {format_duration(least)} to {format_duration(4 * least)} on {where} "
        f"{device.type} (matrix products run at {speed / 1e12:,.2f} TFLOP/s; the lower figure "
        "assumes all of that)",
    )
    return TrainingPlan(
        config.encoder, config.network, device.type, config.steps, config.batch, cost.parameters,
        cost.trained, cost.flops, cost.weights + cost.activations, least, lines, processes,
    )  # fmt: skip


def _widths(config: TrainConfig) -> tuple[Widths, str]:
    """Of the encoder, where it is at hand; nothing is downloaded."""
    spec = EncoderSpec.parse(config.encoder)
    family = family_of(spec.shuffled or spec)
    rows = [row for row in download_plan(family.requires(spec)) if not row.cached]
    if rows:
        named = ", ".join(row.repo for row in rows)
        return GUESS, f"not here yet ({named}); width {GUESS.tokens} is assumed"
    try:
        found = PromptEncoder(config.encoder, config.store, torch.device("cpu")).widths
    except EncbenchError as error:
        return GUESS, f"cannot be loaded ({error}); width {GUESS.tokens} is assumed"
    pooled = f" and a pooled vector of {found.pooled}" if found.pooled else ""
    return found, f"features of width {found.tokens}{pooled}"


def _data(config: TrainConfig) -> str:
    spec = config.dataset
    if spec.family == "scenes":
        return f"{config.images:,} scenes of world '{spec.source or 'scenes'}'"
    return f"dataset {spec}"
