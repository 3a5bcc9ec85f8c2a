"""What a confirmation found, in sentences that claim no more than its rules allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .confirm_load import Confirmation
from .text import (
    clean_text,
    count,
    count_noun,
    interval,
    is_number,
    listing,
    number,
    p_value,
    quantity,
)

CLEAR = "confirmed"
NOT = "not confirmed"
OVERTURNED = "overturned by "
OPEN = "can't tell"


@dataclass(frozen=True)
class Statement:
    """One verdict: what was asked, the answer as the rules name it, and why.

    ``kind`` is 'yes', 'no' or 'open'; ``more`` are sentences that put it into proportion.
    """

    title: str
    answer: str
    kind: str
    why: str
    more: tuple[str, ...] = ()


def kind(verdict: str) -> str:
    if verdict == CLEAR:
        return "yes"
    return "no" if verdict == NOT or verdict.startswith(OVERTURNED) else "open"


def headline(c: Confirmation) -> str:
    """Both verdicts in two sentences: what the report says first."""
    if not c.trained:
        return "No encoder was trained, so nothing is confirmed and nothing refuted."
    choice = str(c.verdict.choice.get("verdict") or OPEN)
    winner = _winner(c)
    if choice == CLEAR:
        first = f"The choice of {winner} is confirmed: trained, it beats every rival."
    elif choice.startswith(OVERTURNED):
        rival = c.name(choice.removeprefix(OVERTURNED))
        first = f"The choice of {winner} is overturned: trained, {rival} beats it."
    else:
        first = f"The choice of {winner}: {c.named(choice)}."
    rule = str(c.verdict.rule.get("verdict") or "")
    if rule == CLEAR:
        second = "The predicted order is confirmed."
    elif rule == NOT:
        second = "The predicted order is not confirmed."
    elif rule:
        second = f"The predicted order: {c.named(rule)}."
    else:
        second = "Of the predicted order nothing is said."
    return f"{first} {second}"


def _winner(c: Confirmation) -> str:
    winner = c.verdict.choice.get("winner")
    return c.name(winner) if winner else "an encoder"


def confirm_summary(c: Confirmation) -> str:
    """What was trained and scored, in one line."""
    steps = c.verdict.plan.get("steps") or c.steps
    seeds = len(c.verdict.plan.get("seeds") or [])
    times = {1: "once", 2: "twice"}.get(seeds, f"{seeds} times")
    each = f", each trained {times}" if seeds else ""
    return (
        f"Confirmation: {count_noun(len(c.trained), 'encoder')} and "
        f"{count_noun(len(c.controls), 'control')}{each} on equal budgets, scored by GenEval at "
        f"{listing(map(str, steps), 9)} sampling steps; the prediction was written before."
    )


def statements(c: Confirmation) -> list[Statement]:
    """The two verdicts, and the best model against the constant control."""
    return [_choice(c), _rule(c), _control(c)]


# -------------------------------------------------------------------------------- choice


def _choice(c: Confirmation) -> Statement:
    answer = str(c.verdict.choice.get("verdict") or OPEN)
    more = []
    place = c.places.get(c.winner.spec) if c.winner else None
    if c.winner and c.best and place:
        of = len(c.places)
        own, top = (number(c.value(row)) for row in (c.winner, c.best))
        name = c.name(c.winner.spec)
        if of == 1:
            more.append(f"{name} was the only encoder that was trained; it scored {own}.")
        elif place == 1:
            more.append(f"{name} also came first of {of}, with {own}.")
        else:
            more.append(
                f"{name} came {_ordinal(place)} of {of} with {own}; the best was "
                f"{c.name(c.best.spec)} with {top}."
            )
    if answer == CLEAR and c.verdict.rule.get("verdict") not in (CLEAR, None):
        more.append("This holds for these encoders; it does not make the rule behind it right.")
    title = f"The choice: is {_winner(c)}, predicted first, better than each rival?"
    return Statement(title, c.named(answer), kind(answer), _why(c, c.verdict.choice), tuple(more))


def _why(c: Confirmation, verdict: Any) -> str:
    why = c.named(verdict.get("why"))
    first = why[:1] if why.startswith("p =") else why[:1].upper()  # a p-value stays small
    return f"{first}{why[1:].rstrip('.')}." if why else ""


def _ordinal(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


# ---------------------------------------------------------------------------------- rule


def _rule(c: Confirmation) -> Statement:
    rule = c.verdict.rule
    title = "The rule: does the predicted order hold over encoders?"
    if not rule:
        return Statement(title, "no verdict", "open", "No encoder's training came out.")
    answer = str(rule.get("verdict") or OPEN)
    more = []
    statistic, p = rule.get("statistic") or {}, rule.get("p")
    if is_number(statistic.get("value")):
        exact = "exact" if rule.get("exact") else "from sampled orders"
        more.append(
            f"Rank correlation within stages of training {number(statistic['value'], 2)} "
            f"{interval(statistic.get('low'), statistic.get('high'), 2)}".rstrip()
            + f", one-sided p {_p(p)}, {exact}."
        )
    elif answer == OPEN:
        more.append("No two encoders share a stage of training, so there is no order to compare.")
    ceiling = rule.get("seed_correlation")
    if is_number(ceiling):
        more.append(
            f"The same encoders' scores correlate with {number(ceiling, 2)} between seeds: no "
            "prediction can be expected to do much better."
        )
    reach: Any = c.verdict.reach or {}
    possible = [str(v) for v in reach.get("rule") or []]
    if possible == [OPEN]:
        more.append("The plan could not have told: it has too few encoders or seeds.")
    elif possible and CLEAR not in possible and answer != CLEAR:
        more.append(
            "By its own estimate before training, the plan was too small to confirm the rule."
        )
    return Statement(title, c.named(answer), kind(answer), _why(c, rule), tuple(more))


def _p(p: Any) -> str:
    shown = p_value(p)
    return shown if shown.startswith("<") else f"= {shown}"


# ------------------------------------------------------------------------------- control


def _control(c: Confirmation) -> Statement:
    title = "Does the best trained encoder beat a constant, which knows nothing of the prompt?"
    control: Any = c.verdict.control or {}
    difference, low, high = (control.get(k) for k in ("difference", "low", "high"))
    if not is_number(difference):
        why = "The constant control was not trained, so nothing says what is chance."
        return Statement(title, "not tested", "open", why)
    clear = is_number(low) and low > 0
    why = (
        f"{c.name(control.get('best'))} is {number(abs(difference))} "
        f"{'above' if difference >= 0 else 'below'} the control {c.name(control.get('control'))}; "
        f"paired difference {number(difference)} {interval(low, high)}".rstrip()
        + "."
    )
    more = []
    if len(c.trained) > 1:
        more.append("It was picked as the best afterwards, which flatters it a little.")
    if not clear:
        more.append("These models hardly follow their prompts, so their order means little.")
    return Statement(title, "yes" if clear else "not clearly", "yes" if clear else "open", why,
                     tuple(more))  # fmt: skip


# ------------------------------------------------------------------------------ warnings


def confirm_warnings(c: Confirmation) -> list[str]:
    """What a reader must know before believing the verdict, the verdict's own first."""
    told = [c.named(line) for line in c.verdict.warnings]
    return list(dict.fromkeys(told + list(_more(c))))


