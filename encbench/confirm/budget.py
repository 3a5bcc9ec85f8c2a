"""What a confirmation costs on this machine, and what fits into a budget."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from ..errors import UsageError
from ..flow.config import TrainConfig
from ..flow.features import Widths
from ..flow.meanflow import Condition, LossModule, Objective
from ..flow.networks import build_network, build_space, objective_of, time_sampler
from ..records import Ranked
from .plan import CURVE, LEAST_STEPS, Plan, fewer
from .scoring import BATCH, PromptGroup

WIDTHS = Widths(256, 0)  # of an encoder's features: hardly matters for the cost of a step
CAPTION = 24  # tokens
LOADING = 6.0  # seconds a training: weights, captions, compiled step
LONGEST = 4  # a budget stretches trainings to so many times the preset's steps


class Rates(NamedTuple):
    """Seconds on this machine: a step before and after the switch, and one image through the
    network while sampling."""

    before: float
    after: float
    image: float


def seconds(text: str) -> float:
    """'12m', '2h', '90s' or '1h30m' in seconds.

    Raises:
        UsageError: if it is none of these.
    """
    found = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not found or not text.strip():
        raise UsageError(f"--budget must be like 12m, 2h or 1h30m, not '{text}'")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60 * minutes + rest


def measure(config: TrainConfig, device: torch.device, timed: int = 4) -> Rates:
    """Time some steps of the plan's network on random images."""
    space = build_space(config, device)
    shape = tuple(space.shape)
    net = build_network(config, shape, WIDTHS).to(device)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-9)
    sampler = time_sampler(config)

    def condition(batch: int) -> Condition:
        tokens = torch.randn(batch, CAPTION, WIDTHS.tokens, generator=generator).to(device)
        return Condition(tokens, torch.ones(batch, CAPTION, dtype=torch.bool, device=device), None)

    def clock(batch: int, progress: float, objective: Objective) -> float:
        loss = LossModule(net, objective)
        cond = condition(batch)
        x = torch.randn(batch, *shape, generator=generator).to(device)
        best = float("inf")
        for _ in range(timed):
            r, t = (times.to(device) for times in sampler.sample(batch, progress, generator))
            drop = torch.zeros(batch, dtype=torch.bool, device=device)
            started = time.perf_counter()
            loss(x, cond, torch.randn_like(x), r, t, drop).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            _wait(device)
            best = min(best, time.perf_counter() - started)
        return best

    parts = config.accumulate
    part = max(1, config.batch // parts)
    before = parts * clock(part, 0.0, Objective("flow-matching"))
    after = parts * clock(part, 0.9, objective_of(config, device))
    batch = BATCH.get(device.type, 64)
    z, times = torch.randn(batch, *shape, device=device), torch.ones(batch, device=device)
    cond, best = condition(batch), float("inf")
    with torch.no_grad():
        for _ in range(timed):
            started = time.perf_counter()
            net(z, times * 0, times, cond)
            _wait(device)
            best = min(best, time.perf_counter() - started)
    return Rates(before, after, best / batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def evaluations(plan: Plan, groups: Sequence[PromptGroup]) -> int:
    """Images through the network for one training's scores."""
    prompts = sum(len(group.prompts) for group in groups)
    first = max(len(group.prompts) for group in groups)
    through = 4 * first * len(CURVE)
    return prompts * plan.images * sum(plan.steps) + 4 * first * plan.images + through


def model_seconds(plan: Plan, rates: Rates, groups: Sequence[PromptGroup]) -> tuple[float, float]:
    """Seconds of one training, and of its scoring (judging takes about as long again as a
    fifth of the sampling)."""
    return LOADING + plan.shape.steps * step_seconds(plan, rates), 1.2 * evaluations(
        plan, groups
    ) * rates.image


def step_seconds(plan: Plan, rates: Rates) -> float:
    """Of a training step, the mean over both parts of a training."""
    share = plan.shape.flow_matching
    return share * rates.before + (1 - share) * rates.after


def total_seconds(plan: Plan, rates: Rates, groups: Sequence[PromptGroup]) -> float:
    return sum(model_seconds(plan, rates, groups)) * len(plan.encoders) * len(plan.seeds)


def fit(
    plan: Plan, rates: Rates, groups: Sequence[PromptGroup], rows: Sequence[Ranked], budget: float,
    entries: Any,
) -> Plan:  # fmt: skip
    """The plan that a budget allows: as many rivals and seeds as leave each training at least
    half of the preset's steps, then as many steps as fit.

    Args:
        rows: who would be trained without a budget, best predicted first.
        entries: makes the plan's entries from such rows.

    Raises:
        UsageError: if not even one rival fits, saying what is needed at least.
    """
    wanted, a_step = plan.shape.steps, step_seconds(plan, rates)
    rivals = sum(not row.control for row in rows) - 1
    options = [
        (count, seeds, least)
        for least in (max(LEAST_STEPS, wanted // 2), LEAST_STEPS)
        for seeds in (len(plan.seeds), 2, 1)
        for count in range(rivals, 0, -1)
        if seeds <= len(plan.seeds) and (seeds > 1 or count <= max(1, rivals // 2))
    ]
    cheapest = float("inf")
    for count, seeds, least in options:
        chosen = fewer(rows, count)
        models = len(chosen) * seeds
        fixed = LOADING + model_seconds(plan, rates, groups)[1]
        steps = int((budget / models - fixed) / a_step)
        cheapest = min(cheapest, models * (fixed + LEAST_STEPS * a_step))
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
        f"{said(cheapest)} here with {LEAST_STEPS} training steps each"
    )


def said(duration: float) -> str:
    """E.g. '1 h 05 min', '12 min', '40 s'."""
    if duration < 90:
        return f"{duration:.0f} s"
    minutes = round(duration / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
