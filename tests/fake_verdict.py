"""A confirmation's verdict with simulated trainings, judged by the real rules: for tests of
reports. It goes into a folder that ``fake_run`` made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fake_run import FOUR, PROVENANCE
from PIL import Image, ImageDraw

from encbench.confirm.rules import (
    LEVEL,
    RULES,
    OutcomeTable,
    judge_choice,
    judge_rule,
    score_draws,
    seed_deviation,
)
from encbench.records import (
    ChoiceVerdict,
    ConfirmPlan,
    ControlLead,
    CurvePoint,
    Failure,
    GapPoint,
    OrderVerdict,
    PlannedTraining,
    Predictor,
    Reach,
    TrainedEncoder,
    Verdict,
    read_prediction,
    write_verdict,
)
from encbench.types import Cell, Estimate, Score

STEPS = (1, 2, 4, 16)
GAIN = {1: 0.55, 2: 0.8, 4: 1.0, 16: 1.1}
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
PROMPTS = ("a red circle", "a blue star", "a cross above a ring", "4 rings")
GROUPS = tuple((tier, combos) for combos in ("seen", "held-out") for tier in "ABC")


def cell(steps: int, tier: str = "B", combos: str = "seen") -> Cell:
    return Cell("geneval", steps, tier, combos)


@dataclass(frozen=True)
class Model:
    """One encoder, what was predicted of it, and how good its models really are at 4 steps."""

    spec: str
    name: str
    predicted: float
    actual: float
    stage: str = "final"
    control: bool = False
    parameters: int = 1_200_000


CONSTANT = Model("control:constant", "constant", 0.0, 0.07, control=True)
HELD = (
    *(
        Model(e.spec, e.name, e.quality, actual, parameters=e.parameters)
        for e, actual in zip(FOUR, (0.52, 0.41, 0.30, 0.18), strict=True)
    ),
    CONSTANT,
)
REVERSED = (
    *(dataclasses.replace(m, actual=o.actual) for m, o in zip(HELD[:4], HELD[3::-1], strict=True)),
    CONSTANT,
)
ALIKE = (*(dataclasses.replace(m, actual=0.3) for m in HELD[:4]), CONSTANT)


def family() -> tuple[Model, ...]:
    """Twelve encoders in three stages of training, and five controls."""
    kinds = ("mini-clip", "mini-t5", "mini-gemma", "mini-blip3o")
    made = []
    for j, stage in enumerate(("final", "20pct", "3pct")):
        for i, kind in enumerate(kinds):
            spec = f"zoo:{kind}" + (f"?step={stage}" if stage != "final" else "")
            name = kind if stage == "final" else f"{kind}?step={stage}"
            quality = 0.8 - 0.07 * i - 0.13 * j
            made.append(Model(spec, name, quality, 0.62 * quality - 0.02 * (i == 0), stage))
    controls = (
        Model("control:bag-of-words", "bag-of-words", 0.42, 0.29, control=True),
        Model("control:word-position", "word-position", 0.36, 0.33, control=True),
        Model("control:random-transformer", "random-transformer", 0.2, 0.24, control=True),
        CONSTANT,
        Model("control:random", "random", 0.0, 0.06, control=True),
    )
    return (*sorted(made, key=lambda m: -m.predicted), *controls)


def build(
    folder: Path, models: Sequence[Model] = HELD, *, seeds: int = 2, prompts: int = 30,
    failed: bool = False, grids: bool = True, draw: int = 0, **changes: Any,
) -> Verdict:  # fmt: skip
    """Simulate every training, judge, and write verdict.json and the grids.

    Args:
        prompts: of each task.
        failed: one more encoder whose training failed.
        changes: fields of the verdict to set in the end.
    """
    rng = np.random.default_rng([draw, 8])
    tasks = np.repeat(np.arange(len(TASKS)), prompts)
    shift = rng.normal(0, 0.012, (len(models), seeds))
    tables: dict[Cell, OutcomeTable] = {}
    for steps in STEPS:
        for tier, combos in GROUPS:
            made = tasks if combos == "seen" else tasks[::3]
            lost = {"A": 0.03, "B": 0.0, "C": -0.04}[tier] - 0.05 * (combos != "seen")
            tables[cell(steps, tier, combos)] = _table(models, made, GAIN[steps], lost, shift, rng)
    primary = cell(4)
    kept = [i for i, m in enumerate(models) if not m.control]
    main = tables[primary].only(kept)
    intervals = {key: _intervals(table) for key, table in tables.items()}
    rank, encoders = 0, []
    for i, model in enumerate(models):
        rank += not model.control
        encoders.append(_encoder(folder, i, model, rank, seeds, tables, intervals, grids, rng))
    winner = main.specs[int(np.argmax(main.predicted))] if kept else ""
    lost = [Failure("t5:google/umt5-xxl", "its weights no longer load", 0)]
    verdict = Verdict(
        prediction=read_prediction(folder / "prediction.json").hash,
        rules=RULES.sentences(primary),
        plan=_plan(models, seeds, prompts),
        reach=_reach(seeds, prompts),
        encoders=encoders,
        choice=judge_choice(main, winner) if kept else ChoiceVerdict("can't tell"),
        rule=judge_rule(main) if kept else OrderVerdict(),
        primary=primary,
        control=_control(models, tables[primary]),
        exploratory=_exploratory(models, tables),
        warnings=["Each encoder was trained once."] if seeds == 1 else [],
        failed=lost if failed else [],
        data={"retrieval": "scenes@" + "ab" * 32},
        provenance={**PROVENANCE, "trained_on": ["cpu"]},
        created="2025-01-02T00:00:00+00:00",
    )
    return write_verdict(folder / "verdict.json", dataclasses.replace(verdict, **changes))


def _table(
    models: Sequence[Model], tasks: np.ndarray, gain: float, lost: float, shift: np.ndarray,
    rng: np.random.Generator,
) -> OutcomeTable:  # fmt: skip
    right = np.empty((*shift.shape, len(tasks)))
    for e, s in np.ndindex(*shift.shape):
        control = 0.0 if models[e].control else 1.0
        mean = np.clip(models[e].actual * gain**control + control * lost + shift[e, s], 0.01, 1)
        right[e, s] = rng.binomial(2, np.clip(mean * (1.4 - 0.16 * tasks), 0, 1)) / 2
    return OutcomeTable(
        tuple(m.spec for m in models), tuple(m.stage for m in models),
        np.array([m.predicted for m in models]), tasks, right,
    )  # fmt: skip


def _intervals(table: OutcomeTable) -> list[Score]:
    drawn = score_draws(table, seed=0, draws=300, deviation=seed_deviation(table.scores))
    low, high = np.percentile(drawn, LEVEL, axis=0)
    return [
        Score(float(v), len(table.tasks), float(a), float(b))
        for v, a, b in zip(table.means, low, high, strict=True)
    ]


def _encoder(
    folder: Path, i: int, model: Model, rank: int, seeds: int, tables: dict[Cell, OutcomeTable],
    intervals: dict[Cell, list[Score]], grids: bool, rng: np.random.Generator,
) -> TrainedEncoder:  # fmt: skip
    places = [f"confirm/models/model-{i}-s{s}" for s in range(seeds)]
    if grids:
        _grid(folder / places[0] / "grid.png", model, rng)
    points = [
        CurvePoint(
            step, "flow-matching" if step <= 480 else "meanflow",
            float(model.actual * grown + rng.normal(0, 0.01)),
        )
        for step, grown in ((240, 0.5), (480, 0.7), (560, 0.75), (640, 0.85), (720, 0.95), (800, 1))
    ]  # fmt: skip
    means = {
        key: [table.right[i][:, table.tasks == k].mean() for k in range(len(TASKS))]
        for key, table in tables.items()
    }
    there = intervals[cell(4)][i]
    before = Score(0.8 * there.value, there.n, 0.8 * there.low, 0.8 * there.high)
    return TrainedEncoder(
        spec=model.spec,
        name=model.name,
        stage=model.stage,
        control=model.control,
        predicted=Estimate(model.predicted, model.predicted - 0.04, model.predicted + 0.04),
        predicted_rank=None if model.control else rank,
        parameters=model.parameters,
        seeds=list(range(seeds)),
        scores={key: rows[i] for key, rows in intervals.items()},
        tasks={
            key: {task: float(v) for task, v in zip(TASKS, values, strict=True)}
            for key, values in means.items()
        },
        by_seed={key: table.scores[i].tolist() for key, table in tables.items()},
        parent={cell(4): before},
        curve=points,
        gap=[
            GapPoint((k + 0.5) / 10, float(0.15 + 0.9 * (1 - model.actual) * (k / 9) ** 2))
            for k in range(10)
        ],
        training_seconds=[float(110 + 8 * i + s) for s in range(seeds)],
        scoring_seconds=[20.0] * seeds,
        folders=places,
        grid=f"{places[0]}/grid.png",
    )  # fmt: skip


def _grid(path: Path, model: Model, rng: np.random.Generator) -> None:
    """Colored shapes, the more blurred the worse the model, as the experiment lays them out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = Image.new("RGB", (150 + 102 * len(STEPS), 20 + 102 * 4), "white")
    draw = ImageDraw.Draw(page)
    for column, steps in enumerate(STEPS):
        draw.text((150 + 102 * column, 4), f"{steps} step{'s' * (steps > 1)}", fill="black")
    for row, prompt in enumerate(PROMPTS):
        draw.text((4, 20 + 102 * row), prompt, fill="black")
        for column, steps in enumerate(STEPS):
            x, y = 150 + 102 * column, 20 + 102 * row
            draw.rectangle((x, y, x + 95, y + 95), fill="#777777")
            clear = min(1.0, model.actual * 1.8 * GAIN[steps])
            color = tuple(int(119 + clear * (c - 119)) for c in rng.integers(40, 220, 3))
            draw.ellipse((x + 25, y + 25, x + 70, y + 70), fill=color)
    page.save(path)


