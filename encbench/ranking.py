"""From scores to ranks: the order by a rule, with intervals and paired differences, and rival
orders.

Rules are data (:mod:`encbench.rules`), fixed before anything is trained: an encoder's value is a
weighted sum of probes' scores. Every other score gives a named rival order, and every other
registered rule its own order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

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
    RuleOrder,
    RunRecord,
    Variant,
    read_items,
    read_record,
)
from .rules import DEFAULTS, RankingRule, Term, find_record, load_rule, load_rules
from .sentences import describe_record, list_either
from .specs import is_uninformed
from .types import Estimate

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


Field = Mapping[str, Mapping[str, Entrant]]
"""Encoders that are compared: spec -> probe -> its record with items."""


@dataclass(frozen=True)
class Comparison:
    """Several encoders by a rule's terms on the same items, resampled together.

    Attributes:
        specs: by column.
        values: each encoder's weighted sum of scores.
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


def compare_encoders(field: Field, terms: Sequence[Term], seed: int) -> Comparison:
    """Compare encoders on the items that all of them have. Terms over the same items are resampled
    together, so that the interval of a sum contains their correlation; terms over other items are
    resampled independently.

    Raises:
        EncbenchError: if the encoders have no item of a term in common.
    """
    blocks: list[tuple[pd.Index, list[tuple[Term, np.ndarray]]]] = []
    for term in terms:
        common, rows = _common_items([by[term.probe] for by in field.values()], term, len(terms))
        block = next((block for block in blocks if block[0].equals(common)), None)
        if block is None:
            block = (common, [])
            blocks.append(block)
        block[1].append((term, rows))
    found = np.zeros((1 + RESAMPLES, len(field)))
    for stream, (_, members) in enumerate(blocks):
        stacked = np.concatenate([rows for _, rows in members], axis=1)
        means = np.vstack([stacked.mean(axis=0), resampled_means(stacked, seed, stream=stream)])
        end = 0
        for term, rows in members:
            width = rows.shape[1] // len(field)
            for place in range(len(field)):
                start, end = end, end + width
                found[:, place] += term.weight * combine(means[:, start:end])
    return Comparison(tuple(field), found[0], found[1:], sum(len(common) for common, _ in blocks))


def _common_items(
    entrants: Sequence[Entrant], term: Term, terms: int
) -> tuple[pd.Index, Float[np.ndarray, "n C"]]:
    """The items of a term that all encoders have, and each encoder's columns there, side by side.

    Scores of one probe may be of different items that are of one unit (a prompt in two wordings);
    in a sum they are compared by unit where all records name it.
    """
    columns = list(entrants[0].record.item_scores[term.score])
    by_unit = terms > 1 and all("unit" in entrant.items for entrant in entrants)
    key = "unit" if by_unit else "item"
    tables = [entrant.items.set_index(key)[columns].dropna() for entrant in entrants]
    common = tables[0].index
    for table in tables[1:]:
        common = common.intersection(table.index)
    if common.empty:
        raise EncbenchError(
            f"these encoders have no common item for '{term.score}'; probe them on one dataset"
        )
    common = common.sort_values()
    rows = np.concatenate([t.loc[common].to_numpy(np.float64) for t in tables], axis=1)
    return common, rows


def rank_values(values: Float[np.ndarray, "*B E"]) -> np.ndarray:
    """1 + the number of better ones, along the last axis; equal values share the better rank."""
    ranks: np.ndarray = 1 + (values[..., None, :] > values[..., :, None]).sum(axis=-1)
    return ranks


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


@dataclass(frozen=True)
class Application:
    """A rule with the terms that the records allow, and the encoders that have all of them."""

    rule: RankingRule
    terms: tuple[Term, ...]
    field: Field

    @property
    def entrants(self) -> dict[str, Entrant]:
        """Each encoder's record of the first term."""
        return {spec: by[self.terms[0].probe] for spec, by in self.field.items()}

    @property
    def seed(self) -> int:
        return next(iter(self.entrants.values())).record.seed

    @property
    def metric(self) -> str:
        """The score's name; of a sum, all of it."""
        first, *more = self.terms
        plain = first.weight == 1 and not more
        return first.score if plain else " + ".join(map(str, self.terms))


