"""Prompt ablation: how much does an embedding change when words are removed? (EMF's
disentanglement)

As published (arXiv 2604.18168, section 3.3, Eq. 5 and Table 2): random parts of each DPG-Bench
prompt are removed and the embeddings of both versions compared by cosine; the table prints the
cosine itself, higher taken as better. A constant encoder has a perfect 1.0 there, and an
anisotropic space lifts any cosine. So the calibrated score is the cosine above that of random
pairs: (cos - baseline) / (1 - baseline), with 0/0 = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from encbench.errors import DataError
from encbench.intervals import combine, estimate_score, estimate_scores
from encbench.retrieval.search import DECIMALS, nearest, normalize
from encbench.types import Measurement, ProbeContext, ProbeDisplay, ProbeSpec

from .histograms import similarity
from .perturb import Place, Unit, bare, choose_kept, is_content, remove, rng_for, split, swap_word
from .whitening import centered, whitened

HEADLINE_SHARE = 0.5


class Setting(NamedTuple):
    """One way to shorten: share removed, unit, place; ``draws`` independent versions of it."""

    share: float
    unit: Unit = "words"
    place: Place = "anywhere"
    draws: int = 1


def settings(options: Any) -> list[Setting]:
    """The headline setting first (half of the words, anywhere, 5 draws), then the axes one at a
    time: shares of words anywhere, words at the other places, the other units anywhere."""
    shares = options.get("shares", (0.1, 0.3, 0.5, 0.7, 0.9))
    units: Sequence[Unit] = options.get("units", ("words", "sentences"))
    places: Sequence[Place] = options.get("places", ("anywhere", "start", "end"))
    found = [Setting(HEADLINE_SHARE, draws=options.get("draws", 5))]
    found += [Setting(share) for share in shares if share != HEADLINE_SHARE]
    few = [share for share in shares if 0.25 <= share <= 0.75]
    found += [Setting(s, "words", place) for place in places if place != "anywhere" for s in few]
    found += [Setting(s, unit) for unit in units if unit != "words" for s in few]
    return found


class AblationProbe:
    """Options: ``draws``, ``shares``, ``units``, ``places``; see :func:`settings`."""

    spec = ProbeSpec(
        name="ablation",
        version=1,
        main_metric="calibrated",
        title="prompt ablation, calibrated",
        orders=(
            "published", "calibrated/centered", "calibrated/whitened", "calibrated/untruncated",
            "identification", "identification-distractors", "monotonicity",
        ),
        reads=("prompts",),
        needs=("prompts",),
        display=ProbeDisplay(
            section="Prompt ablation",
            scores={
                "published": "mean cosine with the shortened prompt, as published",
                "baseline": "mean cosine of random pairs",
                "calibrated": "0: no better than a random pair, 1: unchanged",
                "calibrated/centered": "", "calibrated/whitened": "",
                "identification": "share of shortened prompts whose nearest prompt is their own",
                "identification-distractors": "the same, beside prompts with one word swapped",
                "monotonicity": "rank correlation of distance and share removed",
                "published/untruncated": "",
            },
            definitions={
                "Ablation (disentanglement)": "Half of a long prompt's words are removed at "
                "random, and both versions are compared by cosine: 'published'. The baseline is "
                "the mean cosine of a shortened prompt with all other prompts; calibrated = "
                "(published − baseline) / (1 − baseline), and 0 where that is 0/0, as for an "
                "encoder that ignores its prompt.",
                "identification, monotonicity": "How often the shortened prompt is nearest to its "
                "own original among all prompts, also among distractors with one word swapped; "
                "and whether distance grows with what is removed (rank correlation for each "
                "prompt).",
                "centered, whitened, untruncated": "The same after a mean is subtracted or the "
                "vectors are whitened, fitted on other prompts; and over prompts that were not cut "
                "off.",
            },
            similarity=("Prompts", "a prompt and itself shortened by half", "two random prompts"),
        ),
    )  # fmt: skip

    def run(self, context: ProbeContext, *, seed: int, limit: int | None = None) -> Measurement:
        """Measure one encoder.

        Raises:
            DataError: without at least two prompts that have words.
        """
        if context.prompts is None:
            raise DataError("the ablation probe needs long prompts; give --dpg PATH")
        given = context.prompts.prompts[:limit]
        prompts = [p for p in given if p.text.strip()]
        unscored = len(given) - len(prompts)
        if len(prompts) < 2:
            raise DataError(f"{context.prompts.name} has fewer than two prompts with words in them")
        texts = tuple(p.text for p in prompts)
        ids = tuple(p.prompt_id for p in prompts)
        notes = [f"{unscored} empty prompts are unscored"] if unscored else []

        chosen = settings(context.options)
        ends = [_versions(texts, ids, each, seed) for each in chosen if each.place == "end"]
        context.prepare(texts, *[[t for t in v if t is not None] for each in ends for v in each])
        full = context.embed(texts).numpy()
        cut = context.truncated(texts).numpy()
        if cut.any():
            notes.append(
                f"{cut.sum()} of {len(texts)} prompts do not fit the encoder and are cut; what is "
                "cut off cannot be missed when it is removed"
            )
        zero = int((np.abs(full).sum(axis=1) == 0).sum())
        if zero:
            notes.append(f"{zero} prompts have a zero vector; their cosines count as 0")

        curves: dict[tuple[Unit, Place], list[tuple[Setting, np.ndarray, np.ndarray]]] = {}
        by_share: list[tuple[float, np.ndarray]] = []
        headline: Shortened | None = None
        for setting in chosen:
            made = _shortened(context, texts, ids, setting, seed)
            if made.done.sum() < 2:
                continue
            value = np.mean([_cosines(d, full[made.done]) for d in made.draws], axis=0)
            baseline = np.mean([_baseline(d, full, made.done) for d in made.draws], axis=0)
            curves.setdefault((setting.unit, setting.place), []).append(
                (setting, _spread(value, made.done), _spread(baseline, made.done))
            )
            if (setting.unit, setting.place) == ("words", "anywhere"):
                distance = 1 - _cosines(made.draws[0], full[made.done])
                by_share.append((setting.share, _spread(distance, made.done)))
            headline = headline or made
        if headline is None or headline.setting.share != HEADLINE_SHARE:
            raise DataError(
                f"{context.prompts.name} has fewer than two prompts of two words or more"
            )
        missing = int((~headline.done).sum())
        if missing:
            notes.append(f"{missing} prompts have a single word and are unscored")

        items = pd.DataFrame({"item": list(ids), "one": 1.0})
        _, items["published"], items["baseline"] = curves["words", "anywhere"][0]
        names = {
            "published": ("published",),
            "baseline": ("baseline",),
            "calibrated": ("published", "baseline", "one"),
        }
        if cut.any() and not cut.all():
            names |= _add_pair(
                items,
                "untruncated",
                np.where(cut, np.nan, items["published"]),
                np.where(cut, np.nan, items["baseline"]),
            )
        # Statistics are fitted on other text: each half of the prompts by those of the other.
        half = np.array([int(rng_for(seed, "fold", i).integers(2)) for i in ids])
        for how, fit in (("centered", centered), ("whitened", whitened)):
            names |= _add_pair(items, how, *_transformed(full, headline, half, fit))
        for name, column in _identification(context, texts, ids, full, headline, seed).items():
            items[name] = column
            names[name] = (name,)
        if len(by_share) > 2:
            items["monotonicity"] = _monotonicity(by_share)
            names["monotonicity"] = ("monotonicity",)
        return Measurement(
            scores=estimate_scores(items, names, seed=seed, unscored=unscored + missing),
            items=items,
            item_scores=names,
            series={
                "curves": [_curve(key, rows, seed) for key, rows in curves.items()],
                "similarity": _histograms(full, headline, seed),
            },
            notes=tuple(notes),
        )


class Shortened(NamedTuple):
    """Prompts shortened by one setting: ``texts`` by draw (None where a prompt cannot be
    shortened), which of them are ``done``, and the vectors of those, by draw."""

    setting: Setting
    texts: list[list[str | None]]
    done: Bool[np.ndarray, " N"]
    draws: list[Float[np.ndarray, "M P"]]


@lru_cache(maxsize=64)  # the same for every encoder
def _versions(
    texts: tuple[str, ...], ids: tuple[str, ...], setting: Setting, seed: int
) -> list[list[str | None]]:
    """The prompts shortened by a setting, by draw; None where a prompt cannot be shortened."""
    share, unit, place, draws = setting
    return [
        [
            remove(t, share, unit, place, rng_for(seed, i, share, unit, place, draw))
            for t, i in zip(texts, ids, strict=True)
        ]
        for draw in range(draws)
    ]


def _shortened(
    context: ProbeContext,
    texts: tuple[str, ...],
    ids: tuple[str, ...],
    setting: Setting,
    seed: int,
) -> Shortened:
    versions = _versions(texts, ids, setting, seed)
    done = np.array([t is not None for t in versions[0]])
    rows = [
        context.embed([t for t in version if t is not None]).numpy()
        for version in (versions if done.any() else [])
    ]
    return Shortened(setting, versions, done, rows)


def _add_pair(
    items: pd.DataFrame, how: str, value: np.ndarray, baseline: np.ndarray
) -> dict[str, tuple[str, ...]]:
    """The published and the calibrated score under another view of the vectors."""
    items[f"published/{how}"], items[f"baseline/{how}"] = value, baseline
    return {
        f"published/{how}": (f"published/{how}",),
        f"calibrated/{how}": (f"published/{how}", f"baseline/{how}", "one"),
    }


def _transformed(
    full: Float[np.ndarray, "N P"],
    made: Shortened,
    half: Int[np.ndarray, " N"],
    fit: Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]],
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Cosines and baselines after a transform fitted on the other half; mean over draws."""
    cosines = np.full((len(made.draws), len(full)), np.nan)
    baselines = np.full((len(made.draws), len(full)), np.nan)
    for fold in (0, 1):
        inside, others = half == fold, half != fold
        seen = made.done[inside]
        if seen.sum() < 2 or others.sum() < 2:
            continue
        change = fit(full[others])
        whole = change(full[inside])
        for number, draw in enumerate(made.draws):
            short = change(_rows_at(draw, made.done, inside))
            cosines[number, inside & made.done] = _cosines(short, whole[seen])
            baselines[number, inside & made.done] = _baseline(short, whole, seen)
    return cosines.mean(axis=0), baselines.mean(axis=0)


