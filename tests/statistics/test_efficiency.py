from math import inf

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
    ratio_kind,
    restricted_mean,
    restricted_mean_ratio,
    sign_test,
    timesteps_to_target,
)
from pipeline.statistics.estimate import Estimate

STEPS = [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    ("held", "patience", "expected"),
    [
        ([0, 1, 0, 1, 1], 2, TimeToTarget(30, False, 20)),
        ([0, 1, 0, 0, 1], 2, TimeToTarget(40, True, 40)),  # the last evaluation alone is not two in a row
        ([0, 1, 0, 0, 1], 1, TimeToTarget(10, False, 0)),
        ([1, 1, 1, 0, 0], 3, TimeToTarget(10, False, 0, at_floor=True)),  # met from the start: one evaluation interval
        ([0, 1, 1, 1, 0], 3, TimeToTarget(10, False, 0)),
        ([0, 0, 0, 0, 0], 1, TimeToTarget(40, True, 40)),
        ([1, 1, 1, 1, 1], 6, TimeToTarget(40, True, 40)),  # more patience than evaluations
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
    """Times that are known exactly; 0 is met before the first update, with evaluations every 10 steps."""

    def time(steps: int, censored: bool) -> TimeToTarget:
        return TimeToTarget(steps, censored, steps) if steps else TimeToTarget(10, False, 0, at_floor=True)

    return matched_pair(0, time(baseline, baseline_censored), time(pretrained, pretrained_censored))


def test_ratios_and_their_kinds_worked_by_hand() -> None:
    assert (pair(100, 25).ratio, pair(100, 25).kind) == (0.25, "exact")
    assert (pair(100, 25, True).ratio, pair(100, 25, True).kind) == (0.25, "upper bound")
    assert (pair(50, 100, False, True).ratio, pair(50, 100, False, True).kind) == (2.0, "lower bound")
    assert (pair(100, 100, True, True).ratio, pair(100, 100, True, True).kind) == (1.0, "undetermined")


def test_meeting_the_target_at_step_0_counts_as_one_evaluation_interval_and_is_a_bound() -> None:
    assert (pair(100, 0).ratio, pair(100, 0).kind) == (0.1, "upper bound")
    assert (pair(0, 20).ratio, pair(0, 20).kind) == (2.0, "lower bound")
    assert (pair(0, 0).ratio, pair(0, 0).kind) == (1.0, "undetermined")
    assert ratio_kind([pair(100, 10), pair(100, 0)]) == "upper bound"
    assert ratio_kind([pair(100, 10), pair(100, 400, False, True)]) == "lower bound"


def test_the_ratio_of_restricted_means_worked_by_hand() -> None:
    pairs = [pair(100, 10), pair(200, 20), pair(100, 90, True)]
    estimate = restricted_mean_ratio(pairs)
    assert estimate.value == 120 / 400
    # without one pair each: 110 / 300, 100 / 200, 30 / 300; the jackknife of their logarithms, and t of 2 degrees
    logs = np.log([110 / 300, 100 / 200, 30 / 300])
    reach = np.exp(scipy.stats.t.ppf(0.975, 2) * np.sqrt(2 / 3 * ((logs - logs.mean()) ** 2).sum()))
    assert (estimate.low, estimate.high) == pytest.approx((0.3 / reach, 0.3 * reach))


def test_the_interval_of_the_ratio_holds_wherever_in_the_grid_the_target_was_met() -> None:
    exact = [pair(100, 20), pair(200, 30), pair(150, 20)]
    gridded = [
        matched_pair(0, TimeToTarget(b, False, b - 10), TimeToTarget(p, False, p - 10))
        for b, p in ((100, 20), (200, 30), (150, 20))
    ]
    certain, wide = restricted_mean_ratio(exact), restricted_mean_ratio(gridded)
    assert wide.value == certain.value == 70 / 450
    assert wide.low == pytest.approx(certain.low * 40 / 70)
    assert wide.high == pytest.approx(certain.high * 450 / 420)
    assert restricted_mean_ratio([pair(100, 0), pair(200, 0), pair(150, 0)]).low == 0  # it may take no step at all
    both = restricted_mean_ratio([pair(0, 0), pair(0, 0), pair(0, 0)])
    assert both == Estimate(1.0, 0.0, 1.0) and ratio_kind([pair(0, 0)]) == "undetermined"


def test_one_pair_says_nothing_of_others() -> None:
    assert restricted_mean_ratio([pair(100, 20)]) == Estimate(0.2, 0.0, np.inf)


def test_the_same_runs_against_themselves_give_ratio_1_with_certainty() -> None:
    pairs = [pair(t, t) for t in (20, 30, 170)] + [pair(400, 400, True, True)]
    assert restricted_mean_ratio(pairs) == Estimate(1.0, 1.0, 1.0)
    assert median_ratio(pairs, seed=0).estimate == Estimate(1.0, 1.0, 1.0)
    assert mean_saving(pairs) == Estimate(0.0, 0.0, 0.0)
    assert sign_test([*pairs, pair(0, 0)]).decided == 0
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
    below = median_ratio([pair(100, 10), pair(100, 400, False, True)], 0)
    assert (below.kind, below.estimate.high) == ("lower bound", inf)
    one = median_ratio([pair(100, 10)], 0).estimate
    assert (one.value, one.low, one.high) == (0.1, 0.0, inf)  # a single pair says nothing of others
    assert median_ratio([pair(400, 400, True, True)], 0).kind == "undetermined"


def test_restricted_mean_counts_a_censored_run_at_the_budget() -> None:
    times = [TimeToTarget(100, False), TimeToTarget(300, True)]
    estimate = restricted_mean(times)
    assert estimate.value == 200.0
    assert (estimate.low, estimate.high) == (0.0, 300.0)  # not -1,070.6 and 1,470.6: between 0 and the budget
    met = restricted_mean([TimeToTarget(100, False), TimeToTarget(300, False)])
    assert met.high - 200.0 == pytest.approx(12.706 * 100, rel=1e-3)  # t of one degree of freedom


def test_the_sign_test_equals_scipy_and_counts_only_what_is_certain() -> None:
    pairs = [pair(100, 10)] * 5 + [pair(100, 110)] + [pair(400, 40, True), pair(100, 400, False, True)]
    test = sign_test([*pairs, pair(400, 400, True, True)])
    assert (test.faster, test.decided) == (6, 8)
    assert test.p_value == pytest.approx(scipy.stats.binomtest(6, 8).pvalue)
    assert sign_test([pair(100, 10)] * 5).p_value == 2 / 32


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
        restricted_mean_ratio([])


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 6, 10])
@pytest.mark.parametrize(
    ("spread", "grid", "least"), [(0.3, 1, 0.935), (0.5, 1, 0.93), (0.5, 60_000, 0.94), (1.0, 1, 0.91)]
)
def test_the_interval_of_the_ratio_holds_the_truth_in_95_percent(
    seeds: int, spread: float, grid: int, least: float
) -> None:
    """Log-normal times, true ratio 0.2 of the means; evaluated at every step or every 60,000."""
    generator, covered, studies = np.random.default_rng([seeds, grid]), 0, 4_000
    times = generator.lognormal(0, spread, (studies, 2, seeds)) * np.array([1e6, 2e5])[:, None]
    for study in times:
        ends = (np.ceil(study / grid) * grid).astype(int)
        pairs = [
            matched_pair(
                s, *(TimeToTarget(int(t), False, int(t) - (grid if grid > 1 else 0), t == grid > 1) for t in both)
            )
            for s, both in enumerate(ends.T)
        ]
        estimate = restricted_mean_ratio(pairs)
        covered += estimate.low <= 0.2 <= estimate.high
    assert least <= covered / studies <= 0.999
