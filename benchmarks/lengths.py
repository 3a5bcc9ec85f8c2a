"""Trainings of other lengths: does the order follow the reader's steps, and does whitening last?

    python benchmarks/lengths.py

Takes ``outcomes/bank.csv``, and from ``outcomes/lengths.csv`` the recipes that differ from the
bank's in the number of training steps only. Prints, and writes into docs/prediction.md and
docs/cure.md between their markers: Spearman's correlation of the reader's score after each number
of its steps with 4-step GenEval (tier A) after each number of training steps; each encoder's
scores; and what whitened features gained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from held_out import OUTCOMES, RECIPE, ROOT, between, cell_of
from provenance import keep
from scipy import stats

from encbench.confirm.bank import RECIPES, Outcome, read_bank
from encbench.files import read_json
from encbench.probes.reader import EVERYTHING, STEPS

WHITENED = "condition_scaling=whitened"
Scores = Mapping[str, tuple[float, int]]
"""By encoder: the mean over its trainings, and how many there are."""


def lengths(bank: Path) -> dict[int, str]:
    """Recipes by their number of training steps."""

    def rest(recipe: dict) -> dict:
        return {**recipe, "train": {**recipe["train"], "steps": 0}}

    recipes = {path.stem: read_json(path) for path in (bank.parent / RECIPES).glob("*.json")}
    own = rest(recipes[RECIPE])
    return {r["train"]["steps"]: name for name, r in recipes.items() if rest(r) == own}


def scores_of(rows: list[Outcome], recipe: str, tier: str, features: str) -> Scores:
    """4-step GenEval; of a training that was repeated, the first."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        same = (row.recipe, row.cell, row.features, row.phase)
        if same == (recipe, cell_of(tier), features, ""):
            found.setdefault(row.encoder, {}).setdefault(row.seed, row.score)
    return {name: (float(np.mean([*by.values()])), len(by)) for name, by in found.items()}


def order_table(reader: Mapping[str, Mapping[str, list[float]]], by: Mapping[int, Scores]) -> str:
    """Rows: lengths of training; columns: reader steps; and the scores of each encoder."""
    shared = set.intersection(*(set(found) for found in by.values()))
    names = sorted((name for name in shared if name in reader), key=lambda n: -by[max(by)][n][0])
    columns = [*(f"{EVERYTHING}@{n}" for n in STEPS), EVERYTHING]
    head = "".join(f" {n} reader steps |" for n in STEPS)
    lines = [
        f"{len(names)} encoders; trainings of each: "
        + ", ".join(f"{by[n][names[0]][1]} of {n:,} steps" for n in sorted(by))
        + ".\n",
        f"| training steps |{head} their mean |",
        "|---|" + "---|" * len(columns),
    ]
    for steps in sorted(by):
        truth = [by[steps][name][0] for name in names]
        cells = [
            f"{stats.spearmanr([reader[name][key][0] for name in names], truth).statistic:.2f}"
            for key in columns
        ]
        lines.append(f"| {steps:,} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| encoder |{''.join(f' {EVERYTHING}@{n} |' for n in STEPS)}"
        f"{''.join(f' GenEval A, {n:,} steps |' for n in sorted(by))}",
        "|---|" + "---|" * (len(STEPS) + len(by)),
    ]
    for name in names:
        cells = [f"{reader[name][key][0]:.2f}" for key in columns[:-1]]
        cells += [f"{by[steps][name][0]:.3f}" for steps in sorted(by)]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def gain_table(rows: list[Outcome], recipes: Mapping[int, str]) -> str:
    """Of encoders that were trained whitened at more than one length."""
    arms = {
        (steps, tier): [scores_of(rows, recipe, tier, features) for features in ("", WHITENED)]
        for steps, recipe in recipes.items()
        for tier in "AB"
    }
    trained = [set(one) & set(two) for (_, tier), (one, two) in arms.items() if tier == "A"]
    names = sorted(n for n in set.union(*trained) if sum(n in found for found in trained) > 1)
    lines = [
        "| encoder | training steps | trainings (plain, whitened) | tier A: plain, whitened | gain "
        "| tier B: plain, whitened | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in names:
        for steps in sorted(recipes):
            cells: list[str] = []
            for tier in "AB":
                one, two = arms[steps, tier]
                if name not in one or name not in two:
                    continue
                (plain, n), (white, m) = one[name], two[name]
                cells += [] if cells else [f"{n}, {m}"]
                cells += [f"{plain:.3f}, {white:.3f}", f"{white - plain:+.3f}"]
            if cells:
                lines.append(f"| `{name}` | {steps:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    rows = [*read_bank(OUTCOMES / "bank.csv"), *read_bank(OUTCOMES / "lengths.csv")]
    recipes = lengths(OUTCOMES / "bank.csv")
    content = read_json(OUTCOMES / "development-1.json")["encoders"]
    reader = {name: row["scores"]["reader"] for name, row in content.items()}
    plain = {steps: scores_of(rows, name, "A", "") for steps, name in recipes.items()}
    by = {steps: found for steps, found in plain.items() if len(found) > 3}
    orders, gains = order_table(reader, by), gain_table(rows, recipes)
    print(f"{orders}\n{gains}")
    between(ROOT / "docs" / "prediction.md", orders, "lengths")
    between(ROOT / "docs" / "cure.md", gains, "lengths")
    keep("lengths", {"recipes": recipes, "orders": orders, "gains": gains})


if __name__ == "__main__":
    main()
