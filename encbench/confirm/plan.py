"""What a confirmation will train and score: chosen, costed and written down before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.geneval import load_geneval
from ..data.scenes.prompts import PUBLISHED, scene_prompts
from ..data.scenes.splits import Combos, Tier
from ..data.scenes.world import get_world
from ..encoders import EncoderSpec
from ..errors import RecordError, UsageError
from ..files import digest, read_json, write_json
from ..flow.config import TrainConfig, training_config
from ..records import Prediction, Ranked, RivalOrder, clean
from ..types import Cell
from .rules import ALPHA, LEAST, smallest_p
from .scoring import PromptGroup

PLAN = "plan.json"
CONSTANT = "control:constant"
SAMPLE_STEPS = (1, 2, 4, 16)
PRIMARY_STEPS = 4
CURVE = (0.3, 0.6, 0.7, 0.8, 0.9)  # shares of a training after which it is scored, and its end
LEAST_STEPS = 200  # of a training, under which no budget goes


@dataclass(frozen=True)
class PlannedEncoder:
    """One encoder of the plan, as the prediction has it."""

    spec: str
    name: str
    stage: str
    control: bool
    predicted: dict[str, float]
    parameters: int
    revision: str = ""


@dataclass(frozen=True)
class ConfirmPlan:
    """Everything that the verdict depends on, fixed before the first step.

    Attributes:
        prediction: its hash; '' = still to be made.
        preset: whose values are the defaults.
        encoders: best predicted first, controls last.
        seeds: of the trainings.
        train: values of :class:`TrainConfig` but for encoder, seed and place.
        per_task, images, steps: of scoring; ``steps`` are numbers of sampling steps.
        prompts: file of prompts, or '' for those of the world.
        prompt_pins: hash of each group of prompts.
        primary: cell of both verdicts.
        backbone: what tells the backbone from any other; '' = from scratch.
        detector, colors: who judges.
        budget: in seconds; None = none was given.
        gave_up: what the budget cost, in words.
        seed: of prompts, noise and bootstrap.
    """

    prediction: str
    preset: str
    encoders: tuple[PlannedEncoder, ...]
    seeds: tuple[int, ...]
    train: dict[str, Any]
    per_task: int
    images: int
    prompts: str
    prompt_pins: dict[str, str]
    primary: Cell
    backbone: str
    detector: str
    colors: str
    steps: tuple[int, ...] = SAMPLE_STEPS
    budget: float | None = None
    gave_up: tuple[str, ...] = ()
    seed: int = 0

    @property
    def trained(self) -> tuple[PlannedEncoder, ...]:
        return tuple(e for e in self.encoders if not e.control)

    @property
    def shape(self) -> TrainConfig:
        """What all trainings share."""
        return training_config(self.train)

    def train_config(self, spec: str, seed: int, out: Path, device: str) -> TrainConfig:
        return training_config(
            {**self.train, "encoder": spec, "seed": seed, "out": out, "device": device}
        )

    def main_group(self, groups: Sequence[PromptGroup]) -> PromptGroup:
        """The prompts of the primary cell."""
        return next(g for g in groups if g.cell(self.primary.steps) == self.primary)

    @property
    def digest(self) -> str:
        return digest(clean(asdict(self)))


# ------------------------------------------------------------------------- the encoders


def choose_encoders(prediction: Prediction, wanted: Sequence[str], everyone: bool) -> list[Ranked]:
    """Who is trained: what was asked for; or all; or the top two, the middle and the last of the
    stage that has most encoders, and the constant control.

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
                raise UsageError(f"'{text}' permutes whole lists and cannot be a condition")
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
    """The predicted winner with so many rivals (at least one), and the controls: the last first,
    then the runner-up, from which the winner has to be told, then others evenly between."""
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


def primary_of(groups: Sequence[PromptGroup]) -> Cell:
    """The cell of both verdicts: 4 steps and tier B of seen prompts, or all prompts of a file."""
    found = [g for g in groups if (g.tier, g.combos) == ("B", "seen")]
    return (found or list(groups))[0].cell(PRIMARY_STEPS)


# ----------------------------------------------------------------------------- writing


def hold_to(path: Path, plan: ConfirmPlan) -> ConfirmPlan:
    """Write the plan, or find the one that is there and says the same but for what its budget
    chose, so that a resumed confirmation trains what the first one planned.

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
    mine, theirs = clean(asdict(plan)), clean(asdict(held))
    differing = [key for key in mine if key not in free and mine[key] != theirs[key]]
    if differing:
        raise UsageError(
            f"{path.parent} holds a confirmation with another {', '.join(differing)}; choose "
            "another --out, or remove that folder to begin anew"
        )
    return held


def read_plan(path: Path) -> ConfirmPlan:
    """Read a plan.

    Raises:
        RecordError: naming the file, if it is damaged.
    """
    value = read_json(path)
    try:
        held = {
            **value,
            "encoders": tuple(PlannedEncoder(**row) for row in value["encoders"]),
            **{name: tuple(value[name]) for name in ("seeds", "steps", "gave_up")},
            "primary": Cell.parse(value["primary"]),
        }
        return ConfirmPlan(**held)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RecordError(f"{path} is damaged ({error}); remove it to begin anew") from error


# ------------------------------------------------------------------------ what it can tell


def reach(plan: ConfirmPlan, groups: Sequence[PromptGroup]) -> dict[str, Any]:
    """What the plan can show: the smallest p, and the half-width that a regret's interval can
    be expected to have at a score of .3 and a seed deviation of .02 (both assumed)."""
    prompts = len(plan.main_group(groups).prompts)
    strata = [entry.stage for entry in plan.trained]
    p = smallest_p(strata)
    per_image = 0.3 * 0.7 / max(1, prompts * plan.images)
    half_width = 1.96 * (2 * (per_image / len(plan.seeds) + 0.02**2 / len(plan.seeds))) ** 0.5
    shared = [strata.count(stage) for stage in dict.fromkeys(strata)]
    compared = sum(n for n in shared if n > 1)
    rule = compared >= LEAST and p < ALPHA and len(plan.seeds) > 1
    return {
        "smallest_p": p,
        "prompts": prompts,
        "images": prompts * plan.images * len(plan.seeds),
        "regret_half_width": half_width,
        "choice": ["confirmed", "overturned", "can't tell"]
        if len(plan.seeds) > 1 and len(plan.trained) > 1
        else ["can't tell"],
        "rule": (
            (["confirmed"] if half_width <= 0.03 else []) + ["not confirmed", "can't tell"]
            if rule
            else ["can't tell"]
        ),
    }


def rival_score(rival: RivalOrder, spec: str) -> float | None:
    """A rival order's score of an encoder, higher = better."""
    entry = rival.scores.get(spec)
    if entry is None or entry.get("value") is None:
        return None
    return entry["value"] if rival.direction == "higher" else -entry["value"]