def _more(c: Confirmation) -> Iterator[str]:
    if not c.same_prediction:
        yield (
            "This verdict is on an earlier prediction (sha256 "
            f"{clean_text(c.verdict.prediction[:12])}…), not on the ranking below: the encoders "
            "were ranked again since."
        )
    gave_up = c.verdict.plan.get("gave_up") or []
    if gave_up:
        yield f"To keep its budget, the plan gave up {listing(map(clean_text, gave_up), 9)}."
    stages = {row.stage for row in c.trained}
    if len(stages) > 1:
        yield (
            f"The encoders are of {len(stages)} stages of training ({listing(sorted(stages), 9)}): "
            "the verdict on the order compares only encoders of one stage."
        )
    scored = [value for row in c.trained if (value := c.value(row)) is not None]
    for row in c.controls:
        value = c.value(row)
        below = sum(other <= value for other in scored) if value is not None else 0
        if below:
            yield (
                f"The control {c.name(row.spec)} scored {number(value)}, no less than "
                f"{below} of {count_noun(len(scored), 'trained encoder')}."
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
    found = []
    for row in c.verdict.failed:
        seed = f", seed {row['seed']}" if row.get("seed") is not None else ""
        reason = str(row.get("error") or "no reason was recorded")
        found.append((f"{c.name(row.get('spec'))}{seed}", c.named(reason)))
    return found


# ------------------------------------------------------------------------- plan and rules


def rules(c: Confirmation) -> list[tuple[str, str]]:
    """The rules of both verdicts, word for word as they were fixed."""
    titles = {"choice": "The choice", "rule": "The rule", "regret": "Top-1 regret"}
    return [
        (titles.get(name, clean_text(name)), clean_text(str(rule)))
        for name, rule in c.verdict.rules.items()
    ]


def plan_rows(c: Confirmation) -> list[tuple[str, str]]:
    """What was fixed before training, as label and value."""
    p = c.verdict.plan
    train: Any = p.train
    reach: Any = c.verdict.reach or {}
    entries = p.encoders
    named = {
        control: listing(
            (c.name(row.get("spec")) for row in entries if bool(row.get("control")) == control), 20
        )
        for control in (False, True)
    }
    budget = p.get("budget")
    gave_up = listing(map(clean_text, p.get("gave_up") or []), 9) or "nothing"
    rows = [
        ("Encoders", named[False]),
        ("Controls", named[True]),
        ("Seeds", listing(map(str, p.get("seeds") or []), 9)),
        ("Images trained on", _data(train)),
        ("Network", _network(train)),
        ("Training", _training(train)),
        ("Starts from", _start(p)),
        ("Scored", _scored(p)),
        ("Judge", _judge(p)),
        ("Budget", f"{_duration(budget)}; it gave up {gave_up}" if is_number(budget) else ""),
        ("Expected before training", _reach(reach)),
    ]
    return [(label, clean_text(value)) for label, value in rows if value]


def _data(train: Mapping[str, Any]) -> str:
    source = train.get("coco") or train.get("folder") or train.get("world")
    side, images = train.get("side"), train.get("images")
    told = [str(source or "")]
    told += [f"{count(images)} images"] if is_number(images) else []
    told += [f"{side} px"] if side else []
    return ", ".join(filter(None, told))


def _network(train: Mapping[str, Any]) -> str:
    patch = f", patch {train['patch']}" if train.get("patch") else ""
    return f"{train['network']}{patch}" if train.get("network") else ""


def _training(train: Mapping[str, Any]) -> str:
    steps = train.get("steps")
    if not is_number(steps):
        return ""
    batch = f" of {train['batch']} images" if train.get("batch") else ""
    then = f", flow matching first, then {train['objective']}" if train.get("objective") else ""
    return f"{count(steps)} steps{batch}{then}; the same data, order and noise for every encoder"


def _start(p: Any) -> str:
    if "backbone" not in p:
        return ""
    if not p["backbone"]:
        return "random weights"
    return f"one backbone ({str(p['backbone'])[:20]}…), pretrained on no encoder; a new connector"


def _scored(p: Any) -> str:
    if not is_number(p.get("per_task")):
        return ""
    steps = listing(map(str, p.get("steps") or []), 9)
    source = f" of {p['prompts']}" if p.get("prompts") else ""
    return (
        f"GenEval, at most {p['per_task']} prompts a task{source}, "
        f"{count_noun(int(p.get('images') or 1), 'image')} a prompt, at {steps} sampling "
        "steps, the "
        "same noise for every encoder"
    )


def _judge(p: Any) -> str:
    colors = p.get("colors")
    named = f", colors by {colors}" if colors and colors != "none" else ""
    return f"{p['detector']}{named}" if p.get("detector") else ""


def _reach(reach: Any) -> str:
    told = []
    if is_number(reach.get("prompts")):
        told.append(
            f"{count(reach['prompts'])} prompts and {count(reach.get('images'))} images an encoder"
        )
    if is_number(reach.get("smallest_p")):
        told.append(f"smallest p {p_value(reach['smallest_p'])}")
    if is_number(reach.get("regret_half_width")):
        told.append(f"regret known to about ±{number(reach['regret_half_width'])}")
    for name in ("choice", "rule"):
        if reach.get(name):
            told.append(f"within reach for the {name}: {' / '.join(map(str, reach[name]))}")
    return "; ".join(told)


def provenance_rows(c: Confirmation) -> list[tuple[str, str]]:
    """What pins this verdict, as label and value."""
    v, origin = c.verdict, c.verdict.provenance
    dirty = " with uncommitted changes" if origin.get("dirty") else ""
    commit = origin.get("commit")
    packages = origin.get("packages") or {}
    training = [s for row in c.rows for s in row.training_seconds if is_number(s)]
    scoring = [s for row in c.rows for s in row.scoring_seconds if is_number(s)]
    is_held = "" if c.same_prediction else " (not the one below)"
    rows = [
        ("Prediction", f"sha256 {v.prediction}{is_held}"),
        ("Verdict", f"sha256 {v.hash}"),
        ("Made", v.created),
        ("Seed", str(v.seed)),
        *((f"Data of {name}", str(pin)) for name, pin in v.data.items()),
        ("Trained on", ", ".join(map(str, origin.get("trained_on") or []))),
        ("Models", f"{len(training)}, {_duration(sum(training))} of training and "
                   f"{_duration(sum(scoring))} of scoring" if training else ""),
        ("Commit", f"{commit}{dirty}" if commit else ""),
        ("Python", str(origin.get("python") or "")),
        ("Platform", str(origin.get("platform") or "")),
        ("Packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
    ]  # fmt: skip
    return [(label, clean_text(value)) for label, value in rows if value]


def _duration(seconds: float | int) -> str:
    """'40 s', '12 min' or '1 h 05 min'."""
    if seconds < 90:
        return f"{quantity(round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
