import numpy as np
import pytest
import scipy.stats

from pipeline.statistics.efficiency import (
    SeedPair,
    TimeToTarget,
    break_even,
    matched_pair,
    mean_saving,
    median_ratio,
    restricted_mean,
    restricted_mean_ratio,
    sign_test,
    timesteps_to_target,
)
from pipeline.statistics.estimate import Estimate
from pipeline.statistics.planning import SIMULATED_COVERAGE, simulated_coverage

STEPS = [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("held", "patience", "expected"),
    [
        ([0, 1, 0, 1, 1], 2, TimeToTarget(30, False)),
        ([0, 1, 0, 0, 1], 2, TimeToTarget(40, True)),  # the last evaluation alone is not two in a row
        ([0, 1, 0, 0, 1], 1, TimeToTarget(10, False)),
        ([1, 1, 1, 0, 0], 3, TimeToTarget(0, False)),  # met from the start; losing it later does not matter
        ([0, 1, 1, 1, 0], 3, TimeToTarget(10, False)),
        ([0, 0, 0, 0, 0], 1, TimeToTarget(40, True)),
        ([1, 1, 1, 1, 1], 6, TimeToTarget(40, True)),  # more patience than evaluations
    ],
)
def test_time_to_target_worked_by_hand(held: list[int], patience: int, expected: TimeToTarget) -> None:
    assert timesteps_to_target(STEPS, np.array(held, bool), patience) == expected


@pytest.mark.parametrize(
    ("steps", "held", "patience"), [([], [], 1), ([0, 0], [1, 1], 1), ([0], [1, 1], 1), ([0], [1], 0)]
)
def test_impossible_evaluations_are_refused(steps: list[int], held: list[int], patience: int) -> None:
    with pytest.raises(ValueError, match=r"steps|patience"):
        timesteps_to_target(steps, held, patience)


def pair(
    baseline: int, pretrained: int, baseline_censored: bool = False, pretrained_censored: bool = False
) -> SeedPair:
    return matched_pair(
        0,
        TimeToTarget(baseline, baseline_censored),
        TimeToTarget(pretrained, pretrained_censored),
        evaluation_interval=10,
    )


def test_ratios_and_their_kinds_worked_by_hand() -> None:
    assert (pair(100, 25).ratio, pair(100, 25).kind) == (0.25, "exact")
    assert (pair(100, 25, True).ratio, pair(100, 25, True).kind) == (0.25, "upper bound")
    assert (pair(50, 100, False, True).ratio, pair(50, 100, False, True).kind) == (2.0, "lower bound")
    assert (pair(100, 100, True, True).ratio, pair(100, 100, True, True).kind) == (1.0, "undetermined")


def test_meeting_the_target_at_step_0_counts_as_one_evaluation_interval() -> None:
    assert pair(100, 0).ratio == 0.1
    assert pair(0, 0).ratio == 1.0


def test_the_ratio_of_restricted_means_worked_by_hand() -> None:
    pairs = [pair(100, 10), pair(200, 20), pair(100, 90, True)]
    estimate = restricted_mean_ratio(pairs, seed=0)
    assert estimate.value == 120 / 400
    # three pairs: 27 equally likely resamples; the extremes 0.1 (8 of 27) and 0.9 (1 of 27) reach into the tails
    assert estimate.low == pytest.approx(0.1)
    assert estimate.high == pytest.approx(0.9)


def test_the_ratio_interval_agrees_with_scipy_on_paired_resamples() -> None:
    generator = np.random.default_rng(1)
    baseline, pretrained = generator.lognormal(12, 0.4, 12).astype(int), generator.lognormal(10, 0.5, 12).astype(int)
    pairs = [pair(int(b), int(p)) for b, p in zip(baseline, pretrained, strict=True)]
    reference = scipy.stats.bootstrap(
        (baseline, pretrained),
        lambda b, p, axis: p.sum(axis) / b.sum(axis),
        paired=True,
        n_resamples=10_000,
        method="percentile",
        rng=3,
    ).confidence_interval
    ours = restricted_mean_ratio(pairs, seed=0)
    assert (ours.low, ours.high) == pytest.approx((reference.low, reference.high), rel=0.03)


