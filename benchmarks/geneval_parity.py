"""Our verdicts against the published evaluator's, case by case.

    python benchmarks/geneval_parity.py GENEVAL/verdict_cases.jsonl

A line of the file holds detections, metadata and an overlap limit, and the answer and reason
that the published evaluator gave. Ends with 1 if a single one differs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from encbench.data.geneval import from_metadata
from encbench.metrics.geneval.verdict import judge_image
from encbench.types import Detection


def parity(path: Path) -> tuple[int, int]:
    """How many cases agree in answer and reason, out of how many; tells the first that differ."""
    agree = total = 0
    for total, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        case = json.loads(line)
        found = [
            Detection(d["class"], tuple(d["box"]), d["score"], color=d["color"])
            for d in case["detections"]
        ]
        prompt = from_metadata(case["metadata"], total - 1)
        verdict = judge_image(found, prompt, overlap_limit=case["nms_threshold"])
        same = (verdict.correct, verdict.reason) == (case["correct"], case["reason"])
        agree += same
        if not same and total - agree <= 10:
            print(
                f"case {total} ({prompt.text}): {verdict.correct} {verdict.reason!r}, but the "
                f"published evaluator said {case['correct']} {case['reason']!r}"
            )
    return agree, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="cases with the published verdicts, jsonl")
    agree, total = parity(parser.parse_args().file)
    print(f"agree {agree} / {total}")
    if agree != total or not total:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
