"""Reader: how soon does a small network learn to read the content of a prompt from its features?

A generator with a short training uses what is easy to read, not everything in the features. So a
small reader is trained on captions without images: the generator's own
connector (:class:`encbench.flow.connector.TextConnector`, calibrated as for a training), learned
queries that attend to its tokens, and a small head that predicts the content of the caption:
objects, number of things, colors, relation, and which color is on which object. After each of
:data:`STEPS` it answers GenEval prompts, and a prompt counts if *all* of its content is right. As
in minimum-description-length probing, the score measures how easy information is to extract, not
how much there is (Voita and Titov, arXiv 2003.12298); ``bits`` is an online code length as theirs.

Once a reader gets most prompts right, its score hardly tells encoders apart, but few-step models
trained on them still differ: they are better if captions' features vary along many directions.
``readable-entropy`` multiplies the two. There a prompt counts as read only as far as prompts with
new combinations are, because a reader of noise remembers the captions.

Readers with different seeds are trained side by side as one batched network.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from encbench.data.geneval import OPPOSITE, RELATIONS, GenevalPrompt
from encbench.data.scenes.world import MAX_OBJECTS
from encbench.flow.connector import even_scale
from encbench.flow.features import Bank, PromptFeatures
from encbench.flow.whitening import Whitening, WhiteningError, fit_whitening
from encbench.intervals import estimate_scores
from encbench.types import Measurement, ProbeContext, ProbeSpec

from .reader_network import BATCH, Readings, train_readers
from .statements import HELD_OUT, SEEN, Language, language_for

SEEDS = 4
STEPS = (100, 200, 300, 400)
CAPTIONS = 2000
ATTRIBUTES = ("objects", "colors", "count", "relation", "binding")
EVERYTHING = "everything"
ENTROPY = "spectral-entropy"
READABLE_ENTROPY = "readable-entropy"
CAPTION_GROUPS = 100  # rows of items that stand for the captions


class ReaderProbe:
    """Option ``vocabulary``. ``limit`` is the number of prompts of each question; below 125 the
    reader is trained on fewer captions for fewer steps, too."""

    spec = ProbeSpec(
        name="reader",
        version=2,
        main_metric=EVERYTHING,
        title="how soon a small network reads what the prompt says",
        dataset="scene and GenEval grammar, version 1",
        orders=(
            READABLE_ENTROPY,
            "other-words",
            "held-out",
            *(f"{EVERYTHING}@{n}" for n in STEPS),
            *ATTRIBUTES,
        ),
        reads=("captions",),
    )
    own_texts = 1_800  # about how many it makes and encodes; it encodes no others
    # a change of the features before they are read
    fit: Callable[[Tensor, str], Whitening] | None = None
    own_pooled = True  # whether the reader gets the encoder's pooled vector, where it has one

    def run(self, context: ProbeContext, *, seed: int, limit: int | None = None) -> Measurement:
        """Measure one encoder."""
        share = 1.0 if limit is None else min(1.0, 16 * limit / CAPTIONS)
        steps = tuple(math.ceil(share * n) for n in STEPS)
        written = language_for(context.captions, context.options.get("vocabulary"))
        language = written(seed, max(BATCH, round(share * CAPTIONS)))
        layout = Layout(language.labels, language.colors)
        questions = {name: _first(prompts, limit) for name, prompts in language.prompts.items()}
        statements = [*language.captions, *(p for prompts in questions.values() for p in prompts)]
        texts = list(dict.fromkeys(statement.text for statement in statements))
        tokens, pooled = context.condition(texts)
        if not self.own_pooled:
            pooled = None
        place = {text: number for number, text in enumerate(texts)}

        def features(part: Sequence[GenevalPrompt]) -> Bank:
            rows = [place[statement.text] for statement in part]
            return Bank.of(
                [PromptFeatures(tokens[i], None if pooled is None else pooled[i]) for i in rows]
            )

        captions = features(language.captions)
        asked = {name: features(prompts) for name, prompts in questions.items()}
        notes = _notes(context, language, texts)
        if self.fit:
            try:
                captions, asked = _change(captions, asked, self.fit)
            except WhiteningError as error:
                notes += (f"{error}; read as they are",)
        readings = train_readers(
            captions,
            layout.targets(language.captions),
            asked,
            steps=steps,
            seeds=SEEDS,
            seed=seed,
            rare=language.rare,
        )
        items, names, curve = _items(readings, questions, layout, spectrum(captions))
        return Measurement(
            scores=estimate_scores(items, names, seed=seed),
            items=items,
            item_scores=names,
            series={"curve": curve},
            notes=notes,
        )


class WhitenedReaderProbe(ReaderProbe):
    """The reader on features that are whitened by statistics of its captions, as a training with
    ``--condition-scaling whitened`` reads them. Features that cannot be whitened are read as they
    are, and a note says so."""

    spec = replace(
        ReaderProbe.spec,
        name="reader-whitened",
        title="how soon it reads the same from whitened features",
        orders=("other-words",),
    )
    candidates_only = True  # in a run
    fit = staticmethod(fit_whitening)


def _change(
    captions: Bank, questions: Mapping[str, Bank], fit: Callable[[Tensor, str], Whitening]
) -> tuple[Bank, dict[str, Bank]]:
    """Features changed by statistics of the captions: tokens, and pooled vectors by their own.

    Raises:
        WhiteningError: if the captions' features cannot be whitened.
    """
    by_tokens = fit(captions.tokens.float(), "the tokens of the captions")
    by_pooled = None
    if captions.pooled is not None:
        by_pooled = fit(captions.pooled, "the pooled vectors of the captions")

    def change(bank: Bank) -> Bank:
        pooled = None
        if by_pooled is not None and bank.pooled is not None:
            pooled = by_pooled.apply(bank.pooled)
        return Bank(by_tokens.apply(bank.tokens.float()), bank.starts, pooled)

    return change(captions), {name: change(bank) for name, bank in questions.items()}


def _first(prompts: Sequence[GenevalPrompt], limit: int | None) -> tuple[GenevalPrompt, ...]:
    """At most ``limit`` prompts, tasks in turn."""
    if limit is None or limit >= len(prompts):
        return tuple(prompts)
    seen: dict[str, int] = {}
    turns = []
    for number, prompt in enumerate(prompts):
        seen[prompt.task] = seen.get(prompt.task, 0) + 1
        turns.append((seen[prompt.task], number))
    return tuple(prompts[number] for _, number in sorted(turns)[:limit])


def _notes(context: ProbeContext, language: Language, texts: Sequence[str]) -> tuple[str, ...]:
    notes = [f"read {len(language.captions):,} captions about {language.name}"]
    cut = int(context.truncated(texts).sum())
    if cut:
        notes.append(f"the encoder cut {cut:,} of {len(texts):,} captions and prompts")
    return tuple(notes)


# --------------------------------------------------------------------------------- outputs


class Layout:
    """Where each kind of answer stands among a reader's outputs, for any labels and colors."""

    def __init__(self, labels: Sequence[str], colors: Sequence[str]) -> None:
        self.labels = {label: i for i, label in enumerate(labels)}
        self.colors = {color: i for i, color in enumerate(colors)}
        sizes = {
            "objects": len(labels),
            "colors": len(colors),
            "count": MAX_OBJECTS,
            "relation": len(RELATIONS) * len(labels),
            "binding": len(colors) * len(labels),
        }
        self.parts: dict[str, slice] = {}
        self.width = 0
        for name, size in sizes.items():
            self.parts[name] = slice(self.width, self.width + size)
            self.width += size

    def targets(self, statements: Sequence[GenevalPrompt]) -> Float[np.ndarray, "N T"]:
        """The content of statements as ones and zeros: labels, colors, number of things in all,
        (relation, label in it), (color, label)."""
        rows = np.zeros((len(statements), self.width), np.float32)
        for row, statement in zip(rows, statements, strict=True):
            part = {name: row[where] for name, where in self.parts.items()}
            for clause in statement.include:
                label = self.labels[clause.label]
                part["objects"][label] = 1
                if clause.color is not None:
                    color = self.colors[clause.color]
                    part["colors"][color] = 1
                    part["binding"][color * len(self.labels) + label] = 1
                if clause.position is not None:
                    relation, target = clause.position
                    other = self.labels[statement.include[target].label]
                    part["relation"][self._stands(relation) + label] = 1
                    part["relation"][self._stands(OPPOSITE[relation]) + other] = 1
            part["count"][sum(clause.count for clause in statement.include) - 1] = 1
        return rows

    def _stands(self, relation: str) -> int:
        return RELATIONS.index(relation) * len(self.labels)

    def judge(
        self,
        outputs: Float[np.ndarray, "E N T"],
        prompts: Sequence[GenevalPrompt],
        *,
        pairs: bool = True,
    ) -> dict[str, Float[np.ndarray, "E N"]]:
        """Whether outputs answer prompts correctly, 1 or 0; NaN where a prompt doesn't ask.

        objects, colors: the n that are named are the n highest outputs. count: the number of
        things is the highest output. relation: of the four, the one asked for fits the two
        labels best. binding: two colors fit their labels better as asked than exchanged.
        everything: all that the prompt asks for.

        Args:
            pairs: whether to ask for relation and binding. Each pair has an output of its own,
                so a pair that no caption names can't be learned by any reader.
        """
        shape = outputs.shape[:2]
        right = {name: np.full(shape, np.nan) for name in (*ATTRIBUTES, EVERYTHING)}
        for number, prompt in enumerate(prompts):
            part = {name: outputs[:, number, where] for name, where in self.parts.items()}
            answers = self._answers(part, prompt)
            if not pairs:
                answers = {n: a for n, a in answers.items() if n not in ("relation", "binding")}
            for name, answer in answers.items():
                right[name][:, number] = answer
            right[EVERYTHING][:, number] = np.logical_and.reduce(list(answers.values()))
        return right

    def _answers(
        self, part: Mapping[str, Float[np.ndarray, "E _"]], prompt: GenevalPrompt
    ) -> dict[str, Bool[np.ndarray, " E"]]:
        clauses = prompt.include
        labels = [self.labels[clause.label] for clause in clauses]
        colors = [self.colors[c.color] for c in clauses if c.color is not None]
        answers = {"objects": _highest(part["objects"], set(labels))}
        if colors:
            answers["colors"] = _highest(part["colors"], set(colors))
        if prompt.task == "counting":
            answers["count"] = _highest(part["count"], {sum(c.count for c in clauses) - 1})
        if len(clauses) == 2 and clauses[1].position is not None:
            first, second = labels
            fits = part["relation"].reshape(-1, len(RELATIONS), len(self.labels))
            opposite = [RELATIONS.index(OPPOSITE[relation]) for relation in RELATIONS]
            fit = fits[:, :, second] + fits[:, opposite, first]
            answers["relation"] = _highest(fit, {RELATIONS.index(clauses[1].position[0])})
        if len(colors) == 2 and len(set(labels)) == 2:
            fits = part["binding"].reshape(-1, len(self.colors), len(self.labels))
            asked = fits[:, colors, labels].sum(1)
            answers["binding"] = asked > fits[:, colors, labels[::-1]].sum(1)
        return answers


