"""The two verdicts: what follows from trained models' scores, by rules fixed before training.

Pure functions of numbers. ``right[e, s, p]`` is the share of right images that encoder e,
trained with seed s, has for prompt p; a score is GenEval's, the mean of the tasks' means. All
models see the same prompts with the same noise, so differences are paired.

Two kinds of chance are in every interval: which prompts were asked (bootstrap over prompts
within tasks, a prompt's images staying together) and which seed was trained with. Two or three
seeds are too few to resample, so the second enters as noise with Student's t, whose deviation is
pooled over all encoders (:func:`seed_deviation`). With one seed it is unknown, and neither
verdict can be 'confirmed'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from math import factorial, prod

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import rankdata

from ..intervals import LEVEL
from ..records import ChoiceVerdict, Lead, OrderVerdict
from ..sentences import describe_cell
from ..types import Cell, Estimate

DRAWS = 2000
EXACT = 9  # encoders in a stratum up to which all orders are enumerated


@dataclass(frozen=True)
class VerdictRules:
    """The constants of both verdicts; the promise that is printed before training is made of them.

    Attributes:
        alpha: a confirmed order has a permutation p below it.
        margin: top-1 regret, in GenEval points, that still counts as the right choice.
        holds: a rank correlation below this is useless for choosing.
        least: trained encoders that share a stage of training with another.
        spread: the least range of scores, in seed-to-seed deviations.
    """

    alpha: float = 0.05
    margin: float = 0.03
    holds: float = 0.5
    least: int = 4
    spread: float = 2.0

    def sentences(self, first: Cell, second: Cell | None = None) -> dict[str, str]:
        """The rules in words, for the questions that are asked."""
        level = f"{LEVEL[1] - LEVEL[0]:g} %"
        asked = f"First question: {describe_cell(first)}."
        if second is not None:
            asked += f" Second question, judged by the same rules: {describe_cell(second)}."
        return {
            "questions": f"{asked} Seen combinations unless it says held-out.",
            "choice": "Confirmed if the predicted winner's paired lead over every rival has "
            f"a {level} interval above 0; overturned by X if a rival's lead over it does, "
            "corrected by Bonferroni over the rivals; else can't tell. Can't tell with one seed.",
            "rule": "Trained encoders only; statistic: size-weighted mean of Spearman's "
            "correlation within stages of training. In this order: can't tell, with fewer than "
            f"{self.least} trained encoders, strata that cannot reach p < {_short(self.alpha)}, "
            f"one seed only, or a range of scores under {self.spread:g} times the seed-to-seed "
            "deviation; confirmed, if the exact one-sided permutation p is below "
            f"{_short(self.alpha)} and the top-1 regret's upper {level} at most "
            f"{_short(self.margin)}; not confirmed, if the statistic's upper {level} is below "
            f"{_short(self.holds)} or the regret's lower {level} above {_short(self.margin)}; else "
            "can't tell.",
            "regret": "Best true score minus the predicted first's. The best of noisy scores looks "
            "better than it is; the bootstrap's own estimate of that bias is taken off.",
        }


def _short(number: float) -> str:
    """'.05' of 0.05."""
    return f"{number:g}".removeprefix("0")


RULES = VerdictRules()


@dataclass(frozen=True)
class OutcomeTable:
    """Results of E encoders, S seeds and P prompts in one cell (steps, tier, combos).

    Attributes:
        specs: of the encoders.
        strata: each encoder's stage of training.
        predicted: each encoder's score by the primary rule, higher = better.
        tasks: each prompt's task, as a number.
        right: share of right images.
    """

    specs: tuple[str, ...]
    strata: tuple[str, ...]
    predicted: Float[np.ndarray, " E"]
    tasks: Int[np.ndarray, " P"]
    right: Float[np.ndarray, "E S P"]

    @property
    def scores(self) -> Float[np.ndarray, "E S"]:
        scores: np.ndarray = self.right @ prompt_weights(self.tasks)
        return scores

    @property
    def means(self) -> Float[np.ndarray, " E"]:
        means: np.ndarray = self.scores.mean(axis=1)
        return means

    def only(self, keep: Sequence[int]) -> OutcomeTable:
        """The same for some of the encoders."""
        return OutcomeTable(
            tuple(self.specs[i] for i in keep),
            tuple(self.strata[i] for i in keep),
            self.predicted[list(keep)],
            self.tasks,
            self.right[list(keep)],
        )


# ------------------------------------------------------------------------------- estimates


def prompt_weights(tasks: Int[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    """Weights that make a sum over prompts GenEval's overall score."""
    kinds, place, counts = np.unique(tasks, return_inverse=True, return_counts=True)
    return 1.0 / (len(kinds) * counts[place])