def predict(
    paths: Sequence[Path], *, rule: str | None = None, failed: Sequence[Failure] = ()
) -> Prediction:
    """Rank encoders from the files of their records.

    Args:
        rule: name of the primary rule; None = the first of ``rules.DEFAULTS`` whose probes were
            run on all encoders. Every other rule whose probes were has an order beside it.

    Raises:
        UnknownNameError: if no rule has that name.
        EncbenchError: if there is nothing to rank by, or records are of different data.
    """
    everything, variants = load(paths)
    _same_data(everything)
    everything, mixed = _same_settings(everything)
    field: dict[str, dict[str, Entrant]] = {}
    for entrant in everything:
        field.setdefault(entrant.spec, {})[entrant.record.probe.name] = entrant
    primary, notes = _choose(rule, field)
    others = [_apply(r, field) for name, r in load_rules().items() if name != primary.rule.name]
    applied = [primary, *(other for other in others if len(other.field) == len(field))]
    orders = [rank_by(application) for application in applied]
    first = orders[0]
    return Prediction(
        rule=first.rule,
        order=first.order,
        pairs=first.pairs,
        advice=first.advice,
        data=dict(
            sorted({e.record.probe.name: e.record.probe.dataset for e in everything}.items())
        ),
        rivals=_rivals(everything, primary, first),
        sensitivity=_sensitivity(variants, applied, orders),
        others=orders[1:],
        warnings=[*notes, *_warnings(primary, first, failed), *mixed],
        failed=list(failed),
        records=sorted({e.record.key for e in everything}),
        seed=primary.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def rank_by(application: Application) -> RuleOrder:
    """The order by a rule, with intervals, paired differences and advice."""
    rule = application.rule
    comparison = compare_encoders(application.field, application.terms, application.seed)
    entrants = application.entrants
    candidates = [spec for spec in entrants if not entrants[spec].record.card.control]
    order = _order(comparison, application, candidates)
    among = paired_differences(
        comparison, [_better_first(comparison, *p) for p in combinations(candidates, 2)]
    )
    against = paired_differences(comparison, _against_controls(comparison.specs, candidates))
    record = find_record(rule)
    return RuleOrder(
        rule=AppliedRule(
            trust=describe_record(record),
            name=rule.name,
            version=rule.version,
            text=rule.sentence,
            probe=application.terms[0].probe,
            metric=application.metric,
            terms=tuple(map(str, application.terms)),
            cell=rule.cell,
            pooling=rule.pooling,
            resamples=RESAMPLES,
            record=record,
        ),
        order=order,
        pairs=among + against,
        advice=advise(order, among, against),
    )


def advise(
    order: Sequence[Ranked], among: Sequence[PairedDifference], against: Sequence[PairedDifference]
) -> Advice:
    """The advice in words: the winner, the encoders that cannot be told from it, and the smallest
    of these by parameters (which are the same on every machine). A control is never recommended.
    """
    candidates = [row for row in order if not row.control]
    if not candidates:
        return Advice("No encoder to recommend: only controls were ranked.")
    winner = candidates[0]
    beaten = [p for p in against if p.a == winner.spec]
    if not beaten:
        return Advice(
            f"Not settled: {winner.name} is first, but no control without information was "
            "measured, so nothing shows that it is better than one; let the run measure them."
        )
    if not all(p.distinguishable and p.difference > 0 for p in beaten):
        return Advice(
            f"Use none of them on this evidence: even the best, {winner.name}, is not clearly "
            "better than a control that knows nothing of the prompt."
        )
    unclear = {p.b for p in among if p.a == winner.spec and not p.distinguishable}
    tied = [row for row in candidates[1:] if row.spec in unclear]
    cheapest = min([winner, *tied], key=lambda row: (row.parameters, row.rank or 0))
    if tied:
        names = list_either([row.name for row in tied])
        more = f"The data cannot tell it from {names}; the smallest of these is {cheapest.name}."
    elif len(candidates) == 1:
        more = "It is the only candidate, and clearly better than controls without information."
    else:
        rest = "other encoder" if len(candidates) == 2 else f"{len(candidates) - 1} other encoders"
        more = f"It is clearly better than the {rest}."
    text = f"Use {winner.name}. {more}"
    return Advice(text, winner.spec, tuple(row.spec for row in tied), cheapest.spec)


# ---------------------------------------------------------------------------- inside


def _has(records: Mapping[str, Entrant], probe: str, score: str) -> bool:
    return probe in records and score in records[probe].record.item_scores


def _apply(rule: RankingRule, field: Field) -> Application:
    """A rule on the encoders that it can rank, which may be none."""
    terms = rule.choose_terms(lambda *term: any(_has(by, *term) for by in field.values()))
    able = {
        spec: by
        for spec, by in field.items()
        if terms and all(_has(by, term.probe, term.score) for term in terms)
    }
    return Application(rule, terms, able)


def _choose(name: str | None, field: Field) -> tuple[Application, list[str]]:
    """The primary rule, with lines on why it is not the default and which encoders it does not
    rank."""
    options = [_apply(load_rule(option), field) for option in ([name] if name else DEFAULTS)]
    chosen = max(options, key=lambda option: len(option.field))  # of several, the first
    if not chosen.field:
        probes = " or ".join(probe for option in options for probe in option.rule.probes)
        raise EncbenchError(
            f"nothing to rank by: no record of the probe {probes}; run encbench probe with it on "
            "the same folder"
        )

    def missing(option: Application) -> str:
        names = [_name(by) for spec, by in field.items() if spec not in option.field]
        return ", ".join(names) if option.field else "any encoder"

    notes = []
    if chosen is not options[0]:
        notes.append(
            f"Ranked by the rule {chosen.rule.name}, not by {options[0].rule.name}: the "
            f"{' and '.join(options[0].rule.probes)} probe was not run on {missing(options[0])}."
        )
    if len(chosen.field) < len(field):
        notes.append(
            f"Not ranked, since the {' and '.join(chosen.rule.probes)} probe was not run on them: "
            f"{missing(chosen)}."
        )
    return chosen, notes


def _name(records: Mapping[str, Entrant]) -> str:
    return next(iter(records.values())).record.name


def _order(comparison: Comparison, application: Application, candidates: list[str]) -> list[Ranked]:
    columns = [comparison.specs.index(spec) for spec in candidates]
    place = rank_values(comparison.values[columns])
    spread = rank_values(comparison.draws[:, columns])
    limits = np.percentile(spread, LEVEL, axis=0, method="inverted_cdf") if columns else None
    rows = []
    for spec, entrant in application.entrants.items():
        record = entrant.record
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
                unscored=record.scores[application.terms[0].score].unscored,
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
    """Compare each candidate with the controls that carry no information."""
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
                f"the {probe} records were measured on different data ({', '.join(sorted(pins))}); "
                "probe all encoders on one dataset, in a folder of its own"
            )