def _highest(values: Float[np.ndarray, "E T"], right: set[int]) -> Bool[np.ndarray, " E"]:
    """Whether exactly these are the highest values; a value that equals a wrong one loses."""
    wanted = np.isin(np.arange(values.shape[1]), list(right))
    if wanted.all():
        return np.ones(len(values), bool)
    correct: np.ndarray = values[:, wanted].min(1) > values[:, ~wanted].max(1)
    return correct


# ----------------------------------------------------------------------------------- scores


class Spectrum(NamedTuple):
    """Along how many directions captions' features vary.

    Attributes:
        entropy: in nats.
        parts: what each caption adds to it, to first order; their mean is 0.
    """

    entropy: float
    parts: Float[np.ndarray, " N"]


def spectrum(captions: Bank) -> Spectrum:
    """The entropy of the normalized eigenvalues of the covariance of captions' mean tokens, where
    each dimension of the tokens has root mean square 1, as in the generator's connector.

    exp of it is an effective rank (Roy and Vetterli 2007, with variances in place of singular
    values). It is 0 if all captions have the same features.
    """
    tokens = captions.tokens.float()
    lengths = captions.starts.diff()
    of = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    rows = torch.zeros(len(lengths), tokens.shape[1], dtype=torch.float64)
    rows.index_add_(0, of, tokens * even_scale(tokens))
    rows /= lengths[:, None]
    size = float(rows.square().mean())
    rows -= rows.mean(0)
    left, values, _ = torch.linalg.svd(rows, full_matrices=False)
    total = float(values.square().sum())
    if total <= 1e-10 * size * rows.numel():
        return Spectrum(0.0, np.zeros(len(rows)))
    share = values.square() / total
    left, share = left[:, share > 1e-12], share[share > 1e-12]
    logs = share.log()
    entropy = -float((share * logs).sum())
    parts = -len(rows) * (left.square() * share) @ (logs + entropy)
    return Spectrum(entropy, parts.numpy())