def seed_deviation(scores: Float[np.ndarray, "E S"]) -> tuple[float | None, int]:
    """Standard deviation of one training's score that is due to its seed, and its degrees of
    freedom. A shift that a seed gives to all encoders alike (same data order, same noise)
    changes no comparison and is taken off. None with one seed or one encoder."""
    encoders, seeds = scores.shape
    free = (encoders - 1) * (seeds - 1)
    if not free:
        return None, 0
    left = scores - scores.mean(0) - scores.mean(1, keepdims=True) + scores.mean()
    return float(np.sqrt((left**2).sum() / free)), free


def seed_correlation(scores: Float[np.ndarray, "E S"]) -> float | None:
    """Mean Pearson correlation of encoders' scores between two seeds; None if undefined."""
    if scores.shape[1] < 2 or scores.shape[0] < 3 or (scores.std(axis=0) == 0).any():
        return None
    return float(np.corrcoef(scores.T)[np.triu_indices(scores.shape[1], 1)].mean())


def _weights(
    tasks: Int[np.ndarray, " P"], rng: np.random.Generator, draws: int
) -> Float[np.ndarray, "D P"]:
    """Prompt weights under resampling with replacement within tasks."""
    made = np.zeros((draws, len(tasks)))
    kinds = np.unique(tasks)
    for kind in kinds:
        here = np.flatnonzero(tasks == kind)
        share = np.full(len(here), 1 / len(here))
        made[:, here] = rng.multinomial(len(here), share, size=draws) / len(here) / len(kinds)
    return made


def _noise(
    deviation: float | None, free: int, seeds: int, shape: tuple[int, int], rng: np.random.Generator
) -> Float[np.ndarray, "D E"]:
    """Seed noise of a mean over seeds: one t-like scale a draw, independent encoders."""
    if not deviation:
        return np.zeros(shape)
    scale = np.sqrt(free / rng.chisquare(free, size=(shape[0], 1)))
    noise: np.ndarray = scale * rng.standard_normal(shape) * deviation / np.sqrt(seeds)
    return noise


def score_draws(
    trained: OutcomeTable, *, seed: int, draws: int = DRAWS, deviation: tuple[float | None, int]
) -> Float[np.ndarray, "D E"]:
    """Mean scores of all encoders under resampled prompts and seed noise; rows are paired."""
    rng = np.random.default_rng([seed, 1])
    over_prompts = _weights(trained.tasks, rng, draws) @ trained.right.mean(axis=1).T
    shape = (draws, len(trained.specs))
    drawn: np.ndarray = over_prompts + _noise(*deviation, trained.right.shape[1], shape, rng)
    return drawn


def regret_draws(
    means: Float[np.ndarray, " E"], drawn: Float[np.ndarray, "D E"], first: int
) -> tuple[float, Float[np.ndarray, " D"]]:
    """Top-1 regret of choosing encoder ``first``: best true score minus its own.

    The best of noisy scores looks better than it is, and under resampling once more. The
    resamples tell by how much (their mean regret minus the regret they were drawn around), and
    that is taken off the estimate once and off the draws twice (bias-corrected bootstrap, Efron
    and Tibshirani 1993, chapter 10). A regret is never below 0.

    Returns:
        the corrected regret, and its draws.
    """
    plain = float(means.max() - means[first])
    draws = drawn.max(axis=1) - drawn[:, first]
    bias = float(draws.mean()) - plain
    return max(0.0, plain - bias), np.maximum(0.0, draws - 2 * bias)


