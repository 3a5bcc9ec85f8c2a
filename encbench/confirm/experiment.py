"""One model of a confirmation: train it, score it at every number of steps, write the result."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.geneval import GenevalPrompt
from ..device import card_name, choose_device
from ..errors import EncbenchError, RecordError, StoreError, describe_error
from ..files import digest, parse_json, read_json, read_json_lines, write_json
from ..flow.data import ImageSet, load_training_images
from ..flow.features import Bank, PromptEncoder, PromptFeatures
from ..flow.grids import draw_grid
from ..flow.meters import BINS, LOG
from ..flow.sample import Instantaneous, load_checkpoint, sample_images
from ..flow.train import Moment, train
from ..images import write_image
from ..metrics import load_metric
from ..metrics.geneval.generate import sample_seed
from ..metrics.geneval.metric import GenevalMetric, build_geneval
from ..metrics.tables import average_values
from ..progress import log
from ..records import ConfirmPlan, CurvePoint, Failure, GapPoint, PlannedTraining, clean
from ..schema import check_value, get_field, read_dataclass
from ..types import Cell, Metric
from .plan import CURVE, main_group, prompt_groups, train_config
from .scoring import PromptGroup, score_network

RESULT, CURVE_FILE, GRID = "result.json", "curve.json", "grid.png"
VERSION = 2  # raised when the same training would get other scores
GRID_TASKS = ("colors", "color_attr", "position", "counting")


@dataclass(frozen=True)
class TrainingTask:
    """One training of one encoder; picklable, since any process may do it.

    Attributes:
        folder: of this training.
        backbone: safetensors file to begin with, or None.
        source: spec to load the encoder by, where that differs from its public one.
    """

    plan: ConfirmPlan
    entry: PlannedTraining
    seed: int
    folder: Path
    backbone: Path | None
    device: str
    store: Path | None
    source: str = ""

    @property
    def key(self) -> str:
        """Everything that the result depends on; equal keys mean equal results."""
        plan = self.plan
        return digest(
            [
                VERSION, self.entry.spec, self.entry.revision, self.seed, plan.train, plan.seed,
                plan.per_task, plan.images, list(plan.steps), plan.prompt_pins, plan.backbone,
                plan.detector, plan.colors, str(plan.primary), *plan.metrics,
            ]
        )  # fmt: skip


@dataclass(frozen=True)
class ScoredTraining:
    """The result of one training.

    Attributes:
        key: of its :class:`TrainingTask`.
        right: value of each prompt (GenEval: share of correct images), in each cell; None where
            no image could be scored. The only value of a metric of whole sets.
        parent: the same of the checkpoint at the switch, in the primary cell.
        training_seconds, scoring_seconds, device: time and place of the work.
    """

    key: str
    right: dict[Cell, list[float | None]]
    parent: dict[Cell, list[float | None]]
    curve: list[CurvePoint]
    gap: list[GapPoint]
    training_seconds: float
    scoring_seconds: float
    device: str


def run_task(task: TrainingTask) -> ScoredTraining | Failure:
    """Train and score, unless the result is on disk. An error of this encoder becomes a failure, so
    that the others go on.

    Raises:
        StoreError: for what would stop the others, too.
    """
    held = read_result(task)
    if held is not None:
        return held
    try:
        return _run(task)
    except StoreError:
        raise
    except (Exception, SystemExit) as error:  # encoders and their libraries raise anything
        said = describe_error(error)
        log.warning("%s, seed %d failed: %s", task.entry.name, task.seed, said)
        return Failure(task.entry.spec, said, task.seed)


def read_result(task: TrainingTask) -> ScoredTraining | None:
    """The result on disk, if it belongs to exactly this task and its samples exist."""
    path = task.folder / RESULT
    if not path.exists():
        return None
    try:
        held = read_dataclass(ScoredTraining, path)
    except RecordError as error:
        log.warning("%s; making it again", error)
        return None
    return held if held.key == task.key and (task.folder / GRID).exists() else None


def _run(task: TrainingTask) -> ScoredTraining:
    plan, device = task.plan, choose_device(task.device)
    spec = task.source or task.entry.spec
    config = train_config(plan, spec, task.seed, task.folder, str(device.type))
    if task.store is not None:
        config = replace(config, store=task.store)
    data = _data(json.dumps(plan.train, sort_keys=True, default=str), plan.seed)
    groups = prompt_groups(plan)
    encoder = PromptEncoder(spec, config.store, device, config.text_tokens)
    if task.entry.revision and encoder.revision != task.entry.revision:
        raise EncbenchError(
            f"the weights of {task.entry.spec} have changed since it was ranked (revision "
            f"{encoder.revision[:12]}, was {task.entry.revision[:12]}); rank it again"
        )
    bank, texts = features(encoder, data, groups)
    metric = _geneval(plan.detector, plan.colors, device.type)
    main = main_group(plan, groups)

    def rate(
        net: nn.Module, space: Any, group: PromptGroup, steps: int, images: int, *more: Metric
    ) -> list[np.ndarray]:
        return score_network(
            net, space, texts, group.prompts, [metric, *more],
            steps=steps, images=images, noise=plan.seed, device=device,
        )  # fmt: skip

    curve = _curve(task.folder / CURVE_FILE)

    def look(moment: Moment) -> None:
        net = Instantaneous(moment.ema) if moment.instantaneous else moment.ema
        values = rate(net, moment.space, main, plan.primary.steps, 1)[0]
        curve[str(moment.step)] = average_values(values, main.prompts, metric.spec)
        write_json(task.folder / CURVE_FILE, curve)

    trained = train(
        config,
        data=data,
        features=bank,
        revision=encoder.revision,
        device=device,
        alone=True,
        init_backbone=task.backbone,
        callback=look,
        at={round(share * config.steps) for share in CURVE},
    )
    started = time.perf_counter()
    model = load_checkpoint(trained.path, device)
    further = [load_metric(text, device) for text in plan.metrics]
    right: dict[Cell, list[float | None]] = {}
    for group in groups:
        for steps in plan.steps:
            rows = rate(model.net, model.space, group, steps, plan.images, *further)
            for each, row in zip((metric, *further), rows, strict=True):
                right[group.cell(steps, each.spec.name)] = row.tolist()
    parent: dict[Cell, list[float | None]] = {}
    if trained.parent is not None:
        before = load_checkpoint(trained.parent, device)
        made = rate(before.net, before.space, main, plan.primary.steps, plan.images)
        parent[plan.primary] = made[0].tolist()
    _grid(task.folder / GRID, model, texts, groups, main, plan, device)
    final = average_values(np.array(right[plan.primary], float), main.prompts, metric.spec)
    result = ScoredTraining(
        task.key, right, parent, _points(curve | {str(config.steps): final}, config.switch),
        gap(task.folder / LOG), trained.seconds, time.perf_counter() - started, card_name(device),
    )  # fmt: skip
    write_json(task.folder / RESULT, clean(asdict(result)))
    return result


_GAPS: Any = tuple.__class_getitem__((float | None,) * BINS)  # as a line of the log holds them


def gap(path: Path) -> list[GapPoint]:
    """|u - v| / |v| by the middle of each tenth of t, over the last quarter of what was logged
    after the switch.

    Raises:
        StoreError: if the log cannot be read.
    """

    def damaged(text: str) -> StoreError:
        return StoreError(f"{text}; remove its folder and run again")

    rows: list[Sequence[float | None]] = []
    for where, row in read_json_lines(path, damaged):
        if get_field(row, "stage", str, where, damaged, "flow-matching") != "flow-matching":
            rows.append(get_field(row, "gap_by_t", _GAPS, where, damaged))
    rows = rows[-max(1, len(rows) // 4) :]
    found = []
    for place in range(BINS):
        values = [value for row in rows if (value := row[place]) is not None]
        if values:
            found.append(GapPoint((place + 0.5) / 10, float(np.mean(values))))
    return found


def _points(curve: Mapping[str, float], switch: int) -> list[CurvePoint]:
    return [
        CurvePoint(step, "flow-matching" if step <= switch else "meanflow", value)
        for step, value in sorted((int(step), value) for step, value in curve.items())
    ]


def _curve(path: Path) -> dict[str, float]:
    """Step -> score, from the points that an interrupted training has written."""
    if not path.exists():
        return {}
    try:
        curve: dict[str, float] = check_value(
            dict[str, float], read_json(path), str(path), RecordError
        )
        return {str(int(step)): value for step, value in curve.items()}
    except (RecordError, ValueError) as error:
        log.warning("%s: starting over", error)
        return {}


def features(
    encoder: PromptEncoder, data: ImageSet, groups: Sequence[PromptGroup]
) -> tuple[Bank, dict[str, PromptFeatures]]:
    """Features of all captions, and of each prompt by its text; each prompt is encoded alone."""
    bank = encoder.bank(data.texts)
    asked = list(dict.fromkeys(p.text for group in groups for p in group.prompts))
    texts = dict(zip(asked, encoder.alone(asked), strict=True))
    encoder.release()
    return bank, texts


def _grid(
    path: Path, model: Any, texts: dict[str, PromptFeatures], groups: Sequence[PromptGroup],
    main: PromptGroup, plan: ConfirmPlan, device: torch.device,
) -> None:  # fmt: skip
    """The same prompts and noise at every number of steps, each prompt in the wording that was
    trained on and in that of the verdict."""
    plain = [g for g in groups if g.tier == "A" and g.combos == main.combos and g is not main]
    found: list[GenevalPrompt] = []
    for task in GRID_TASKS:
        for group in (*plain, main):
            found += [prompt for prompt in group.prompts if prompt.task == task][:1]
    found = found or list(main.prompts[:4])
    columns = []
    for steps in plan.steps:
        made = sample_images(
            model.net, model.space, [texts[p.text] for p in found],
            [sample_seed(plan.seed, p.prompt_id, 0) for p in found],
            steps=steps, device=device, batch=max(8, len(found)),
        )  # fmt: skip
        columns.append(made.permute(0, 2, 3, 1).numpy())
    heads = [f"{steps} step{'s' * (steps > 1)}" for steps in plan.steps]
    write_image(path, draw_grid(np.stack(columns, 1), [p.text for p in found], heads))


@lru_cache(maxsize=1)
def _data(train_values: str, seed: int) -> ImageSet:
    """The images, the same for every encoder and seed, and read once."""
    from ..flow.config import training_config

    values = parse_json(train_values, "the settings of training")
    return load_training_images(training_config({**values, "seed": seed}))


@lru_cache(maxsize=1)
def _geneval(detector: str, colors: str, device: str) -> GenevalMetric:
    return build_geneval(detector, colors, device)
