"""Figures with a small plot for each encoder: prompt ablation, histograms of similarity, scores
of trained models by sampling steps and through training; and scores by stage of training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from encbench.files import slug
from encbench.records import Ranked, TrainedEncoder

from . import text
from .confirmation import Confirmation, Group
from .figures import (
    BLUE,
    FAINT,
    GRAY,
    GREEN,
    INK,
    ORANGE,
    PALE,
    SKY,
    WIDTH,
    Drawing,
    PlotStyle,
    ReportFigure,
    add_axes,
    canvas,
    draw_point,
    finish,
    ink,
    interval_ends,
    legend,
    small_plots,
    spread,
)
from .load import Run
from .svg import hover, hover_curve

Curve = Mapping[str, Any]
Line = tuple[list[float], list[float]]


def rows_with_series(run: Run, probe: str, name: str, kind: type) -> list[tuple[Ranked, Any]]:
    """The encoders that have a series of this kind, in the order of small plots."""
    pairs = []
    for row in run.rows:
        record = run.record(row.spec, probe)
        series = record.series.get(name) if record else None
        if series and isinstance(series, kind):
            pairs.append((row, series))
    return pairs


def curve_of(curves: Sequence[Any], unit: str, place: str) -> Curve | None:
    """The ablation curve of what was removed ('words', 'sentences') and where."""
    for curve in curves:
        if isinstance(curve, Mapping) and (curve.get("unit"), curve.get("place")) == (unit, place):
            shares = curve.get("shares")
            if shares and isinstance(shares, list) and all(map(text.is_number, shares)):
                return curve
    return None


def curve_values(curve: Curve, name: str) -> list[float]:
    """A column of a curve as floats, NaN where it has nothing."""
    column = curve.get(name)
    column = list(column) if isinstance(column, list) else []
    column += [None] * (len(curve["shares"]) - len(column))
    return [float(x) if text.is_number(x) else float("nan") for x in column[: len(curve["shares"])]]


# ------------------------------------------------------------------------------- ablation

ABLATION_KEYS = {
    "calibrated": PlotStyle(GREEN, line="-", width=1.6),
    "cosine": PlotStyle(BLUE, line="--", width=1.1),
    "baseline": PlotStyle(GRAY, line=":", width=0.9),
}
"""Columns of an ablation curve, with their looks."""


def draw_ablation(run: Run) -> Drawing | str:
    """Similarity to the shortened prompt over the share of words removed."""
    pairs = rows_with_series(run, "ablation", "curves", list)
    lines = {row.spec: curve_of(curves, "words", "anywhere") for row, curves in pairs}
    rows = [row for row, _ in pairs if lines[row.spec]]
    if not rows:
        return "No encoder has ablation curves."
    names = ("calibrated", "cosine, as published", "random pairs")
    keys = dict(zip(names, ABLATION_KEYS.values(), strict=True))
    with small_plots(rows, 1.05, keys | {"calibrated, other candidates": FAINT}) as (figure, plots):
        calibrated = {r.spec: _column(lines[r.spec], "calibrated") for r in rows}
        for axes, row in zip(plots, rows, strict=True):
            _draw_others(axes, rows, calibrated, row)
            shares, low = _column(lines[row.spec], "low")
            axes.fill_between(
                shares, low, _column(lines[row.spec], "high")[1], color=BLUE, alpha=0.2, linewidth=0
            )
            for label, (name, style) in reversed([*zip(names, ABLATION_KEYS.items(), strict=True)]):
                line = _column(lines[row.spec], name)
                shown = [100 * share for share in line[0]]
                words = hover_curve(row.name, shown, line[1], " % removed", label)
                axes.plot(*line, **style.options, **words)
            axes.set_xlim(0, 1)
            axes.set_ylim(-0.05, 1.05)
            axes.set_xticks([0.1, 0.5, 0.9], ["10 %", "50 %", "90 %"])
            axes.set_yticks([0, 0.5, 1])
        return finish(
            figure,
            "Similarity of a prompt to itself shortened, over the share of words removed anywhere. "
            "The published score is the dashed line (band: 95 % interval); calibrated, it is what "
            "lies above random pairs. An encoder that stays high on the right does not notice "
            "that the prompt is gone."
            + (" Shuffles are left out here." if len(run.rows) < len(run.prediction.order) else ""),
            "Small line plots, calibrated similarity at the largest share removed: "
            + "; ".join(
                f"{text.clean_text(row.name)} {text.number(calibrated[row.spec][1][-1])}"
                for row in rows
            )
            + ".",
        )


def _column(curve: Curve | None, name: str) -> Line:
    return (list(curve["shares"]), curve_values(curve, name)) if curve else ([], [])


def _draw_others(axes: Axes, rows: Sequence[Any], lines: Mapping[str, Line], own: Any) -> None:
    """The candidates but this one, faint behind it."""
    for row in rows:
        if row is not own and not row.control:
            axes.plot(*lines[row.spec], **FAINT.options, zorder=1, **hover(row.name))


# ----------------------------------------------------------------------------- similarity


def draw_similarities(run: Run) -> list[Drawing] | str:
    """Cosines of texts that belong together and of random texts, for each probe that has them."""
    drawings = []
    for name, probe in run.probes.items():
        pairs = rows_with_series(run, name, "similarity", dict)
        pairs = [(row, series) for row, series in pairs if _is_histogram(series)]
        if pairs:
            drawings.append(_draw_similarity(name, probe.display.similarity, pairs))
    return drawings or "No probe recorded how similar texts are."


def _is_histogram(series: Mapping[str, Any]) -> bool:
    columns = [series.get(name) for name in ("edges", "own", "random")]
    if not all(isinstance(c, list) and all(map(text.is_number, c)) for c in columns):
        return False
    edges, own, random = map(len, columns)  # type: ignore[arg-type]
    return edges - 1 == own == random > 0


def _draw_similarity(
    probe: str, words: tuple[str, str, str], pairs: Sequence[tuple[Ranked, Mapping[str, Any]]]
) -> Drawing:
    what, own, random = map(text.clean_text, words)
    edges = [float(x) for _, series in pairs for x in series["edges"]]
    filled = [
        float(end)
        for _, s in pairs
        for a, b, x, y in zip(s["edges"], s["edges"][1:], s["own"], s["random"], strict=False)
        for end in (a, b)
        if max(x, y) > 0
    ]
    low, high = min(filled or edges), max(filled or edges)
    keys = {own: PlotStyle(BLUE, "s", size=5), random: PlotStyle(GRAY, "s", PALE, 5)}
    with small_plots([row for row, _ in pairs], 0.8, keys) as (figure, plots):
        for axes, (_, series) in zip(plots, pairs, strict=True):
            for name, color in (("random", GRAY), ("own", BLUE)):
                counts = series[name]
                full = [i for i, count in enumerate(counts) if count > 0] or [0, len(counts) - 1]
                first, last = full[0], full[-1] + 1  # empty bins at both sides left out
                top = max(counts) or 1  # by shape: one bin of a constant dwarfs the rest
                height = [x / top for x in counts[first:last]]
                ends = series["edges"][first : last + 1]
                said = hover(own if name == "own" else random, _histogram_words(counts, series))
                axes.stairs(height, ends, fill=True, color=color, alpha=0.35, **said)
                axes.stairs(height, ends, color=color, linewidth=0.9)
            axes.set_xlim(low - 0.02, high + 0.02)
            axes.set_ylim(0, 1.08)
            axes.set_yticks([])
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.spines["left"].set_visible(False)
        return finish(
            figure,
            f"Cosines between {own} (blue) and between {random} (gray), each scaled to its own "
            "peak. Two humps apart are what retrieval needs; where the gray one stands far from 0, "
            "raw cosines cannot be compared with another encoder's.",
            f"Histograms of cosines for {len(pairs)} encoders: {own} against {random}.",
            name=slug(probe).lower(),
            title=f"{what}: similarity of texts that belong together",
        )


def _histogram_words(counts: Sequence[Any], series: Mapping[str, Any]) -> str:
    """'mean cosine 0.42', from the middles of the bins."""
    edges = series["edges"]
    total = sum(counts) or 1
    pairs = zip(counts, edges, edges[1:], strict=False)
    return f"mean cosine {text.number(sum(n * (a + b) / 2 for n, a, b in pairs) / total, 2)}"


# ------------------------------------------------------------------------ stages of training

STAGE_STYLES = [
    PlotStyle(color, marker, size=4, line="-", width=1.1)
    for color, marker in zip((BLUE, GREEN, ORANGE, SKY, INK), "osD^v", strict=True)
]


def stage_share(stage: str) -> float | None:
    """A stage of training as a share: 1 for 'final', .03 for '3pct'; None for anything else."""
    percent = re.fullmatch(r"(\d+(?:\.\d+)?)pct", stage)
    return float(percent[1]) / 100 if percent else 1.0 if stage == "final" else None


def rows_by_stage(run: Run) -> dict[str, list[tuple[float, Ranked]]]:
    """Encoders that were measured at several stages, by their spec without the step: (share of
    the training, row), earliest first."""
    stages: dict[str, list[tuple[float, Ranked]]] = {}
    for row in run.candidates:
        share = stage_share(row.stage)
        if share is not None:
            base = re.sub(r"[?&]step=[^&]*", "", row.spec)
            stages.setdefault(base, []).append((share, row))
    return {
        base: sorted(rows, key=lambda pair: pair[0])
        for base, rows in stages.items()
        if len(rows) > 1
    }


def draw_stages(run: Run) -> Drawing | str:
    """Each probe's main score over the stage of training, a line an encoder."""
    stages = rows_by_stage(run)
    rows = [row for pairs in stages.values() for _, row in pairs]
    mains = {name: probe.main_metric for name, probe in run.probes.items()}
    panels = {n: m for n, m in mains.items() if any(run.score(row.spec, n, m) for row in rows)}
    if not panels:
        return "No encoder was measured at several stages of its training."
    names = {
        base: text.shorten(text.clean_text(base.partition(":")[2] or base), 24) for base in stages
    }
    styles = dict(zip(stages, STAGE_STYLES * len(stages), strict=False))
    width = (WIDTH - 0.4) / len(panels)
    with canvas(2.2) as figure:
        for place, (probe, score) in enumerate(panels.items()):
            axes = add_axes(figure, 0.35 + place * width, 0.55, width - 0.25, 1.3)
            axes.set_title(
                text.clean_text(probe) + "\n" + text.clean_text(score), fontsize=7, pad=3
            )
            for base, pairs in stages.items():
                entries = [(x, run.score(row.spec, probe, score)) for x, row in pairs]
                known = [(x, entry) for x, entry in entries if entry]
                for x, entry in known:
                    words = hover(
                        names[base], f"{100 * x:g} % of training", text.format_score(entry)
                    )
                    draw_point(axes, styles[base], x, entry.value, down=entry, words=words)
                axes.plot(
                    [x for x, _ in known], [e.value for _, e in known], **styles[base].options
                )
            axes.set_xscale("log")
            axes.set_xticks([0.03, 0.2, 1], ["3 %", "20 %", "100 %"])
            axes.tick_params(labelsize=6.5)
            axes.grid()
        legend(figure, {names[base]: style for base, style in styles.items()})
        return finish(
            figure,
            "Score over the share of the training that is done, with 95 % intervals: what a probe "
            "rewards that grows with training, and what is there from the start.",
            f"Line plots of {len(panels)} scores over the stage of training of {len(stages)} "
            "encoders.",
        )


