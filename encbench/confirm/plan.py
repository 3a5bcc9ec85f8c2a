"""What a confirmation will train and score: chosen, costed and written down before it begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..data.geneval import PUBLISHED, load_geneval
from ..data.scenes.prompts import scene_prompts
from ..data.scenes.splits import Combos, Tier
from ..data.scenes.world import get_world
from ..encoders import EncoderSpec
from ..errors import RecordError, UsageError
from ..files import read_json, write_json
from ..flow.config import TrainConfig, training_config, with_step
from ..records import (
    ConfirmPlan,
    Prediction,
    Ranked,
    Reach,
    RivalOrder,
    RuleOrder,
    clean,
)
from ..schema import load_dataclass
from ..types import Cell
from .rules import RULES, smallest_p
from .scoring import PromptGroup

PLAN = "plan.json"
CONSTANT = "control:constant"
PRIMARY_STEPS = 4
CURVE = (0.3, 0.6, 0.7, 0.8, 0.9)  # shares of a training after which it is scored, and its end
LEAST_STEPS = 200  # of a training, that every budget keeps


def shape_of(plan: ConfirmPlan) -> TrainConfig:
    """The settings that all trainings of a plan share."""
    return training_config(plan.train)


def train_config(plan: ConfirmPlan, spec: str, seed: int, out: Path, device: str) -> TrainConfig:
    """The configuration of one training."""
    own = {"encoder": spec, "seed": seed, "out": out, "device": device}
    return training_config(plan.train | own)


def main_group(plan: ConfirmPlan, groups: Sequence[PromptGroup]) -> PromptGroup:
    """The prompts of the primary cell."""
    return next(g for g in groups if g.cell(plan.primary.steps) == plan.primary)


# ------------------------------------------------------------------------- the encoders


def choose_encoders(prediction: RuleOrder, wanted: Sequence[str], everyone: bool) -> list[Ranked]:
    """Choose the encoders to train: those named, all of them, or by default the top two, the middle
    and the last of the stage with most encoders, and the constant control.

    Raises:
        UsageError: for one that was not ranked or cannot be a condition, by name.
    """
    order = prediction.order
    if wanted:
        chosen = []
        for text in wanted:
            found = [row for row in order if text in (row.spec, row.name)]
            if not found:
                known = ", ".join(row.name for row in order)
                raise UsageError(f"'{text}' is not in the prediction; it ranks {known}")
            if _shuffle(found[0]):
                raise UsageError(
                    f"'{text}' shuffles embeddings across prompts, so nothing can be trained on it"
                )
            chosen.append(found[0])
        unique = list(dict.fromkeys(row.spec for row in chosen))
        return sorted((row for row in order if row.spec in unique), key=lambda row: row.control)
    usable = [row for row in order if not _shuffle(row)]
    candidates = [row for row in usable if not row.control]
    controls = [row for row in usable if row.control]
    if everyone:
        return candidates + controls
    stages = [row.stage for row in candidates]
    stage = max(dict.fromkeys(stages), key=lambda s: (stages.count(s), s == "final"), default="")
    group = [row for row in candidates if row.stage == stage]
    places = sorted({0, 1, len(group) // 2, len(group) - 1} & set(range(len(group))))
    constant = [row for row in controls if row.spec == CONSTANT]
    return [group[place] for place in places] + constant


def _shuffle(row: Ranked) -> bool:
    return EncoderSpec.parse(row.spec).shuffled is not None


def fewer(rows: Sequence[Ranked], rivals: int) -> list[Ranked]:
    """The predicted winner with this many rivals (at least one), and the controls. Rivals are taken
    in this order: the last, the runner-up, then others spread evenly between them."""
    candidates = [row for row in rows if not row.control]
    controls = [row for row in rows if row.control]
    if rivals + 1 >= len(candidates):
        return list(rows)
    last = len(candidates) - 1
    places = {0, last}
    if rivals > 1:
        places |= {1} | {1 + round((last - 1) * k / (rivals - 1)) for k in range(1, rivals - 1)}
    return [candidates[place] for place in sorted(places)] + controls


# -------------------------------------------------------------------------- the prompts


def prompt_groups(plan: ConfirmPlan) -> list[PromptGroup]:
    """The prompts of a plan: the world's in each tier, seen and held out apart; or a file's.

    Raises:
        DataError: if the file cannot be read.
    """
    return groups_for(
        plan.prompts, str(plan.train.get("world", "scenes")), plan.per_task, plan.seed
    )


def groups_for(file: str, world_name: str, per_task: int, seed: int) -> list[PromptGroup]:
    """See :func:`prompt_groups`."""
    if file:
        kept, held = [], dict[str, int]()
        for prompt in load_geneval(Path(file)):
            held[prompt.task] = held.get(prompt.task, 0) + 1
            if held[prompt.task] <= per_task:
                kept.append(prompt)
        return [PromptGroup("file", "seen", tuple(kept))]
    world = get_world(world_name)
    made = []
    combos: tuple[Combos, ...] = ("seen", "held-out")
    tiers: tuple[Tier, ...] = ("A", "B", "C")
    for combo in combos:
        available = _available(world_name, combo)
        wanted = {task: min(per_task, there) for task, there in available.items() if there}
        for tier in tiers:
            found = scene_prompts(seed=seed, per_task=wanted, tier=tier, combos=combo, world=world)
            made.append(PromptGroup(tier, combo, tuple(found)))
    return made


def _available(world_name: str, combos: Combos) -> dict[str, int]:
    """How many different prompts of each task there are, GenEval's own numbers at most."""
    found = dict.fromkeys(PUBLISHED, 0)
    for prompt in scene_prompts(combos=combos, world=get_world(world_name)):
        found[prompt.task] += 1
    return found