def _rows_at(
    draw: Float[np.ndarray, "M P"], done: Bool[np.ndarray, " N"], inside: Bool[np.ndarray, " N"]
) -> Float[np.ndarray, "m P"]:
    """Of the rows that belong to ``done``, those that are also ``inside``."""
    rows: np.ndarray = draw[inside[done]]
    return rows


def _identification(
    context: ProbeContext,
    texts: tuple[str, ...],
    ids: tuple[str, ...],
    full: Float[np.ndarray, "N P"],
    made: Shortened,
    seed: int,
) -> dict[str, Float[np.ndarray, " N"]]:
    """How often a shortened prompt's nearest neighbor is its own original: among all prompts
    (mean over draws), and (first draw) also among a distractor for each, with one word
    swapped."""
    done = made.done
    number = np.arange(len(texts), dtype=np.int64)

    def right(rows: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        places = np.arange(len(gallery), dtype=np.int64)
        found, _ = nearest(rows, gallery, 1, seed=seed, query_ids=number[done], gallery_ids=places)
        correct: np.ndarray = (found[:, 0] == number[done]).astype(np.float64)
        return correct

    columns = {
        "identification": _spread(np.mean([right(d, full) for d in made.draws], axis=0), done)
    }
    fakes = _distractors(texts, ids, made.setting, seed)
    have = np.array([fake is not None for fake in fakes])
    if have.any():
        rows = context.embed([fake for fake in fakes if fake is not None]).numpy()
        hits = _spread(right(made.draws[0], np.concatenate([full, rows])), done)
        columns["identification-distractors"] = np.where(have, hits, np.nan)
    return columns


def _histograms(full: np.ndarray, made: Shortened, seed: int) -> dict[str, list[float]]:
    """Cosines of shortened prompts with their originals, and with random other prompts."""
    own = np.flatnonzero(made.done)
    others = np.random.default_rng([seed, 3]).integers(len(full), size=(len(own), 20))
    random = np.einsum("qp,qkp->qk", normalize(made.draws[0]), normalize(full)[others])
    return similarity(_cosines(made.draws[0], full[own]), random[others != own[:, None]])


@lru_cache(maxsize=4)
def _distractors(
    texts: tuple[str, ...], ids: tuple[str, ...], setting: Setting, seed: int
) -> list[str | None]:
    """For each prompt, itself with one word swapped that its first shortened version keeps, so
    that the shortened version can tell them apart."""
    vocabulary = sorted({bare(w) for t in texts for w in t.split() if is_content(w)})
    found: list[str | None] = []
    for text, i in zip(texts, ids, strict=True):
        share, unit, place, _ = setting
        stay = choose_kept(
            len(split(text, unit)), share, place, rng_for(seed, i, share, unit, place, 0)
        )
        found.append(
            None
            if stay is None
            else swap_word(text, stay, vocabulary, rng_for(seed, i, "distractor"))
        )
    return found


def _cosines(a: Float[np.ndarray, "N P"], b: Float[np.ndarray, "N P"]) -> Float[np.ndarray, " N"]:
    values = np.einsum("np,np->n", normalize(a), normalize(b), dtype=np.float64)
    rounded: np.ndarray = np.round(values, DECIMALS)
    return rounded


def _baseline(
    short: Float[np.ndarray, "M P"], full: Float[np.ndarray, "N P"], done: Bool[np.ndarray, " N"]
) -> Float[np.ndarray, " M"]:
    """Each shortened prompt's mean cosine with all full prompts but its own, exactly."""
    a, b = normalize(short).astype(np.float64), normalize(full).astype(np.float64)
    own = np.einsum("mp,mp->m", a, b[done])
    means: np.ndarray = np.round((a @ b.sum(axis=0) - own) / (len(b) - 1), DECIMALS)
    return means


def _spread(values: np.ndarray, done: Bool[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Back to one row for each prompt, NaN where it has no value."""
    full = np.full(len(done), np.nan)
    full[done] = values
    return full


def _monotonicity(distances: list[tuple[float, np.ndarray]]) -> Float[np.ndarray, " N"]:
    """Spearman's correlation, for each prompt, of the share removed with the distance; 0 where
    the distance never changes."""
    rows = np.stack([d for _, d in sorted(distances, key=lambda pair: pair[0])], axis=1)
    known = np.isfinite(rows).all(axis=1)
    ranks = rankdata(rows[known], axis=1)
    x = np.arange(rows.shape[1]) - (rows.shape[1] - 1) / 2
    y = ranks - ranks.mean(axis=1, keepdims=True)
    norm = np.sqrt((x @ x) * (y * y).sum(axis=1))
    value = np.divide(y @ x, norm, out=np.zeros(len(y)), where=norm > 0)
    return _spread(value, known)


def _curve(
    key: tuple[Unit, Place],
    rows: list[tuple[Setting, np.ndarray, np.ndarray]],
    seed: int,
) -> dict[str, Any]:
    """One line of the plot, JSON-ready."""
    unit, place = key
    rows = sorted(rows, key=lambda row: row[0].share)
    found: dict[str, Any] = {"unit": unit, "place": place, "shares": [r[0].share for r in rows]}
    for name in ("cosine", "baseline", "calibrated", "low", "high"):
        found[name] = []
    for _, value, baseline in rows:
        raw = estimate_score(pd.DataFrame({"v": value}), ("v",), seed=seed)
        means = np.array([np.nanmean(value), np.nanmean(baseline), 1.0])
        found["cosine"].append(raw.value)
        found["low"].append(raw.low)
        found["high"].append(raw.high)
        found["baseline"].append(float(means[1]))
        found["calibrated"].append(float(combine(means[None])[0]))
    return found
