"""Scores become ranks: one primary rule, intervals, paired differences, rival orders.

The rule is fixed before anything is trained: encoders are ordered by the retrieval score on
its floor-to-ceiling scale at k = 2 (recall at 2 where there are no images), with mean pooling
over real tokens. Nothing else is averaged in; every other score is a named rival order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import norm, spearmanr

from .errors import EncbenchError
from .intervals import LEVEL, RESAMPLES, combine, resampled_means
from .records import (
    Advice,
    AppliedRule,
    Failure,
    PairedDifference,
    Prediction,
    Ranked,
    RivalOrder,
    RunRecord,
    Variant,
    read_items,
    read_record,
)
from .specs import is_uninformed
from .types import Estimate

RULE = AppliedRule(
    name="retrieval-scaled",
    version=1,
    text="caption retrieval, re-encoded images, floor-to-ceiling scale at k = 2 "
    "(recall at 2 where there are no images), mean pooling over real tokens",
    probe="retrieval",
    pooling="mean",
    resamples=RESAMPLES,
)
SATURATED = 0.98
ALPHA = 0.05


@dataclass(frozen=True)
class Entrant:
    """One encoder's record with its items, ready to be compared."""

    record: RunRecord
    items: pd.DataFrame

    @property
    def spec(self) -> str:
        return self.record.card.spec


@dataclass(frozen=True)
class Comparison:
    """Several encoders by one score on the same items, resampled together.

    Attributes:
        specs: by column.
        values: each encoder's score.
        draws: the same under B resamplings; rows are paired.
        items: how many items all of them have.
    """

    specs: tuple[str, ...]
    values: Float[np.ndarray, " E"]
    draws: Float[np.ndarray, "B E"]
    items: int

    def score(self, spec: str) -> Estimate:
        place = self.specs.index(spec)
        low, high = np.percentile(self.draws[:, place], LEVEL)
        return Estimate(float(self.values[place]), float(low), float(high))


def compare_encoders(entrants: Sequence[Entrant], score: str, seed: int) -> Comparison:
    """Put encoders side by side on the items that all of them have.

    Raises:
        EncbenchError: if they have no item in common.
    """
    columns = list(entrants[0].record.item_scores[score])
    tables = []
    for entrant in entrants:
        table = entrant.items.set_index("item")[columns].dropna()
        tables.append(table)
    common = tables[0].index
    for table in tables[1:]:
        common = common.intersection(table.index)
    if common.empty:
        raise EncbenchError(
            f"these encoders share no item for '{score}'; probe them on one data set"
        )
    common = common.sort_values()
    stacked = np.concatenate([t.loc[common].to_numpy(np.float64) for t in tables], axis=1)
    width = len(columns)
    means = np.vstack([stacked.mean(axis=0), resampled_means(stacked, seed)])
    found = np.stack(
        [combine(means[:, i * width : (i + 1) * width]) for i in range(len(entrants))], axis=1
    )
    specs = tuple(entrant.spec for entrant in entrants)
    return Comparison(specs, found[0], found[1:], len(common))


def rank_values(values: Float[np.ndarray, "*B E"]) -> np.ndarray:
    """1 + how many are better, along the last axis; equals share the better rank."""
    return 1 + (values[..., None, :] > values[..., :, None]).sum(axis=-1)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected over their family by Holm's step-down method (Holm 1979)."""
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    running = 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = running
    return adjusted.tolist()


def paired_differences(
    comparison: Comparison, wanted: Sequence[tuple[str, str]]
) -> list[PairedDifference]:
    """Paired differences a - b: percentile intervals, and two-sided p from the bootstrap's
    standard error, corrected by Holm over ``wanted``."""
    made = []
    for a, b in wanted:
        i, j = comparison.specs.index(a), comparison.specs.index(b)
        draws = comparison.draws[:, i] - comparison.draws[:, j]
        difference = float(comparison.values[i] - comparison.values[j])
        deviation = float(draws.std(ddof=1))
        p = 2 * float(norm.sf(abs(difference) / deviation)) if deviation else float(difference == 0)
        low, high = np.percentile(draws, LEVEL)
        made.append(PairedDifference(a, b, difference, float(low), float(high), p, p, False))
    corrected = holm([pair.p for pair in made])
    return [
        dataclasses.replace(pair, p_holm=p, distinguishable=p < ALPHA)
        for pair, p in zip(made, corrected, strict=True)
    ]