def test_the_same_runs_against_themselves_give_ratio_1_with_certainty() -> None:
    pairs = [pair(t, t) for t in (0, 30, 170)] + [pair(400, 400, True, True)]
    assert restricted_mean_ratio(pairs, seed=0) == Estimate(1.0, 1.0, 1.0)
    assert median_ratio(pairs, seed=0).estimate == Estimate(1.0, 1.0, 1.0)
    assert mean_saving(pairs, seed=0) == Estimate(0.0, 0.0, 0.0)
    assert sign_test(pairs).decided == 0
    assert sign_test(pairs).p_value == 1.0


def test_a_median_is_a_bound_exactly_when_a_bound_could_move_it() -> None:
    certain = [pair(100, 10), pair(100, 20), pair(100, 30)]
    assert median_ratio(certain, 0).kind == "exact"
    assert median_ratio(certain, 0).estimate.value == 0.2
    below = [pair(400, 10, True), *certain[1:]]  # 0.025 may be smaller still, the median stays 0.2
    assert median_ratio(below, 0).kind == "exact"
    assert median_ratio([pair(400, 80, True), pair(100, 20), pair(100, 30)], 0).kind == "exact"
    above = [pair(100, 20), pair(100, 30), pair(400, 160, True)]  # 0.4 may be 0.1: the median may be 0.2
    assert median_ratio(above, 0).kind == "upper bound"
    assert median_ratio([pair(100, 10), pair(100, 400, False, True)], 0).kind == "lower bound"
    assert median_ratio([pair(400, 400, True, True)], 0).kind == "undetermined"


def test_restricted_mean_counts_a_censored_run_at_the_budget() -> None:
    times = [TimeToTarget(100, False), TimeToTarget(300, True)]
    assert restricted_mean(times, seed=0) == Estimate(200.0, 100.0, 300.0)


def test_the_sign_test_equals_scipy_and_counts_only_what_is_certain() -> None:
    pairs = [pair(100, 10)] * 5 + [pair(100, 110)] + [pair(400, 40, True), pair(100, 400, False, True)]
    test = sign_test([*pairs, pair(400, 400, True, True)])
    assert (test.faster, test.decided) == (6, 8)
    assert test.p_value == pytest.approx(scipy.stats.binomtest(6, 8, alternative="greater").pvalue)
    assert sign_test([pair(100, 10)] * 5).p_value == 1 / 32


def test_break_even_worked_by_hand() -> None:
    result = break_even(1_000_000, Estimate(300_000, 200_000, 500_000))
    assert (result.reuses, result.low, result.high) == (4, 2, 5)
    never = break_even(1_000_000, Estimate(-10.0, -50.0, 100.0))
    assert (never.reuses, never.low, never.high) == (None, 10_000, None)
    assert break_even(0, Estimate(5.0, 5.0, 5.0)).reuses == 1
    with pytest.raises(ValueError, match="upfront_steps"):
        break_even(-1, Estimate(1.0, 1.0, 1.0))


def test_a_ratio_of_no_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one matched pair"):
        restricted_mean_ratio([], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 10, 30])
def test_coverage_of_the_ratio_interval_is_what_the_report_says_it_is(seeds: int) -> None:
    """Log-normal times with a spread of 0.5, true ratio 0.2: a nominal 95 % interval is optimistic for few seeds."""
    generator = np.random.default_rng(seeds)
    covered = 0
    for trial in range(500):
        baseline = generator.lognormal(np.log(1e6), 0.5, seeds)
        pretrained = generator.lognormal(np.log(2e5), 0.5, seeds)
        pairs = [pair(int(b), int(p)) for b, p in zip(baseline, pretrained, strict=True)]
        estimate = restricted_mean_ratio(pairs, seed=trial, resamples=500)
        covered += estimate.low <= 0.2 <= estimate.high
    assert covered / 500 == pytest.approx(SIMULATED_COVERAGE[seeds], abs=0.045)


def test_the_coverage_of_a_number_of_pairs_that_was_not_simulated_is_that_of_fewer() -> None:
    assert (simulated_coverage(2), simulated_coverage(6), simulated_coverage(1_000)) == (None, 0.84, 0.94)
