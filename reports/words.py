"""What a reader must know before believing a ranking, in sentences.

Each rule looks at a run and yields warnings; a rule that finds nothing, or lacks the scores
it needs, yields none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from encbench.records import PairedDifference, Ranked

from .load import Run, shuffled_spec, uninformed
from .published import published_for
from .text import clean_text, count_noun, format_score, is_number, listing, number

TRUNCATION = 0.05  # share of prompts cut off from which the ablation probe is said to flatter
ANISOTROPY = 0.3  # mean cosine of random texts from which raw cosines are called incomparable


def run_summary(run: Run) -> str:
    """What was ranked by what on what, in one line."""
    probe, metric = run.primary
    n = max((row.n for row in run.prediction.order), default=0)
    data = clean_text(pin(run.prediction.data.get(probe, ""))) or "unnamed data"
    seed = run.prediction.seed
    return (
        f"{count_noun(len(run.candidates), 'candidate')} and "
        f"{count_noun(len(run.controls), 'control')}, "
        f"ordered by the {probe} score {metric} over {count_noun(n, 'query')} on {data}; seed "
        f"{seed}."
    )


def pin(dataset: str) -> str:
    """A data set's name with its hash cut to 12 digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", str(dataset))


def run_warnings(run: Run) -> list[str]:
    """All warnings, each once: the prediction's own, then this module's, then the probes'."""
    own = [line for rule in RULES for line in rule(run)] + _notes(run)
    own = [line[:1].upper() + line[1:].replace("….", "…") for line in own]
    told = [clean_text(line) for line in run.prediction.warnings]
    return list(dict.fromkeys(told + own))


def disagreements(run: Run) -> list[str]:
    """Of the warnings, those on the published two probes against their calibrated form and
    against the two that ask what the prompt says."""
    return [*_disentanglement(run), *_what_is_said(run)]


def _names(run: Run, specs: list[str]) -> str:
    return listing(run.brief.get(spec, clean_text(spec)) for spec in specs)


def _overlap(run: Run) -> Iterator[str]:
    pairs, _ = split_pairs(run)
    if pairs and not any(p.distinguishable for p in pairs):
        yield (
            "No two candidates can be told apart: the order among them is a guess, and more "
            "queries are needed to better it."
        )


def _controls(run: Run) -> Iterator[str]:
    """Candidates not clear of a control: by the paired test, else by their intervals."""
    beats = {(p.a, p.b): p.distinguishable and p.difference > 0 for p in run.prediction.pairs}
    empty: dict[tuple[str, ...], list[str]] = {}  # what is not beaten -> by whom
    others: dict[tuple[str, ...], list[str]] = {}
    for candidate in run.candidates:
        unbeaten: dict[bool, list[str]] = {True: [], False: []}
        for control in run.controls:
            if shuffled_spec(control.spec) not in (None, candidate.spec):
                continue  # another encoder's shuffle is no yardstick for this one
            pair = (candidate.spec, control.spec)
            if not beats.get(pair, not _reaches(control, candidate)):
                own = shuffled_spec(control.spec) is not None
                name = "its own shuffle" if own else _names(run, [control.spec])
                unbeaten[uninformed(control.spec)].append(name)
        for found, names in ((empty, unbeaten[True]), (others, unbeaten[False])):
            if names:
                found.setdefault(tuple(sorted(names)), []).append(candidate.spec)
    for unbeatable, specs in empty.items():
        yield (
            f"Not clearly above {listing(unbeatable)}, without any information about the prompt, "
            f"so the place in the order says nothing: {_names(run, specs)}."
        )
    for some, specs in others.items():
        which = "control" if len(some) == 1 else "controls"
        yield f"Not clearly above the {which} {listing(some)}: {_names(run, specs)}."


def _reaches(control: Ranked, candidate: Ranked) -> bool:
    ends = (control.high, candidate.low)
    return all(is_number(x) for x in ends) and control.high >= candidate.low


def _flips(run: Run) -> Iterator[str]:
    clear = [v for v in run.prediction.sensitivity if v.clear_flips]
    some = [v for v in run.prediction.sensitivity if v.flips and not v.clear_flips]
    of = len(run.prediction.sensitivity)
    if clear:
        a, b = clear[0].clear_flips[0]
        yield (
            f"The order depends on how tokens are read: in {len(clear)} of {of} combinations of "
            f"layer and pooling a pair of candidates stands clearly the other way round (for "
            f"example {_names(run, [b])} above {_names(run, [a])} with layer {clear[0].layer}, "
            f"pooling {clear[0].pooling})."
        )
    if some:
        yield (
            f"In {len(some)} of {of} combinations of layer and pooling candidates change places "
            "within their intervals."
        )


