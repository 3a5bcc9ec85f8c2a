"""The held-out tables: predictions that were committed before training, against the bank.

    python benchmarks/held_out.py

Each ``outcomes/predictions-N.json`` is a round. Compares every rule and every probe's score of a
round with 4-step scores of the encoders named there, in the wording of the training captions
(tier A) and in other words (tier B). Prints both tables of each round, and writes them into
docs/prediction.md, a summary into README.md (each between its markers), everything into
results/held-out.json, plots, and each rule's record, over all rounds that this version of the
rule predicted, into the package. Works while trainings are still going on; it says how many are
missing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
from provenance import keep

from encbench.confirm.agreement import Agreement
from encbench.confirm.rules import seed_deviation
from encbench.errors import EncbenchError
from encbench.files import read_json, write_atomic, write_text
from encbench.records import TrackRecord, provenance
from encbench.reports.agreement import draw_agreement
from encbench.rules import RankingRule, load_rules, save_record
from encbench.types import Cell, Estimate
from encbench.validate import (
    EncoderOutcome,
    Outcomes,
    Validation,
    load_outcomes,
    load_predictions,
    validate,
)

ROOT = Path(__file__).parents[1]
OUTCOMES = ROOT / "benchmarks" / "outcomes"
RECIPE = "30eed5f5a5190f46"
PROMPTS = 82  # behind each score, tiers A and B, seen combinations
CLEAR = 1.96
RULE = {"A": "rule reader", "B": "rule reader-other-words"}
SAME = {"A": "reader everything", "B": "reader other-words"}
"""Scores that are the same in all rounds, whatever the rules were."""
EMF = "rule emf-retrieval"
PRODUCT = "rule reader x log effective rank"
"""Fixed before round 2. Version 4 of the rule reader is this product and also asks for new
combinations, so that noise cannot win."""
VERSION_4 = "rule reader, version 4 (made after round 3)"
"""Its values for earlier rounds are from scores that are as old as theirs."""
UNDATED = "predictions-3.json"  # its commits were lost
AIM = {"A": (0.85, 0.60), "B": (0.80, None)}


def cell_of(tier: str) -> Cell:
    return Cell("geneval", 4, tier, "seen")


def version_4(score: Callable[[str], float]) -> float:
    """The value of the rule reader, from scores of an encoder."""
    share = min(score("reader everything"), score("reader held-out"))
    return share * math.log(score("effective-rank mean tokens"))


def rounds() -> tuple[Path, ...]:
    """Files of predictions, one for each round."""
    return tuple(sorted(OUTCOMES.glob("predictions-[0-9]*.json")))


def named_encoders(files: Sequence[Path]) -> list[str]:
    """Those that files of predictions name: all of them were held out."""
    return [spec for path in files for spec in read_json(path)["encoders"]]


def rivals(path: Path) -> Path:
    """The file of a round's further scores, measured after its predictions; used for no choice."""
    return path.with_name(path.name.replace("predictions", "rivals"))


@cache
def compare(bank: Path, tier: str, files: tuple[Path, ...]) -> tuple[Validation, EncoderOutcome]:
    """Every score against the encoders of some rounds with two seeds; the constant's outcome."""
    whole = load_outcomes(bank, cell=cell_of(tier), recipe=RECIPE)
    named = named_encoders(files)
    kept = {row.spec: row for row in whole.encoders if len(row.scores) > 1}
    held = tuple(kept[spec] for spec in named if spec in kept)
    missing = [spec for spec in named if spec not in kept]
    notes = (f"Not trained yet: {', '.join(missing)}.",) if missing else ()
    scores = load_predictions([*files, *map(rivals, files)])
    if any(read_json(path)["rules"]["reader"]["version"] != 4 for path in files):
        scores[VERSION_4] = {
            spec: Estimate(value, value, value)
            for spec in named
            for value in [version_4(lambda name, spec=spec: scores[name][spec].value)]
        }
    found = validate(Outcomes(f"tier {tier}: held-out", held, whole.scores, notes), scores)
    return found, kept["control:constant"]


def above_constant(found: Validation, constant: EncoderOutcome) -> list[str]:
    """Encoders whose mean outcome is above the constant's by more than 1.96 standard errors.

    Both sides' errors hold the deviation of seeds, pooled over all encoders, and the sampling of
    prompts, each prompt counted as one draw. Prompts are the same on both sides, so this is
    rather too strict.
    """
    seeds = min(len(row.scores) for row in found.encoders)
    table = np.array([row.scores[:seeds] for row in found.encoders])
    deviation, _ = seed_deviation(table)
    assert deviation is not None

    def variance(row: EncoderOutcome) -> float:
        return deviation**2 / len(row.scores) + row.mean * (1 - row.mean) / PROMPTS

    return [
        row.spec
        for row in found.encoders
        if row.mean - constant.mean > CLEAR * math.sqrt(variance(row) + variance(constant))
    ]