def _plan(models: Sequence[Model], seeds: int, prompts: int) -> ConfirmPlan:
    return ConfirmPlan(
        prediction="ab" * 32,
        preset="cpu",
        encoders=tuple(
            PlannedTraining(
                m.spec, m.name, m.stage, m.control, Estimate(m.predicted, 0.0, 1.0), m.parameters
            )
            for m in models
        ),
        seeds=tuple(range(seeds)),
        train={
            "world": "scenes-grid", "side": 32, "network": "dit-1m", "patch": 8, "images": 8000,
            "steps": 800, "batch": 64, "lr": 1e-3, "objective": "emf", "derivative": "forward",
        },
        per_task=prompts, images=2, prompts="", prompt_pins={"B seen": "cd" * 32},
        primary=cell(4), backbone="ef" * 32, detector="scenes", colors="none", budget=720.0,
        gave_up=("1 of 3 rivals", "200 of 800 training steps"),
    )  # fmt: skip


def _reach(seeds: int, prompts: int) -> Reach:
    return Reach(
        1 / 24, 6 * prompts, 12 * prompts * seeds, 0.048,
        ("confirmed", "overturned", "can't tell"), ("not confirmed", "can't tell"),
    )  # fmt: skip


def _control(models: Sequence[Model], table: OutcomeTable) -> ControlLead | None:
    trained = [i for i, m in enumerate(models) if not m.control]
    constant = [i for i, m in enumerate(models) if m.spec == "control:constant"]
    if not trained or not constant:
        return None
    best = max(trained, key=lambda i: table.means[i])
    drawn = score_draws(table, seed=0, draws=300, deviation=seed_deviation(table.scores))
    low, high = np.percentile(drawn[:, best] - drawn[:, constant[0]], LEVEL)
    difference = float(table.means[best] - table.means[constant[0]])
    return ControlLead(models[best].spec, "control:constant", difference, float(low), float(high))


def _exploratory(models: Sequence[Model], tables: dict[Cell, OutcomeTable]) -> list[Predictor]:
    count = sum(not m.control for m in models)
    cells = [cell(4), cell(1), cell(2), cell(16), cell(4, "A"), cell(4, "C")]
    cells = [key for key in [*cells, cell(4, "B", "held-out")] if key in tables]
    names = {
        "primary rule": 1.0, "ablation: published (published)": -0.2,
        "parent, plain flow matching at 4 steps": 0.8, "parameters of the encoder": -0.4,
    }  # fmt: skip
    return [
        Predictor(name, key, value, 0.04 if value == 1 else 0.4, 1.0, count)
        for key in cells
        for name, value in names.items()
    ]
