"""From the results of all trainings to the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ..ranking import holm
from ..records import (
    Prediction,
    Predictor,
    TrainedEncoder,
    Verdict,
    clean,
    provenance,
)
from ..types import Cell
from .experiment import GRID
from .plan import CONSTANT, ConfirmPlan, PlannedEncoder, rival_score
from .rules import (
    LEVEL,
    RULES,
    OutcomeTable,
    judge_choice,
    judge_rule,
    permutation_p,
    rank_statistic,
    score_draws,
    seed_deviation,
)
from .scoring import PromptGroup

Results = Mapping[tuple[str, int], Mapping[str, Any]]
"""By (spec, seed); only those that did not fail."""


def assemble(
    plan: ConfirmPlan, prediction: Prediction, groups: Sequence[PromptGroup], results: Results,
    failed: Sequence[Mapping[str, Any]], folders: Mapping[tuple[str, int], str],
    reach: Mapping[str, Any],
) -> Verdict:  # fmt: skip
    """The verdict over all encoders whose trainings all came out. ``folders``: of each training,
    relative to the run."""
    whole = [e for e in plan.encoders if all((e.spec, s) in results for s in plan.seeds)]
    prompts = {g.cell(steps): g for steps in plan.steps for g in groups}
    tables = {
        key: _table(plan, whole, results, key, group, "right") for key, group in prompts.items()
    }
    trained = [i for i, entry in enumerate(whole) if not entry.control]
    main = tables[plan.primary].only(trained)
    choice: dict[str, Any] = {
        "verdict": "can't tell", "why": "no encoder was trained", "winner": "", "leads": [],
    }  # fmt: skip
    rule: dict[str, Any] = {}
    exploratory: list[Predictor] = []
    if main.specs:
        winner = main.specs[int(np.argmax(main.predicted))]
        choice = clean(asdict(judge_choice(main, winner, seed=plan.seed)))
        rule = clean(asdict(judge_rule(main, seed=plan.seed)))
        parents = _parents(plan, whole, results, prompts[plan.primary])
        exploratory = _exploratory(plan, prediction, tables, trained, whole, parents)
    encoders = _encoders(plan, whole, results, tables, prompts, folders)
    control = _against_constant(tables[plan.primary], whole, plan.seed)
    return Verdict(
        prediction=plan.prediction,
        rules=RULES,
        plan=clean(asdict(plan)) | {"reach": dict(reach)},
        encoders=encoders,
        choice=choice,
        rule=rule,
        primary=plan.primary,
        control=control,
        exploratory=exploratory,
        warnings=_warnings(plan, whole, control, failed),
        failed=[dict(row) for row in failed],
        data=dict(prediction.data),
        provenance=provenance() | {"trained_on": sorted({r["device"] for r in results.values()})},
        seed=plan.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _table(
    plan: ConfirmPlan,
    whole: Sequence[PlannedEncoder],
    results: Results,
    key: Cell,
    group: PromptGroup,
    what: str,
) -> OutcomeTable:
    kinds = list(dict.fromkeys(prompt.task for prompt in group.prompts))
    right = [[results[e.spec, seed][what][str(key)] for seed in plan.seeds] for e in whole]
    return OutcomeTable(
        tuple(e.spec for e in whole),
        tuple(e.stage for e in whole),
        np.array([e.predicted["value"] for e in whole], np.float64),
        np.array([kinds.index(prompt.task) for prompt in group.prompts]),
        np.array(right, np.float64).reshape(len(whole), len(plan.seeds), len(group.prompts)),
    )


def _parents(
    plan: ConfirmPlan, whole: Sequence[PlannedEncoder], results: Results, group: PromptGroup
) -> OutcomeTable | None:
    if not whole or any(not results[e.spec, s]["parent"] for e in whole for s in plan.seeds):
        return None
    return _table(plan, whole, results, plan.primary, group, "parent")


def _intervals(table: OutcomeTable, seed: int) -> list[dict[str, float]]:
    if not table.specs:
        return []
    drawn = score_draws(table, seed=seed, deviation=seed_deviation(table.scores))
    low, high = np.percentile(drawn, LEVEL, axis=0)
    return [
        {"value": float(v), "low": float(a), "high": float(b), "n": len(table.tasks)}
        for v, a, b in zip(table.means, low, high, strict=True)
    ]


def _encoders(
    plan: ConfirmPlan, whole: Sequence[PlannedEncoder], results: Results,
    tables: Mapping[Cell, OutcomeTable], prompts: Mapping[Cell, PromptGroup],
    folders: Mapping[tuple[str, int], str],
) -> list[TrainedEncoder]:  # fmt: skip
    scores = {key: _intervals(table, plan.seed) for key, table in tables.items()}
    before = _parents(plan, whole, results, prompts[plan.primary])
    parents = _intervals(before, plan.seed) if before is not None else []
    found, rank = [], 0
    for i, entry in enumerate(whole):
        rank += not entry.control
        mine = [results[entry.spec, seed] for seed in plan.seeds]
        tasks = {}
        for key, table in tables.items():
            group = prompts[key]
            means = table.right[i].mean(axis=0)
            kinds = dict.fromkeys(p.task for p in group.prompts)
            tasks[key] = {
                kind: float(means[[p.task == kind for p in group.prompts]].mean()) for kind in kinds
            }
        found.append(
            TrainedEncoder(
                spec=entry.spec,
                name=entry.name,
                stage=entry.stage,
                control=entry.control,
                predicted=entry.predicted,
                predicted_rank=None if entry.control else rank,
                parameters=entry.parameters,
                seeds=list(plan.seeds),
                scores={key: rows[i] for key, rows in scores.items()},
                tasks=tasks,
                by_seed={key: table.scores[i].tolist() for key, table in tables.items()},
                parent={plan.primary: parents[i]} if parents else {},
                curve=_mean_curve([row["curve"] for row in mine]),
                gap=_mean_gap([row["gap"] for row in mine]),
                training_seconds=[row["training_seconds"] for row in mine],
                scoring_seconds=[row["scoring_seconds"] for row in mine],
                folders=[folders[entry.spec, seed] for seed in plan.seeds],
                grid=f"{folders[entry.spec, plan.seeds[0]]}/{GRID}",
            )
        )
    return found


def _mean_curve(curves: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for curve in curves:
        for point in curve:
            by_step.setdefault(point["step"], []).append(point)
    return [
        {
            "step": step,
            "stage": points[0]["stage"],
            "value": float(np.mean([point["value"] for point in points])),
        }
        for step, points in sorted(by_step.items())
    ]


def _mean_gap(gaps: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    by_t: dict[float, list[float]] = {}
    for gap in gaps:
        for point in gap:
            by_t.setdefault(point["t"], []).append(point["value"])
    return [{"t": t, "value": float(np.mean(values))} for t, values in sorted(by_t.items())]


def _against_constant(
    table: OutcomeTable, whole: Sequence[PlannedEncoder], seed: int
) -> dict[str, Any]:
    """The best trained encoder against the constant control, on the same prompts."""
    trained = [i for i, entry in enumerate(whole) if not entry.control]
    constant = [i for i, entry in enumerate(whole) if entry.spec == CONSTANT]
    if not trained or not constant:
        return {}
    best = max(trained, key=lambda i: table.means[i])
    drawn = score_draws(table, seed=seed, deviation=seed_deviation(table.scores))
    low, high = np.percentile(drawn[:, best] - drawn[:, constant[0]], LEVEL)
    return {
        "best": whole[best].spec,
        "control": CONSTANT,
        "difference": float(table.means[best] - table.means[constant[0]]),
        "low": float(low),
        "high": float(high),
    }


def _exploratory(
    plan: ConfirmPlan, prediction: Prediction, tables: Mapping[Cell, OutcomeTable],
    trained: Sequence[int], whole: Sequence[PlannedEncoder], parents: OutcomeTable | None,
) -> list[Predictor]:  # fmt: skip
    """How well everything that could have predicted the order would have: never a verdict."""
    entries = [whole[i] for i in trained]
    specs = [entry.spec for entry in entries]
    columns: dict[str, list[float | None]] = {
        "primary rule": [entry.predicted["value"] for entry in entries],
        "training steps of the encoder": [_progress(entry.stage) for entry in entries],
        "parameters of the encoder": [float(entry.parameters) for entry in entries],
    }
    if parents is not None:
        means = parents.means
        columns["parent, plain flow matching at 4 steps"] = [float(means[i]) for i in trained]
    for rival in prediction.rivals:
        name = f"{rival.probe}: {rival.score}" + (" (published)" if rival.published else "")
        columns[name] = [rival_score(rival, spec) for spec in specs]
    found: list[Predictor] = []
    strata = [entry.stage for entry in entries]
    for key in _cells(plan, tables):
        actual = tables[key].means[list(trained)]
        for name, values in columns.items():
            if any(value is None for value in values):
                continue
            column = np.array(values, np.float64)
            statistic = float(rank_statistic(column, actual, strata))
            if np.isnan(statistic) or np.ptp(column) == 0:
                continue
            p, _ = permutation_p(column, actual, strata, seed=plan.seed, draws=20_000)
            found.append(Predictor(name, key, statistic, p, p, len(entries)))
    corrected = holm([row.p for row in found]) if found else []
    return [
        Predictor(row.name, row.cell, row.statistic, row.p, p, row.encoders)
        for row, p in zip(found, corrected, strict=True)
    ]


def _cells(plan: ConfirmPlan, tables: Mapping[Cell, OutcomeTable]) -> list[Cell]:
    """The primary cell, and those that differ from it in one thing."""
    main = plan.primary
    wanted = [main, *(main._replace(steps=steps) for steps in plan.steps)]
    wanted += [main._replace(tier=tier) for tier in ("A", "B", "C")]
    wanted += [main._replace(combos="held-out")]
    return [key for key in dict.fromkeys(wanted) if key in tables and len(tables[key].tasks)]


def _progress(stage: str) -> float:
    """A stage of training as a share: '3pct' is .03, 'final' 1."""
    number = stage.removesuffix("pct")
    return float(number) / 100 if number != stage else 1.0


def _warnings(
    plan: ConfirmPlan, whole: Sequence[PlannedEncoder], control: Mapping[str, Any],
    failed: Sequence[Mapping[str, Any]],
) -> list[str]:  # fmt: skip
    found = []
    if len(plan.seeds) == 1:
        found.append("Each encoder was trained once; how much another seed changes is not known.")
    if len(whole) < len(plan.encoders):
        lost = [e.name for e in plan.encoders if e not in whole]
        found.append(
            f"Not all trainings came out; left out: {', '.join(lost)}. The same command tries "
            "them again."
        )
    if control and control["low"] <= 0:
        found.append(
            "The best trained encoder does not clearly beat the constant control: these models "
            "hardly follow their prompts, so their order means little."
        )
    if not control:
        found.append("The constant control was not trained, so nothing says what is chance.")
    names = {entry.spec: entry.name for entry in plan.encoders}
    found += [f"{names[r['spec']]}, seed {r['seed']} failed: {r['error']}" for r in failed]
    return found
