"""Minimal pairs: is a prompt nearer to another wording of itself than to a change of meaning?

A prompt about two things is compared with a *paraphrase*, which has the same meaning in other
words, and with a *swap*, which has another meaning in the words of the paraphrase. The encoder wins
if the paraphrase is nearer. Contrasts of this kind are known from image-text models
(Winoground, arXiv 2204.03162; ARO, arXiv 2210.01936); here both sides are text, so any encoder
can be asked, and neither a model nor a file is needed.

Kinds whose name ends in 'swapped' exchange properties of two things, so paraphrase and swap have
the same words: a bag of words ties, which counts a half. Kinds that end in 'replaced' change one
word. ``hard`` compares the paraphrase with the swap in the prompt's *own* wording, which shares
most of its words; few encoders pass it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from encbench.data.geneval import (
    CLASSES,
    COLORS,
    OPPOSITE,
    Clause,
    GenevalPrompt,
    generate_prompts,
    prompt_text,
)
from encbench.data.scenes.captions import reword
from encbench.data.scenes.prompts import prompt_held_out, scene_prompts
from encbench.intervals import estimate_scores, mean_of
from encbench.retrieval.search import DECIMALS, normalize
from encbench.types import Measurement, ProbeContext, ProbeDisplay, ProbeSpec

from .perturb import rng_for

PER_TASK = 30  # base prompts of each source and task
COUNTS = (2, 3, 4)
FLOOR, CEILING = 0.5, 1.0
TIE = 10.0**-DECIMALS  # cosines no further apart than float noise
KINDS = {
    "color-swapped": "color_attr",
    "count-swapped": "two_object",
    "order-swapped": "position",
    "color-replaced": "color_attr",
    "count-replaced": "two_object",
    "relation-replaced": "position",
}
"""Kinds of swaps, and the GenEval task that their base prompts are of."""
WORDINGS = ("reordered", "reframed", "tier-B", "tier-C")
SOURCES = ("scenes", "geneval")

Means = tuple[Clause, ...]


class Version(NamedTuple):
    """A text with its clauses."""

    text: str
    means: Means


@dataclass(frozen=True)
class MinimalPair:
    """A base prompt with its swaps by kind and its paraphrases by wording.

    Attributes:
        name: unique name; the item of its scores.
        source: 'scenes' (shapes; also in other tiers' words) or 'geneval' (COCO's classes).
        held_out: whether it asks for a combination that no training split of scenes shows.
        base: the prompt.
        paraphrases: by wording.
        swaps: by kind, then by wording; under '' in the prompt's own wording.
    """

    name: str
    source: str
    held_out: bool
    base: Version
    paraphrases: dict[str, Version]
    swaps: dict[str, dict[str, Version]]


class MinimalPairsProbe:
    """No options. ``limit`` is the number of base prompts."""

    own_texts = 2_000  # about how many it makes and encodes; it encodes no others

    spec = ProbeSpec(
        name="minimal-pairs",
        version=1,
        main_metric="scaled",
        title="paraphrase nearer than a swap",
        dataset="scene and GenEval grammar, version 1",
        orders=("swapped", "replaced", "hard", *(f"accuracy/{kind}" for kind in KINDS)),
        reads=(),
        display=ProbeDisplay(
            section="What the prompt says",
            scores={
                "scaled": "0: chance, 1: the paraphrase is always nearer",
                **dict.fromkeys(("swapped", "replaced", "hard"), ""),
                **{f"wording/{wording}": "" for wording in WORDINGS},
                "held-out": "combinations that no training image shows",
            },
            panels={kind: (f"accuracy/{kind}",) for kind in KINDS},
            caption="How often a paraphrase of a prompt is nearer to it than the same wording of "
            "another meaning, with 95 % intervals. The line at .5 is chance. It is also what a bag "
            "of words gets where things are exchanged, since the words are the same.",
            chance=FLOOR,
            definitions={
                "Minimal pairs": "How often a paraphrase is nearer to a prompt than a swap in the "
                "same wording: colors, counts or order exchanged (the words stay the same), or "
                "color, count or relation replaced. Ties count a half. Scaled: 0 is chance, as for "
                "an encoder that ignores its prompt, 1 is always; the mean over the six kinds. "
                "'hard' takes the swap in the prompt's own wording.",
            },
        ),
    )

    def run(self, context: ProbeContext, *, seed: int, limit: int | None = None) -> Measurement:
        """Measure one encoder."""
        found = cases(seed)[:limit]
        texts = sorted({version.text for case in found for version in _versions(case)})
        rows = normalize(context.embed(texts).numpy())
        place = {text: i for i, text in enumerate(texts)}
        notes = []
        zero = int((np.abs(rows).sum(axis=1) == 0).sum())
        if zero:
            notes.append(f"{zero} of {len(texts)} prompts have a zero vector; it ties with all")

        def cosines(pairs: list[tuple[Version, Version]]) -> Float[np.ndarray, " M"]:
            one, other = ([place[p[side].text] for p in pairs] for side in (0, 1))
            values: np.ndarray = np.einsum("mp,mp->m", rows[one], rows[other], dtype=np.float64)
            return values

        contests = [
            (i, kind, wording)
            for i, case in enumerate(found)
            for kind in case.swaps
            for wording in case.paraphrases
        ]
        table = pd.DataFrame(contests, columns=["case", "kind", "wording"])
        near = cosines([(found[i].base, found[i].paraphrases[w]) for i, _, w in contests])
        for column, own in (("won", False), ("hard", True)):
            rivals = [(found[i].base, found[i].swaps[k]["" if own else w]) for i, k, w in contests]
            far = cosines(rivals)
            tied = np.abs(near - far) <= TIE
            table[column] = np.where(tied, 0.5, near > far)
        items, names = _items(found, table)
        return Measurement(
            scores=estimate_scores(items, names, seed=seed),
            items=items,
            item_scores=names,
            series={"wordings": _by_wording(table)},
            notes=tuple(notes),
        )


def _items(
    found: Sequence[MinimalPair], table: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    """One row for each base prompt: its share of contests won by kind (mean over paraphrases),
    and the means over kinds, scaled from floor to ceiling, under several views."""

    def column(part: pd.DataFrame, kind: str, of: str = "won") -> Float[np.ndarray, " N"]:
        won = part[part.kind == kind].groupby("case")[of].mean()
        return won.reindex(range(len(found))).to_numpy(np.float64)

    def mean(part: pd.DataFrame, kinds: Sequence[str], of: str = "won") -> np.ndarray:
        return mean_of([(column(part, kind, of), FLOOR, CEILING) for kind in kinds])

    kinds = {kind: column(table, kind) for kind in KINDS}
    source = np.array([found[i].source for i in table.case])
    held = np.array([found[i].held_out for i in table.case])
    swapped = [kind for kind in KINDS if kind.endswith("swapped")]
    columns = {
        "scaled": mean(table, list(KINDS)),
        "swapped": mean(table, swapped),
        "replaced": mean(table, [kind for kind in KINDS if kind not in swapped]),
        "hard": mean(table, list(KINDS), "hard"),
        **{f"accuracy/{kind}": values for kind, values in kinds.items()},
        **{f"wording/{w}": mean(table[table.wording == w], list(KINDS)) for w in WORDINGS},
        **{f"source/{s}": mean(table[source == s], list(KINDS)) for s in SOURCES},
        "held-out": mean(table[held], list(KINDS)),
    }
    items = pd.DataFrame({"item": [case.name for case in found], **columns})
    return items, {name: (name,) for name in columns}


def _by_wording(table: pd.DataFrame) -> list[dict[str, object]]:
    """Accuracy by kind and wording, JSON-ready."""
    return [
        {"kind": kind, "wording": wording, "accuracy": float(part.won.mean()), "n": len(part)}
        for (kind, wording), part in table.groupby(["kind", "wording"])
    ]


# ------------------------------------------------------------------------------- the prompts


@lru_cache(maxsize=2)
def cases(seed: int, per_task: int = PER_TASK) -> tuple[MinimalPair, ...]:
    """The base prompts with their swaps and paraphrases, tasks and sources in turn.

    Of scenes from the 'probe-test' split, held-out combinations among them; of COCO's classes
    from GenEval's grammar.
    """
    wanted = dict.fromkeys(("two_object", "position", "color_attr"), per_task)
    most = {**wanted, "two_object": min(per_task, 66)}  # twelve shapes have no more pairs
    drawn = {
        "scenes": scene_prompts("probe-test", seed=seed, per_task=most, combos="both"),
        "geneval": generate_prompts(CLASSES, seed=seed, per_task=wanted),
    }
    lists = [
        [_case(prompt, source, seed) for prompt in prompts if prompt.task == task]
        for source, prompts in drawn.items()
        for task in wanted
    ]
    longest = max(map(len, lists))
    return tuple(found[i] for i in range(longest) for found in lists if i < len(found))


def _case(prompt: GenevalPrompt, source: str, seed: int) -> MinimalPair:
    name = f"{source} {prompt.task} {prompt.prompt_id}"
    rng = rng_for(seed, "minimal pairs", name)
    means = prompt.include
    if prompt.task == "two_object":  # two things of different counts
        counts = rng.permutation(COUNTS)[:2].tolist()
        means = tuple(replace(c, count=n) for c, n in zip(means, counts, strict=True))
    swaps = {
        kind: change(means, rng) for kind, change in _CHANGES.items() if KINDS[kind] == prompt.task
    }
    frame = ("a picture of ", "")[int(rng.integers(2))]
    number = int(rng.integers(1_000_000))

    def versions(means: Means) -> dict[str, Version]:
        """One meaning in every wording."""
        plain, turned = prompt_text(means), _turned(means)
        made = {
            "": Version(plain, means),
            "reordered": Version(prompt_text(turned), turned),
            "reframed": Version(frame + plain.removeprefix("a photo of "), means),
        }
        if source == "scenes":
            made["tier-B"] = Version(reword(means, "B", seed=number), means)
            made["tier-C"] = Version(reword(means, "C", seed=number), means)
        return made

    paraphrases = versions(means)
    base = paraphrases.pop("")
    held_out = source == "scenes" and prompt_held_out(means)
    changed = {kind: versions(swap) for kind, swap in swaps.items()}
    return MinimalPair(name, source, held_out, base, paraphrases, changed)


def _turned(means: Means) -> Means:
    """The same meaning in reverse order: things exchanged, and a relation replaced by its
    converse."""
    first, second = means
    if second.position is None:
        return second, first
    relation = OPPOSITE[second.position[0]]
    return replace(second, position=None), replace(first, position=(relation, 0))


Change = Callable[[Means, np.random.Generator], Means]


def _exchanged(field: str) -> Change:
    def change(means: Means, rng: np.random.Generator) -> Means:
        first, second = means
        one, other = getattr(first, field), getattr(second, field)
        return replace(first, **{field: other}), replace(second, **{field: one})

    return change


def _replaced(field: str, values: Sequence[object]) -> Change:
    def change(means: Means, rng: np.random.Generator) -> Means:
        which = int(rng.integers(2))
        left = [v for v in values if v not in [getattr(clause, field) for clause in means]]
        changed: dict[str, Any] = {field: left[int(rng.integers(len(left)))]}
        return tuple(
            replace(clause, **changed) if i == which else clause for i, clause in enumerate(means)
        )

    return change


def _related(means: Means, rng: np.random.Generator) -> Means:
    """'a left of b' becomes 'a right of b'."""
    first, second = means
    assert second.position is not None
    return first, replace(second, position=(OPPOSITE[second.position[0]], 0))


def _ordered(means: Means, rng: np.random.Generator) -> Means:
    """'a left of b' becomes 'b left of a'."""
    first, second = means
    return replace(second, position=None), replace(first, position=second.position)


_CHANGES: dict[str, Change] = {
    "color-swapped": _exchanged("color"),
    "count-swapped": _exchanged("count"),
    "order-swapped": _ordered,
    "color-replaced": _replaced("color", COLORS),
    "count-replaced": _replaced("count", COUNTS),
    "relation-replaced": _related,
}


def _versions(case: MinimalPair) -> list[Version]:
    swaps = (version for versions in case.swaps.values() for version in versions.values())
    return [case.base, *case.paraphrases.values(), *swaps]
