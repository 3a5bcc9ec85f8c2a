"""Measure every test, and choose those that `make test-fast` leaves out.

python tests/measure.py [FILE...]     # of the files named, or of all; goes on where it was
python tests/measure.py --choose      # writes tests/slow.txt from what was measured

A test costs CPU seconds, its own and those of processes that it starts, so a busy machine matters
little. What it gives are the lines of encbench, probes and reports that it runs. The times and the
coverage of each file of tests are kept in build/measure.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import coverage
import pytest

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "measure"
SLOW = ROOT / "tests" / "slow.txt"
BUDGET = 90.0  # CPU seconds of all fast tests: two cores take half of it and import encbench
ALWAYS = 0.2  # CPU seconds up to which a test is fast whatever it covers


# ------------------------------------------------------------- in the process that runs tests


def cpu_seconds() -> float:
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Note what a test covers and costs; its first user pays for a fixture."""
    name, _, _ = item.nodeid.partition("[")
    measured = coverage.Coverage.current()
    assert measured is not None
    measured.switch_context(name)
    before = cpu_seconds()
    result = yield
    with Path(os.environ["MEASURED"]).open("a") as file:
        file.write(json.dumps([name, cpu_seconds() - before]) + "\n")
    measured.switch_context("")
    return result


# ----------------------------------------------------------------------------------- measure


def measure(file: Path) -> None:
    times, data = KEPT / f"{file.stem}.jsonl", KEPT / f"{file.stem}.coverage"
    if data.exists():
        return
    times.unlink(missing_ok=True)
    command = [
        "coverage",
        "run",
        f"--data-file={data}.part",
        "-m",
        "pytest",
        "-n",
        "0",
        "-p",
        "measure",
    ]
    done = subprocess.run(
        [sys.executable, "-m", *command, str(file)], cwd=ROOT, check=False,
        env={**os.environ, "MEASURED": str(times), "PYTHONPATH": str(ROOT / "tests")},
    )  # fmt: skip
    print(file.name, "ended with", done.returncode, flush=True)
    Path(f"{data}.part").rename(data)


# ------------------------------------------------------------------------------------ choose


def choose() -> None:
    """Tests in the order of new lines for their seconds, up to the budget; the rest is slow."""
    seconds: dict[str, float] = defaultdict(float)
    for path in KEPT.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            name, cost = json.loads(line)
            seconds[name] += cost
    lines: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for path in KEPT.glob("*.coverage"):
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
        best = max(rest, key=lambda name: len(lines[name] - covered) / seconds[name])
        if spent + seconds[best] > BUDGET:
            rest = {name for name in rest if spent + seconds[name] <= BUDGET}
            if not rest:
                break
            continue
        rest.remove(best)
        fast.add(best)
        spent += seconds[best]
        covered |= lines[best]
    slow = sorted(set(seconds) - fast)
    SLOW.write_text("".join(f"{seconds[name]:6.1f} {name}\n" for name in slow))
    print(
        f"{len(fast)} of {len(seconds)} tests are fast: {spent:.0f} of {sum(seconds.values()):.0f} "
        f"CPU seconds, {len(covered):,} of {len(everything):,} lines "
        f"({len(covered) / len(everything):.1%}); {len(slow)} are in {SLOW.relative_to(ROOT)}"
    )


def main() -> None:
    if sys.argv[1:] == ["--choose"]:
        choose()
        return
    KEPT.mkdir(parents=True, exist_ok=True)
    names = sys.argv[1:] or sorted(map(str, (ROOT / "tests").rglob("test_*.py")))
    for name in names:
        measure(Path(name))


if __name__ == "__main__":
    main()
