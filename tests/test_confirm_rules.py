"""Planted truth: simulated trainings whose real order is known must give the right verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import permutations
from math import factorial

import numpy as np
import pytest
from scipy.stats import binom, spearmanr

from encbench.confirm.rules import (
    RULES,
    OutcomeTable,
    VerdictRules,
    judge_choice,
    judge_rule,
    permutation_p,
    prompt_weights,
    rank_statistic,
    regret_draws,
    score_draws,
    seed_correlation,
    seed_deviation,
    smallest_p,
)
from encbench.types import Cell

STAGES = ("final",) * 4 + ("20pct",) * 4 + ("3pct",) * 4
SPREAD = np.linspace(0.75, 0.1, 12)
TRIALS = 20  # where nearly all must come out one way
NULL_TRIALS = 200  # where an error may come out in 5 %
MOST = binom.ppf(0.99, NULL_TRIALS, 0.05)  # so that a rule that errs in 15 % is caught: 99 of 100
World = Callable[[np.random.Generator], tuple[np.ndarray, tuple[str, ...], np.ndarray]]


def train(
    true: np.ndarray,
    stages: tuple[str, ...],
    predicted: np.ndarray,
    rng: np.random.Generator,
    *,
    seeds: int = 2,
    deviation: float = 0.01,
    prompts: int = 40,
    images: int = 2,
) -> OutcomeTable:
    """Six tasks; prompts of differing difficulty, the same for all; seeds move a model."""
    tasks = np.repeat(np.arange(6), prompts)
    difficulty = rng.normal(0, 1.0, len(tasks))
    right = np.empty((len(true), seeds, len(tasks)))
    for e, s in np.ndindex(len(true), seeds):
        mean = np.clip(true[e] + rng.normal(0, deviation), 0.01, 0.99)
        chance = 1 / (1 + np.exp(-(1.2 * np.log(mean / (1 - mean)) + difficulty)))
        right[e, s] = rng.binomial(images, chance) / images
    names = tuple(f"e{i}" for i in range(len(true)))
    return OutcomeTable(names, stages, np.asarray(predicted, float), tasks, right)


def rates(world: World, trials: int = TRIALS, **more: float) -> tuple[Counter[str], Counter[str]]:
    rng = np.random.default_rng(11)
    rules, choices = Counter[str](), Counter[str]()
    for trial in range(trials):
        trained = train(*world(rng), rng, **more)
        rules[judge_rule(trained, seed=trial).verdict] += 1
        winner = trained.specs[int(np.argmax(trained.predicted))]
        choices[judge_choice(trained, winner, seed=trial).verdict.split(" by ")[0]] += 1
    return rules, choices


def test_a_true_order_is_confirmed() -> None:
    rules, choices = rates(lambda rng: (SPREAD, STAGES, -np.arange(12)))
    assert rules["confirmed"] >= 0.8 * TRIALS
    assert rules["not confirmed"] == 0
    assert choices["overturned"] == 0
    assert choices["confirmed"] >= 0.5 * TRIALS


def test_a_reversed_order_is_not_confirmed_and_the_choice_overturned() -> None:
    rules, choices = rates(lambda rng: (SPREAD, STAGES, np.arange(12)))
    assert rules["not confirmed"] == TRIALS
    assert choices["overturned"] == TRIALS


def null_rates(world: World, **more: float) -> tuple[Counter[str], Counter[str]]:
    """Rates in many trials on few prompts, since each may err whatever their number."""
    return rates(world, NULL_TRIALS, prompts=8, **more)


def test_a_random_order_is_hardly_ever_confirmed() -> None:
    rules, _ = null_rates(lambda rng: (rng.permutation(SPREAD), STAGES, rng.permutation(12)))
    assert rules["confirmed"] <= MOST


def test_training_length_alone_does_not_carry_the_order() -> None:
    """The prediction knows only the stage, and within a stage all are equally good."""

    def world(rng: np.random.Generator) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
        length = np.repeat([3.0, 2.0, 1.0], 4)
        return np.repeat([0.6, 0.4, 0.2], 4), STAGES, length + rng.normal(0, 0.1, 12)

    rules, choices = null_rates(world)
    assert rules["confirmed"] <= MOST
    assert choices["confirmed"] <= MOST
    assert choices["overturned"] <= MOST


def test_equal_encoders_cannot_be_told_apart() -> None:
    rules, choices = null_rates(
        lambda rng: (np.full(6, 0.3), ("final",) * 6, rng.permutation(6)), deviation=0.02
    )
    assert choices["confirmed"] <= MOST
    assert choices["overturned"] <= MOST
    assert rules["confirmed"] <= MOST


def test_p_is_below_5_percent_in_5_percent_of_random_orders() -> None:
    rng = np.random.default_rng(7)
    trials = 2000
    below = sum(
        permutation_p(rng.random(12), rng.random(12), STAGES)[0] < 0.05 for _ in range(trials)
    )
    assert binom.ppf(0.001, trials, 0.045) <= below <= binom.ppf(0.999, trials, 0.05)


@pytest.mark.parametrize(
    ("true", "stages", "seeds", "said"),
    [
        (SPREAD[:3], ("final",) * 3, 2, "4 needed"),
        (SPREAD[:4], ("final", "final", "20pct", "20pct"), 2, "even a perfect order"),
        (SPREAD[:6], ("final",) * 6, 1, "one seed"),
    ],
)
def test_too_little_to_tell(
    true: np.ndarray, stages: tuple[str, ...], seeds: int, said: str
) -> None:
    rng = np.random.default_rng(4)
    trained = train(true, stages, -np.arange(len(true)), rng, seeds=seeds)
    rule = judge_rule(trained)
    assert rule.verdict == "can't tell"
    assert said in rule.why


def test_scores_that_seeds_turn_round_are_no_order() -> None:
    one = np.array([0.2, 0.3, 0.4, 0.5])
    right = np.repeat(np.stack([one, one[::-1] + 0.01], axis=1)[:, :, None], 12, axis=2)
    trained = OutcomeTable(
        ("a", "b", "c", "d"), ("final",) * 4, np.arange(4.0), np.arange(12) % 6, right
    )
    assert "seed-to-seed deviation" in judge_rule(trained).why


def test_the_printed_rules_are_made_of_the_constants_that_judge() -> None:
    cell = Cell("geneval", 4, "A", "seen")
    strict = VerdictRules(alpha=0.0001, margin=0.001, least=7, holds=0.25, spread=9.0)
    said = strict.sentences(cell)["rule"]
    for words in (
        "fewer than 7 trained",
        "p < .0001",
        "at most .001",
        "below .25",
        "under 9 times",
    ):
        assert words in said
    assert VerdictRules().sentences(cell)["rule"] != said
    trained = train(SPREAD[:6], ("final",) * 6, -np.arange(6), np.random.default_rng(0))
    assert judge_rule(trained).verdict == "confirmed"
    assert judge_rule(trained, rules=strict).why.endswith("7 needed")
    lenient = VerdictRules(alpha=0.0001, least=6)
    assert "would only reach p" in judge_rule(trained, rules=lenient).why
    second = cell._replace(tier="B")
    assert "in other words" in RULES.sentences(cell, second)["questions"]
    assert "Second" not in RULES.sentences(cell)["questions"]


def test_one_seed_never_confirms_a_choice() -> None:
    trained = train(SPREAD, STAGES, -np.arange(12), np.random.default_rng(0), seeds=1)
    choice = judge_choice(trained, "e0")
    assert choice.verdict == "can't tell"
    assert all(lead.lead.value > 0 for lead in choice.leads)


def test_p_is_that_of_all_orders() -> None:
    predicted = np.array([5.0, 3.0, 4.0, 1.0, 2.0])
    actual = np.array([0.5, 0.45, 0.3, 0.1, 0.2])
    observed = spearmanr(predicted, actual).statistic
    as_good = [spearmanr(predicted, o).statistic >= observed - 1e-9 for o in permutations(actual)]
    p, exact = permutation_p(predicted, actual, ("final",) * 5)
    assert exact
    assert p == pytest.approx(np.mean(as_good))


def test_p_over_strata_is_that_of_all_orders_within_them() -> None:
    predicted = np.array([3.0, 1.0, 2.0, 9.0, 8.0, 7.0])
    actual = np.array([0.3, 0.2, 0.25, 0.1, 0.6, 0.05])
    strata = ("a", "a", "a", "b", "b", "b")
    observed = float(rank_statistic(predicted, actual, strata))
    table = np.array([[*x, *y] for x in permutations(actual[:3]) for y in permutations(actual[3:])])
    reached = rank_statistic(predicted, table, strata) >= observed - 1e-9
    assert permutation_p(predicted, actual, strata)[0] == pytest.approx(reached.mean())
    assert smallest_p(strata) == pytest.approx(1 / factorial(3) ** 2)
    assert permutation_p(predicted, predicted, strata)[0] == pytest.approx(smallest_p(strata))


def test_many_encoders_are_sampled_and_say_so() -> None:
    order = np.arange(12.0)
    p, exact = permutation_p(order, order, ("final",) * 12, draws=2000)
    assert not exact
    assert p == pytest.approx(1 / 2001)


def test_regret_is_not_biased_upwards() -> None:
    """Without correction the best of many equals looks better than any of them."""
    rng = np.random.default_rng(1)
    plain, corrected, covered = [], [], []
    for trial in range(60):
        true = np.full(8, 0.4)
        trained = train(true, ("final",) * 8, rng.permutation(8), rng, prompts=10)
        drawn = score_draws(
            trained, seed=trial, draws=500, deviation=seed_deviation(trained.scores)
        )
        first = int(np.argmax(trained.predicted))
        value, draws = regret_draws(trained.means, drawn, first)
        plain.append(trained.means.max() - trained.means[first])
        corrected.append(value)
        covered.append(np.percentile(draws, 2.5) <= 1e-9)
    assert np.mean(corrected) < 0.75 * np.mean(plain)
    assert np.mean(covered) >= 0.95


def test_a_score_is_the_mean_of_task_means() -> None:
    tasks = np.array([0, 0, 0, 1])
    assert prompt_weights(tasks) @ np.array([1, 1, 0, 0.5]) == pytest.approx((2 / 3 + 0.5) / 2)


def test_a_shift_of_a_whole_seed_is_no_noise() -> None:
    scores = np.array([[0.1, 0.3], [0.2, 0.4], [0.5, 0.7]])
    assert seed_deviation(scores)[0] == pytest.approx(0)
    assert seed_correlation(scores) == pytest.approx(1)
    assert seed_deviation(scores[:, :1]) == (None, 0)
    assert seed_correlation(scores[:, :1]) is None


def test_the_same_seed_gives_the_same_verdict() -> None:
    trained = train(SPREAD, STAGES, -np.arange(12), np.random.default_rng(0))
    assert judge_rule(trained, seed=5) == judge_rule(trained, seed=5)
    assert judge_choice(trained, "e0", seed=5) == judge_choice(trained, "e0", seed=5)
