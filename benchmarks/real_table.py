"""A Markdown table of a run: encoders by probes, each score with its 95 % interval.

python benchmarks/real_table.py runs/real
"""

from __future__ import annotations

import argparse
from pathlib import Path

from encbench.records import find_records, read_record

COLUMNS = (
    ("reader", "everything"), ("retrieval", ""), ("retrieval", "recall@1"),
    ("ablation", "published"), ("ablation", "calibrated"), ("minimal-pairs", "scaled"),
    ("decodability", "tokens"), ("diagnostics", "effective-rank"),
)  # fmt: skip
"""Probes and scores; '' = the main one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    folder = parser.parse_args().run
    rows: dict[tuple[bool, str], dict[str, str]] = {}
    heads: dict[str, None] = {}
    for path in find_records(folder):
        record = read_record(path)
        for probe, name in COLUMNS:
            score = record.scores.get(name or record.probe.main_metric)
            if record.variant or record.probe.name != probe or score is None:
                continue
            head = f"{probe}: {name or record.probe.main_metric}"
            digits = 1 if abs(score.value) > 10 else 3
            text = f"{score.value:.{digits}f} ({score.low:.{digits}f} to {score.high:.{digits}f})"
            rows.setdefault((record.card.control, record.name), {})[head] = text
            heads[head] = None
    wanted = [f"{probe}: {name}" for probe, name in COLUMNS if name]
    order = sorted(heads, key=lambda head: wanted.index(head) if head in wanted else 1)
    print("| |" + "".join(f" {head} |" for head in order))
    print("|---" * (len(order) + 1) + "|")
    for (control, name), scores in sorted(rows.items()):
        cells = "".join(f" {scores.get(head, '')} |" for head in order)
        print(f"| {name}{' (control)' if control else ''} |{cells}")


if __name__ == "__main__":
    main()
