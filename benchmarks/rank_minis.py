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
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from provenance import keep

HERE = Path(__file__).resolve().parents[1]
PROBES = ("retrieval", "ablation", "minimal-pairs", "decodability", "diagnostics")


class Cost(NamedTuple):
    """Of a command: seconds of the clock, and of the CPU in each of its processes. The busiest
    process is what the clock would show on a machine that does nothing else, if it never waits."""

    seconds: float
    cpu: list[float]


def rank(checkout: Path, processes: int, home: Path, encoders: list[str]) -> Cost:
    """What one ranking from nothing takes, the report included."""
    command = [
        str(checkout / ".venv/bin/python"), "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(processes), "-m", "encbench", "run", "--probes", *PROBES,
        "--out", str(home / "out"), "--store", str(home / "store"), "--device", "cpu",
        *(["--encoders", *encoders] if encoders else []),
    ]  # fmt: skip
    started, cpu = time.perf_counter(), {}
    with (home.parent / f"{home.name}.log").open("w") as log:
        process = psutil.Popen(
            command, cwd=checkout, stdout=log, stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        while process.poll() is None:
            with suppress(psutil.Error):
                for child in process.children():
                    times = child.cpu_times()
                    cpu[child.pid] = times.user + times.system
            time.sleep(0.2)
    if process.returncode:
        raise SystemExit(Path(log.name).read_text()[-2000:])
    return Cost(time.perf_counter() - started, sorted(cpu.values(), reverse=True))


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
    costs, scores = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, checkout in (("after", options.after), ("before", options.before)):
            home = Path(temporary) / name
            costs[name] = rank(checkout.resolve(), options.processes, home, options.encoders)
            scores[name] = records(home)
            print(name, costs[name], flush=True)
    both = scores["before"].keys() & scores["after"].keys()
    pairs = [
        (scores["before"][key][name], scores["after"][key][name])
        for key in both
        for name in scores["before"][key].keys() & scores["after"][key].keys()
        if not name.startswith("speed")
    ]
    result = {
        "processes": options.processes,
        "before_seconds": costs["before"].seconds,
        "after_seconds": costs["after"].seconds,
        "ratio": costs["after"].seconds / costs["before"].seconds,
        "before_cpu_seconds": costs["before"].cpu,
        "after_cpu_seconds": costs["after"].cpu,
        "ratio_of_busiest": costs["after"].cpu[0] / costs["before"].cpu[0],
        "records": [len(scores["before"]), len(scores["after"]), len(both)],
        "scores_compared": len(pairs),
        "largest_difference": max((abs(a - b) for a, b in pairs), default=None),
    }
    keep("rank-minis", result)


if __name__ == "__main__":
    main()
