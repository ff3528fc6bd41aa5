import numpy as np
import pytest
import scipy.stats

from pipeline.statistics.aggregate import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from pipeline.statistics.estimate import Estimate


def test_the_interquartile_mean_worked_by_hand() -> None:
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, 0]), seed=0).value == 3.5


def test_a_single_run_says_nothing_of_others() -> None:
    assert interquartile_mean(np.array([2.0]), seed=0) == Estimate(2.0, -np.inf, np.inf)
    assert probability_of_improvement(np.array([2.0]), np.array([1.0]), seed=0) == Estimate(1.0, 0.0, 1.0)


def test_the_interval_of_the_interquartile_mean_agrees_with_scipy() -> None:
    scores = np.random.default_rng(0).normal(5, 2, size=20)
    ours = interquartile_mean(scores, seed=0)
    reference = scipy.stats.bootstrap(
        (scores,),
        lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=10_000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), abs=0.05)


def test_the_probability_of_improvement_worked_by_hand() -> None:
    # pairs: 3>1 3>2, 2>1 2=2  ->  (1 + 1 + 1 + 0.5) / 4
    assert probability_of_improvement(np.array([3.0, 2.0]), np.array([1.0, 2.0]), seed=0).value == 0.875


def test_the_probability_of_improvement_is_the_mann_whitney_statistic_over_all_pairs() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.integers(0, 6, 9).astype(float), generator.integers(0, 5, 7).astype(float)
    reference = scipy.stats.mannwhitneyu(a, b).statistic / (9 * 7)
    estimate = probability_of_improvement(a, b, seed=0)
    assert estimate.value == pytest.approx(reference)
    assert estimate.low <= estimate.value <= estimate.high


def test_runs_against_themselves_give_probability_one_half() -> None:
    scores = np.random.default_rng(3).normal(size=10)
    estimate = probability_of_improvement(scores, scores, seed=0)
    assert estimate.value == 0.5
    assert estimate.low < 0.5 < estimate.high


def test_a_run_that_always_wins_improves_with_certainty() -> None:
    estimate = probability_of_improvement(np.array([5.0, 6.0, 7.0]), np.array([1.0, 2.0]), seed=0)
    assert (estimate.value, estimate.low, estimate.high) == (1.0, 1.0, 1.0)


def test_the_performance_profile_worked_by_hand() -> None:
    profile = performance_profile(np.array([1.0, 2.0, 3.0]), [0.0, 1.5, 3.0], seed=0)
    assert profile.share == pytest.approx((1.0, 2 / 3, 0.0))
    assert profile.low[0] == profile.high[0] == 1.0
    assert profile.low[1] < 2 / 3 < profile.high[1]


def test_the_performance_profile_is_the_complement_of_the_empirical_distribution() -> None:
    scores = np.random.default_rng(5).normal(size=25)
    grid = np.linspace(-2, 2, 9)
    reference = scipy.stats.ecdf(scores).sf.evaluate(grid)
    np.testing.assert_allclose(performance_profile(scores, grid, seed=0).share, reference)


@pytest.mark.parametrize("scores", [np.array([]), np.array([1.0, np.nan]), np.ones((2, 2))])
def test_scores_that_are_missing_or_not_finite_are_refused(scores: np.ndarray) -> None:
    with pytest.raises(ValueError, match="scores must be finite"):
        interquartile_mean(scores, seed=0)


@pytest.mark.slow
def test_coverage_of_the_probability_of_improvement_by_simulation() -> None:
    """Two normals one standard deviation apart: P(X > Y) = Phi(1 / sqrt 2) = 0.760."""
    truth = float(scipy.stats.norm.cdf(1 / np.sqrt(2)))
    generator = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        estimate = probability_of_improvement(generator.normal(1, 1, 15), generator.normal(0, 1, 15), trial, 400)
        covered += estimate.low <= truth <= estimate.high
    assert 0.87 <= covered / 300 <= 0.98
