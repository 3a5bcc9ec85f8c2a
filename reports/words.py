"""Warnings about a ranking, in sentences.

Each rule looks at a run and yields warnings; a rule that finds nothing, or lacks the scores
it needs, yields none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from encbench.records import PairedDifference, Ranked
from encbench.sentences import describe_record
from encbench.types import Score

from .figures import interval_ends
from .load import Entry, Run, shuffled_spec
from .published import SCORES, published_for
from .text import clean_text, count_noun, format_score, is_number, listing, number
from .whitening import whitening_advice

TRUNCATION = 0.05  # share of prompts cut off from which the ablation probe flatters an encoder
ANISOTROPY = 0.3  # mean cosine of random texts from which raw cosines are called incomparable
CONTENT = "What the prompt says"  # section of the probes that ask for it


def run_summary(run: Run) -> str:
    """One line: how many encoders were ranked, by which score, on which data."""
    probe, metric = run.primary
    n = max((row.n for row in run.prediction.order), default=0)
    data = clean_text(shorten_pin(run.prediction.data.get(probe, ""))) or "unnamed data"
    return (
        f"{count_noun(len(run.candidates), 'candidate')} and "
        f"{count_noun(len(run.controls), 'control')}, ordered by the {clean_text(probe)} score "
        f"{clean_text(metric)} over {count_noun(n, 'item')} on {data}; seed {run.prediction.seed}."
    )


def rule_record(run: Run) -> str:
    """The record of the rule on held-out encoders, from the prediction."""
    return clean_text(run.prediction.rule.trust or describe_record(None))


def shorten_pin(dataset: str) -> str:
    """A dataset's name with its hash cut to 12 digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", str(dataset))


def run_warnings(run: Run) -> list[str]:
    """All warnings, each once: the prediction's own, then this module's, then the probes'."""
    own = [line for rule in RULES for line in rule(run)] + _notes(run)
    own = [line[:1].upper() + line[1:].replace("….", "…") for line in own]
    return list(dict.fromkeys([*map(clean_text, run.prediction.warnings), *own]))


def disagreements(run: Run) -> list[str]:
    """The warnings that compare the two published probes with their calibrated form and with the
    probes of content."""
    return [*_disentanglement(run), *_content(run)]


def _names(run: Run, specs: Iterable[str]) -> str:
    return listing(run.brief.get(spec, clean_text(spec)) for spec in specs)


def _overlap(run: Run) -> Iterator[str]:
    pairs, _ = split_pairs(run)
    if pairs and not any(p.distinguishable for p in pairs):
        yield (
            "No two candidates can be told apart: the order among them is a guess, and more "
            "queries are needed to improve it."
        )


def _controls(run: Run) -> Iterator[str]:
    """Candidates not clear of a control: by the paired test, else by their intervals. The
    prediction tests candidates against controls that carry no information."""
    beats = {(p.a, p.b): p.distinguishable and p.difference > 0 for p in run.prediction.pairs}
    uninformed = {p.b for p in run.prediction.pairs}
    groups: dict[tuple[bool, tuple[str, ...]], list[str]] = {}  # what is not beaten -> by whom
    for candidate in run.candidates:
        unbeaten: dict[bool, list[str]] = {True: [], False: []}
        for control in run.controls:
            if shuffled_spec(control.spec) not in (None, candidate.spec):
                continue  # another encoder's shuffle is no baseline for this one
            pair = (candidate.spec, control.spec)
            if not beats.get(pair, not _reaches(control, candidate)):
                own = shuffled_spec(control.spec) is not None
                name = "its own shuffle" if own else _names(run, [control.spec])
                unbeaten[control.spec in uninformed].append(name)
        for empty, names in unbeaten.items():
            if names:
                groups.setdefault((empty, tuple(sorted(names))), []).append(candidate.spec)
    for (empty, above), specs in sorted(groups.items(), key=lambda item: not item[0][0]):
        which = "control" if len(above) == 1 else "controls"
        if empty:
            yield (
                f"Not clearly above {listing(above)}, which know nothing of the prompt, so the "
                f"rank is meaningless: {_names(run, specs)}."
            )
        else:
            yield f"Not clearly above the {which} {listing(above)}: {_names(run, specs)}."