def clear_pairs(found: Validation, name: str) -> tuple[int, int]:
    """Of the pairs of encoders whose trainings differ by more than 1.96 standard errors (of seeds,
    pooled over all encoders), how many a score puts in the right order, and how many there are."""
    values = found.scores[name]
    rows = [row for row in found.encoders if row.spec in values]
    deviation, _ = seed_deviation(np.array([row.scores[:2] for row in found.encoders]))
    assert deviation is not None
    right = total = 0
    for one, other in combinations(rows, 2):
        error = deviation * math.sqrt(1 / len(one.scores) + 1 / len(other.scores))
        if abs(one.mean - other.mean) > CLEAR * error:
            total += 1
            before = values[one.spec].value - values[other.spec].value
            right += before * (one.mean - other.mean) > 0
    return right, total


def plateau(found: Validation, name: str) -> str:
    """What limits a rank correlation: encoders that training itself does not tell apart."""
    right, total = clear_pairs(found, name)
    pairs = len(found.encoders) * (len(found.encoders) - 1) // 2
    text = (
        f"Two seeds tell {total} of the {pairs} pairs of encoders apart; `{name}` has {right} of "
        f"these in the right order ({right / total:.0%})"
    )
    if EMF in found.scores:
        of, all_of = clear_pairs(found, EMF)
        text += f", EMF's retrieval {of} of {all_of} ({of / all_of:.0%})"
    return f"{text}."


def agreement(found: Validation, name: str) -> Agreement:
    return next(row for row in found.rows if row.name == name)


def among(found: Validation, specs: list[str], name: str) -> str:
    """A score's agreement over some of the encoders, in words."""
    rows = tuple(row for row in found.encoders if row.spec in specs)
    try:
        part = validate(Outcomes("some", rows), {name: found.scores[name]})
    except EncbenchError:
        return f"These {len(rows)} are too few for a correlation."
    return f"Over these {len(rows)} the rule's correlation is {spearman(part.rows[0])}."


def spearman(row: Agreement) -> str:
    return f"{row.pooled.value:.2f} ({row.pooled.low:.2f} to {row.pooled.high:.2f})"


def judge(row: Agreement, tier: str, spread: float) -> str:
    """Whether what was aimed for came out."""
    value, low = AIM[tier]
    held = row.pooled.value >= value and (low is None or row.pooled.low >= low)
    text = f"at least {value:.2f}" + (f" with a lower end of {low:.2f} or more" if low else "")
    size = f", {row.encoders} encoders, outcomes spread over {spread:.2f}"
    return f"Aim for the rule of tier {tier}: {text}. **{'Reached' if held else 'Missed'}**{size}."


