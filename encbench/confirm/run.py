"""``encbench confirm``: check the prediction, plan, train, score, judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import distributed, registry
from ..config import read_run_config
from ..context import load_run_data
from ..device import choose_device, device_name
from ..encoders import EncoderSpec
from ..encoders.local import read_places
from ..errors import DataError, EncbenchError, RecordError, UsageError
from ..files import digest, slug
from ..flow.config import TrainConfig
from ..flow.config import training_config as train_config
from ..lock import lock_folder
from ..progress import bar, format_duration, log
from ..records import (
    CellVerdict,
    ConfirmPlan,
    Failure,
    PlannedTraining,
    Prediction,
    Ranked,
    Reach,
    RuleOrder,
    Verdict,
    clean,
    find_records,
    read_prediction,
    read_record,
    write_verdict,
)
from ..sentences import describe_cell, verdict_headline
from .assemble import assemble
from .backbone import (
    WEIGHTS,
    backbone_config,
    backbone_id,
    recipe,
    shipped_backbone,
    train_backbone,
)
from .bank import bank_verdict
from .budget import Rates, fit_budget, measure, model_seconds, total_seconds
from .config import PRESETS, ConfirmConfig
from .experiment import ScoredTraining, TrainingTask, run_task
from .plan import (
    PLAN,
    choose_encoders,
    groups_for,
    hold_to,
    order_by,
    order_for,
    prompt_groups,
    questions_of,
    reach_of,
    shape_of,
)
from .rules import RULES
from .scoring import metric_specs

FOLDER, PREDICTION, VERDICT = "confirm", "prediction.json", "verdict.json"


class Ready(NamedTuple):
    """A plan with its cost and what it can show."""

    plan: ConfirmPlan
    prediction: Prediction
    rates: Rates
    reach: Reach
    backbone: Path | None
    device: str


def run_confirmation(config: ConfirmConfig) -> Verdict:
    """Train, score and judge. The same call resumes after a stop.

    Raises:
        UsageError: if the configuration makes no sense, or another confirmation is in the folder.
        RecordError: if prediction.json is missing, damaged or was changed.
        DataError: if the data have changed since the encoders were ranked.
        FolderInUseError: if another process writes into the run's folder.
        EncbenchError: if every training failed.
    """
    ready = prepare(config)
    with lock_folder(config.out):
        return _train_and_judge(config, ready)


def _train_and_judge(config: ConfirmConfig, ready: Ready) -> Verdict:
    plan = hold_to(config.out / FOLDER / PLAN, ready.plan)
    places = read_places(config.out)
    groups = prompt_groups(plan)
    for line in plan_lines(ready):
        log.info("%s", line)
    weights = ready.backbone
    if plan.backbone and weights is None:
        weights = _train_backbone(config, plan) / WEIGHTS
    tasks = [
        TrainingTask(
            plan, entry, seed, config.out / FOLDER / "models" / _folder_name(entry, seed),
            weights if plan.backbone else None, ready.device, config.store,
            places.get(entry.spec, ""),
        )
        for seed in plan.seeds
        for entry in plan.encoders
    ]  # fmt: skip
    results: dict[tuple[str, int], ScoredTraining] = {}
    failed: list[Failure] = []

    with bar("confirming", len(tasks)) as advance:

        def keep(number: int, result: ScoredTraining | Failure) -> None:
            if isinstance(result, Failure):
                failed.append(result)
            else:
                results[tasks[number].entry.spec, tasks[number].seed] = result
            advance(1)

        if distributed.process_count() > 1:
            distributed.share_tasks(run_task, tasks, keep)
        else:
            for number, task in enumerate(tasks):
                log.info(
                    "%d of %d: %s, seed %d", number + 1, len(tasks), task.entry.name, task.seed
                )
                keep(number, run_task(task))
    if not results:
        raise EncbenchError(f"no training came out; {failed[0].spec}: {failed[0].error}")
    folders = {(t.entry.spec, t.seed): t.folder.relative_to(config.out).as_posix() for t in tasks}
    verdict = assemble(plan, ready.prediction, groups, results, failed, folders)
    verdict = write_verdict(config.out / VERDICT, verdict)
    if config.bank is not None:
        added = bank_verdict(config.bank, verdict, config.out.name)
        log.info("%d rows added to %s", added, config.bank)
    return verdict


def unranked(specs: Sequence[EncoderSpec]) -> Prediction:
    """A prediction that is still to be made, for a plan by places in it: encoders are named by
    their place within their stage of training."""
    rows: list[Ranked] = []
    for spec in specs:
        stage, control = spec.get("step") or "final", spec.family == "control"
        place = 1 + sum(row.stage == stage and not row.control for row in rows)
        name = spec.source if control else f"rank {place}"
        rows.append(Ranked(str(spec), name, control, 0.0, 0.0, 0.0, 0, stage=stage))
    return Prediction(order=rows)


def prepare(config: ConfirmConfig, prediction: Prediction | None = None) -> Ready:
    """Everything before the first training; nothing is written.

    Args:
        prediction: read and checked if None; see :func:`unranked`.

    Raises:
        see :func:`confirm`.
    """
    if prediction is None:
        prediction = _read(config.out)
    device = device_name(choose_device(config.device))
    values = PRESETS[config.preset]()
    train = {"times": "emf", **values["train"], **config.train}
    if str(train["network"]).startswith("sana:"):
        train.setdefault("prediction", "u")  # all that it can
    if config.steps is not None:
        train["steps"] = config.steps
    if config.scaling != ConfirmConfig.scaling:
        train["condition_scaling"] = config.scaling
    for name in ("encoder", "seed", "out", "device"):
        if name in config.train:
            raise UsageError(
                f"--set {name} is not allowed: encbench confirm has an option of its own for it"
            )
    shape = train_config({**train, "out": config.out})
    # the switch and the step of the difference are part of what is fixed
    train |= {"flow_matching": shape.flow_matching, "derivative_step": shape.difference_step}
    if shape.objective == "flow-matching":
        others = ", ".join(n for n in registry.names("objective") if n != shape.objective)
        raise UsageError(f"--set objective=flow-matching trains no few-step model; take {others}")
    public = {spec: name for name, spec in read_places(config.out).items()}
    wanted = [public.get(text, text) for text in config.encoders]
    order = order_by(prediction, config.rule or "")
    rows = choose_encoders(order, wanted, bool(values.get("everyone")))
    if not any(not row.control for row in rows):
        raise UsageError("a confirmation needs a trained encoder; only controls were named")
    revisions = _revisions(config.out, prediction)
    weights, backbone = _backbone(config, shape)
    per_task = config.per_task or values["per_task"]
    file = str(config.prompts) if config.prompts else ""
    groups = groups_for(file, shape.world, per_task, config.seed)
    primary, second = questions_of(groups, order.rule.cell)
    beside = order_for(prediction, second, order) if second is not None else None

    def entries(chosen: Sequence[Ranked]) -> tuple[PlannedTraining, ...]:
        return tuple(_entry(row, revisions, beside) for row in chosen)

    seeds = config.seeds or values["seeds"]
    plan = ConfirmPlan(
        prediction=prediction.hash,
        preset=config.preset,
        encoders=entries(rows),
        seeds=tuple(config.seed + k for k in range(seeds)),
        train=clean(train),
        per_task=per_task,
        images=config.images or values["images"],
        prompts=file,
        prompt_pins={f"{g.tier} {g.combos}": g.pin for g in groups},
        primary=primary,
        backbone=backbone,
        detector=config.detector,
        colors=config.colors,
        budget=config.budget,
        seed=config.seed,
        metrics=config.metrics,
        rule=order.rule.name,
        second=second,
        second_rule=beside.rule.name if beside else "",
    )
    metric_specs(plan)  # an unknown one is named before anything is computed
    rates = measure(shape, device, config.detector)
    written = config.out / FOLDER / PLAN
    if prediction.hash and written.exists():
        plan = hold_to(written, plan)
        groups = prompt_groups(plan)
    elif config.budget is not None:
        plan = fit_budget(plan, rates, groups, rows, config.budget, entries)
    return Ready(plan, prediction, rates, reach_of(plan, groups), weights, device)


def plan_lines(ready: Ready) -> list[str]:
    """The plan, its cost and what it can show, as lines of text."""
    plan, groups = ready.plan, prompt_groups(ready.plan)
    config = shape_of(plan)
    training, scoring = model_seconds(plan, ready.rates, groups)
    models = len(plan.encoders) * len(plan.seeds)
    together = ready.rates.models
    place = f"one {ready.device}" if together == 1 else f"{together} processes ({ready.device})"
    seen = ", ".join(f"{len(g.prompts)} in tier {g.tier} {g.combos}" for g in groups)
    start = "random weights" if not plan.backbone else "one backbone, a new connector each"
    made = f"{plan.prediction[:12]}, kept; its first is {plan.encoders[0].name}"
    lines = [
        f"prediction  {made if plan.prediction else 'still to be made; encoders by place in it'}",
        f"encoders    {', '.join(f'{e.name} ({e.stage})' for e in plan.trained)}; controls: "
        + (", ".join(e.name for e in plan.encoders if e.control) or "none"),
        f"training    {models} models, {len(plan.seeds)} seeds, {config.steps:,} steps of "
        f"{config.batch} images ({config.side} px, {config.network}); flow matching up to step "
        f"{config.switch:,}, then {config.objective}; from {start}",
        f"scoring     GenEval at {', '.join(map(str, plan.steps))} steps, {plan.images} images a "
        f"prompt: {seen}",
        f"time        about {format_duration(training)} training and "
        f"{format_duration(scoring)} scoring a model, "
        f"{format_duration(total_seconds(plan, ready.rates, groups))} in all on {place}",
    ]
    if plan.budget is not None:
        gave = "; ".join(plan.gave_up) or "nothing"
        lines.append(f"budget      {format_duration(plan.budget)}; it gave up {gave}")
    can = ready.reach
    lines += [
        f"can tell    {can.prompts} prompts and {can.images:,} images an encoder; smallest "
        f"p {can.smallest_p:.4f}; regret within about {can.regret_half_width:.3f}; within "
        f"reach: choice {_listed(can.choice)}; rule {_listed(can.rule)}",
    ]
    rules = RULES.sentences(plan.primary, plan.second)
    return lines + [f"{name:11s} {text}" for name, text in rules.items()]


def _listed(verdicts: Sequence[str]) -> str:
    return " / ".join(verdicts)


def verdict_lines(verdict: Verdict) -> list[str]:
    """The verdicts in words, and a line for each encoder; the headline last."""
    names = {row.spec: row.name for row in verdict.plan.encoders}
    names |= {row.spec: row.name for row in verdict.encoders}

    def named(text: str) -> str:
        for spec in sorted(names, key=len, reverse=True):  # one name may begin another
            text = text.replace(spec, names[spec])
        return text

    lines = []
    for row in verdict.encoders:
        entry = row.scores[verdict.primary]
        lines.append(
            f"{row.name:28s} {entry.value:.3f} ({entry.low:.3f} to {entry.high:.3f})"
            + ("  control" if row.control else f"  predicted {row.predicted_rank}")
        )
    first = CellVerdict(
        verdict.primary, verdict.ranked_by, verdict.choice, verdict.rule, verdict.control
    )
    for asked in filter(None, (first, verdict.second)):
        lines.append(f"{describe_cell(asked.cell)}, predicted by the rule {asked.ranked_by}:")
        lines.append(f"  choice: {named(asked.choice.verdict)} ({named(asked.choice.why)})")
        lines.append(f"  order: {asked.rule.verdict} ({asked.rule.why})")
        if asked.control:
            c = asked.control
            lines.append(
                f"  best trained encoder over the constant control: {c.difference:+.3f} "
                f"({c.low:+.3f} to {c.high:+.3f})"
            )
    headline = verdict_headline(verdict, lambda spec: names.get(spec, spec))
    return [*lines, *verdict.warnings, headline]


# ----------------------------------------------------------------------------- checks


def _read(run: Path) -> Prediction:
    """The prediction of a run, hash and data checked."""
    path = run / PREDICTION
    if not path.exists():
        raise RecordError(f"there is no {path}; rank encoders first: encbench run --out {run}")
    prediction = read_prediction(path)
    _check_data(run, prediction)
    return prediction


def _check_data(run: Path, prediction: Prediction) -> None:
    """Raise if the data have changed since the ranking."""
    path = run / "config.json"
    if not path.exists():
        log.warning("%s is missing: whether the data are still the same is not checked", path)
        return
    data = load_run_data(read_run_config(path))
    now = {kept.name: kept.pin for kept in (data.captions, data.prompts) if kept is not None}
    pins = {f"{kept.name}@{kept.pin}" for kept in (data.captions, data.prompts) if kept is not None}
    for used in " + ".join(prediction.data.values()).split(" + "):
        name, _, was = used.rpartition("@")
        if name in now and used not in pins:
            raise DataError(
                f"the dataset {name} is not what the encoders were ranked on (it was "
                f"{was[:12]}, is {now[name][:12]}); restore it or rank again: "
                f"encbench run --out {run}"
            )


def _revisions(run: Path, prediction: Prediction) -> dict[str, str]:
    """The revision of each encoder when it was ranked, from its records."""
    keys = set(prediction.records)
    cards = [r.card for r in map(read_record, find_records(run)) if r.key in keys]
    return {card.spec: card.revision for card in cards}


def _entry(row: Ranked, revisions: Mapping[str, str], second: RuleOrder | None) -> PlannedTraining:
    others = second.order if second else ()
    return PlannedTraining(
        row.spec, row.name, row.stage, row.control, row.score, row.parameters,
        "" if row.control else revisions.get(row.spec, ""),
        next((other.score for other in others if other.spec == row.spec), None),
    )  # fmt: skip


def _backbone(config: ConfirmConfig, shape: TrainConfig) -> tuple[Path | None, str]:
    """The backbone's weights if they are there already, and what tells it from any other ('' =
    from scratch, as on other images than scenes and with a pretrained network)."""
    scenes = shape.coco is None and shape.folder is None and shape.autoencoder is None
    if config.from_scratch or not scenes or not shape.network.startswith("dit"):
        return None, ""
    folder = shipped_backbone(shape.world, shape.side, shape.network, shape.patch)
    if folder is not None:
        return folder / WEIGHTS, backbone_id(folder)
    return None, "recipe " + digest(recipe(_own_backbone(config, shape)))


def _own_backbone(config: ConfirmConfig, shape: TrainConfig) -> TrainConfig:
    return backbone_config(
        config.out / FOLDER / "backbone", world=shape.world, side=shape.side,
        network=shape.network, patch=shape.patch, steps=2 * shape.steps, batch=shape.batch,
        seed=0, device=config.device,
    )  # fmt: skip


def _train_backbone(config: ConfirmConfig, plan: ConfirmPlan) -> Path:
    log.info("encbench ships no backbone for this world: training one first")
    own = _own_backbone(config, shape_of(plan))
    folder = own.out / "weights"
    if not (folder / WEIGHTS).exists():
        train_backbone(own, folder)
    return folder


def _folder_name(entry: PlannedTraining, seed: int) -> str:
    return f"{slug(entry.name, 40)}-{digest(entry.spec)[:8]}-s{seed}"