def _reaches(control: Ranked, candidate: Ranked) -> bool:
    ends = (control.high, candidate.low)
    return all(is_number(x) for x in ends) and control.high >= candidate.low


def _flips(run: Run) -> Iterator[str]:
    clear = [v for v in run.prediction.sensitivity if v.clear_flips]
    some = [v for v in run.prediction.sensitivity if v.flips and not v.clear_flips]
    of = len(run.prediction.sensitivity)
    if clear:
        a, b = clear[0].clear_flips[0][:2]
        yield (
            f"The order depends on layer and pooling: in {len(clear)} of {of} combinations a pair "
            f"of candidates is clearly reversed (for example {_names(run, [b])} above "
            f"{_names(run, [a])} with layer {clear[0].layer}, pooling {clear[0].pooling})."
        )
    if some:
        yield (
            f"In {len(some)} of {of} combinations of layer and pooling candidates change places "
            "within their intervals."
        )


def _layers(run: Run) -> Iterator[str]:
    """Which candidates would stand better with another layer, by the rule that was asked for it;
    its intervals are compared as if they were independent, which is rather too careful."""
    measured = [v for v in run.prediction.sensitivity if v.layer != "as ranked"]
    if not measured:
        return
    rows = run.candidates
    for other in run.prediction.others:
        if other.rule.name == measured[0].rule:
            rows = tuple(row for row in other.order if not row.control)
    better = []
    for row in rows:
        tried = [(v.scores[row.spec], v) for v in measured if row.spec in v.scores]
        if not tried:
            continue
        score, variant = max(tried, key=lambda pair: pair[0].value)
        if score.low > row.high:
            place = 1 + sum(rival.value > score.value for rival in rows if rival is not row)
            words = (
                f"{_names(run, [row.spec])} with layer={variant.layer} ({number(row.value)} to "
                f"{number(score.value)}, place {row.rank} to {place})"
            )
            better.append((row.value - score.value, words))
    if better:
        yield (
            "Another layer would clearly help, by the "
            f"{f'rule {measured[0].rule}' if measured[0].rule else 'primary rule'}: "
            f"{listing(words for _, words in sorted(better))}. Such a layer is a candidate of its "
            "own: give it to --encoders as SPEC?layer=NAME."
        )


def _truncation(run: Run) -> Iterator[str]:
    cut: dict[str, float] = {}
    for row in run.candidates:
        overall = run.score(row.spec, "diagnostics", "truncation")
        share = overall.value if overall else 0.0
        # The probe's own count, since captions, which always fit, dilute the overall one.
        every = run.score(row.spec, "ablation", "published")
        whole = run.score(row.spec, "ablation", "published/untruncated")
        if isinstance(every, Score) and isinstance(whole, Score) and every.n:
            share = max(share, 1 - whole.n / every.n)
        if share > TRUNCATION:
            cut[row.spec] = share
    if cut:
        shares = listing(f"{_names(run, [s])} {v:.0%}" for s, v in cut.items())
        yield (
            f"Prompts do not fit and are cut off ({shares}). What is cut off cannot be missed, so "
            "the ablation scores flatter these encoders; see the scores without truncated prompts."
        )


def _anisotropy(run: Run) -> Iterator[str]:
    high = {}
    for row in run.candidates:  # the ablation's baseline says the same of long prompts
        entry = run.score(row.spec, "diagnostics", "anisotropy")
        entry = entry or run.score(row.spec, "ablation", "baseline")
        if entry and entry.value > ANISOTROPY:
            high[row.spec] = entry.value
    if high:
        yield (
            "Two unrelated texts already have a high cosine under "
            + listing(f"{_names(run, [s])} ({number(v, 2)})" for s, v in high.items())
            + ": raw cosines, and with them the published disentanglement, cannot be compared "
            "between encoders; the calibrated ones can."
        )