def settings_of(record: RunRecord) -> dict[str, str]:
    """Seed and options of the run that a record's scores depend on."""
    names = ("limit", *SETTINGS.get(record.probe.name, ()))
    return {"seed": str(record.seed)} | {n: str(record.config.get(n)) for n in names}


SETTINGS = {"retrieval": ("ks", "queries"), "ablation": ("draws", "shares", "units", "places")}
"""Options of the run, beside seed and limit, that a probe's scores depend on."""


def _same_settings(entrants: Sequence[Entrant]) -> tuple[list[Entrant], list[str]]:
    """Those measured with the seed, limit and options that most records of their probe have, and
    a line for each that is left out."""
    kept, lines = [], []
    for probe in dict.fromkeys(e.record.probe.name for e in entrants):
        group = [e for e in entrants if e.record.probe.name == probe]
        found = [settings_of(e.record) for e in group]
        usual = max(found, key=found.count)
        for entrant, own in zip(group, found, strict=True):
            other = ", ".join(f"{n} {own[n]}, not {usual[n]}" for n in own if own[n] != usual[n])
            if other:
                name = entrant.record.name
                lines.append(f"{name} is left out of {probe}: it was measured with {other}.")
            else:
                kept.append(entrant)
    return kept, lines


def _rivals(
    everything: Sequence[Entrant], primary: Application, order: RuleOrder
) -> list[RivalOrder]:
    """Every other score by which the probe says that encoders can be ordered."""
    ranked = {row.spec: row for row in order.order}
    found = []
    for name in sorted({e.record.probe.name for e in everything}):
        entrants = [e for e in everything if e.record.probe.name == name]
        probe = entrants[0].record.probe
        for score in dict.fromkeys([probe.main_metric, *probe.orders]):
            if (name, score) == (primary.terms[0].probe, primary.metric):
                continue
            having = {e.spec: e.record.scores[score] for e in entrants if score in e.record.scores}
            if not having:
                continue
            better = -1 if probe.direction == "higher" else 1
            candidates = [s for s, row in ranked.items() if not row.control and s in having]
            placed = sorted(candidates, key=lambda s: (better * having[s].value, s))
            values = [having[s].value for s in having]
            agreement = None
            if len(placed) > 2:
                theirs = [better * -1 * having[s].value for s in placed]
                if len(set(theirs)) > 1:  # else there is no order to agree with
                    own = [ranked[s].value for s in placed]
                    agreement = float(spearmanr(theirs, own).statistic)
            found.append(
                RivalOrder(
                    probe=name,
                    score=score,
                    order=placed,
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
    variants: Sequence[Entrant], applied: Sequence[Application], orders: Sequence[RuleOrder]
) -> list[Variant]:
    """The primary rule under every other layer and pooling that was measured; where its probes
    were not, the next rule whose probes were."""
    groups: dict[str, dict[str, dict[str, Entrant]]] = {}
    for entrant in variants:
        record = entrant.record
        of = groups.setdefault(record.variant, {}).setdefault(record.variant_of, {})
        of[record.probe.name] = entrant
    for application, order in zip(applied, orders, strict=True):
        name = "" if application is applied[0] else application.rule.name
        best_first = [row.spec for row in order.order if not row.control]
        found = []
        for variant, group in sorted(groups.items()):
            field = {
                spec: group[spec]
                for spec in best_first
                if spec in group
                and all(_has(group[spec], t.probe, t.score) for t in application.terms)
            }
            if field:
                found.append(_variant(name, variant, field, application))
        if found:
            return found
    return []


def _variant(rule: str, variant: str, field: Field, application: Application) -> Variant:
    """``field``: best first as ranked."""
    comparison = compare_encoders(field, application.terms, application.seed)
    ranked = comparison.specs
    flips, clear = [], []
    for i, j in combinations(range(len(ranked)), 2):
        if comparison.values[j] > comparison.values[i]:
            flips.append([ranked[i], ranked[j]])
            difference = comparison.draws[:, j] - comparison.draws[:, i]
            if np.percentile(difference, LEVEL[0]) > 0:
                clear.append([ranked[i], ranked[j]])
    options = dict(part.split("=", 1) for part in variant.split("&"))
    values = dict(zip(ranked, comparison.values.tolist(), strict=True))
    return Variant(
        layer=options.get("layer", "as ranked"),
        pooling=options.get("pool", "as ranked"),
        order=sorted(ranked, key=lambda spec: (-values[spec], spec)),
        scores={spec: comparison.score(spec) for spec in ranked},
        flips=flips,
        clear_flips=clear,
        rule=rule,
    )


def _warnings(primary: Application, order: RuleOrder, failed: Sequence[Failure]) -> list[str]:
    found = []
    items = order.order[0].n
    if items < 100:
        found.append(
            f"Only {items} items (queries or prompts) are behind the ranking, so its intervals are "
            "wide."
        )
    pooling = primary.rule.pooling
    for row in order.order:
        if pooling and row.pooling != pooling:
            found.append(
                f"{row.name} is ranked with pool={row.pooling}, as its spec says, not with the "
                f"rule's {pooling} over real tokens."
            )
    if len({len(entrant.items) for entrant in primary.entrants.values()}) > 1:
        found.append("Encoders were scored on different items; only those in common are compared.")
    found.extend(f"{row.spec} failed and is not ranked: {row.error}" for row in failed)
    if sum(not row.control for row in order.order) == 1:
        found.append("There is one candidate; a ranking needs a rival.")
    return found
