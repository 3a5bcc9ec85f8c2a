"""The held-out table: predictions that were committed before training, against the bank.

    python benchmarks/held_out.py

Every rule and every probe's score of ``outcomes/predictions-N.json`` against 4-step scores of the
encoders named there, in the wording that was trained on (tier A) and in other words (tier B); as it
comes out. Writes ``results/held-out.json``.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from provenance import keep

from encbench.confirm.agreement import LEAST, Agreement, measure_agreement, seed_ceiling
from encbench.confirm.agreement import trained_scores as read_scores
from encbench.confirm.bank import one_recipe, read_bank
from encbench.encoders import EncoderSpec
from encbench.errors import EncbenchError
from encbench.types import Cell

OUTCOMES = Path(__file__).parent / "outcomes"


def load_predictions(folder: Path) -> dict[str, dict[str, Any]]:
    """Encoder -> what was predicted of it: {revision, scores, rules}; of several files the
    first that names it."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("predictions-[0-9]*.json")):
        for spec, row in json.loads(path.read_text("utf-8"))["encoders"].items():
            found.setdefault(spec, row)
    return found


def predictors(row: dict[str, Any]) -> dict[str, float]:
    """Every rule's value and every probe's score of one encoder."""
    values = {f"rule {name}": value for name, value in row["rules"].items()}
    for probe, scores in row["scores"].items():
        for name, score in scores.items():
            if isinstance(score, list):  # beside it stand when and with what it was measured
                sign = -1 if name == "bits" else 1
                values[f"{probe} {name}"] = sign * score[0]
    return values


def compare(bank: Path, tier: str, recipe: str) -> tuple[list[Agreement], dict[str, Any]]:
    """Every predictor's agreement, best first, and what the scores are like."""
    cell = Cell("geneval", 4, tier, "seen")
    predicted = load_predictions(OUTCOMES)
    scores = read_scores(one_recipe(read_bank(bank), recipe), cell)
    specs = [spec for spec in predicted if len(scores.get(spec, ())) > 1]
    if len(specs) < LEAST:
        raise EncbenchError(
            f"{bank} has {len(specs)} of {len(predicted)} held-out encoders with two seeds; it "
            f"takes {LEAST}"
        )
    actual = np.array([np.mean(scores[spec]) for spec in specs])
    parsed = [EncoderSpec.parse(spec) for spec in specs]
    strata = [
        "3pct" if "3pct" in str(s) else "20pct" if "20pct" in str(s) else "final" for s in parsed
    ]
    columns = [predictors(predicted[spec]) for spec in specs]
    found = []
    for name in dict.fromkeys(name for column in columns for name in column):
        kept = [i for i, column in enumerate(columns) if name in column]
        if len(kept) >= LEAST:
            values = np.array([columns[i][name] for i in kept], np.float64)
            sets = [predicted[specs[i]]["revision"] for i in kept]
            stages = [strata[i] for i in kept]
            found.append(measure_agreement(name, values, actual[kept], sets=sets, strata=stages))
    each = np.array([scores[spec][:2] for spec in specs])
    about = {
        "encoders": len(specs),
        "missing": sorted(set(predicted) - set(specs)),
        "scores": {spec: scores[spec] for spec in specs},
        "spread": float(np.ptp(actual)),
        "seed_ceiling": seed_ceiling(each),
    }
    return sorted(found, key=lambda row: -row.pooled.value), about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=Path, default=OUTCOMES / "bank.csv")
    parser.add_argument("--recipe", default="30eed5f5a5190f46", help="of the rows to compare")
    given = parser.parse_args()
    result: dict[str, Any] = {}
    for tier in "AB":
        rows, about = compare(given.bank, tier, given.recipe)
        print(
            f"\ntier {tier}: {about['encoders']} held-out encoders, scores spread over "
            f"{about['spread']:.3f}, seed ceiling {about['seed_ceiling'] or math.nan:.2f}"
        )
        print("| predictor | Spearman (95 %) | within stages | leaving one out | encoders (sets) |")
        print("|---|---|---|---|---|")
        for row in rows:
            print(
                f"| {row.name} | {row.pooled.value:.2f} ({row.pooled.low:.2f} to "
                f"{row.pooled.high:.2f}) | {row.within:.2f} | {row.lowest:.2f} to "
                f"{row.highest:.2f} | {row.encoders} ({row.sets}) |"
            )
        kept = [{**vars(row), "pooled": vars(row.pooled)} for row in rows]
        result[f"tier {tier}"] = {**about, "predictors": kept}
    keep("held-out", result)


if __name__ == "__main__":
    main()