def _disentanglement(run: Run) -> Iterator[str]:
    """The published order against the calibrated one, and what a constant gets from each."""
    both = {}
    for row in run.prediction.order:
        raw = run.score(row.spec, "ablation", "published")
        calibrated = run.score(row.spec, "ablation", "calibrated")
        if raw and calibrated:
            both[row.spec] = (raw, calibrated)
    constant = both.get("control:constant")
    candidates = {row.spec: both[row.spec] for row in run.candidates if row.spec in both}
    if constant and candidates:
        beaten = sum(raw.value < constant[0].value for raw, _ in candidates.values())
        yield (
            f"An encoder that ignores its prompt gets {number(constant[0].value)} on the "
            f"published disentanglement, more than {beaten} of "
            f"{count_noun(len(candidates), 'candidate')}; its calibrated score is "
            f"{number(constant[1].value)}."
        )
    contrary = reversed_pairs(candidates)
    if contrary:
        first, second = contrary[0]
        ours, theirs = zip(candidates[first], candidates[second], strict=True)
        yield (
            "Published and calibrated disentanglement contradict each other clearly on "
            f"{count_noun(len(contrary), 'pair')} of candidates: {_names(run, [first])} is above "
            f"{_names(run, [second])} as published ({listing(map(format_score, ours))}), and below "
            f"it once calibrated ({listing(map(format_score, theirs))})."
        )


def reversed_pairs(scores: Mapping[str, tuple[Entry, Entry]]) -> list[tuple[str, str]]:
    """Pairs whose first encoder is clearly above by one score and clearly below by the other: the
    intervals do not overlap."""
    return [
        (a, b)
        for a in scores
        for b in scores
        if _clear(scores[a][0], scores[b][0]) > 0 > _clear(scores[a][1], scores[b][1])
    ]


def _clear(a: Entry, b: Entry) -> int:
    """1 where a's interval lies above b's, -1 where below, 0 where they meet."""
    one, other = interval_ends(a), interval_ends(b)
    if not (one and other):
        return 0
    return int(one[0] > other[1]) - int(one[1] < other[0])


def _content(run: Run) -> Iterator[str]:
    """The published two scores against those that ask what the prompt says: candidates that
    are clearly reversed."""
    asking = [probe for probe in run.probes.values() if probe.display.section == CONTENT]
    for _, probe, metric in SCORES:
        for other in asking:
            theirs = other.main_metric
            scores = {
                row.spec: (a, b)
                for row in run.candidates
                if (a := run.score(row.spec, probe, metric))
                and (b := run.score(row.spec, other.name, theirs))
            }
            if len(scores) < 2:
                continue
            contrary = reversed_pairs(scores)
            name = clean_text(other.name)
            if not contrary:
                yield (
                    f"On no pair of candidates does {name} clearly contradict the published "
                    f"{probe} score."
                )
                continue
            widest = max(contrary, key=lambda p: scores[p[1]][1].value - scores[p[0]][1].value)
            first, second = zip(*(scores[spec] for spec in widest), strict=True)
            yield (
                f"The published {probe} score and {name} disagree clearly on {len(contrary)} of "
                f"{len(scores) * (len(scores) - 1) // 2:,} pairs of candidates: for example "
                f"{_names(run, widest[:1])} is above {_names(run, widest[1:])} by {metric} "
                f"({listing(map(format_score, first))}), and below it by {name} "
                f"{clean_text(theirs)} ({listing(map(format_score, second))})."
            )


def _saturated(run: Run) -> Iterator[str]:
    full = [clean_text(f"{r.probe} {r.score}") for r in run.prediction.rivals if r.saturated]
    if full:
        verb, orders = ("is", "its order is") if len(full) == 1 else ("are", "their orders are")
        yield (f"{listing(full)} {verb} saturated: most encoders reach the top, so {orders} noise.")


def _unscored(run: Run) -> Iterator[str]:
    missing = {row.spec: row.unscored for row in run.prediction.order if row.unscored}
    if missing:
        everyone = len(missing) == len(run.prediction.order)
        yield (
            f"Up to {count_noun(max(missing.values()), 'item')} could not be scored for "
            f"{'every encoder' if everyone else _names(run, missing)}; they are left out of the "
            "scores and counted as unscored, not as zero."
        )


