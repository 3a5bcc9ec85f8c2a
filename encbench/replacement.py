"""What replacing an encoder by another loses and saves, from the records of a run.

Each candidate is set against the base on the main score of every probe, on the same items,
resampled together; the p-values of one probe are corrected over its candidates by Holm's method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import EncbenchError
from .files import write_json, write_text
from .ranking import Entrant, compare_encoders, load, paired_differences
from .records import clean
from .rules import Term

FILE, PAGE = "replacement.json", "replacement.md"
READER, WHITENED = "reader", "reader-whitened"


@dataclass(frozen=True)
class Change:
    """A candidate against the base on one probe's main score.

    Attributes:
        probe, score: names of both.
        base, value: of the base and of the candidate, on the items that both have.
        difference: value - base, with its 95 % interval; ``low`` and ``high`` are None where a
            score has no items that could be resampled.
        outcome: 'better', 'worse', or 'same' where the two cannot be told apart; 'unknown'
            without an interval.
    """

    probe: str
    score: str
    base: float
    value: float
    difference: float
    low: float | None = None
    high: float | None = None
    outcome: str = "unknown"


@dataclass(frozen=True)
class Replaced:
    """An encoder with its cost and its changes against the base (none for the base).

    Attributes:
        memory: of the weights in the dtype of the computation, in bytes.
        milliseconds: for one prompt; None where the diagnostics probe did not run.
    """

    spec: str
    name: str
    parameters: int
    memory: float
    milliseconds: float | None
    license: str
    quantization: str = ""
    changes: tuple[Change, ...] = ()

    @property
    def loses(self) -> tuple[str, ...]:
        """Probes on which it is worse, beyond chance."""
        return tuple(change.probe for change in self.changes if change.outcome == "worse")


@dataclass(frozen=True)
class Choice:
    """Another layer, pooling or whitening of an encoder against the base.

    Attributes:
        name: of the encoder, which may be the base itself.
        use: 'whitened', or the layer or pooling, such as 'layer=penultimate&pool=mean'.
    """

    name: str
    use: str
    change: Change


@dataclass(frozen=True)
class Replacement:
    """All candidates against the base.

    Attributes:
        smallest: name of the candidate with the fewest parameters, fewer than the base's, that is
            worse on no probe; '' = none.
        choices: other layers, poolings and whitened features of all of them.
    """

    base: Replaced
    candidates: tuple[Replaced, ...]
    smallest: str
    choices: tuple[Choice, ...] = ()


def compare_with_base(base: str, names: Sequence[str], paths: Sequence[Path]) -> Replacement:
    """Compare candidates with the base.

    Args:
        base: its name in the records.
        names: of the candidates, in the order in which they are shown.
        paths: of the records of a run.

    Raises:
        EncbenchError: if the base or all candidates have no records.
    """
    main, variants = load(paths)
    by_probe: dict[str, dict[str, Entrant]] = {}
    for entrant in main:
        by_probe.setdefault(entrant.record.probe.name, {})[entrant.record.name] = entrant
    there = [name for name in names if any(name in rows for rows in by_probe.values())]
    if not there or not any(base in rows for rows in by_probe.values()):
        missing = "its candidates" if any(base in rows for rows in by_probe.values()) else base
        raise EncbenchError(f"nothing was measured of {missing}: no comparison is possible")
    changes: dict[str, list[Change]] = {name: [] for name in there}
    for probe, rows in by_probe.items():
        others = [name for name in there if name in rows]
        if base in rows and others:
            for name, change in zip(others, _changes(probe, rows, base, others), strict=True):
                changes[name].append(change)
    replaced = {
        name: _replaced(name, by_probe, tuple(changes.get(name, ()))) for name in [base, *there]
    }
    smaller = [
        replaced[name]
        for name in there
        if not replaced[name].loses and replaced[name].parameters < replaced[base].parameters
    ]
    smallest = min(smaller, key=lambda row: row.parameters).name if smaller else ""
    choices = _choices(base, [base, *there], by_probe, variants)
    return Replacement(replaced[base], tuple(replaced[name] for name in there), smallest, choices)


def _choices(
    base: str,
    names: Sequence[str],
    by_probe: dict[str, dict[str, Entrant]],
    variants: Sequence[Entrant],
) -> tuple[Choice, ...]:
    """Compare the variants of a run, and the reader of whitened features, with the base."""
    uses: dict[str, dict[tuple[str, str], Entrant]] = {}
    for entrant in variants:
        if entrant.record.name in names:
            key = (entrant.record.name, entrant.record.variant)
            uses.setdefault(entrant.record.probe.name, {})[key] = entrant
    for name in names:
        if name in by_probe.get(WHITENED, {}):
            uses.setdefault(READER, {})[name, "whitened"] = by_probe[WHITENED][name]
    found: list[Choice] = []
    for probe, entrants in uses.items():
        first = by_probe.get(probe, {}).get(base)
        if first is None:
            continue
        rows = {" ".join(key): entrant for key, entrant in entrants.items()}
        changes = _changes(probe, {base: first, **rows}, base, list(rows))
        found += [Choice(*key, change) for key, change in zip(entrants, changes, strict=True)]
    return tuple(found)


def _changes(probe: str, rows: dict[str, Entrant], base: str, names: Sequence[str]) -> list[Change]:
    record = rows[base].record
    score = record.probe.main_metric
    sign = 1 if record.probe.direction == "higher" else -1
    if not all(score in rows[name].record.item_scores for name in [base, *names]):
        return [Change(probe, score, *_values(rows[base], rows[name], score)) for name in names]
    field = {name: {probe: rows[name]} for name in [base, *names]}
    comparison = compare_encoders(field, [Term(probe, score)], record.seed)
    pairs = [(name, base) for name in names]
    found = []
    for pair in paired_differences(comparison, pairs):
        outcome = "same"
        if pair.distinguishable:
            outcome = "better" if pair.difference * sign > 0 else "worse"
        one, two = (comparison.score(name).value for name in (pair.b, pair.a))
        found.append(Change(probe, score, one, two, pair.difference, pair.low, pair.high, outcome))
    return found


def _values(base: Entrant, other: Entrant, score: str) -> tuple[float, float, float]:
    one, two = (entrant.record.scores[score].value for entrant in (base, other))
    return one, two, two - one


def _replaced(
    name: str, by_probe: dict[str, dict[str, Entrant]], changes: tuple[Change, ...]
) -> Replaced:
    entrants = [rows[name] for rows in by_probe.values() if name in rows]
    card = entrants[0].record.card
    costs = [e.record.series["cost"] for e in entrants if "cost" in e.record.series]
    cost = costs[0] if costs else {}
    size = {"float32": 4, "bfloat16": 2, "float16": 2}.get(card.dtype, 4)
    return Replaced(
        card.spec,
        name,
        card.parameters,
        float(cost.get("memory_bytes") or card.parameters * size),
        cost.get("latency_ms"),
        card.license,
        card.quantization,
        changes,
    )


# ------------------------------------------------------------------------------ written down


def write_replacement(folder: Path, found: Replacement) -> Path:
    """Write the comparison as JSON and as a page; returns the page.

    Raises:
        StoreError: if it cannot be written.
    """
    write_json(folder / FILE, clean(asdict(found)))
    write_text(folder / PAGE, page(found))
    return folder / PAGE


def verdict(found: Replacement) -> str:
    """The answer in a sentence or two."""
    base = found.base.name
    if not found.smallest:
        return (
            f"Every candidate that is smaller than {base} is worse than it on at least one probe, "
            "or there is none."
        )
    row = next(row for row in found.candidates if row.name == found.smallest)
    saved = 100 * (1 - row.parameters / max(1, found.base.parameters))
    return (
        f"The smallest candidate that is worse than {base} on no probe: {row.name}, with "
        f"{saved:.0f} % fewer parameters. The intervals say how much could still be lost."
    )


def page(found: Replacement) -> str:
    """The comparison in Markdown: costs, then a table for each probe."""
    base = found.base
    lines = [f"# In place of {base.name}", "", verdict(found), ""]
    lines += [
        "| encoder | parameters | memory | ms a prompt | license | stored as |",
        "|---" * 6 + "|",
    ]
    for row in (base, *found.candidates):
        time = "" if row.milliseconds is None else f"{row.milliseconds:.1f}"
        lines.append(
            f"| {row.name} | {row.parameters / 1e6:,.1f} M | {row.memory / 1e6:,.0f} MB | {time} | "
            f"{row.license} | {row.quantization or '-'} |"
        )
    listed = [(row.name, change) for row in found.candidates for change in row.changes]
    for probe, score in dict.fromkeys((c.probe, c.score) for _, c in listed):
        lines += ["", f"## {probe}: {score}", ""]
        lines += _table(base.name, [pair for pair in listed if pair[1].probe == probe])
    if found.choices:
        lines += ["", "## Other layers, poolings and whitened features", ""]
        lines += ["Each against " + base.name + " as it is.", ""]
        lines += _table(
            base.name,
            [(f"{c.name}, {c.use} ({c.change.probe})", c.change) for c in found.choices],
        )
    lines += [
        "",
        f"Differences are of the same items ({base.name} and the candidates resampled together, 95 "
        "% intervals, p-values corrected by Holm's method within a probe). 'same' means that the "
        "two could not be told apart on these items, not that they are equal.",
        "",
    ]
    return "\n".join(lines)


def _table(base: str, rows: Sequence[tuple[str, Change]]) -> list[str]:
    lines = [f"| encoder | score | minus {base} | 95 % interval | |", "|---" * 5 + "|"]
    for name, change in rows:
        span = "" if change.low is None else f"{change.low:+.3f} to {change.high:+.3f}"
        cells = (name, f"{change.value:.3f}", f"{change.difference:+.3f}", span, change.outcome)
        lines.append(f"| {' | '.join(cells)} |")
    return lines
