"""From the results of all trainings to the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from ..intervals import LEVEL
from ..metrics.geneval.metric import SPEC
from ..metrics.tables import OVERALL, task_of
from ..ranking import holm
from ..records import (
    CellVerdict,
    ChoiceVerdict,
    ConfirmPlan,
    ControlLead,
    CurvePoint,
    Failure,
    GapPoint,
    OrderVerdict,
    PlannedTraining,
    Prediction,
    Predictor,
    TrainedEncoder,
    Verdict,
    provenance,
)
from ..types import Cell, MetricSpec, Score
from .experiment import GRID, ScoredTraining
from .plan import CONSTANT, reach_of, rival_score
from .rules import (
    RULES,
    OutcomeTable,
    judge_choice,
    judge_rule,
    permutation_p,
    rank_statistic,
    score_draws,
    seed_deviation,
)
from .scoring import PromptGroup, metric_specs

Results = Mapping[tuple[str, int], ScoredTraining]
"""By (spec, seed); only those that did not fail."""


def assemble(
    plan: ConfirmPlan, prediction: Prediction, groups: Sequence[PromptGroup], results: Results,
    failed: Sequence[Failure], folders: Mapping[tuple[str, int], str],
) -> Verdict:  # fmt: skip
    """The verdict over all encoders whose trainings all succeeded. ``folders``: of each training,
    relative to the run."""
    whole = [e for e in plan.encoders if all((e.spec, s) in results for s in plan.seeds)]
    specs = {spec.name: spec for spec in metric_specs(plan)}
    prompts = {g.cell(s, name): g for name in specs for s in plan.steps for g in groups}
    tables = {
        key: _table(
            plan, whole, kinds_of(specs[key.metric], group),
            {at: result.right[key] for at, result in results.items()},
        )
        for key, group in prompts.items()
    }  # fmt: skip
    trained = [i for i, entry in enumerate(whole) if not entry.control]
    parents = _parents(plan, whole, results, prompts[plan.primary])
    first = _judge(plan, whole, tables[plan.primary], plan.primary, plan.rule)
    second = None
    if plan.second is not None:
        second = _judge(plan, whole, tables[plan.second], plan.second, plan.second_rule)
    exploratory: list[Predictor] = []
    if trained:
        exploratory = _exploratory(plan, prediction, tables, trained, whole, parents)
    encoders = _encoders(plan, whole, results, tables, specs, prompts, folders, parents)
    return Verdict(
        prediction=plan.prediction,
        rules=RULES.sentences(plan.primary, plan.second),
        plan=plan,
        reach=reach_of(plan, groups),
        encoders=encoders,
        choice=first.choice,
        rule=first.rule,
        primary=plan.primary,
        control=first.control,
        ranked_by=first.ranked_by,
        second=second,
        exploratory=exploratory,
        warnings=_warnings(plan, whole, first.control, failed),
        failed=list(failed),
        data=dict(prediction.data),
        provenance=provenance() | {"trained_on": sorted({r.device for r in results.values()})},
        seed=plan.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _judge(
    plan: ConfirmPlan, whole: Sequence[PlannedTraining], table: OutcomeTable, cell: Cell, rule: str
) -> CellVerdict:
    """Both verdicts for a cell, on the order by the rule that predicts this cell."""
    predicted = [(e.second if cell == plan.second else None) or e.predicted for e in whole]
    table = replace(table, predicted=np.array([p.value for p in predicted], np.float64))
    trained = table.only([i for i, entry in enumerate(whole) if not entry.control])
    choice, order = ChoiceVerdict("can't tell", "no encoder was trained"), OrderVerdict()
    if trained.specs:
        winner = trained.specs[int(np.argmax(trained.predicted))]
        choice = judge_choice(trained, winner, seed=plan.seed)
        order = judge_rule(trained, seed=plan.seed)
    return CellVerdict(cell, rule, choice, order, _against_constant(table, whole, plan.seed))


def kinds_of(spec: MetricSpec, group: PromptGroup) -> list[str]:
    """Whose mean each prompt is part of, by a metric; a whole set counts as one prompt."""
    if spec.whole_set:
        return [OVERALL]
    return [task_of(spec, prompt) for prompt in group.prompts]


def _table(
    plan: ConfirmPlan,
    whole: Sequence[PlannedTraining],
    tasks: Sequence[str],
    right: Mapping[tuple[str, int], list[float | None]],
) -> OutcomeTable:
    kinds = list(dict.fromkeys(tasks))
    values = [[right[e.spec, seed] for seed in plan.seeds] for e in whole]
    return OutcomeTable(
        tuple(e.spec for e in whole),
        tuple(e.stage for e in whole),
        np.array([e.predicted.value for e in whole], np.float64),
        np.array([kinds.index(task) for task in tasks]),
        np.array(values, np.float64).reshape(len(whole), len(plan.seeds), len(tasks)),
    )


def _parents(
    plan: ConfirmPlan, whole: Sequence[PlannedTraining], results: Results, group: PromptGroup
) -> OutcomeTable | None:
    if not whole or any(not results[e.spec, s].parent for e in whole for s in plan.seeds):
        return None
    parents = {at: result.parent[plan.primary] for at, result in results.items()}
    return _table(plan, whole, kinds_of(SPEC, group), parents)


def _intervals(table: OutcomeTable, seed: int) -> list[Score]:
    if not table.specs:
        return []
    deviation = seed_deviation(table.scores)
    low, high = np.percentile(score_draws(table, seed=seed, deviation=deviation), LEVEL, axis=0)
    if len(table.tasks) == 1 and deviation[0] is None:  # with one set only the seed varies
        low, high = np.full_like(low, np.nan), np.full_like(high, np.nan)
    return [
        Score(float(v), len(table.tasks), float(a), float(b))
        for v, a, b in zip(table.means, low, high, strict=True)
    ]


def _encoders(
    plan: ConfirmPlan, whole: Sequence[PlannedTraining], results: Results,
    tables: Mapping[Cell, OutcomeTable], specs: Mapping[str, MetricSpec],
    prompts: Mapping[Cell, PromptGroup], folders: Mapping[tuple[str, int], str],
    parents: OutcomeTable | None,
) -> list[TrainedEncoder]:  # fmt: skip
    scores = {key: _intervals(table, plan.seed) for key, table in tables.items()}
    before = _intervals(parents, plan.seed) if parents is not None else []
    found, rank = [], 0
    for i, entry in enumerate(whole):
        rank += not entry.control
        mine = [results[entry.spec, seed] for seed in plan.seeds]
        tasks = {}
        for key, table in tables.items():
            kinds = dict.fromkeys(kinds_of(specs[key.metric], prompts[key]))
            means = table.right[i].mean(axis=0)
            tasks[key] = {
                kind: float(means[table.tasks == place].mean()) for place, kind in enumerate(kinds)
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
                parent={plan.primary: before[i]} if before else {},
                curve=_mean_curve([row.curve for row in mine]),
                gap=_mean_gap([row.gap for row in mine]),
                training_seconds=[row.training_seconds for row in mine],
                scoring_seconds=[row.scoring_seconds for row in mine],
                folders=[folders[entry.spec, seed] for seed in plan.seeds],
                grid=f"{folders[entry.spec, plan.seeds[0]]}/{GRID}",
            )
        )
    return found


def _mean_curve(curves: Sequence[Sequence[CurvePoint]]) -> list[CurvePoint]:
    by_step: dict[tuple[int, str], list[float]] = {}
    for point in (point for curve in curves for point in curve):
        by_step.setdefault((point.step, point.stage), []).append(point.value)
    return [CurvePoint(*at, float(np.mean(values))) for at, values in sorted(by_step.items())]


def _mean_gap(gaps: Sequence[Sequence[GapPoint]]) -> list[GapPoint]:
    by_t: dict[float, list[float]] = {}
    for point in (point for gap in gaps for point in gap):
        by_t.setdefault(point.t, []).append(point.value)
    return [GapPoint(t, float(np.mean(values))) for t, values in sorted(by_t.items())]


def _against_constant(
    table: OutcomeTable, whole: Sequence[PlannedTraining], seed: int
) -> ControlLead | None:
    """The best trained encoder against the constant control, on the same prompts."""
    trained = [i for i, entry in enumerate(whole) if not entry.control]
    constant = [i for i, entry in enumerate(whole) if entry.spec == CONSTANT]
    if not trained or not constant:
        return None
    best = max(trained, key=lambda i: table.means[i])
    drawn = score_draws(table, seed=seed, deviation=seed_deviation(table.scores))
    low, high = np.percentile(drawn[:, best] - drawn[:, constant[0]], LEVEL)
    difference = float(table.means[best] - table.means[constant[0]])
    return ControlLead(whole[best].spec, CONSTANT, difference, float(low), float(high))


def _exploratory(
    plan: ConfirmPlan, prediction: Prediction, tables: Mapping[Cell, OutcomeTable],
    trained: Sequence[int], whole: Sequence[PlannedTraining], parents: OutcomeTable | None,
) -> list[Predictor]:  # fmt: skip
    """How well every other score would have predicted the order. Exploratory: never a verdict."""
    entries = [whole[i] for i in trained]
    specs = [entry.spec for entry in entries]
    columns: dict[str, list[float | None]] = {
        "primary rule": [entry.predicted.value for entry in entries],
        "training steps of the encoder": [_progress(entry.stage) for entry in entries],
        "parameters of the encoder": [float(entry.parameters) for entry in entries],
    }
    if parents is not None:
        means = parents.means
        columns["parent, plain flow matching at 4 steps"] = [float(means[i]) for i in trained]
    for order in (prediction, *prediction.others):
        if order.rule.name != plan.rule:
            by_spec = {row.spec: row.value for row in order.order}
            columns[f"rule {order.rule.name}"] = [by_spec.get(spec) for spec in specs]
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
    plan: ConfirmPlan, whole: Sequence[PlannedTraining],
    control: ControlLead | None, failed: Sequence[Failure],
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
    if control and control.low <= 0:
        found.append(
            "The best trained encoder does not clearly beat the constant control: these models "
            "hardly follow their prompts, so their order means little."
        )
    if not control:
        found.append("The constant control was not trained, so nothing says what is chance.")
    names = {entry.spec: entry.name for entry in plan.encoders}
    found += [f"{names[r.spec]}, seed {r.seed} failed: {r.error}" for r in failed]
    return found