def _comparable(run: Run) -> Iterator[str]:
    if not any(published_for(row.spec) for row in run.candidates):
        return
    paper = {  # what the paper says about its settings
        "COCO train2017": "train2017" in str(run.prediction.data),
        "images re-encoded with DINOv3": "dinov3" in run.reencoder.lower(),
        "1,000 queries": max((r.n for r in run.candidates), default=0) >= 1000,
    }
    missing = [name for name, same in paper.items() if not same]
    if missing:
        yield (
            "The published discriminability cannot be compared with ours directly: the paper has "
            f"{listing(missing)}, this run has not."
        )


def _licenses(run: Run) -> Iterator[str]:
    licenses = {row.spec: run.cost(row.spec).get("license") for row in run.candidates}
    unknown = [spec for spec, name in licenses.items() if name in (None, "", "unknown")]
    if unknown:
        yield f"The license of {_names(run, unknown)} is unknown: look it up before training on it."


def _dirty(run: Run) -> Iterator[str]:
    commits = {str(r.provenance.get("commit", "unknown")) for r in run.records}
    if any(r.provenance.get("dirty") for r in run.records):
        yield "Some records were made by code with uncommitted changes."
    if len(commits) > 1:
        yield f"Records were made by {len(commits)} different commits."


def _notes(run: Run) -> list[str]:
    """The probes' own notes, once each: of notes that differ only in numbers the first
    encoder's is printed, and the others are named."""
    about: dict[str, dict[str, str]] = {}  # note without numbers -> spec -> its note
    for record in run.records:
        for note in () if record.variant else record.notes:
            line = f"{clean_text(record.probe.name)}: {clean_text(note).rstrip('.')}"
            specs = about.setdefault(re.sub(r"\d+", "#", line), {})
            specs.setdefault(record.card.spec, line)
    everyone = {row.spec for row in run.prediction.order}
    lines = []
    for specs in about.values():
        (first, line), *rest = specs.items()
        everywhere = everyone <= specs.keys()
        if any(other != line for _, other in rest):
            others = "all others" if everywhere else _names(run, [spec for spec, _ in rest])
            lines.append(
                f"{line} ({_names(run, [first])}; likewise, with other numbers, {others})."
            )
        else:
            lines.append(f"{line}." if everywhere else f"{line} ({_names(run, specs)}).")
    return lines


def split_pairs(run: Run) -> tuple[list[PairedDifference], list[PairedDifference]]:
    """Pairs of candidates, and pairs of a candidate with a control."""
    control = {row.spec for row in run.controls}
    among = [p for p in run.prediction.pairs if not {p.a, p.b} & control]
    return among, [p for p in run.prediction.pairs if {p.a, p.b} & control]


RULES: tuple[Callable[[Run], Iterator[str]], ...] = (
    _overlap, _controls, _flips, _layers, _truncation, _anisotropy, _disentanglement, _content,
    _saturated, _unscored, _comparable, _licenses, _dirty, whitening_advice,
)  # fmt: skip


# ---------------------------------------------------------------------------- definitions


def definitions(run: Run) -> list[tuple[str, str]]:
    """How each score is computed, as term and explanation, from the rule and the probes that
    ran."""
    rule = clean_text(run.prediction.rule.text).rstrip(".")
    sentence = f"{rule[:1].upper()}{rule[1:]}. Nothing else is averaged in."
    terms = [("Primary rule", sentence)] if rule else []
    terms += [(f"Rule {o.rule.name}", o.rule.text) for o in run.prediction.others]
    for name, probe in run.probes.items():
        words = [
            f"{score}: {meaning}" for score, meaning in probe.display.scores.items() if meaning
        ]
        plain = {name: "; ".join([probe.title, *words]) + "."}
        terms += (probe.display.definitions or plain).items()
    terms += [
        (
            "Intervals and tests",
            "95 % percentile bootstrap over images or prompts, the same draws for all encoders, so "
            "differences are paired; ranks are counted anew in each draw. p-values come from the "
            "bootstrap's standard error of a difference, two-sided, corrected by Holm; two "
            "encoders are distinguishable below .05.",
        ),
        (
            "Controls",
            "Encoders that know nothing, or little, of what a prompt means: they have no rank "
            "and are never advised. A shuffle is an encoder's own embeddings, dealt out to the "
            "wrong prompts.",
        ),
    ]
    return [(clean_text(term), clean_text(words)) for term, words in terms]
