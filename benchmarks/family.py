"""The zoo's family through all probes, finished against early, as docs/family.md.

    encbench run --out runs/family && python benchmarks/family.py runs/family

The first command ranks the family and the controls on scenes (it takes some minutes); this one
reads that run and writes its scores and the report's own words on where probes disagree.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from pathlib import Path

from encbench.files import write_atomic
from encbench.records import Ranked
from encbench.reports.load import Run, load_run, shuffled_spec
from encbench.reports.published import SCORES
from encbench.reports.text import NOTHING, count, format_score, markdown
from encbench.reports.words import CONTENT, disagreements
from encbench.shipped import read_manifest
from encbench.zoo.catalog import STAGES, zoo_folder

DOCS = Path(__file__).parent.parent / "docs" / "family.md"


def columns(run: Run) -> list[tuple[str, str, str]]:
    """Title, probe and score: the reader, the published two, their calibrated forms, the two that
    ask."""
    chosen = [("reader", "everything"), *((probe, metric) for _, probe, metric in SCORES)]
    chosen += [("retrieval", "scaled@2"), ("ablation", "calibrated")]
    asking = [probe for probe in run.probes.values() if probe.display.section == CONTENT]
    chosen += [(probe.name, probe.main_metric) for probe in asking]
    return [(f"{probe}, {metric}", probe, metric) for probe, metric in chosen]


def table(run: Run, rows: list[Ranked], texts: dict[str, str]) -> list[str]:
    chosen = columns(run)
    lines = [
        "| encoder | texts read | " + " | ".join(title for title, _, _ in chosen) + " |",
        "|---|---" + "|---" * len(chosen) + "|",
    ]
    for row in rows:
        cells = [format_score(run.score(row.spec, probe, metric)) for _, probe, metric in chosen]
        first = [markdown(row.name), texts.get(row.spec, NOTHING)]
        lines.append(f"| {' | '.join(first + cells)} |")
    return lines


def gains(run: Run, family: list[Ranked]) -> list[str]:
    """How often the finished encoder stands above its early points, by score."""
    lines = []
    for title, probe, metric in columns(run):
        above = below = pairs = 0
        for _, members in groupby(family, key=_member):
            rows = [run.score(row.spec, probe, metric) for row in members]
            if not rows or rows[0] is None:
                continue
            for early in rows[1:]:
                if early is None:
                    continue
                pairs += 1
                above += rows[0].low > early.high
                below += rows[0].high < early.low
        lines.append(f"- {title}: clearly above in {above} and clearly below in {below} of {pairs}")
    return lines


def _member(row: Ranked) -> str:
    return row.spec.partition("?")[0]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/family"))
    parser.add_argument("--out", type=Path, default=DOCS)
    given = parser.parse_args()
    run = load_run(given.run)
    family = [row for row in run.candidates if row.spec.startswith("zoo:")]
    if not family:
        parser.error(f"{given.run} ranks no encoder of the zoo")
    members, stages = list(dict.fromkeys(map(_member, family))), list(STAGES)  # best ones first
    family.sort(key=lambda row: (members.index(_member(row)), stages.index(row.stage)))
    texts = {}
    for row in family:
        name = _member(row).partition(":")[2]
        about = read_manifest(zoo_folder(name, row.stage))["about"]
        texts[row.spec] = count(about["scenes"])
    controls = [row for row in run.controls if shuffled_spec(row.spec) is None]
    n = {p: run.score(family[0].spec, p, m) for _, p, m in columns(run)}
    queries = ", ".join(f"{probe} {count(entry.n)}" for probe, entry in n.items() if entry)
    lines = [
        "# The family through all probes",
        "",
        "Written by `encbench run --out runs/family && python benchmarks/family.py runs/family`; "
        "not edited by hand. The family is described in [zoo.md](zoo.md), the scores in "
        "[method.md](method.md).",
        "",
        f"Images are re-encoded by `{run.reencoder}`. 95 % intervals over items ({queries}). "
        "'Texts read' is how many captions the encoder has read in training. Encoders are ordered "
        "by the rank of their best stage.",
        "",
        *table(run, family, texts),
        "",
        "Controls:",
        "",
        *table(run, controls, texts),
        "",
        "## Does a longer training of the encoder show?",
        "",
        "A finished encoder against its own earlier checkpoints; 'clearly' means that the "
        "intervals do not overlap.",
        "",
        *gains(run, family),
        "",
        "## Where the published two probes and the new two disagree",
        "",
        "In the report's words:",
        "",
        *[f"- {markdown(line)}" for line in disagreements(run)],
        "",
    ]
    write_atomic(given.out, "\n".join(lines).encode())
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