# -------------------------------------------------------------------------- trained models

SEEN = PlotStyle(BLUE, "o", size=3, line="-", width=1.6)
HELD_OUT = PlotStyle(ORANGE, "o", size=2, line="--", width=1.1)
PARENT = PlotStyle(INK, "s", "white", 3.5)
FLOW_MATCHING = PlotStyle(ORANGE, "o", size=3.2, line="-", width=1.4)
MEAN_FLOW = PlotStyle(BLUE, "o", size=3.2, line="-", width=1.2)
SWITCH = PlotStyle(GRAY, line=":", width=0.9)
VELOCITY = PlotStyle(GREEN, "o", size=2.5, line="-", width=1.6)
OTHERS = {"other encoders": FAINT}
EACH = 1.15  # inches, the height of a small plot


def _name_color(c: Confirmation) -> Any:
    return lambda row: BLUE if row is c.winner else ink(row)


def _top(values: Sequence[Any]) -> float:
    return max([float(v) for v in values if text.is_number(v)] + [0.02]) * 1.08


def _first_to_last(c: Confirmation, lines: Mapping[str, Line]) -> str:
    return "; ".join(
        f"{c.name(spec)} {text.number(ys[0])} to {text.number(ys[-1])}"
        for spec, (_, ys) in lines.items()
        if ys
    )


