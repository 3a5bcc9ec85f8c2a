"""What a confirmation costs on this machine, and what fits into a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from .. import distributed
from ..device import choose_device
from ..errors import UsageError
from ..flow.config import TrainConfig
from ..flow.features import Widths
from ..flow.loss import LossModule
from ..flow.meanflow import Condition
from ..flow.networks import (
    build_network,
    build_objective,
    build_optimizers,
    build_space,
    build_time_sampler,
)
from ..flow.objectives.base import Objective
from ..flow.objectives.flow_matching import FlowMatching
from ..metrics.geneval.detect import load_detector
from ..progress import format_duration
from ..records import ConfirmPlan, PlannedTraining, Ranked
from .plan import CURVE, LEAST_STEPS, fewer, main_group, shape_of
from .scoring import BATCH, PromptGroup

WIDTHS = Widths(256, 0)  # width of an encoder's features: hardly matters for the cost of a step
CAPTION = 24  # tokens
LOADING = 10.0  # seconds a training: weights, captions, prompts one by one, compiled step
LENGTHS = 3  # that prompts have after padding, about: the last batch of each is half empty
JUDGING = {"cpu": 0.5, "cuda": 0.05}  # seconds an image, of detectors that are not measured
TIMED = 5  # repetitions of what is measured
LONGEST = 4  # a budget stretches trainings to so many times the preset's steps


class Rates(NamedTuple):
    """Seconds on this machine: a step before and after the switch, one image through the network
    while sampling, one image to judge; how many images are sampled together, and how many models
    are trained at a time."""

    before: float
    after: float
    image: float
    judged: float = 0.0
    batch: int = 1
    models: int = 1


def measure(config: TrainConfig, device: str, detector: str = "scenes") -> Rates:
    """Time some steps of the plan's network on random images, and the scene judge; another
    detector may have to be downloaded and is guessed. Under a launch all processes do so at the
    same time, since they will share the machine, and the slowest counts."""
    count, found = distributed.process_count(), list[Rates]()
    if count == 1:
        return _rates((config, device, detector))
    asked = [(config, device, detector)] * count
    distributed.share_tasks(_rates, asked, lambda number, rates: found.append(rates))
    return Rates(*(max(values) for values in zip(*found, strict=True)))._replace(models=count)


def _rates(asked: tuple[TrainConfig, str, str]) -> Rates:
    """The rates of this process for a configuration, a device and a detector."""
    config, name, detector = asked
    device = choose_device(name)
    space = build_space(config, device)
    shape = tuple(space.shape)
    net = build_network(config, shape, WIDTHS).to(device)
    generator = torch.Generator().manual_seed(0)
    optimizers = build_optimizers(config, net)
    sampler = build_time_sampler(config)

    def condition(batch: int) -> Condition:
        tokens = torch.randn(batch, CAPTION, WIDTHS.tokens, generator=generator).to(device)
        return Condition(tokens, torch.ones(batch, CAPTION, dtype=torch.bool, device=device), None)

    def clock(batch: int, progress: float, objective: Objective) -> float:
        loss = LossModule(net, objective)
        cond = condition(batch)
        x = torch.randn(batch, *shape, generator=generator).to(device)
        drop = torch.zeros(batch, dtype=torch.bool, device=device)

        def step() -> None:
            r, t = (times.to(device) for times in sampler.sample(batch, progress, generator))
            loss(x, cond, torch.randn_like(x), r, t, drop).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        return _usual(step, device, TIMED)

    parts = config.accumulate
    part = max(1, config.batch // parts)
    before = parts * clock(part, 0.0, FlowMatching())
    after = parts * clock(part, 0.9, build_objective(config, device))
    batch = BATCH.get(device.type, 16)
    z, times = torch.randn(batch, *shape, device=device), torch.ones(batch, device=device)
    cond = condition(batch)
    with torch.no_grad():
        image = _usual(lambda: net(z, times * 0, times, cond), device, TIMED) / batch
    return Rates(before, after, image, _judging(config, device, detector), batch)


def _usual(work: Callable[[], object], device: torch.device, timed: int) -> float:
    """Median seconds of several runs, so that a busy machine counts as it is. The first run warms
    up and is left out."""
    took = []
    for _ in range(timed + 1):
        started = time.perf_counter()
        work()
        _wait(device)
        took.append(time.perf_counter() - started)
    return median(took[1:])


def _judging(config: TrainConfig, device: torch.device, detector: str) -> float:
    """Seconds to judge an image."""
    if detector != "scenes":
        return JUDGING.get(device.type, JUDGING["cpu"])
    judge = load_detector(detector, device)
    noise = np.random.default_rng(0).integers(0, 256, (32, config.side, config.side, 3), np.uint8)
    pictures = [Image.fromarray(pixels) for pixels in noise]
    return _usual(lambda: judge.detect(pictures), device, 2) / len(pictures)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def scoring_seconds(plan: ConfirmPlan, rates: Rates, groups: Sequence[PromptGroup]) -> float:
    """Seconds to score one training: at its end, its parent, and on the way."""
    main = len(main_group(plan, groups).prompts)
    sampled = judged = 0
    for count, steps in (
        *((len(g.prompts) * plan.images, steps) for g in groups for steps in plan.steps),
        (main * plan.images, plan.primary.steps),
        *((main, plan.primary.steps) for _ in CURVE),
    ):
        sampled += steps * (count + LENGTHS * min(count, rates.batch) // 2)
        judged += count
    return sampled * rates.image + judged * rates.judged


def model_seconds(
    plan: ConfirmPlan, rates: Rates, groups: Sequence[PromptGroup]
) -> tuple[float, float]:
    """Seconds of one training, and of its scoring."""
    training = LOADING + shape_of(plan).steps * step_seconds(plan, rates)
    return training, scoring_seconds(plan, rates, groups)


def step_seconds(plan: ConfirmPlan, rates: Rates) -> float:
    """Seconds of a training step, the mean over both parts of a training."""
    share = shape_of(plan).flow_matching
    return share * rates.before + (1 - share) * rates.after


def total_seconds(plan: ConfirmPlan, rates: Rates, groups: Sequence[PromptGroup]) -> float:
    """Seconds of all trainings and their scoring."""
    rounds = _rounds(len(plan.encoders) * len(plan.seeds), rates)
    return rounds * sum(model_seconds(plan, rates, groups))


def _rounds(models: int, rates: Rates) -> int:
    return -(-models // rates.models)


def fit_budget(
    plan: ConfirmPlan, rates: Rates, groups: Sequence[PromptGroup],
    rows: Sequence[Ranked], budget: float,
    entries: Callable[[Sequence[Ranked]], tuple[PlannedTraining, ...]],
) -> ConfirmPlan:  # fmt: skip
    """The plan that a budget allows: as many seeds, then rivals, as leave each training at least
    half of the preset's steps, then as many steps as fit.

    Args:
        rows: who would be trained without a budget, best predicted first.
        entries: makes the plan's entries from such rows.

    Raises:
        UsageError: if not even one rival fits, saying what is needed at least.
    """
    wanted, a_step = shape_of(plan).steps, step_seconds(plan, rates)
    rivals = sum(not row.control for row in rows) - 1
    options = [
        (count, seeds, least)
        for least in (max(LEAST_STEPS, wanted // 2), LEAST_STEPS)  # or nobody beats a constant
        for seeds in (len(plan.seeds), 2, 1)
        for count in range(rivals, 0, -1)
        if seeds <= len(plan.seeds) and (seeds > 1 or count <= max(1, rivals // 2))
    ]
    cheapest = float("inf")
    for count, seeds, least in options:
        chosen = fewer(rows, count)
        rounds = _rounds(len(chosen) * seeds, rates)
        fixed = LOADING + scoring_seconds(plan, rates, groups)
        steps = int((budget / rounds - fixed) / a_step)
        cheapest = min(cheapest, rounds * (fixed + LEAST_STEPS * a_step))
        if steps < least:
            continue
        steps = min(steps, LONGEST * wanted)
        gave_up = []
        if count < rivals:
            gave_up.append(f"{rivals - count} of {rivals} rivals")
        if seeds < len(plan.seeds):
            gave_up.append(f"{len(plan.seeds) - seeds} of {len(plan.seeds)} seeds")
        if steps < wanted:
            gave_up.append(f"{wanted - steps:,} of {wanted:,} training steps")
        return replace(
            plan,
            encoders=entries(chosen),
            seeds=plan.seeds[:seeds],
            train={**plan.train, "steps": steps},
            budget=budget,
            gave_up=tuple(gave_up),
        )
    raise UsageError(
        f"--budget is too small: the predicted winner, one rival and the controls need about "
        f"{format_duration(cheapest)} here with {LEAST_STEPS} training steps each"
    )
