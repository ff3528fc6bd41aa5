import time
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from pipeline.statistics.estimate import (
    RESAMPLES,
    Estimate,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_quantiles,
    wilson_interval,
)


def test_the_mean_of_three_successes_in_four_is_three_quarters_inside_its_interval() -> None:
    estimate = bootstrap_mean([0, 1, 1, 1], seed=0)
    assert estimate.value == 0.75
    # worked by hand: a resample of 4 has a binomial(4, 3/4) number of ones; P(<=1) = 0.051, P(0) = 0.004, P(4) = 0.316
    assert (estimate.low, estimate.high) == (0.25, 1.0)


def test_the_mean_interval_agrees_with_scipy() -> None:
    values = np.random.default_rng(3).exponential(2.0, size=80)
    ours = bootstrap_mean(values, seed=1, resamples=20_000)
    reference = scipy.stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2)
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(reference.confidence_interval.low, abs=0.02)
    assert ours.high == pytest.approx(reference.confidence_interval.high, abs=0.02)


def test_quantile_intervals_agree_with_scipy() -> None:
    values = np.random.default_rng(4).normal(size=101)
    for q, ours in zip((0.5, 0.05, 0.95), bootstrap_quantiles(values, (0.5, 0.05, 0.95), 5, 20_000), strict=True):
        reference = scipy.stats.bootstrap(
            (values,), lambda x, axis, q=q: np.quantile(x, q, axis=axis), n_resamples=5_000, method="percentile", rng=6
        )
        assert ours.value == np.quantile(values, q)
        assert ours.low == pytest.approx(reference.confidence_interval.low, abs=0.06)
        assert ours.high == pytest.approx(reference.confidence_interval.high, abs=0.06)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(values, seed=9) == bootstrap_mean(values, seed=9)
    assert bootstrap_mean(values, seed=9) != bootstrap_mean(values, seed=10)


def test_columns_together_equal_columns_alone() -> None:
    table = np.random.default_rng(0).normal(size=(30, 3))
    together = bootstrap_means(table, seed=2)
    for column, estimate in zip(table.T, together, strict=True):
        alone = bootstrap_mean(column, seed=2)
        np.testing.assert_allclose(
            [estimate.value, estimate.low, estimate.high], [alone.value, alone.low, alone.high], rtol=1e-12
        )


def test_a_constant_figure_has_an_interval_of_exactly_its_value() -> None:
    assert bootstrap_mean(np.full(7, 0.1), seed=0) == Estimate(0.1, 0.1, 0.1)
    assert bootstrap_quantiles(np.full(7, 0.1), (0.05,), seed=0)[0].low == pytest.approx(0.1, abs=1e-16)


def test_a_missing_value_is_never_counted_as_zero() -> None:
    assert np.isnan(bootstrap_mean([1.0, float("nan")], seed=0).value)
    assert np.isnan(bootstrap_quantiles([1.0, float("nan")], (0.5,), seed=0)[0].value)


@pytest.mark.parametrize("arguments", [([], 0), ([1.0], 0, 0), ([1.0], 0, 10, 1.0)])
def test_no_values_no_resamples_and_full_confidence_are_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match=r"needs? "):
        bootstrap_mean(*arguments)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (190, 200), (1, 1)])
def test_the_wilson_interval_equals_scipy(successes: int, trials: int) -> None:
    reference = scipy.stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    ours = wilson_interval(successes, trials)
    assert ours.value == successes / trials
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_the_wilson_interval_of_ten_of_ten_worked_by_hand() -> None:
    assert wilson_interval(10, 10).low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)  # n / (n + z^2)
    assert wilson_interval(10, 10).high == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(-1, 10), (11, 10), (0, 0)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, trials)


@pytest.mark.slow
def test_the_mean_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(11)
    covered = 0
    for trial in range(400):
        estimate = bootstrap_mean(generator.normal(1.0, 2.0, size=100), seed=trial, resamples=400)
        covered += estimate.low <= 1.0 <= estimate.high
    assert 0.91 <= covered / 400 <= 0.98


def test_a_summary_of_100_episodes_and_12_metrics_takes_less_than_resampling_one_of_them_in_a_loop() -> None:
    """On any machine; usually it takes a tenth."""
    table = np.random.default_rng(0).normal(size=(100, 12))

    def summary() -> None:
        bootstrap_means(table, seed=0)
        bootstrap_quantiles(table[:, 0], (0.5, 0.05, 0.95), seed=0)

    def loop() -> None:
        rng = np.random.default_rng(0)
        np.quantile([table[rng.integers(0, 100, 100), 0].mean() for _ in range(RESAMPLES)], [0.025, 0.975])

    def seconds(work: Callable[[], None]) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    summary()  # the weights of the resamples are kept
    assert min(seconds(summary) for _ in range(5)) < min(seconds(loop) for _ in range(5))