def draw_steps(c: Confirmation) -> Drawing | str:
    """The score over the number of sampling steps, seen and held-out combinations."""
    rows = [row for row in c.rows if any(c.entry(row, s) for s in c.steps)]
    if not rows or len(c.steps) < 2:
        return "It takes scores at two numbers of steps to see how they depend on it."
    tier, combos = c.primary.group
    other = next((g for g in c.groups if g[0] == tier and g[1] != combos), None)
    lines = {row.spec: _by_steps(c, row, c.primary.group) for row in rows}
    top = _top([end for end in spread(c.entry(r, s) for r in rows for s in c.steps) if end <= 1])
    keys = {"seen combinations": SEEN} | ({"held out": HELD_OUT} if other else {})
    if any(row.parent.get(c.primary) for row in rows):
        keys["parent, plain flow matching"] = PARENT
    with small_plots(
        rows, EACH, keys | OTHERS, across="sampling steps", down=c.metric, color=_name_color(c)
    ) as (figure, plots):
        for axes, row in zip(plots, rows, strict=True):
            _draw_others(axes, rows, lines, row)
            name = row.name
            if other:
                line = _by_steps(c, row, other)
                words = hover_curve(name, *line, " steps", "held-out combinations")
                axes.plot(*line, **HELD_OUT.options, **words)
            entries = [e for s in c.steps if (e := c.entry(row, s))]
            ends = [interval_ends(e) or (e.value, e.value) for e in entries]
            low, high = [a for a, _ in ends], [b for _, b in ends]
            axes.fill_between(lines[row.spec][0], low, high, color=BLUE, alpha=0.2, linewidth=0)
            words = hover_curve(name, *lines[row.spec], " steps", "seen combinations")
            axes.plot(*lines[row.spec], **SEEN.options, **words)
            parent = row.parent.get(c.primary)
            if parent and text.is_number(parent.value):
                words = hover(name, f"parent {text.format_score(parent)}")
                draw_point(axes, PARENT, c.primary.steps, parent.value, words=words)
            axes.set_xscale("log", base=2)
            axes.set_xticks(c.steps, [str(s) for s in c.steps])
            axes.set_xlim(c.steps[0] / 1.25, c.steps[-1] * 1.25)
            axes.set_ylim(0, top)
        return finish(
            figure,
            f"Tier {text.clean_text(tier)} of the prompts, the same noise for every encoder. "
            "Bands: 95 % intervals over prompts and seeds. The parent is the checkpoint at the "
            "switch from flow matching to MeanFlow, sampled as plain flow matching: what MeanFlow "
            "training started from. Held-out combinations of shape and color were in no training "
            "image.",
            f"Small line plots of {c.metric} over {text.listing(map(str, c.steps), 9)} steps: "
            f"{_first_to_last(c, lines)}.",
        )


