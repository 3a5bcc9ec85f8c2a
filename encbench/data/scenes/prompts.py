"""GenEval prompts for the shapes, seen or held-out, in any wording tier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

from ..geneval import PUBLISHED, Clause, GenevalPrompt, generate_prompts
from .captions import reword
from .splits import Combos, Tier, check_split, held_out_pairs, held_out_triples, triple
from .world import SCENES, World, colors_on


def scene_prompts(
    split: str = "geneval",
    *,
    seed: int = 0,
    per_task: Mapping[str, int] | None = None,
    tier: Tier = "A",
    combos: Combos = "seen",
    world: World = SCENES,
) -> list[GenevalPrompt]:
    """Prompts whose classes are the world's shapes.

    The same seed gives the same prompts in every tier: only their texts differ. A prompt is
    held out if it asks for a held-out pair of color and shape or a held-out relation, so of
    single objects, two objects and counts there are seen prompts only.

    Args:
        split: where they are for; a training split has seen prompts and its own tiers only.
        per_task: how many of each task; None for GenEval's own numbers, or all there are.

    Raises:
        UnknownNameError, UsageError: if the split may not hold these combinations or wordings,
            or there are fewer prompts than asked for.
    """
    number = check_split(split, combos, [tier])
    counts = tuple(count for count in world.counts if count > 1)
    colors = tuple(c for c in world.colors if any(c in colors_on(g) for g in world.grounds))
    if per_task is None:
        there = _available(world, colors, counts, combos)
        per_task = {task: min(most, there[task]) for task, most in PUBLISHED.items()}

    def allowed(prompt: GenevalPrompt) -> bool:
        return combos == "both" or prompt_held_out(prompt.include) == (combos == "held-out")

    prompts = generate_prompts(
        world.shapes,
        seed=seed * 8 + number,
        per_task={task: wanted for task, wanted in per_task.items() if wanted},
        colors=colors,
        counts=counts,
        allowed=allowed,
    )
    if tier == "A":
        return prompts
    return [
        replace(prompt, text=reword(prompt.include, tier, seed=seed + prompt.prompt_id))
        for prompt in prompts
    ]


def prompt_held_out(include: tuple[Clause, ...]) -> bool:
    """Whether clauses ask for a held-out combination."""
    for clause in include:
        if (clause.color, clause.label) in held_out_pairs():
            return True
        if clause.position is not None:
            relation, target = clause.position
            if triple(clause.label, relation, include[target].label) in held_out_triples():
                return True
    return False


def _available(
    world: World, colors: tuple[str, ...], counts: tuple[int, ...], combos: Combos
) -> dict[str, int]:
    """How many different prompts of each task there are."""
    shapes = world.shapes
    pairs = [(color, shape) for color in colors for shape in shapes]
    held = held_out_pairs()
    attributes = [
        a in held or b in held for a, b in combinations(pairs, 2) if a[0] != b[0] and a[1] != b[1]
    ]
    of_color = [pair in held for pair in pairs]
    of_place = [
        (one, relation, other) in held_out_triples()
        for relation in ("left of", "above")
        for one in shapes
        for other in shapes
        if one != other
    ]
    plain = {
        "single_object": len(shapes),
        "two_object": len(shapes) * (len(shapes) - 1) // 2,
        "counting": len(shapes) * len(counts),
    }
    found = {task: 0 if combos == "held-out" else number for task, number in plain.items()}
    for task, flags in (("colors", of_color), ("position", of_place), ("color_attr", attributes)):
        found[task] = {
            "both": len(flags), "held-out": sum(flags), "seen": len(flags) - sum(flags)
        }[combos]  # fmt: skip
    return found