def load(paths: Sequence[Path]) -> tuple[list[Entrant], list[Entrant]]:
    """Records with their items: encoders as they are ranked, and their variants, apart.

    Raises:
        RecordError: naming a damaged file.
    """
    main: list[Entrant] = []
    variants: list[Entrant] = []
    for path in paths:
        record = read_record(path)
        entrant = Entrant(record, read_items(path, record))
        (variants if record.variant else main).append(entrant)
    specs_of: dict[str, set[str]] = {}
    for entrant in main:
        specs_of.setdefault(entrant.record.name, set()).add(entrant.spec)
    unclear = {name for name, specs in specs_of.items() if len(specs) > 1}
    return [_named(e, unclear) for e in main], [_named(e, unclear) for e in variants]


def _named(entrant: Entrant, unclear: set[str]) -> Entrant:
    """Two encoders of one name, from two runs into one folder, are named by their specs."""
    if entrant.record.name not in unclear:
        return entrant
    return Entrant(dataclasses.replace(entrant.record, name=entrant.spec), entrant.items)


def predict(paths: Sequence[Path], *, failed: Sequence[Failure] = ()) -> Prediction:
    """Rank encoders from the files of their records.

    Raises:
        EncbenchError: if there is nothing to rank by, or records are of different data.
    """
    everything, variants = load(paths)
    _same_data(everything)
    everything, mixed = _same_settings(everything)
    primary = [e for e in everything if e.record.probe.name == RULE.probe]
    if not primary:
        raise EncbenchError(
            "the ranking rests on the retrieval probe, and there is no record of it; give captions"
        )
    seed = primary[0].record.seed
    metric = primary[0].record.probe.main_metric
    comparison = compare_encoders(primary, metric, seed)
    of = {entrant.spec: entrant.record for entrant in primary}
    candidates = [spec for spec in comparison.specs if not of[spec].card.control]
    order = _order(comparison, of, metric, candidates)
    among = paired_differences(
        comparison, [_better_first(comparison, *p) for p in combinations(candidates, 2)]
    )
    against = paired_differences(comparison, _against_controls(comparison.specs, candidates))
    best_first = [row.spec for row in order if not row.control]
    values = dict(zip(comparison.specs, comparison.values.tolist(), strict=True))
    warnings = _warnings(primary, comparison, order, candidates, failed)
    return Prediction(
        rule=dataclasses.replace(RULE, metric=metric),
        data=_data(everything),
        order=order,
        pairs=among + against,
        rivals=_rivals(everything, candidates, values),
        sensitivity=_sensitivity(variants, primary, metric, best_first, seed),
        advice=advise(order, among, against),
        warnings=warnings + mixed,
        failed=list(failed),
        records=sorted({e.record.key for e in everything}),
        seed=seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def advise(
    order: Sequence[Ranked], among: Sequence[PairedDifference], against: Sequence[PairedDifference]
) -> Advice:
    """What to use, in words: the winner, what cannot be told from it, the cheapest of these.

    Cost is the number of parameters, since that is the same on every machine. A control is
    never named.
    """
    candidates = [row for row in order if not row.control]
    if not candidates:
        return Advice("No encoder to recommend: only controls were ranked.")
    winner = candidates[0]
    beaten = [p for p in against if p.a == winner.spec]
    if not beaten or not all(p.distinguishable and p.difference > 0 for p in beaten):
        return Advice(
            f"Use none on this evidence: even the best, {winner.name}, is not clearly better than "
            "controls that carry no information."
        )
    unclear = {p.b for p in among if p.a == winner.spec and not p.distinguishable}
    tied = [row for row in candidates[1:] if row.spec in unclear]
    text = f"Use {winner.name}"
    cheapest = min([winner, *tied], key=lambda row: (row.parameters, row.rank or 0))
    if tied:
        text += f"; not distinguishable from it: {', '.join(row.name for row in tied)}"
        text += f"; cheapest of these: {cheapest.name}"
    elif len(candidates) == 1:
        text += "; it is the only candidate, and better than the controls without information"
    return Advice(text + ".", winner.spec, tuple(row.spec for row in tied), cheapest.spec)


# ---------------------------------------------------------------------------- inside


def _order(
    comparison: Comparison, of: Mapping[str, RunRecord], metric: str, candidates: list[str]
) -> list[Ranked]:
    columns = [comparison.specs.index(spec) for spec in candidates]
    place = rank_values(comparison.values[columns])
    spread = rank_values(comparison.draws[:, columns])
    limits = np.percentile(spread, LEVEL, axis=0, method="inverted_cdf") if columns else None
    rows = []
    for spec in comparison.specs:
        record = of[spec]
        score = comparison.score(spec)
        rank: dict[str, int] = {}
        if spec in candidates and limits is not None:
            c = candidates.index(spec)
            rank = {
                "rank": int(place[c]),
                "rank_low": int(limits[0, c]),
                "rank_high": int(limits[1, c]),
            }
        rows.append(
            Ranked(
                spec=spec,
                name=record.name,
                control=record.card.control,
                value=score.value,
                low=score.low,
                high=score.high,
                n=comparison.items,
                unscored=record.scores[metric].unscored,
                parameters=record.card.parameters,
                pooling=record.pooling,
                stage=record.card.stage,
                **rank,
            )
        )
    return sorted(rows, key=lambda row: (-row.value, row.control, row.spec))


def _better_first(comparison: Comparison, a: str, b: str) -> tuple[str, str]:
    i, j = comparison.specs.index(a), comparison.specs.index(b)
    return (a, b) if comparison.values[i] >= comparison.values[j] else (b, a)


def _against_controls(specs: Sequence[str], candidates: Sequence[str]) -> list[tuple[str, str]]:
    """Each candidate against the controls that carry no information."""
    return [
        (candidate, spec)
        for candidate in candidates
        for spec in specs
        if is_uninformed(spec, candidate)
    ]


def _same_data(entrants: Sequence[Entrant]) -> None:
    for probe in {e.record.probe.name for e in entrants}:
        pins = {e.record.probe.dataset for e in entrants if e.record.probe.name == probe}
        if len(pins) > 1:
            raise EncbenchError(
                f"the {probe} records are of different data ({', '.join(sorted(pins))}); "
                "probe all encoders on one data set, in a folder of its own"
            )


SETTINGS = {"retrieval": ("ks", "queries"), "ablation": ("draws", "shares", "units", "places")}
"""Options of the run, beside seed and limit, that a probe's scores depend on."""


def _same_settings(entrants: Sequence[Entrant]) -> tuple[list[Entrant], list[str]]:
    """Those measured with the seed, limit and options that most records of their probe have, and
    a line for each that is left out."""

    def settings(entrant: Entrant) -> dict[str, str]:
        record = entrant.record
        names = ("limit", *SETTINGS.get(record.probe.name, ()))
        return {"seed": str(record.seed)} | {n: str(record.config.get(n)) for n in names}

    kept, lines = [], []
    for probe in dict.fromkeys(e.record.probe.name for e in entrants):
        group = [e for e in entrants if e.record.probe.name == probe]
        found = [settings(e) for e in group]
        usual = max(found, key=found.count)
        for entrant, own in zip(group, found, strict=True):
            other = ", ".join(f"{n} {own[n]}, not {usual[n]}" for n in own if own[n] != usual[n])
            if other:
                name = entrant.record.name
                lines.append(f"{name} is left out of {probe}: it was measured with {other}.")
            else:
                kept.append(entrant)
    return kept, lines


def _data(entrants: Sequence[Entrant]) -> dict[str, str]:
    return dict(sorted({e.record.probe.name: e.record.probe.dataset for e in entrants}.items()))


def _rivals(
    everything: Sequence[Entrant], candidates: list[str], primary: Mapping[str, float]
) -> list[RivalOrder]:
    """Every other score that orders encoders, by the probe's own word."""
    found = []
    for name in sorted({e.record.probe.name for e in everything}):
        entrants = [e for e in everything if e.record.probe.name == name]
        probe = entrants[0].record.probe
        named = dict.fromkeys([probe.main_metric, *probe.orders])
        for score in named:
            if name == RULE.probe and score == probe.main_metric:
                continue
            having = {e.spec: e.record.scores[score] for e in entrants if score in e.record.scores}
            if not having:
                continue
            better = -1 if probe.direction == "higher" else 1
            order = sorted(
                (s for s in candidates if s in having),
                key=lambda s: (better * having[s].value, s),
            )
            values = [having[s].value for s in having]
            agreement = None
            if len(order) > 2:
                theirs = [better * -1 * having[s].value for s in order]
                if len(set(theirs)) > 1:  # else there is no order to agree with
                    agreement = float(spearmanr(theirs, [primary[s] for s in order]).statistic)
            found.append(
                RivalOrder(
                    probe=name,
                    score=score,
                    order=order,
                    scores={s: Estimate(row.value, row.low, row.high) for s, row in having.items()},
                    direction=probe.direction,
                    published=score.split("/")[0].split("@")[0] == "published",
                    saturated=score.startswith("identification")
                    and sum(v >= SATURATED for v in values) > len(values) / 2,
                    agreement=agreement,
                )
            )
    return found


def _sensitivity(
    variants: Sequence[Entrant],
    primary: Sequence[Entrant],
    metric: str,
    best_first: list[str],
    seed: int,
) -> list[Variant]:
    """The primary rule under every other layer and pooling that was asked for."""
    groups: dict[str, dict[str, Entrant]] = {}
    for entrant in variants:
        record = entrant.record
        if record.probe.name == RULE.probe and metric in record.item_scores:
            named = dataclasses.replace(
                record, card=dataclasses.replace(record.card, spec=record.variant_of)
            )
            groups.setdefault(record.variant, {})[record.variant_of] = Entrant(named, entrant.items)
    found = []
    for variant, group in sorted(groups.items()):
        ranked = [spec for spec in best_first if spec in group]
        if not ranked:
            continue
        comparison = compare_encoders([group[spec] for spec in ranked], metric, seed)
        values = dict(zip(ranked, comparison.values.tolist(), strict=True))
        flips, clear = [], []
        for i, j in combinations(range(len(ranked)), 2):
            if comparison.values[j] > comparison.values[i]:
                flips.append([ranked[i], ranked[j]])
                difference = comparison.draws[:, j] - comparison.draws[:, i]
                if np.percentile(difference, LEVEL[0]) > 0:
                    clear.append([ranked[i], ranked[j]])
        asked = dict(parse_qsl(variant))
        found.append(
            Variant(
                layer=asked.get("layer", "as ranked"),
                pooling=asked.get("pool", "as ranked"),
                order=sorted(ranked, key=lambda spec: (-values[spec], spec)),
                scores={spec: comparison.score(spec) for spec in ranked},
                flips=flips,
                clear_flips=clear,
            )
        )
    return found


def _warnings(
    primary: Sequence[Entrant],
    comparison: Comparison,
    order: Sequence[Ranked],
    candidates: Sequence[str],
    failed: Sequence[Failure],
) -> list[str]:
    found = []
    if comparison.items < 100:
        found.append(
            f"Only {comparison.items} queries are behind the ranking; intervals are wide. "
            "The published protocol uses 1,000."
        )
    for row in order:
        if row.pooling != RULE.pooling:
            found.append(
                f"{row.name} is ranked with pool={row.pooling}, as its spec says, not with the "
                "rule's mean over real tokens."
            )
    counts = {len(e.items["item"]) for e in primary}
    if len(counts) > 1:
        found.append("Encoders were scored on different items; only those in common are compared.")
    found.extend(f"{row.spec} failed and is not ranked: {row.error}" for row in failed)
    if len(candidates) == 1:
        found.append("There is one candidate; a ranking needs a rival.")
    return found