def _by_steps(c: Confirmation, row: TrainedEncoder, group: Group) -> Line:
    entries = [(float(s), e) for s in c.steps if (e := c.entry(row, s, group))]
    return [s for s, _ in entries], [e.value for _, e in entries]


def draw_training(c: Confirmation) -> Drawing | str:
    """The score through training, the switch from flow matching to MeanFlow marked."""
    lines = _lines({row.spec: row.curve for row in c.rows}, "step")
    rows = [row for row in c.rows if row.spec in lines]
    if not rows:
        return "No training was scored on its way."
    switch = _switch(c)
    keys = {"flow matching": FLOW_MATCHING, "MeanFlow": MEAN_FLOW}
    keys |= {"switch": SWITCH} if switch is not None else {}
    with small_plots(
        rows, EACH, keys | OTHERS, across="training step", down=c.axis_title, color=_name_color(c)
    ) as (figure, plots):
        for axes, row in zip(plots, rows, strict=True):
            _draw_others(axes, rows, lines, row)
            xs, ys = lines[row.spec]
            before = 0
            if switch is not None:
                axes.axvline(switch, **SWITCH.options, zorder=1)
                before = sum(x <= switch for x in xs)
            words = hover_curve(row.name, xs, ys, " steps of training")
            axes.plot(xs, ys, **{**MEAN_FLOW.options, "marker": ""}, zorder=2, **words)
            mean_flow = {**MEAN_FLOW.options, "linestyle": "none"} | words
            axes.plot(xs[before:], ys[before:], **mean_flow)
            axes.plot(xs[:before], ys[:before], **FLOW_MATCHING.options, zorder=3, **words)
            axes.set_xlim(0, max(line[0][-1] for line in lines.values()) * 1.05)
            axes.set_ylim(0, _top([y for line in lines.values() for y in line[1]]))
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text.quantity(x)))
        return finish(
            figure,
            f"The mean over seeds at {c.primary.steps} steps, tier "
            f"{text.clean_text(c.primary.tier)}; during training fewer images a prompt are scored "
            "than at the end, so single points are noisy. Until the switch the network learns the "
            "instantaneous velocity and is sampled as plain flow matching; after it, the average "
            "one.",
            f"Small line plots of {c.metric} over training steps: {_first_to_last(c, lines)}.",
        )