def questions_of(groups: Sequence[PromptGroup], ranked_by: Cell | None) -> tuple[Cell, Cell | None]:
    """The cells of the first question and of the second: 4 steps and seen prompts, in the wording
    that was trained on (tier A) and in other words (tier B), the one first that the rule of the
    order predicts; of a file, all its prompts and no second question."""
    cells = {g.tier: g.cell(PRIMARY_STEPS) for g in groups if g.combos == "seen"}
    if not {"A", "B"} <= set(cells):
        return groups[0].cell(PRIMARY_STEPS), None
    trained, other = cells["A"], cells["B"]
    return (other, trained) if ranked_by == other else (trained, other)


def order_by(prediction: Prediction, rule: str) -> RuleOrder:
    """The order of a prediction by a rule's name; '' = the primary one.

    Raises:
        UsageError: if it has none by that rule.
    """
    orders = {order.rule.name: order for order in (prediction, *prediction.others)}
    if rule and rule not in orders:
        raise UsageError(
            f"the prediction has no order by the rule '{rule}', only by {', '.join(orders)}; rank "
            "again with its probes"
        )
    return orders[rule] if rule else prediction


def order_for(prediction: Prediction, cell: Cell, otherwise: RuleOrder) -> RuleOrder:
    """The order by a rule that predicts a cell."""
    orders = (prediction, *prediction.others)
    return next((order for order in orders if order.rule.cell == cell), otherwise)


# ----------------------------------------------------------------------------- writing


def hold_to(path: Path, plan: ConfirmPlan) -> ConfirmPlan:
    """Write the plan. If there is one already, keep it; it may differ only in what its budget
    chose, so that a resumed confirmation trains what was planned first.

    Raises:
        UsageError: if another plan is there, saying what differs.
        RecordError: if it is damaged.
    """
    if not path.exists():
        write_json(path, clean(asdict(plan)))
        return plan
    held = read_plan(path)
    chosen = {"encoders", "seeds", "train", "per_task", "images", "gave_up", "prompt_pins"}
    free = chosen if plan.budget is not None and held.budget == plan.budget else {"gave_up"}
    mine, theirs = (clean({**asdict(one), "train": with_step(one.train)}) for one in (plan, held))
    differing = [key for key in mine if key not in free and mine[key] != theirs[key]]
    if differing:
        raise UsageError(
            f"{path.parent} holds a confirmation with another {', '.join(differing)}; choose "
            "another --out, or remove that folder to start over"
        )
    return held


def read_plan(path: Path) -> ConfirmPlan:
    """Read a plan.

    Raises:
        RecordError: naming file and key, if it is damaged.
    """
    return load_dataclass(
        ConfirmPlan,
        read_json(path),
        str(path),
        lambda text: RecordError(f"{text}; remove it to start over"),
    )


# ------------------------------------------------------------------------ what it can tell


def reach_of(plan: ConfirmPlan, groups: Sequence[PromptGroup]) -> Reach:
    """What the plan can show. The half-width of intervals assumes a score of .3 and a seed
    deviation of .02."""
    prompts, seeds = len(main_group(plan, groups).prompts), len(plan.seeds)
    strata = [entry.stage for entry in plan.trained]
    p = smallest_p(strata)
    per_image = 0.3 * 0.7 / max(1, prompts * plan.images)
    half_width = 1.96 * (2 * (per_image / seeds + 0.02**2 / seeds)) ** 0.5
    choice: tuple[str, ...] = ("can't tell",)
    rule = choice
    if seeds > 1 and len(strata) > 1:
        choice = ("confirmed", "overturned", "can't tell")
    shared = [strata.count(stage) for stage in dict.fromkeys(strata)]
    if sum(n for n in shared if n > 1) >= RULES.least and p < RULES.alpha and seeds > 1:
        rule = ("confirmed",) * (half_width <= RULES.margin) + ("not confirmed", "can't tell")
    return Reach(p, prompts, prompts * plan.images * seeds, half_width, choice, rule)


def rival_score(rival: RivalOrder, spec: str) -> float | None:
    """A rival order's score of an encoder, higher = better; None where it has none."""
    entry = rival.scores.get(spec)
    if entry is None or math.isnan(entry.value):
        return None
    return entry.value if rival.direction == "higher" else -entry.value
