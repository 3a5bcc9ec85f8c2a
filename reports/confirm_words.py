"""The result of a confirmation in sentences that claim no more than its rules allow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from encbench.progress import format_duration
from encbench.records import CellVerdict, ChoiceVerdict, OrderVerdict, Reach
from encbench.sentences import describe_cell, verdict_headline

from .confirmation import Confirmation, metric_title
from .text import (
    clean_text,
    count,
    count_noun,
    format_score,
    interval,
    is_number,
    listing,
    number,
    p_value,
)

CLEAR = "confirmed"
NOT = "not confirmed"
OVERTURNED = "overturned by "
OPEN = "can't tell"


@dataclass(frozen=True)
class Statement:
    """One verdict: question, answer, and reason.

    ``kind`` is 'yes', 'no' or 'open'; ``more`` are sentences that put it into proportion.
    """

    title: str
    answer: str
    kind: str
    why: str
    more: tuple[str, ...] = ()


def headline(c: Confirmation) -> str:
    """Both verdicts in two sentences: the headline of the report."""
    return verdict_headline(c.verdict, c.name)


def _verdicts(c: Confirmation) -> tuple[str, str]:
    """On the choice, and on the rule ('' = none)."""
    return c.verdict.choice.verdict, c.verdict.rule.verdict if c.candidates else ""


def _winner(c: Confirmation) -> str:
    winner = c.verdict.choice.winner
    return c.name(winner) if winner else "the encoder that was predicted first"


def confirm_summary(c: Confirmation) -> str:
    """What was trained and scored, in one line."""
    steps = c.verdict.plan.steps or c.steps
    seeds = len(c.verdict.plan.seeds)
    times = {1: "once", 2: "twice"}.get(seeds, f"{seeds} times")
    each = f", each trained {times}" if seeds else ""
    return (
        f"Confirmation: {count_noun(len(c.candidates), 'encoder')} and "
        f"{count_noun(len(c.controls), 'control')}{each} on equal budgets, scored by {c.metric} at "
        f"{listing(map(str, steps), 9)} sampling steps; the prediction was written before."
    )


def statements(c: Confirmation) -> list[Statement]:
    """The two verdicts, the best model against the constant control, and the second question."""
    second = [_second(c, c.verdict.second)] if c.verdict.second and c.candidates else []
    return [_choice(c), _rule(c), _control(c), *second]


def _second(c: Confirmation, asked: CellVerdict) -> Statement:
    """The second question: both verdicts in one statement."""
    winner = c.name(asked.choice.winner)
    order = {CLEAR: "confirmed", NOT: "not confirmed"}.get(asked.rule.verdict, "not settled")
    more = [
        f"The predicted order is {order}: {c.rename(asked.rule.why).rstrip('.')}.",
        f"Scores are {describe_cell(asked.cell)}; the order is that of the rule "
        f"{clean_text(asked.ranked_by)}.",
    ]
    if asked.control is not None and asked.control.low <= 0:
        more.append(
            "The best of these models is not clearly above the constant here, so their order "
            "means little."
        )
    title = f"In other words: is {winner}, predicted first, better than each rival?"
    return _statement(c, title, asked.choice.verdict, asked.choice, more)


def _statement(
    c: Confirmation, title: str, verdict: str, source: ChoiceVerdict | OrderVerdict, more: list[str]
) -> Statement:
    kind = "no" if verdict == NOT or verdict.startswith(OVERTURNED) else "open"
    why = c.rename(source.why).rstrip(".")
    first = why[:1] if why.startswith("p =") else why[:1].upper()  # a p-value stays small
    return Statement(
        title,
        f"not settled ({OPEN})" if verdict == OPEN else c.rename(verdict),
        "yes" if verdict == CLEAR else kind,
        f"{first}{why[1:]}." if why else "",
        tuple(more),
    )


def _choice(c: Confirmation) -> Statement:
    answer, rule = _verdicts(c)
    more = []
    place = c.places.get(c.winner.spec) if c.winner else None
    if c.winner and c.best and place:
        own, top = (number(c.value(row)) for row in (c.winner, c.best))
        name, of = c.name(c.winner.spec), len(c.places)
        if of == 1:
            more.append(f"{name} was the only encoder that was trained; it scored {own}.")
        elif place == 1:
            more.append(f"{name} also came first of {of}, with {own}.")
        else:
            more.append(
                f"{name} came {_ordinal(place)} of {of} with {own}; the best was "
                f"{c.name(c.best.spec)} with {top}."
            )
    if answer == CLEAR and rule not in (CLEAR, ""):
        more.append("This holds for these encoders; it does not make the rule behind it right.")
    title = f"The choice: is {_winner(c)}, predicted first, better than each rival?"
    return _statement(c, title, answer, c.verdict.choice, more)


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def _rule(c: Confirmation) -> Statement:
    rule = c.verdict.rule
    title = "The rule: does the predicted order hold over encoders?"
    if not c.candidates:
        return Statement(title, "no verdict", "open", "No encoder's training came out.")
    answer = _verdicts(c)[1] or OPEN
    more = []
    statistic, p = rule.statistic, p_value(rule.p)
    if is_number(statistic.value):
        exact = "exact" if rule.exact else "from sampled orders"
        more.append(
            f"Rank correlation within stages of training {format_score(statistic, 2)}, one-sided "
            f"p {p if p.startswith('<') else f'= {p}'}, {exact}."
        )
    elif answer == OPEN:
        more.append("No two encoders share a stage of training, so there is no order to compare.")
    ceiling = rule.seed_correlation
    if is_number(ceiling):
        more.append(
            f"The same encoders' scores correlate with {number(ceiling, 2)} between seeds: no "
            "prediction can be expected to do much better."
        )
    possible = list(c.verdict.reach.rule) if c.verdict.reach else []
    if possible == [OPEN]:
        more.append("The plan could not settle it: it has too few encoders or seeds.")
    elif possible and CLEAR not in possible and answer != CLEAR:
        more.append(
            "By its own estimate before training, the plan was too small to confirm the rule."
        )
    return _statement(c, title, answer, rule, more)


def _control(c: Confirmation) -> Statement:
    title = "Does the best trained encoder beat a constant, which knows nothing of the prompt?"
    control = c.verdict.control
    if control is None:
        why = "The constant control was not trained, so nothing says what is chance."
        return Statement(title, "not tested", "open", why)
    difference, low = control.difference, control.low
    clear = low > 0
    side = "above" if difference >= 0 else "below"
    why = (
        f"{c.name(control.best)} is {number(abs(difference))} {side} the control "
        f"{c.name(control.control)}; paired difference {number(difference)} "
        f"{interval(low, control.high)}."
    )
    more = []
    if len(c.candidates) > 1:
        more.append("It was picked as the best afterwards, which flatters it a little.")
    if not clear:
        more.append("These models hardly follow their prompts, so their order means little.")
    answer, kind = ("yes", "yes") if clear else ("not clearly", "open")
    return Statement(title, answer, kind, why, tuple(more))


# ------------------------------------------------------------------------------ warnings


def confirm_warnings(c: Confirmation) -> list[str]:
    """Warnings about the verdict; the verdict's own come first."""
    return list(dict.fromkeys([*map(c.rename, c.verdict.warnings), *_more_warnings(c)]))