def _switch(c: Confirmation) -> float | None:
    """The last step of flow matching: as planned, else the last one that was scored."""
    train = c.verdict.plan.train
    share, steps = train.get("flow_matching"), train.get("steps")
    if text.is_number(share) and text.is_number(steps):
        return float(round(share * steps))
    points = [point for row in c.rows for point in row.curve]
    return max((float(p.step) for p in points if p.stage == "flow-matching"), default=None)


def _lines(series: Mapping[str, Sequence[Any]], across: str) -> dict[str, Line]:
    """Each series' numbers in order, points without them left out; only series that have some."""
    lines = {}
    for spec, points in series.items():
        pairs = [(getattr(point, across), point.value) for point in points]
        known = sorted(
            (float(x), float(y)) for x, y in pairs if text.is_number(x) and text.is_number(y)
        )
        if known:
            lines[spec] = ([x for x, _ in known], [y for _, y in known])
    return lines


def draw_velocity(c: Confirmation) -> Drawing | str:
    """The distance of average and instantaneous velocity over t."""
    lines = _lines({row.spec: row.gap for row in c.rows}, "t")
    rows = [row for row in c.rows if row.spec in lines]
    if not rows:
        return "No training recorded how far average and instantaneous velocity part."
    with small_plots(
        rows, EACH, {"this encoder": VELOCITY, **OTHERS}, across="t (0 data, 1 noise)",
        down="|u − v| / |v|", color=_name_color(c),
    ) as (figure, plots):  # fmt: skip
        for axes, row in zip(plots, rows, strict=True):
            _draw_others(axes, rows, lines, row)
            words = hover_curve(row.name, *lines[row.spec])
            axes.plot(*lines[row.spec], **VELOCITY.options, **words)
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.set_ylim(0, _top([y for line in lines.values() for y in line[1]]))
        return finish(
            figure,
            "How far the average velocity u over an interval lies from the instantaneous v at its "
            "noisy end, relative to v, by t: the mean over the last quarter of training and over "
            "seeds. Where the two part, many small steps and one large one lead to different "
            "places, and few-step sampling has something to learn. It is a quantity to look at, "
            "not a verdict.",
            "Small line plots of |u − v| / |v| over t, at the largest t: "
            + "; ".join(f"{c.name(spec)} {text.number(y[-1], 2)}" for spec, (_, y) in lines.items())
            + ".",
        )


ABLATION = ReportFigure("Prompt ablation", "Prompt ablation", draw_ablation, probes=("ablation",))
SIMILARITY = ReportFigure(
    "Similarity", "Similarity", draw_similarities, probes=("retrieval", "ablation")
)
STAGES = ReportFigure("What the prompt says", "Finished against early versions", draw_stages)
STEPS = ReportFigure(
    "By steps, wording and task", "Score by number of steps", draw_steps, needs="confirmation"
)
TRAINING = ReportFigure(
    "Through training", "Score through training", draw_training, needs="confirmation"
)
VELOCITIES = ReportFigure(
    "Through training",
    "Average against instantaneous velocity",
    draw_velocity,
    needs="confirmation",
)
