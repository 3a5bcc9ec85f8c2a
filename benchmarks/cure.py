"""The table of the cure: what trainings on whitened features gained over plain ones.

    python benchmarks/cure.py [--runs FOLDER...]

Compares trainings of one recipe that differ only in what was done to the encoder's features:
whitened with plain, and plain without the encoder's pooled vector with plain, each pair with one
seed. Trainings are taken from the bank and from folders of runs, finished or not; what is missing
is named. Beside the gain stands the one that the reader predicted before any of the trainings on
whitened features (``outcomes/predictions-cure-1.json``). Writes docs/cure.md and README.md
(between their markers) and results/cure.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from held_out import RECIPE, ROOT, between
from provenance import keep
from scipy import stats

from encbench.confirm.bank import Outcome, Source, one_recipe, read_bank, rows_of_run
from encbench.encoders import EncoderSpec
from encbench.types import Cell, Estimate

OUTCOMES = ROOT / "benchmarks" / "outcomes"
PREDICTIONS = OUTCOMES / "predictions-cure-1.json"
ARMS = {"whitened": "condition_scaling=whitened", "no-pooled": "condition_pooled=mean"}
STEPS = (1, 2, 4, 16)
NEEDED = 3  # encoders with two seeds, below which no interval is given

Scores = Mapping[Cell, Mapping[int, float]]


@dataclass(frozen=True)
class Gain:
    """What an arm gained on one encoder in one cell: means over the seeds that both arms have."""

    spec: str
    cell: Cell
    seeds: int
    plain: float
    arm: float
    differences: tuple[float, ...]

    @property
    def value(self) -> float:
        return self.arm - self.plain


def load_rows(bank: Path, runs: Iterable[Path]) -> list[Outcome]:
    """Rows of the bank and of every run in the folders, of the bank's recipe."""
    rows = read_bank(bank)
    for folder in runs:
        for plan in sorted(folder.glob("*/confirm/plan.json")):
            run = plan.parents[1]
            rows += rows_of_run(run, Source(run.name, "", ""))
    return [row for row in one_recipe(rows, RECIPE) if not row.phase]


def scores_of(
    rows: Iterable[Outcome], spec: str, revision: str, features: str
) -> dict[Cell, dict[int, float]]:
    """Score by cell and seed, of the first training where one was repeated."""
    options = EncoderSpec.parse(spec).options
    found: dict[Cell, dict[int, float]] = {}
    for row in rows:
        same = row.encoder == spec or (
            bool(revision)
            and row.revision == revision
            and EncoderSpec.parse(row.encoder).options == options
        )
        if same and row.features == features:
            found.setdefault(row.cell, {}).setdefault(row.seed, row.score)
    return found


def gain_of(spec: str, cell: Cell, plain: Scores, arm: Scores) -> Gain | None:
    """None where the arms have no seed in common."""
    one, other = plain.get(cell, {}), arm.get(cell, {})
    seeds = sorted(one.keys() & other.keys())
    if not seeds:
        return None
    a, b = ([side[seed] for seed in seeds] for side in (one, other))
    pairs = tuple(y - x for x, y in zip(a, b, strict=True))
    return Gain(spec, cell, len(seeds), float(np.mean(a)), float(np.mean(b)), pairs)


def half_width(gains: Sequence[Gain]) -> float | None:
    """Half of the 95 % interval of one encoder's gain over two seeds: the deviation of a
    difference between seeds is pooled over all encoders, since two seeds alone say little."""
    pairs = np.array([gain.differences for gain in gains if gain.seeds == 2])
    if len(pairs) < NEEDED:
        return None
    deviation = math.sqrt(pairs.var(axis=1, ddof=1).mean())
    return float(stats.t.ppf(0.975, len(pairs)) * deviation / math.sqrt(2))


def mean_gain(gains: Sequence[Gain]) -> Estimate | None:
    """Over encoders, with the interval of Student's t over encoders."""
    values = np.array([gain.value for gain in gains])
    if len(values) < NEEDED:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return Estimate(float(values.mean()), float(values.mean() - half), float(values.mean() + half))


def predicted_gain(arms: Mapping[str, Mapping[str, Sequence[float]]], arm: str) -> Estimate | None:
    """Of the reader; the arms' intervals are combined as if they were independent."""
    if arm not in arms or "plain" not in arms:
        return None
    (a, a_low, a_high), (b, b_low, b_high) = (arms[n]["everything"] for n in ("plain", arm))
    half = math.hypot((a_high - a_low) / 2, (b_high - b_low) / 2)
    return Estimate(b - a, b - a - half, b - a + half)


def show(value: Estimate | None, digits: int = 3) -> str:
    if value is None:
        return ""
    low, high = (f"{end:+.{digits}f}" for end in (value.low, value.high))
    return f"{value.value:+.{digits}f} ({low} to {high})"