def outcomes_table(a: Validation, b: Validation, clear: list[str]) -> str:
    lines = [
        "| no. | encoder | rule A | GenEval A | rule B | GenEval B | above the constant in B |",
        "|---|---|---|---|---|---|---|",
    ]
    number = {row.spec: place for place, row in enumerate(a.encoders, 1)}  # as in the plot
    other = {row.spec: row for row in b.encoders}
    for row in sorted(a.encoders, key=lambda row: -row.mean):
        seeds = [
            ", ".join(f"{x:.3f}" for x in side[row.spec].scores)
            for side in ({row.spec: row}, other)
        ]
        values = [found.scores[RULE[tier]][row.spec].value for tier, found in (("A", a), ("B", b))]
        lines.append(
            f"| {number[row.spec]} | `{row.spec}` | {values[0]:.3f} | {seeds[0]} | "
            f"{values[1]:.3f} | {seeds[1]} | {'yes' if row.spec in clear else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def between(path: Path, text: str, name: str = "held-out") -> None:
    """Replace what stands between a page's markers."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    page = path.read_text("utf-8")
    if page.count(begin) != 1 or page.count(end) != 1:
        raise EncbenchError(f"{path} lacks the markers {begin} and {end}")
    before, _, rest = page.partition(begin)
    write_text(path, f"{before}{begin}\n{text}{end}{rest.partition(end)[2]}")


def predicted_by(rule: RankingRule) -> tuple[Path, ...]:
    """Rounds that this version of a rule predicted."""

    def has(path: Path) -> bool:
        return bool(read_json(path)["rules"][rule.name]["version"] == rule.version)

    return tuple(filter(has, rounds()))


def save_records(bank: Path) -> None:
    """How each rule did, for the first line of rankings: over all rounds that its present version
    predicted."""
    commit = str(provenance().get("commit") or "")
    for name, rule in load_rules().items():
        files = predicted_by(rule)
        for tier in "AB" if files else "":
            row = agreement(compare(bank, tier, files)[0], f"rule {name}")
            save_record(
                TrackRecord(
                    rule=name, version=rule.version, cell=cell_of(tier), recipe=RECIPE,
                    encoders=row.encoders, sets=row.sets, correlation=row.pooled.value,
                    low=row.pooled.low, high=row.pooled.high, within=row.within, chance=row.chance,
                    complete=row.encoders == len(named_encoders(files)),
                    predictions=read_json(files[-1])["hash"],
                    source="benchmarks/results/held-out.json", commit=commit,
                )
            )  # fmt: skip


def tables(bank: Path, files: tuple[Path, ...]) -> tuple[str, dict[str, Validation], list[str]]:
    """Both tiers' tables as text and as found, and encoders clearly above the constant in B."""
    (a, _), (b, constant) = (compare(bank, tier, files) for tier in "AB")
    clear = above_constant(b, constant)
    parts: list[str] = []
    for tier, found in (("A", a), ("B", b)):
        parts += [
            f"### Tier {tier}\n",
            judge(agreement(found, RULE[tier]), tier, found.spread) + "\n",
        ]
        if tier == "B":
            parts.append(
                f"{len(clear)} of {len(b.encoders)} encoders are clearly above the constant "
                f"({constant.mean:.3f}). {among(b, clear, RULE['B'])}\n"
            )
        parts += [f"{plateau(found, RULE[tier])}\n", found.markdown()]
    text = "\n".join([*parts, "### Each encoder\n", outcomes_table(a, b, clear)])
    return text, {"A": a, "B": b}, clear


def shared_rows(found: Validation, files: Sequence[Path]) -> Validation:
    """With the scores only that all of these rounds have, less rules whose version differs."""
    scores = [set(load_predictions([path, rivals(path)])) for path in files]
    rules = [read_json(path)["rules"] for path in files]
    changed = {
        f"rule {name}"
        for name in rules[0]
        if any(later[name]["version"] != rules[0][name]["version"] for later in rules)
    }
    kept = set.intersection(*scores) - changed

    def stays(row: Agreement) -> bool:
        return row.name in kept or row.name.startswith(("parent", VERSION_4))

    return replace(found, rows=tuple(filter(stays, found.rows)))


def summary(name: str, rows: Sequence[Agreement]) -> str:
    return f"| {name} | {' | '.join(map(spearman, rows))} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bank", type=Path, default=OUTCOMES / "bank.csv")
    parser.add_argument("--print-only", action="store_true", help="write no file")
    given = parser.parse_args()
    lines, result = "", {}
    for number, path in enumerate(rounds(), 1):
        text, by_tier, clear = tables(given.bank, (path,))
        print(f"## Round {number}\n\n{text}")
        rows = [agreement(found, RULE[tier]) for tier, found in by_tier.items()]
        rules = read_json(path)["rules"]
        version = [rules[RULE[tier].removeprefix("rule ")]["version"] for tier in "AB"]
        named = f"round {number}, by its rules, version {version[0]} in A and {version[1]} in B"
        lines = summary(f"{named} ({rows[0].encoders})", rows) + lines  # the latest one first
        result[f"round {number}"] = {
            **{f"tier {tier}": found.as_dict() for tier, found in by_tier.items()},
            "clearly above the constant in tier B": clear,
        }
        if given.print_only:
            continue
        between(ROOT / "docs" / "prediction.md", text, f"held-out-{number}")
        for tier, found in by_tier.items():
            drawing = draw_agreement(replace(found, rows=found.rows[:12]))
            figure = f"held-out-{number}-{tier.lower()}.png"
            write_atomic(ROOT / "docs" / "figures" / figure, drawing.png)
    later = tuple(path for path in rounds() if PRODUCT in load_predictions([path]))
    found = shared_rows(compare(given.bank, "A", later)[0], later)
    now = agreement(found, PRODUCT)
    dated = tuple(path for path in later if path.name != UNDATED)
    checked = agreement(compare(given.bank, "A", dated)[0], PRODUCT)
    parts = [
        f"### Rounds {later[0].stem[-1]} to {later[-1].stem[-1]}, tier A: the product\n",
        judge(now, "A", found.spread) + "\n",
        f"{plateau(found, PRODUCT)}\n",
        f"Without round 3, whose dates cannot be checked: {spearman(checked)} over "
        f"{checked.encoders} encoders.\n",
        found.markdown(),
    ]
    result["product"] = found.as_dict()
    emf = []
    for tier in "AB":
        found = shared_rows(compare(given.bank, tier, rounds())[0], rounds())
        parts += [f"### Tier {tier}, all rounds\n", f"{plateau(found, SAME[tier])}\n"]
        parts.append(found.markdown())
        result[f"all rounds, tier {tier}"] = found.as_dict()
        emf.append(agreement(found, EMF))
    text = "\n".join(parts)
    print(f"## All rounds\n\n{text}")
    if given.print_only:
        return
    between(ROOT / "docs" / "prediction.md", text, "held-out-all")
    named = f"version 4 without its guard against noise, fixed before round 2 ({now.encoders})"
    lines += f"| {named} | {spearman(now)} | |\n"
    lines += summary(f"the paper's retrieval score, all rounds ({emf[0].encoders})", emf)
    head = (
        "| rank correlation with trained 4-step GenEval over held-out encoders | in the wording of "
        "the training captions (tier A) | in other words (tier B) |\n|---|---|---|\n"
    )
    between(ROOT / "README.md", head + lines)
    keep("held-out", result)
    save_records(given.bank)


if __name__ == "__main__":
    main()
