"""Intervals over seeds and episodes: worked by hand, and how often they hold the truth."""

from math import sqrt

import numpy as np
import pytest
import scipy.stats

from pipeline.statistics.estimate import Estimate, MeanOverSeeds


def test_without_episodes_it_is_the_t_interval_of_the_seeds():
    values = np.array([0.1, 0.3, 0.2, 0.6])
    found, reference = MeanOverSeeds.of(values), scipy.stats.ttest_1samp(values, 0.0)
    low, high = reference.confidence_interval(0.95)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((low, high))
    assert found.p_value == pytest.approx(reference.pvalue)


def test_seeds_and_episodes_are_crossed_worked_by_hand():
    # seeds add -1 and 1, episodes 0, 3 and 6, and nothing else: the variances of the means are 2 / 2 and 9 / 3
    table = np.array([[-1.0], [1.0]]) + np.array([0.0, 3.0, 6.0])
    found = MeanOverSeeds.of(table)
    assert (found.mean, found.error) == (3.0, pytest.approx(2.0))
    assert found.freedom == pytest.approx(16 / (1 / 1 + 9 / 2))
    # episodes that differ by no more than chance add nothing to the seeds
    noise = np.array([[0.0, 1.0], [1.0, 0.2], [0.5, 0.5]])
    assert MeanOverSeeds.of(noise).error == MeanOverSeeds.of(noise.mean(axis=1)).error
    # seeds whose means are alike by chance: residuals of 0.5 leave 4 * 0.25 / 2 over 2 episodes and 3 seeds
    chance = MeanOverSeeds.of(np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]))
    assert (chance.mean, chance.error) == (0.5, pytest.approx(sqrt(1 / 12)))


def test_one_seed_says_nothing_of_others_and_seeds_that_are_all_alike_leave_no_doubt():
    assert MeanOverSeeds.of(np.array([[0.0, 1.0]])).estimate == Estimate(0.5, -np.inf, np.inf)
    assert MeanOverSeeds.of(np.array([[0.0, 1.0]])).p_value == 1.0
    alike = MeanOverSeeds.of(np.full((3, 1), -0.1))
    assert (alike.estimate, alike.p_value) == (Estimate(-0.1, -0.1, -0.1), 0.0)
    assert MeanOverSeeds.of(np.zeros((3, 4))).p_value == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 6, 10])
def test_the_interval_of_a_difference_of_rates_holds_the_truth_in_95_percent(seeds):
    """Success of paired policies on 200 shared episodes of their own difficulty; what is asked for is the mean over all
    seeds and episodes, here one difference of logits for all, so that the truth is known by drawing very many."""

    def chances(generator, seeds, episodes):
        hard, base = generator.normal(3, 1.5, episodes), generator.normal(0, 0.4, (seeds, 1))
        ours, theirs = base + generator.normal(0.3, 0.4, (seeds, 1)), base
        return (1 / (1 + np.exp(-(hard + part))) for part in (ours, theirs))

    ours, theirs = chances(np.random.default_rng(0), 3_000, 3_000)
    truth, generator, covered, studies = float((ours - theirs).mean()), np.random.default_rng(seeds), 0, 2_000
    for _ in range(studies):
        played = [generator.random(chance.shape) < chance for chance in chances(generator, seeds, 200)]
        found = MeanOverSeeds.of(played[0].astype(float) - played[1]).estimate
        covered += found.low <= truth <= found.high
    assert 0.935 <= covered / studies <= 0.985