def _more_warnings(c: Confirmation) -> Iterator[str]:
    if not c.same_prediction:
        yield (
            "This verdict is on an earlier prediction (sha256 "
            f"{clean_text(c.verdict.prediction[:12])}…), not on the ranking below: the encoders "
            "were ranked again since."
        )
    if dropped := c.verdict.plan.gave_up:
        yield f"To keep its budget, the plan dropped {listing(map(clean_text, dropped), 9)}."
    if len(c.stages) > 1:
        yield (
            f"The encoders are of {len(c.stages)} stages of training "
            f"({listing(map(clean_text, sorted(c.stages)), 9)}): the verdict on the order compares "
            "only encoders of one stage."
        )
    scores = [value for row in c.candidates if (value := c.value(row)) is not None]
    for row in c.controls:
        value = c.value(row)
        below = sum(other <= value for other in scores) if value is not None else 0
        if below:
            yield (
                f"The control {c.name(row.spec)} scored {number(value)}, no less than "
                f"{below} of {count_noun(len(scores), 'trained encoder')}."
            )
    missing = [row.spec for row in c.rows if c.entry(row) is None]
    if missing:
        yield f"Without a score in the verdict's cell: {listing(map(c.name, missing))}."
    if c.verdict.provenance.get("dirty"):
        yield "The verdict was made by code with uncommitted changes."
    devices = c.verdict.provenance.get("trained_on") or []
    if len(devices) > 1:
        yield f"Trainings ran on different devices: {listing(map(clean_text, devices))}."


def failed_trainings(c: Confirmation) -> list[tuple[str, str]]:
    """Trainings that failed, with their reasons."""
    failed = []
    for row in c.verdict.failed:
        seed = f", seed {row.seed}" if row.seed is not None else ""
        failed.append((f"{c.name(row.spec)}{seed}", c.rename(row.error or "no reason given")))
    return failed


# ------------------------------------------------------------------------- plan and rules


