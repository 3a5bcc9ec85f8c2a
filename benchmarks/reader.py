"""Score encoders whose trainings are known by the reader, and compare both orders.

    python benchmarks/reader.py --out runs/reader-development.json

Uses the development outcomes: verdict files of ``encbench confirm``. Features are kept in the
store, and finished encoders in the output file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from encbench.context import Context, Data
from encbench.encode import StoredEncoder
from encbench.encoders import EncoderSpec
from encbench.files import write_json
from encbench.probes.reader import ReaderProbe
from encbench.store import Store
from encbench.types import Measurement

OUTCOMES = ("benchmarks/results/confirm-cpu-nine.json",)


def measure(probe: object, spec: str, store: Path, seed: int) -> Measurement:
    """One probe on one encoder, on the embedded scenes without images."""
    encoder = StoredEncoder(EncoderSpec.parse(spec), Store(store), torch.device("cpu"))
    return probe.run(Context(encoder, "mean", Data(None, None), None, {}), seed=seed)


def read_outcomes(paths: list[Path]) -> dict[str, dict[str, float]]:
    """Trained GenEval at 4 steps by spec and tier; an encoder in two files counts once."""
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        for row in json.loads(path.read_text("utf-8"))["encoders"]:
            cells = {t: row["scores"][f"steps=4&tier={t}&combos=seen"]["value"] for t in "AB"}
            found.setdefault(row["spec"], {**cells, "control": row["control"]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--outcomes", type=Path, nargs="+", default=[Path(p) for p in OUTCOMES])
    parser.add_argument("--store", type=Path, default=Path("runs/store"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    outcomes = read_outcomes(args.outcomes)
    rows = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    for seed in args.seeds:
        for spec in outcomes:
            if f"{spec} seed {seed}" in rows:
                continue
            started = time.process_time()
            found = measure(ReaderProbe(), spec, args.store, seed)
            row = {name: [s.value, s.low, s.high] for name, s in found.scores.items()}
            rows[f"{spec} seed {seed}"] = {**row, "seconds": time.process_time() - started}
            print(f"{spec} seed {seed}: {found.scores['everything'].value:.3f}", flush=True)
            write_json(args.out, rows)
    report(outcomes, rows, args.seeds)


def report(outcomes: dict[str, dict[str, float]], rows: dict[str, dict], seeds: list[int]) -> None:
    """Print rank correlations of every score with trained GenEval in tiers A and B."""
    everyone = list(outcomes)
    candidates = [spec for spec in everyone if not outcomes[spec]["control"]]
    names = [name for name in rows[f"{everyone[0]} seed {seeds[0]}"] if name != "seconds"]
    table = {
        name: np.array([[rows[f"{s} seed {k}"][name][0] for k in seeds] for s in everyone]).mean(1)
        for name in names
    }
    table["everything + 2 other-words"] = table["everything"] + 2 * table["other-words"]
    print(f"{'score':34} candidates A, B    with controls A, B")
    for name, values in table.items():
        cells = []
        for group in (candidates, everyone):
            place = [everyone.index(spec) for spec in group]
            for tier in "AB":
                truth = [outcomes[spec][tier] for spec in group]
                cells.append(f"{spearmanr(values[place], truth).statistic:6.2f}")
        print(f"{name:34} {' '.join(cells)}")


if __name__ == "__main__":
    main()