def spearman(first: Float[np.ndarray, " n"], second: Float[np.ndarray, "*D n"]) -> np.ndarray:
    """Spearman's correlation along the last axis, with midranks; 0 where one side is constant."""
    a = rankdata(first) - (len(first) + 1) / 2
    b = rankdata(second, axis=-1) - (len(first) + 1) / 2
    bottom = np.sqrt((a**2).sum() * (b**2).sum(-1))
    agreement: np.ndarray = np.divide(
        b @ a, bottom, out=np.zeros(np.shape(bottom)), where=bottom > 0
    )
    return agreement


def _strata(names: Sequence[str]) -> list[list[int]]:
    """Places of encoders by stratum; a stratum of one says nothing about order."""
    found: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault(name, []).append(place)
    return [places for places in found.values() if len(places) > 1]


def rank_statistic(
    predicted: Float[np.ndarray, " E"], actual: Float[np.ndarray, "*D E"], strata: Sequence[str]
) -> np.ndarray:
    """Size-weighted mean of Spearman's correlation within strata; NaN without any."""
    parts = _strata(strata)
    if not parts:
        return np.full(actual.shape[:-1], np.nan)
    total = sum(len(part) * spearman(predicted[part], actual[..., part]) for part in parts)
    return np.asarray(total / sum(map(len, parts)))


def permutation_p(
    predicted: Float[np.ndarray, " E"],
    actual: Float[np.ndarray, " E"],
    strata: Sequence[str],
    *,
    seed: int = 0,
    draws: int = 200_000,
) -> tuple[float, bool]:
    """One-sided p of the rank statistic: the share of orders, permuted within strata, that
    agree at least as well. Exact unless a stratum has more than ``EXACT`` encoders; then by
    ``draws`` random orders, the observed one counted in.

    Returns:
        p, and whether it is exact.
    """
    parts = _strata(strata)
    if not parts:
        return 1.0, True
    size = sum(map(len, parts))
    observed = float(rank_statistic(predicted, actual, strata))
    exact = all(len(part) <= EXACT for part in parts)
    rng = np.random.default_rng([seed, 3])
    values, weights = np.zeros(1), np.ones(1)
    sampled = np.zeros(draws)
    for part in parts:
        if exact:
            orders = np.array(list(permutations(actual[part])))
        else:
            orders = rng.permuted(np.tile(actual[part], (draws, 1)), axis=1)
        rho = len(part) / size * spearman(predicted[part], orders)
        sampled = sampled + rho if not exact else sampled
        if exact:  # the distribution of a sum of independent parts
            there, counts = np.unique(np.round(rho, 12), return_counts=True)
            sums = np.round(values[:, None] + there, 12).ravel()
            shares = (weights[:, None] * counts / counts.sum()).ravel()
            values, place = np.unique(sums, return_inverse=True)
            weights = np.bincount(place, shares).astype(np.float64)
    if exact:
        return float(min(1.0, weights[values >= observed - 1e-9].sum())), True
    return float((1 + (sampled >= observed - 1e-9).sum()) / (1 + draws)), False


def smallest_p(strata: Sequence[str]) -> float:
    """The smallest p that a perfect order of distinct scores can reach."""
    return 1.0 / prod(factorial(len(part)) for part in _strata(strata))


# -------------------------------------------------------------------------------- verdicts