def _items(
    readings: Readings,
    questions: Mapping[str, Sequence[GenevalPrompt]],
    layout: Layout,
    captions: Spectrum,
) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]], list[dict[str, object]]]:
    """Item columns, scores, and the learning curve."""
    split = np.array_split(captions.parts, CAPTION_GROUPS)
    groups = np.array([part.mean() for part in split if len(part)])
    parts: dict[str, pd.DataFrame] = {}
    curve: list[dict[str, object]] = []
    for question, prompts in questions.items():
        if not prompts:
            continue
        pairs = question != HELD_OUT
        judged = {
            n: layout.judge(by[question], prompts, pairs=pairs)
            for n, by in readings.outputs.items()
        }
        prefix = "" if question == SEEN else f"{question}/"
        tasks = [prompt.task for prompt in prompts]
        columns: dict[str, np.ndarray] = {}
        for name in (EVERYTHING, *ATTRIBUTES):
            values = np.mean([right[name] for right in judged.values()], axis=0)
            key = question if prefix and name == EVERYTHING else prefix + name
            if np.isfinite(values).any():
                columns[key] = _column(values, tasks if name == EVERYTHING else [""] * len(tasks))
        for steps, right in judged.items():
            column = _column(right[EVERYTHING], tasks)
            columns[f"{prefix}{EVERYTHING}@{steps}"] = column
            curve.append({"question": question, "steps": steps, "value": float(column.mean())})
        if question == SEEN:
            own = readings.bits.mean(0)
            columns["bits"] = np.concatenate([np.full(len(prompts), np.nan), own])
        seeds = [f"seed {e}" for e in range(readings.bits.shape[1])]
        names = [f"{question} {p.task} {i}: {p.text}" for i, p in enumerate(prompts)]
        names += [f"{question} {seed}" for seed in seeds]
        units = [f"{p.task} {i}" for i, p in enumerate(prompts)] + seeds  # the same in all wordings
        parts[question] = pd.DataFrame({"item": names, "unit": units, **columns})
    own, new = (
        parts[question][name].to_numpy() if question in parts else np.empty(0)
        for question, name in ((SEEN, EVERYTHING), (HELD_OUT, HELD_OUT))
    )
    both = _readable(own, new, captions.entropy, groups)
    names = [f"captions, part {number}" for number in range(1, len(groups) + 1)]
    parts["captions"] = pd.DataFrame(
        {"item": names, "unit": names, ENTROPY: captions.entropy + groups}
    )
    for question, column in zip((SEEN, HELD_OUT, "captions"), both, strict=True):
        if question in parts:
            parts[question][READABLE_ENTROPY] = column
    items = pd.concat(parts.values(), ignore_index=True)
    return items, {n: (n,) for n in items.columns if n not in ("item", "unit")}, curve


