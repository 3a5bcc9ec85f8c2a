"""Seconds that ranking the zoo's twelve encoders takes in two processes, before and after.

Both sides run one after the other, each with an empty store, through the five probes that both
have. Scores of records whose encoder and probe version are the same must be the same.

    git worktree add ../before 5dde682 && (cd ../before && python -m venv .venv && ...)
    python benchmarks/rank_minis.py --before ../before
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from provenance import keep

HERE = Path(__file__).resolve().parents[1]
PROBES = ("retrieval", "ablation", "minimal-pairs", "decodability", "diagnostics")


def rank(checkout: Path, processes: int, home: Path, encoders: list[str]) -> float:
    """Seconds of one ranking from nothing, the report included."""
    command = [
        str(checkout / ".venv/bin/python"), "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(processes), "-m", "encbench", "run", "--probes", *PROBES,
        "--out", str(home / "out"), "--store", str(home / "store"), "--device", "cpu",
        *(["--encoders", *encoders] if encoders else []),
    ]  # fmt: skip
    started = time.perf_counter()
    subprocess.run(
        command, cwd=checkout, check=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return time.perf_counter() - started


def records(home: Path) -> dict[tuple[str, ...], dict[str, float]]:
    """Scores by encoder, its revision, probe, its version, and variant."""
    found = {}
    for path in (home / "out" / "records").rglob("*.json"):
        row = json.loads(path.read_text())
        probe, card = row["probe"], row["card"]
        key = (card["spec"], card["revision"], probe["name"], str(probe["version"]), row["variant"])
        found[key] = {name: score["value"] for name, score in row["scores"].items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="a checkout with its .venv")
    parser.add_argument("--after", type=Path, default=HERE, help="likewise (default: this one)")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--encoders", nargs="*", default=[], help="default: the zoo's twelve")
    options = parser.parse_args()
    seconds, scores = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, checkout in (("after", options.after), ("before", options.before)):
            home = Path(temporary) / name
            seconds[name] = rank(checkout.resolve(), options.processes, home, options.encoders)
            scores[name] = records(home)
            print(f"{name}: {seconds[name]:.0f} s", flush=True)
    both = scores["before"].keys() & scores["after"].keys()
    pairs = [
        (scores["before"][key][name], scores["after"][key][name])
        for key in both
        for name in scores["before"][key].keys() & scores["after"][key].keys()
        if not name.startswith("speed")
    ]
    result = {
        "processes": options.processes,
        "before_seconds": seconds["before"],
        "after_seconds": seconds["after"],
        "ratio": seconds["after"] / seconds["before"],
        "records": [len(scores["before"]), len(scores["after"]), len(both)],
        "scores_compared": len(pairs),
        "largest_difference": max((abs(a - b) for a, b in pairs), default=None),
    }
    keep("rank-minis", result)


if __name__ == "__main__":
    main()