def _truncation(run: Run) -> Iterator[str]:
    cut: dict[str, float] = {}
    for row in run.candidates:
        overall = run.score(row.spec, "diagnostics", "truncation")
        share = overall["value"] if overall else 0.0
        # The probe's own count, since captions, which always fit, dilute the overall one.
        every = run.score(row.spec, "ablation", "published")
        whole = run.score(row.spec, "ablation", "published/untruncated")
        if every and whole and every.get("n"):
            share = max(share, 1 - whole["n"] / every["n"])
        if share > TRUNCATION:
            cut[row.spec] = share
    if cut:
        shares_text = listing(f"{_names(run, [s])} {v:.0%}" for s, v in cut.items())
        yield (
            f"Prompts do not fit and are cut off ({shares_text}). What is cut off cannot be "
            "missed, so the ablation scores flatter these encoders; see the scores without "
            "truncated prompts."
        )


def _anisotropy(run: Run) -> Iterator[str]:
    values = {r.spec: run.score(r.spec, "diagnostics", "anisotropy") for r in run.candidates}
    for row in run.candidates:  # the ablation's baseline says the same of long prompts
        values[row.spec] = values[row.spec] or run.score(row.spec, "ablation", "baseline")
    high = {s: e["value"] for s, e in values.items() if e and e["value"] > ANISOTROPY}
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
    candidates = [row.spec for row in run.candidates if row.spec in both]
    if constant and candidates:
        beaten = [s for s in candidates if both[s][0]["value"] < constant[0]["value"]]
        yield (
            f"An encoder that ignores its prompt gets {number(constant[0]['value'])} on the "
            f"published disentanglement, more than {len(beaten)} of "
            f"{count_noun(len(candidates), 'candidate')}; its calibrated score is "
            f"{number(constant[1]['value'])}."
        )
    contrary = [
        (a, b)
        for i, a in enumerate(candidates)
        for b in candidates[i + 1 :]
        if _clear(both[a][0], both[b][0]) * _clear(both[a][1], both[b][1]) < 0
    ]
    if contrary:
        a, b = contrary[0]
        if _clear(both[a][0], both[b][0]) < 0:
            a, b = b, a
        first, second = _names(run, [a]), _names(run, [b])
        yield (
            f"Published and calibrated disentanglement contradict each other clearly on "
            ""
            f"{count_noun(len(contrary), 'pair')} of candidates: {first} is above {second} as "
            f"published ({format_score(both[a][0])} and {format_score(both[b][0])}), and below it "
            f"once calibrated ({format_score(both[a][1])} and {format_score(both[b][1])})."
        )


