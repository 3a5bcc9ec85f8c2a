"""Measure every test, and choose those that `make test-fast` leaves out.

python tests/measure.py [FILE...]     # of the files named, or of all; goes on where it was
python tests/measure.py --choose      # writes tests/slow.txt from what was measured
PYTHONPATH=tests python -m pytest -p measure   # the seconds only, as fast as make test

A test costs CPU seconds, its own and those of processes that it starts, so a busy machine matters
little. What it gives are the lines of encbench, probes and reports that it runs. Both are kept in
build/measure.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "measure"
TIMES = KEPT / "times.jsonl"
SLOW = ROOT / "tests" / "slow.txt"
BUDGET = 90.0  # CPU seconds of all fast tests: two cores take half of it and import encbench
ALWAYS = 0.2  # CPU seconds up to which a test is fast whatever it covers


# ----------------------------------------------------------------------------------- measure


def measure(files: Sequence[str]) -> None:
    """Become pytest under coverage, with this file as a plugin."""
    command = [sys.executable, "-m", "coverage", "run", "--parallel-mode"]
    command += [f"--data-file={KEPT / 'lines'}", "-m", "pytest", "-n", "0", "-p", "measure", *files]
    os.chdir(ROOT)
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": str(ROOT / "tests")})


def read_times() -> dict[str, float]:
    """CPU seconds by test, all of its parameters together."""
    seconds: dict[str, float] = defaultdict(float)
    for line in TIMES.read_text().splitlines() if TIMES.exists() else ():
        name, cost = json.loads(line)
        seconds[name.partition("[")[0]] += cost
    return seconds


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what was measured before."""
    KEPT.mkdir(parents=True, exist_ok=True)
    lines = TIMES.read_text().splitlines() if TIMES.exists() else ()
    known = {json.loads(line)[0] for line in lines}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = [item for item in items if item.nodeid not in known]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note what a test costs, and under coverage its lines; its first user pays for a fixture."""
    measured = coverage.Coverage.current()
    if measured is not None:
        measured.switch_context(item.nodeid.partition("[")[0])
    before = sum(os.times()[:4])
    result = yield
    with TIMES.open("a") as file:
        file.write(json.dumps([item.nodeid, sum(os.times()[:4]) - before]) + "\n")
    if measured is not None:
        measured.switch_context("")
    return result


# ------------------------------------------------------------------------------------ choose


def choose() -> None:
    """Tests in the order of new lines for their seconds, up to the budget; the rest is slow."""
    seconds = read_times()
    lines: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for path in KEPT.glob("lines.*"):
        data = coverage.CoverageData(str(path))
        data.read()
        for file in data.measured_files():
            for line, contexts in data.contexts_by_lineno(file).items():
                for context in contexts:
                    lines[context].add((file, line))
    covered = set(lines[""])  # by imports
    everything = covered.union(*(lines[name] for name in seconds))
    fast = {name for name, cost in seconds.items() if cost <= ALWAYS}
    covered = covered.union(*(lines[name] for name in fast))
    rest, spent = set(seconds) - fast, sum(seconds[name] for name in fast)
    while rest:
        best = max(rest, key=lambda n: (len(lines[n] - covered) / seconds[n], -seconds[n]))
        if spent + seconds[best] > BUDGET:
            rest = {name for name in rest if spent + seconds[name] <= BUDGET}
            if not rest:
                break
            continue
        rest.remove(best)
        fast.add(best)
        spent += seconds[best]
        covered |= lines[best]
    slow = {name: f"{seconds[name]:6.1f}" for name in set(seconds) - fast}
    measured = set(seconds) | {name.partition("::")[0] for name in seconds}
    for line in SLOW.read_text().splitlines():
        time, name = line.split()
        if name not in measured:
            slow[name] = f"{time:>6}"
    SLOW.write_text("".join(f"{slow[name]} {name}\n" for name in sorted(slow)))
    share = f", {len(covered) / len(everything):.1%} of the lines" if everything else ""
    print(
        f"{len(fast)} of {len(seconds)} tests are fast: {spent:.0f} of {sum(seconds.values()):.0f} "
        f"CPU seconds{share}; {len(slow)} are in {SLOW.relative_to(ROOT)}"
    )


if __name__ == "__main__":
    choose() if sys.argv[1:] == ["--choose"] else measure(sys.argv[1:])