def rules(c: Confirmation) -> list[tuple[str, str]]:
    """The rules of both verdicts, word for word as they were fixed."""
    titles = {
        "questions": "The questions",
        "choice": "The choice",
        "rule": "The rule",
        "regret": "Top-1 regret",
    }
    return [
        (titles.get(name, clean_text(name)), clean_text(words))
        for name, words in c.verdict.rules.items()
    ]


def plan_rows(c: Confirmation) -> list[tuple[str, str]]:
    """The plan that was fixed before training, as label and value."""
    p = c.verdict.plan
    train = p.train
    names: dict[bool, list[str]] = {False: [], True: []}
    for row in p.encoders:
        names[row.control].append(c.name(row.spec))
    dropped = listing(map(clean_text, p.gave_up), 9) or "nothing"
    images = train.get("images")
    side, patch = train.get("side"), train.get("patch")
    data = [
        str(next(filter(None, map(train.get, ("data", "coco", "folder", "world"))), "")),
        f"{count(images)} images" if is_number(images) else "",
        f"{side} px" if side else "",
    ]
    judge = p.detector
    if judge and p.colors not in ("", "none"):
        judge += f", colors by {p.colors}"
    start = "random weights"
    if p.backbone:
        start = f"one backbone ({p.backbone[:20]}…), pretrained on no encoder; a new connector"
    return _facts(
        ("Order by the rule", p.rule),
        ("Second question", f"{p.second}, order by the rule {p.second_rule}" if p.second else ""),
        ("Encoders", listing(names[False], 20)),
        ("Controls", listing(names[True], 20)),
        ("Seeds", listing(map(str, p.seeds), 9)),
        ("Images trained on", ", ".join(filter(None, data))),
        ("Network", f"{train.get('network') or ''}{f', patch {patch}' if patch else ''}"),
        ("Training", _training(train)),
        ("Starts from", start),
        ("Scored", _scoring(c)),
        ("Judge", judge),
        ("Budget", f"{format_duration(p.budget)}; dropped for it: {dropped}" if p.budget else ""),
        ("Expected before training", _reach(c.verdict.reach)),
    )


def _facts(*rows: tuple[str, str]) -> list[tuple[str, str]]:
    """Labels with their values, those without a value left out."""
    return [(clean_text(label), clean_text(value)) for label, value in rows if value]


def _training(train: dict[str, Any]) -> str:
    steps = train.get("steps")
    if not is_number(steps):
        return ""
    batch = f" of {train['batch']} images" if train.get("batch") else ""
    then = f", flow matching first, then {train['objective']}" if train.get("objective") else ""
    return f"{count(steps)} steps{batch}{then}; the same data, order and noise for every encoder"


def _scoring(c: Confirmation) -> str:
    p = c.verdict.plan
    return (
        f"{listing(map(metric_title, c.metrics), 9)}, at most {p.per_task} prompts a task"
        f"{f' of {p.prompts}' if p.prompts else ''}, {count_noun(p.images, 'image')} a prompt, at "
        f"{listing(map(str, p.steps), 9)} sampling steps, the same noise for every encoder"
    )


def _reach(reach: Reach | None) -> str:
    """What the plan could settle, by its own estimate."""
    if reach is None:
        return ""
    return (
        f"{count(reach.prompts)} prompts and {count(reach.images)} images an encoder; smallest p "
        f"{p_value(reach.smallest_p)}; regret known to about ±{number(reach.regret_half_width)}; "
        f"within reach for the choice: {' / '.join(reach.choice)}; within reach for the rule: "
        f"{' / '.join(reach.rule)}"
    )


def verdict_provenance(c: Confirmation) -> list[tuple[str, str]]:
    """The pins of this verdict, as label and value."""
    v, origin = c.verdict, c.verdict.provenance
    commit = origin.get("commit")
    dirty = " with uncommitted changes" if origin.get("dirty") else ""
    packages = origin.get("packages") or {}
    training = [s for row in c.rows for s in row.training_seconds if is_number(s)]
    scoring = [s for row in c.rows for s in row.scoring_seconds if is_number(s)]
    models = (
        f"{len(training)}, {format_duration(sum(training))} of training and "
        f"{format_duration(sum(scoring))} of scoring"
    )
    return _facts(
        (
            "Prediction",
            f"sha256 {v.prediction}{'' if c.same_prediction else ' (not the one below)'}",
        ),
        ("Verdict", f"sha256 {v.hash}"),
        ("Made", v.created),
        ("Seed", str(v.seed)),
        *((f"Data of {name}", str(pin)) for name, pin in v.data.items()),
        ("Trained on", ", ".join(map(str, origin.get("trained_on") or []))),
        ("Models", models if training else ""),
        ("Commit", f"{commit}{dirty}" if commit else ""),
        ("Python", str(origin.get("python") or "")),
        ("Platform", str(origin.get("platform") or "")),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
    )
