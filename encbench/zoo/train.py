"""The training loop that all recipes share: AdamW, warm-up and cosine, early stages kept."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ModelError, StoreError, UsageError, from_os_error
from ..files import digest
from ..lock import lock_folder
from ..progress import bar, log
from ..shipped import MANIFEST, read_manifest, write_manifest
from .catalog import STAGES, stages_of, zoo_folder, zoo_recipe
from .recipe import Schedule, StepContext, ZooRecipe, save_card

SAVES = 10  # states on the way, from which a stopped training goes on
CURVE = 100  # points of a loss curve that are kept
LICENSE = "Apache-2.0"


@dataclass(frozen=True)
class ZooTraining:
    """One training: the folders written, the loss of every step, seconds, parameters."""

    folders: tuple[Path, ...]
    losses: tuple[float, ...]
    seconds: float


def train_member(
    name: str, out: Path, *, steps: int | None = None, batch: int | None = None, seed: int = 0
) -> ZooTraining:
    """Train a member of the zoo and write its stages below ``out``.

    Started again with the same arguments it goes on where it was, with the same numbers; a
    member that is finished is left as it is.

    Args:
        steps: in all; as many as the recipe says if None. A shorter training has its own
            schedule: it is another model.
        batch: scenes a step; as the recipe says if None.

    Raises:
        UnknownNameError: if there is no such member.
        UsageError: if ``out`` holds another training of it.
        FolderInUseError: if another process trains it there.
        StoreError: if it cannot be written.
    """
    recipe = zoo_recipe(name, out)
    with lock_folder(out, name):
        return _train(recipe, out, steps, batch, seed)


def _train(
    recipe: ZooRecipe, out: Path, steps: int | None, batch: int | None, seed: int
) -> ZooTraining:
    name = recipe.name
    own = recipe.schedule
    schedule = replace(own, steps=steps or own.steps, batch=batch or own.batch)
    recipe.schedule = schedule
    plan = {"name": name, "seed": seed, "schedule": asdict(schedule)}
    done = _finished(name, out, plan)
    if done is not None:
        log.info("%s is finished in %s", name, zoo_folder(name, root=out))
        return done
    torch.manual_seed(seed)
    model = recipe.build().train()
    optimizer = _optimizer(model, schedule)
    state = out / f".{name}-state" / "state.pt"
    losses, seconds = _resume(state, plan, model, optimizer)
    if losses:
        log.info("%s goes on at step %d of %d", name, len(losses), schedule.steps)
    ends = {math.ceil(STAGES[stage] * schedule.steps): stage for stage in stages_of(name)}
    every = max(1, schedule.steps // SAVES)
    began = time.perf_counter() - seconds
    with bar(f"training {name}", schedule.steps) as advance:
        advance(len(losses))
        for number in range(len(losses), schedule.steps):
            at = StepContext(number, schedule.steps, seed)
            losses.append(_step(recipe, model, optimizer, schedule, at))
            if not math.isfinite(losses[-1]):
                raise ModelError(f"{name}: the loss at step {number} is not finite")
            advance(1)
            seconds = time.perf_counter() - began
            if number + 1 in ends:
                _write(recipe, model, out, ends[number + 1], plan, losses, seconds)
            if (number + 1) % every == 0 or number + 1 in ends:
                _keep(state, plan, model, optimizer, losses, seconds)
    state.unlink(missing_ok=True)
    with suppress(OSError):  # not there, or somebody put another file there
        state.parent.rmdir()
    folders = tuple(zoo_folder(name, stage, out) for stage in stages_of(name))
    return ZooTraining(folders, tuple(losses), seconds)


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """Only matrices decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": schedule.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, schedule.beta2))


def learning_rate(schedule: Schedule, number: int) -> float:
    """The learning rate of a step: a straight rise, then half a cosine to nothing."""
    rise = max(1, round(schedule.warmup * schedule.steps))
    if number < rise:
        return schedule.rate * (number + 1) / rise
    share = (number - rise) / max(1, schedule.steps - rise)
    return schedule.rate * (1 + math.cos(math.pi * share)) / 2


def _step(
    recipe: ZooRecipe,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    schedule: Schedule,
    at: StepContext,
) -> float:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(schedule, at.number)
    loss = recipe.loss(model, at)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(
        [p for p in model.parameters() if p.requires_grad], max_norm=schedule.clip
    )
    optimizer.step()
    recipe.after(model, at)
    return loss.item()


# -------------------------------------------------------------------------------- on disk


def _write(
    recipe: ZooRecipe,
    model: nn.Module,
    out: Path,
    stage: str,
    plan: dict[str, Any],
    losses: list[float],
    seconds: float,
) -> None:
    folder = zoo_folder(recipe.name, stage, out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        parameters = recipe.save(model, folder)
        for path in folder.iterdir():
            path.chmod(0o644)  # safetensors writes for the owner only, who installs for others
    except OSError as error:
        raise from_os_error(error, f"writing {folder}") from error
    step = max(1, len(losses) // CURVE)
    curve = [
        [i + 1, round(sum(losses[max(0, i - step + 1) : i + 1]) / min(step, i + 1), 5)]
        for i in range(step - 1, len(losses), step)
    ]
    save_card(
        folder,
        recipe.name,
        f"A small model of encbench's zoo, trained on rendered scenes by: {recipe.objective}. "
        f"{len(losses)} of {plan['schedule']['steps']} steps, seed {plan['seed']}. "
        f"Made by `encbench zoo train {recipe.name}`.",
    )
    write_manifest(
        folder,
        {
            **plan,
            "objective": recipe.objective,
            "stage": stage,
            "steps": len(losses),
            "scenes": len(losses) * plan["schedule"]["batch"],
            "parameters": parameters,
            "loss": curve[-1][1],
            "curve": curve,
            "seconds": round(seconds, 1),
            "torch": torch.__version__.partition("+")[0],
            "license": LICENSE,
        },
    )


def _finished(name: str, out: Path, plan: dict[str, Any]) -> ZooTraining | None:
    folder = zoo_folder(name, root=out)
    if not (folder / MANIFEST).is_file():
        return None
    about = read_manifest(folder)["about"]
    if digest({key: about.get(key) for key in plan}) != digest(plan):
        raise UsageError(
            f"{folder} holds {name} of another seed or number of steps; choose another --out, or "
            "remove it"
        )
    folders = tuple(zoo_folder(name, stage, out) for stage in stages_of(name))
    return ZooTraining(folders, tuple(loss for _, loss in about["curve"]), about["seconds"])


def _keep(
    state: Path,
    plan: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    losses: list[float],
    seconds: float,
) -> None:
    """Whole or not there."""
    try:
        state.parent.mkdir(parents=True, exist_ok=True)
        fresh = state.with_suffix(".new")
        torch.save(
            {
                "plan": digest(plan),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "losses": losses,
                "seconds": seconds,
            },
            fresh,
        )
        fresh.replace(state)
    except (OSError, RuntimeError) as error:  # torch raises the latter on a full disk
        raise StoreError(f"writing {state} failed: {error}") from error


def _resume(
    state: Path, plan: dict[str, Any], model: nn.Module, optimizer: torch.optim.AdamW
) -> tuple[list[float], float]:
    """Losses so far and their seconds; nothing where there is no state of this training."""
    if not state.is_file():
        return [], 0.0
    kept = torch.load(state, weights_only=True)
    if kept["plan"] != digest(plan):
        raise UsageError(
            f"{state} is of a training with another seed or number of steps; choose another "
            "--out, or remove it"
        )
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    return kept["losses"], kept["seconds"]