def _clear(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    """1 where a's interval lies above b's, -1 where below, 0 where they meet."""
    ends: list[Any] = [x.get(end) for x in (a, b) for end in ("low", "high")]
    if not all(is_number(x) for x in ends):
        return 0
    return int(ends[0] > ends[3]) - int(ends[1] < ends[2])


PUBLISHED = (("retrieval", "published@{k}"), ("ablation", "published"))
ASKING = (("minimal-pairs", "scaled"), ("decodability", "tokens"))


def _what_is_said(run: Run) -> Iterator[str]:
    """The published two probes against the two that ask what the prompt says: candidates that
    stand clearly the other way round, and controls that a published score puts above candidates."""
    for probe, score_name in PUBLISHED:
        metric = score_name.format(k=run.k)
        for other, theirs in ASKING:
            both = {
                row.spec: (run.score(row.spec, probe, metric), run.score(row.spec, other, theirs))
                for row in run.candidates
            }
            known = {s: (a, b) for s, (a, b) in both.items() if a and b}
            pairs = [
                (s, t)
                for s in known
                for t in known
                if _clear(known[s][0], known[t][0]) > 0 > _clear(known[s][1], known[t][1])
            ]
            if len(known) < 2:
                continue
            count = len(known) * (len(known) - 1) // 2
            if not pairs:
                yield (
                    f"On no pair of candidates does {other} clearly contradict the published "
                    f"{probe} score."
                )
                continue
            widest = max(pairs, key=lambda p: known[p[1]][1]["value"] - known[p[0]][1]["value"])
            first, second = (_names(run, [spec]) for spec in widest)
            (a, x), (b, y) = (known[spec] for spec in widest)
            yield (
                f"The published {probe} score and {other} disagree clearly on {len(pairs)} of "
                ""
                f"{count:,} pairs of candidates: for example {first} is above {second} by "
                f"{metric} ({format_score(a)} and {format_score(b)}), and below it by {other} "
                f"{theirs} ({format_score(x)} and {format_score(y)})."
            )


def _saturated(run: Run) -> Iterator[str]:
    full = [f"{r.probe} {r.score}" for r in run.prediction.rivals if r.saturated]
    if full:
        one = len(full) == 1
        yield f"{listing(full)} {'is' if one else 'are'} saturated: most encoders reach the top, so {'its order is' if one else 'their orders are'} noise."  # noqa: E501


def _unscored(run: Run) -> Iterator[str]:
    worst: dict[str, int] = {}
    for row in run.prediction.order:
        if row.unscored:
            worst[row.spec] = row.unscored
    if worst:
        most = max(worst.values())
        who = "every encoder" if len(worst) == len(run.prediction.order) else _names(run, [*worst])
        yield (
            f"Up to {count_noun(most, 'query')} could not be scored for {who}; they are left out "
            "of the scores and counted as unscored, not as zero."
        )


def failure(entry: Any) -> tuple[str, str]:
    """Name and reason of an encoder that could not be measured."""
    name = str(entry.get("name") or entry.get("spec") or "an encoder")
    told = entry.get("error") or entry.get("reason") or entry.get("message")
    return clean_text(name), clean_text(str(told or "no reason was recorded"))


def _comparable(run: Run) -> Iterator[str]:
    if not any(published_for(row.spec) for row in run.candidates):
        return
    paper = [  # what the paper does say about its setting
        ("train2017" in str(run.prediction.data), "COCO train2017"),
        ("dinov3" in run.reencoder.lower(), "images re-encoded with DINOv3"),
        (max((r.n for r in run.candidates), default=0) >= 1000, "1,000 queries"),
    ]
    missing = [name for there, name in paper if not there]
    if missing:
        yield (
            f"The published discriminability cannot be compared with ours directly: the paper has "
            f"{listing(missing)}, this run has not."
        )


def _licenses(run: Run) -> Iterator[str]:
    unknown = [
        r.spec for r in run.candidates if run.cost(r.spec).get("license") in (None, "", "unknown")
    ]
    if unknown:
        yield f"The license of {_names(run, unknown)} is unknown: look it up before training on it."


def _dirty(run: Run) -> Iterator[str]:
    commits = {str(r.provenance.get("commit", "unknown")) for r in run.records}
    if any(r.provenance.get("dirty") for r in run.records):
        yield "Some records were made by code with uncommitted changes."
    if len(commits) > 1:
        yield f"Records were made by {len(commits)} different commits."


def _notes(run: Run) -> list[str]:
    """The probes' own notes, once each: notes that differ only in numbers are told for the
    first encoder, and the others named."""
    about: dict[str, dict[str, None]] = {}
    told: dict[str, str] = {}
    for record in run.records:
        if record.variant:
            continue
        for note in record.notes:
            line = f"{clean_text(record.probe['name'])}: {clean_text(note).rstrip('.')}"
            kind = re.sub(r"\d+", "#", line)
            told.setdefault(kind, line)
            spec = str(record.card.get("spec", record.name))
            about.setdefault(kind, {})[spec] = None
            if line != told[kind]:
                about[kind]["differs"] = None
    everyone = {row.spec for row in run.prediction.order}
    lines = []
    for kind, line in told.items():
        differs = about[kind].pop("differs", 0) is None
        first, *rest = about[kind]
        if differs:
            others = "all others" if everyone <= about[kind].keys() else _names(run, rest)
            lines.append(f"{line} ({_names(run, [first])}; likewise, by other numbers, {others}).")
        elif everyone <= about[kind].keys():
            lines.append(f"{line}.")
        else:
            lines.append(f"{line} ({_names(run, [first, *rest])}).")
    return lines


def split_pairs(run: Run) -> tuple[list[PairedDifference], list[PairedDifference]]:
    """Pairs of candidates, and pairs of a candidate with a control."""
    control = {row.spec for row in run.controls}
    among = [p for p in run.prediction.pairs if not {p.a, p.b} & control]
    return among, [p for p in run.prediction.pairs if {p.a, p.b} & control]


RULES: tuple[Callable[[Run], Iterator[str]], ...] = (
    _overlap,
    _controls,
    _flips,
    _truncation,
    _anisotropy,
    _disentanglement,
    _what_is_said,
    _saturated,
    _unscored,
    _comparable,
    _licenses,
    _dirty,
)


# ---------------------------------------------------------------------------- definitions


def definition(run: Run) -> list[tuple[str, str]]:
    """How each score comes about, as term and explanation; only of probes that ran."""
    by = clean_text(run.reencoder) or "the re-encoder"
    rule = clean_text(str(run.prediction.rule.get("text") or "")).rstrip(".")
    rule = rule[:1].upper() + rule[1:]
    found = [("Primary rule", f"{rule}. Nothing else is averaged in.")] if rule else []
    if "retrieval" in run.probes:
        found += [
            (
                "Retrieval (discriminability)",
                "A query's caption is encoded and its tokens pooled to one vector; the captions of "
                "other images are ordered by cosine with it. The query's own image is excluded, "
                "since it would score 1, and equal cosines are put in a random order, so an "
                "encoder that ignores its prompt retrieves at random.",
            ),
            (
                "published@k",
                f"The images of the k nearest captions, re-encoded by {by}, and their mean cosine "
                "with the query's own image. One caption of each image is the gallery.",
            ),
            (
                "floor, ceiling@k, scaled@k",
                "The same mean for random images, and for the re-encoder's own k nearest images. "
                "scaled@k = (published − floor) / (ceiling − floor): 0 is chance, 1 as good as "
                "seeing the images.",
            ),
            (
                "recall@k",
                "Share of queries that have another caption of their own image among the k "
                "nearest of all captions. Needs no images.",
            ),
        ]
    if "ablation" in run.probes:
        found += [
            (
                "Ablation (disentanglement)",
                "Half of a long prompt's words are removed at random, and both versions compared "
                "by cosine: 'published'. The baseline is the mean cosine of a shortened prompt "
                "with all other prompts; calibrated = (published − baseline) / (1 − baseline), "
                "and 0 where that is 0/0, as for an encoder that ignores its prompt.",
            ),
            (
                "identification, monotonicity",
                "How often the shortened prompt is nearest to its own original among all "
                "prompts, also among distractors with one word swapped; and whether distance "
                "grows with what is removed (rank correlation for each prompt).",
            ),
            (
                "centered, whitened, untruncated",
                "The same after subtracting a mean or whitening, fitted on other prompts; and over "
                "prompts that were not cut off.",
            ),
        ]
    if "minimal-pairs" in run.probes:
        found.append(
            (
                "Minimal pairs",
                "How often a paraphrase is nearer to a prompt than a swap told in the same "
                "wording: colors, counts or order exchanged (the words stay the same), or color, "
                "count or relation replaced. Ties count a half. Scaled: 0 is chance, as for an "
                "encoder that ignores its prompt, 1 always; the mean over the six kinds. 'hard' "
                "takes the swap in the prompt's own wording.",
            )
        )
    if "decodability" in run.probes:
        found += [
            (
                "Decodability",
                "A ridge regression is fitted on captions of some scenes and asked on captions of "
                "others which objects, colors, count and relation they tell, and which color goes "
                "with which object. 0 is a read-out of nothing (what is most frequent), 1 one of "
                "the true attributes; the mean over the five. Once from the pooled vector, once "
                "from the tokens (their mean, maximum and mean random features).",
            ),
            (
                "image",
                "Share of the variance of re-encoded images that the same read-out predicts from "
                "their captions, on images it was not fitted on (R²; below 0 is worse than the "
                "mean image).",
            ),
        ]
    found.append(
        (
            "Intervals and tests",
            "95 % percentile bootstrap over images or prompts, the same draws for all encoders, so "
            "differences are paired; ranks are counted anew in each draw. p-values come from the "
            "bootstrap's standard error of a difference, two-sided, corrected by Holm; two "
            "encoders are distinguishable below .05.",
        )
    )
    found.append(
        (
            "Controls",
            "Encoders that know nothing, or little, of what a prompt means: they have no rank "
            "and are never advised. A shuffle is an encoder's own embeddings, dealt out to the "
            "wrong prompts.",
        )
    )
    return found