def arm_tables(
    arm: str, gains: Mapping[Cell, list[Gain]], held: Mapping[str, dict]
) -> tuple[list[str], dict]:
    """The tables of one arm in Markdown, and what they show as JSON."""
    main = gains[cell_of(4, "A")]
    lines: list[str] = []
    result: dict = {"encoders": len(main), "cells": {}}
    for tier, words in (("A", "in the wording of the training captions"), ("B", "in other words")):
        head = f"| encoder | predicted by the reader | GenEval, 4 steps: plain, {arm} |"
        lines += [
            f"**Tier {tier}, {words}**\n",
            head + "".join(f" gain, {steps} step{'s' * (steps > 1)} |" for steps in STEPS),
            "|---|---|---|" + "---|" * len(STEPS),
        ]
        columns = {steps: gains[cell_of(steps, tier)] for steps in STEPS}
        for gain in columns[4]:
            cells = [f"`{gain.spec}`" + " (one seed)" * (gain.seeds == 1)]
            shown = predicted_gain(held[gain.spec]["arms"], arm) if tier == "A" else None
            cells += [show(shown, 2), f"{gain.plain:.3f}, {gain.arm:.3f}"]
            for column in columns.values():
                of = next((g for g in column if g.spec == gain.spec), None)
                half = half_width(column)
                if of is None:
                    cells.append("")
                elif half is None or of.seeds != 2:
                    cells.append(f"{of.value:+.3f}")
                else:
                    cells.append(show(Estimate(of.value, of.value - half, of.value + half)))
            lines.append(f"| {' | '.join(cells)} |")
        means = {steps: mean_gain(column) for steps, column in columns.items()}
        if any(means.values()):
            lines.append(f"| mean |  |  | {' | '.join(show(mean) for mean in means.values())} |")
        lines.append("")
        for steps, column in columns.items():
            mean = means[steps]
            result["cells"][str(cell_of(steps, tier))] = {
                "gains": [{**asdict(gain), "cell": str(gain.cell)} for gain in column],
                "half_width": half_width(column),
                "mean": None if mean is None else vars(mean),
            }
    pairs = [
        (shown.value, gain.value)
        for gain in main
        if (shown := predicted_gain(held[gain.spec]["arms"], arm)) is not None
    ]
    if len(pairs) > NEEDED:
        predicted, found = np.array(pairs).T
        rank = float(stats.spearmanr(predicted, found).statistic)
        same = int(np.sum(np.sign(predicted) == np.sign(found)))
        result |= {"spearman_of_gains": rank, "same_sign": same}
        lines.append(
            f"The predicted gain goes with the gain at 4 steps in tier A with a rank correlation "
            f"of {rank:.2f} over {len(pairs)} encoders; the sign is the same for {same}.\n"
        )
    return lines, result


def cell_of(steps: int, tier: str) -> Cell:
    return Cell("geneval", steps, tier, "seen")


def sentence(gains: Mapping[Cell, list[Gain]]) -> str:
    """For the README."""
    a, b = (gains[cell_of(4, tier)] for tier in "AB")
    mean, other = mean_gain(a), mean_gain(b)
    if mean is None or other is None:
        return ""
    better = sum(gain.value > 0 for gain in a)
    return (
        f"Whitening the text features (`--condition-scaling whitened`) changed 4-step GenEval of "
        f"small models trained on {len(a)} encoders by {show(mean)} on average in the wording of "
        f"the training captions ({better} of {len(a)} gained), and by {show(other)} in other "
        "words: [docs/cure.md](docs/cure.md).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=Path, default=OUTCOMES / "bank.csv")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="folders of runs")
    parser.add_argument("--print-only", action="store_true", help="write no file")
    given = parser.parse_args()
    rows = load_rows(given.bank, given.runs)
    held = json.loads(PREDICTIONS.read_text("utf-8"))["cure"]
    text: list[str] = []
    result: dict = {}
    for arm, features in ARMS.items():
        gains: dict[Cell, list[Gain]] = {}
        missing = []
        for spec, row in held.items():
            if arm not in row["arms"]:
                continue
            plain = scores_of(rows, spec, row["revision"], "")
            other = scores_of(rows, spec, row["revision"], features)
            if not plain or not other:
                missing.append(f"`{spec}`" + " (no plain training)" * (not plain))
            for cell in (cell_of(steps, tier) for tier in "AB" for steps in STEPS):
                gain = gain_of(spec, cell, plain, other)
                gains.setdefault(cell, []).extend([gain] if gain else [])
        title = {"whitened": "Whitened or plain", "no-pooled": "Without the pooled vector"}[arm]
        text.append(f"### {title}\n")
        if not gains.get(cell_of(4, "A")):
            text.append("Nothing was trained yet.\n")
            continue
        lines, result[arm] = arm_tables(arm, gains, held)
        text += lines
        if missing:
            text.append(f"Predicted, but not trained: {', '.join(missing)}.\n")
        if arm == "whitened" and not given.print_only and (line := sentence(gains)):
            between(ROOT / "README.md", line, "cure")
    print("\n".join(text))
    if not given.print_only:
        between(ROOT / "docs" / "cure.md", "\n".join(text), "cure")
        keep("cure", result)


if __name__ == "__main__":
    main()