def judge_choice(trained: OutcomeTable, winner: str, *, seed: int = 0) -> ChoiceVerdict:
    """Does the predicted winner beat each rival? See :meth:`VerdictRules.sentences`.

    Args:
        trained: all trained encoders of the experiment, no controls.

    Raises:
        ValueError: if the winner is not among them.
    """
    first = trained.specs.index(winner)
    rivals = [i for i in range(len(trained.specs)) if i != first]
    deviation = seed_deviation(trained.scores)
    drawn = score_draws(trained, seed=seed, deviation=deviation)
    leads, corrected_level = [], 100 - (100 - LEVEL[1]) / max(1, len(rivals))
    for rival in rivals:
        difference = drawn[:, first] - drawn[:, rival]
        low, high = np.percentile(difference, LEVEL)
        value = float(trained.means[first] - trained.means[rival])
        top = float(np.percentile(difference, corrected_level))
        leads.append(Lead(trained.specs[rival], Estimate(value, float(low), float(high)), top))
    beaten = [lead for lead in leads if lead.high_corrected < 0]
    open_ = [lead.rival for lead in leads if lead.lead.low <= 0]
    if not rivals:
        verdict, why = "can't tell", "no rival was trained"
    elif deviation[0] is None:
        verdict, why = "can't tell", "one seed says nothing about what another would give"
    elif beaten:
        worst = min(beaten, key=lambda lead: lead.lead.value)
        verdict = f"overturned by {worst.rival}"
        why = f"it is ahead by {-worst.lead.value:.3f}, with an interval that excludes 0"
    elif open_:
        verdict = "can't tell"
        why = f"the lead over {', '.join(open_)} has an interval that holds 0"
    else:
        verdict, why = "confirmed", "its lead over every rival has an interval above 0"
    return ChoiceVerdict(verdict, why, winner, tuple(leads))


def judge_rule(
    trained: OutcomeTable, *, seed: int = 0, rules: VerdictRules = RULES
) -> OrderVerdict:
    """Does the predicted order hold? See :meth:`VerdictRules.sentences`.

    Args:
        trained: all trained encoders of the experiment, no controls.
    """
    scores, means = trained.scores, trained.means
    deviation = seed_deviation(scores)
    drawn = score_draws(trained, seed=seed, deviation=deviation)
    statistic = float(rank_statistic(trained.predicted, means, trained.strata))
    draws = rank_statistic(trained.predicted, drawn, trained.strata)
    low, high = np.percentile(draws, LEVEL)
    p, exact = permutation_p(trained.predicted, means, trained.strata, seed=seed)
    regret_value, regret = regret_draws(means, drawn, int(np.argmax(trained.predicted)))
    regret_low, regret_high = np.percentile(regret, LEVEL)
    spread, reach = float(np.ptp(means)), smallest_p(trained.strata)
    compared = sum(map(len, _strata(trained.strata)))
    verdict = "can't tell"
    if compared < rules.least:
        why = (
            f"{compared} trained encoders share a stage of training with another; {rules.least} "
            "needed"
        )
    elif reach >= rules.alpha:
        why = f"even a perfect order would only reach p = {reach:.3f}"
    elif deviation[0] is None:
        why = "one seed says nothing about what another would give"
    elif spread < rules.spread * deviation[0]:
        why = (
            f"all scores lie within {spread:.3f}, under {rules.spread:g} times the seed-to-seed "
            f"deviation ({deviation[0]:.3f})"
        )
    elif p < rules.alpha and regret_high <= rules.margin:
        verdict = "confirmed"
        why = f"p = {p:.3f}, and the predicted first is within {regret_high:.3f} of the best"
    elif high < rules.holds or regret_low > rules.margin:
        verdict = "not confirmed"
        causes = []
        if high < rules.holds:
            causes.append(f"the rank correlation is below {rules.holds:g} (upper 95 % {high:.2f})")
        if regret_low > rules.margin:
            causes.append(f"the predicted first is at least {regret_low:.3f} worse than the best")
        why = ", and ".join(causes)
    else:
        causes = [f"p = {p:.3f}"] if p >= rules.alpha else []
        if regret_high > rules.margin:
            causes.append(f"the top-1 regret may be as large as {regret_high:.3f}")
        why = " and ".join(causes) + "; neither side is excluded"
    return OrderVerdict(
        verdict,
        why,
        Estimate(statistic, float(low), float(high)),
        p,
        exact,
        Estimate(regret_value, float(regret_low), float(regret_high)),
        reach,
        spread,
        deviation[0],
        seed_correlation(scores),
    )
