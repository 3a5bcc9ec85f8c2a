"""The training loop that all recipes share: AdamW, warm-up and cosine, early stages kept."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import (
    STATE,
    Checkpoint,
    find_damage,
    load_weights,
    read_part,
    read_state,
    write_checkpoint,
)
from ..errors import UsageError, from_os_error
from ..files import digest
from ..lock import lock_folder
from ..progress import bar, log
from ..shipped import MANIFEST, read_manifest, write_manifest
from ..training import (
    descend,
    load_state_tensors,
    set_learning_rate,
    state_tensors,
    trainable,
    warmup_cosine,
)
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

    The same call resumes after a stop, with the same numbers; a finished member is kept.

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
    state = out / f".{name}-state"
    losses, seconds = _resume(state, digest(plan), model, optimizer)
    if losses:
        log.info("%s resumes at step %d of %d", name, len(losses), schedule.steps)
    ends = {stage: math.ceil(STAGES[stage] * schedule.steps) for stage in stages_of(name)}
    every = max(1, schedule.steps // SAVES)
    began = time.perf_counter() - seconds
    with bar(f"training {name}", schedule.steps) as advance:
        advance(len(losses))
        for number in range(len(losses), schedule.steps):
            at = StepContext(number, schedule.steps, seed)
            losses.append(_step(recipe, model, optimizer, schedule, at))
            advance(1)
            seconds = time.perf_counter() - began
            reached = [stage for stage, end in ends.items() if end == number + 1]
            for stage in reached:
                _write(recipe, model, out, stage, plan, losses, seconds)
            if (number + 1) % every == 0 or reached:
                _keep(state, model, optimizer, ZooState(digest(plan), losses, seconds))
    shutil.rmtree(state, ignore_errors=True)
    folders = tuple(zoo_folder(name, stage, out) for stage in stages_of(name))
    return ZooTraining(folders, tuple(losses), seconds)


def _optimizer(model: nn.Module, schedule: Schedule) -> torch.optim.AdamW:
    """Only matrices decay."""
    trained = trainable(model).values()
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": schedule.decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, schedule.beta2))


def learning_rate(schedule: Schedule, number: int) -> float:
    """The learning rate of a step: a straight rise, then half a cosine to nothing."""
    rise = max(1, round(schedule.warmup * schedule.steps))
    return schedule.rate * warmup_cosine(number, schedule.steps, rise)


def _step(
    recipe: ZooRecipe,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    schedule: Schedule,
    at: StepContext,
) -> float:
    set_learning_rate([optimizer], learning_rate(schedule, at.number))
    what = f"{recipe.name}: the loss at step {at.number}"
    parameters = trainable(model).values()
    loss = descend(recipe.loss(model, at), optimizer, parameters, schedule.clip, what)
    recipe.after(model, at)
    return loss


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


@dataclass(frozen=True)
class ZooState:
    """What resuming needs beside tensors: hash of the plan, the loss of every step, seconds."""

    plan: str
    losses: list[float]
    seconds: float


def _keep(path: Path, model: nn.Module, optimizer: torch.optim.AdamW, state: ZooState) -> None:
    tensors = {
        "model": model.state_dict(),
        "optimizer": state_tensors([optimizer], trainable(model)),
    }
    write_checkpoint(path, Checkpoint(tensors, asdict(state)))


def _resume(
    path: Path, plan: str, model: nn.Module, optimizer: torch.optim.AdamW
) -> tuple[list[float], float]:
    """Losses so far and their seconds; nothing where there is no whole state of this training."""
    if not (path / STATE).is_file():
        return [], 0.0
    problem = find_damage(path)
    if problem is not None:
        log.warning("%s; starting over", problem)
        return [], 0.0
    state = read_state(path, ZooState)
    if state.plan != plan:
        raise UsageError(
            f"{path} is of a training with another seed or number of steps; choose another "
            "--out, or remove it"
        )
    load_weights(model, read_part(path, "model"), path)
    load_state_tensors([optimizer], trainable(model), read_part(path, "optimizer"), path)
    return state.losses, state.seconds