def _readable(
    own: Float[np.ndarray, " N"],
    new: Float[np.ndarray, " M"],
    entropy: float,
    groups: Float[np.ndarray, " G"],
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " M"], Float[np.ndarray, " G"]]:
    """The item column of the readable share times the entropy, in three parts: rows as in ``own``
    and ``new``, the columns of everything and held-out, and groups of captions.

    The share is the lower one of the two columns' means: a reader that remembers captions gets
    much of these, and nothing of new combinations. The mean of the whole column is the score, its
    spread to first order that of the product. Where the minimum has no derivative, its mean over
    the errors stands for it.
    """
    total = len(own) + len(new) + len(groups)
    share, first = float(own.mean()), 1.0  # how likely everything is the lower one
    if len(new):
        error = math.hypot(*(c.std() / math.sqrt(len(c)) for c in (own, new)))
        first = 1 - NormalDist(float(new.mean()) - share, max(error, 1e-9)).cdf(0)
        share = min(share, float(new.mean()))
    score = share * entropy

    def part(rest: Float[np.ndarray, " K"], weight: float) -> Float[np.ndarray, " K"]:
        column: np.ndarray = score + weight * total / max(len(rest), 1) * rest
        return column

    return (
        part(own - own.mean(), first * entropy),
        part(new - new.mean() if len(new) else new, (1 - first) * entropy),
        part(groups, share),
    )


def _column(
    values: Float[np.ndarray, "E N"], tasks: Sequence[str]
) -> Float[np.ndarray, " N_plus_E"]:
    """An item column for a score of N prompts by E readers: rows for prompts, then for readers.

    Its mean is the score, the mean over tasks of the mean over prompts and readers. Its spread is
    that of prompts within their tasks and of readers together, so resampling its rows gives an
    interval over both (the linear term of a two-way bootstrap).
    """
    known = np.isfinite(values[0])
    column = np.full(sum(values.shape), np.nan)
    if not known.any():
        return column
    readers, total = len(values), int(known.sum()) + len(values)
    kinds = list(dict.fromkeys(np.array(tasks)[known]))
    rows = [known & (np.array(tasks) == kind) for kind in kinds]
    of_reader = np.mean([values[:, row].mean(1) for row in rows], axis=0)
    score = of_reader.mean()
    for row in rows:
        mean = values[:, row].mean(0)
        column[: len(known)][row] = score + total / (len(kinds) * row.sum()) * (mean - mean.mean())
    unbiased = math.sqrt(readers / (readers - 1)) if readers > 1 else 1.0
    column[len(known) :] = score + total / readers * unbiased * (of_reader - score)
    return column
