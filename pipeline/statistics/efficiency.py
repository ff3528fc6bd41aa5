"""Sample efficiency: timesteps to target, their ratio over matched seeds with censoring, and the bill.

A run is *censored* at its budget when it never met the target: its time is then only known to be longer. A run that
meets the target before its first update is at the *floor*: its time is only known to be at most one evaluation
interval. Any other time is known to lie between two evaluations. Nothing is dropped. The sample is the matched pair of
seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, inf
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import stats

from pipeline.statistics.estimate import (
    NO_EPISODES,
    Estimate,
    FromEpisodes,
    MeanOverSeeds,
    bootstrap,
    by_dataset,
    log_ratio_of_means,
    pooled_error,
)

RATIO_RESAMPLES = 10_000
RatioKind = Literal["exact", "upper bound", "lower bound", "undetermined"]
# by whether the truth may be smaller, and whether it may be larger
KINDS: dict[tuple[bool, bool], RatioKind] = {
    (False, False): "exact",
    (True, False): "upper bound",
    (False, True): "lower bound",
    (True, True): "undetermined",
}
# what stands before a ratio of each kind: its figure, and in a sentence
SIGNS: dict[RatioKind, str] = {"exact": "", "upper bound": "≤ ", "lower bound": "≥ ", "undetermined": "? "}
BOUNDS: dict[RatioKind, str] = {
    "exact": "",
    "upper bound": "at most ",
    "lower bound": "at least ",
    "undetermined": "about ",
}


@dataclass(frozen=True)
class TimeToTarget:
    """When a run met the target: after `after`, and no later than `steps`."""

    steps: int  # environment steps of training; when censored, the steps after which it still had not
    censored: bool
    after: int = 0  # the evaluation before, at which it had not; of a censored run `steps`, of one at the floor 0
    at_floor: bool = False  # met before the first update, and counted as one evaluation interval


@dataclass(frozen=True)
class SeedPair:
    """Both arms of one seed."""

    seed: int
    baseline: TimeToTarget
    pretrained: TimeToTarget
    ratio: float  # pre-trained / baseline of the steps as counted, see `kind`
    kind: RatioKind  # of the ratio: exact up to the grid of evaluations, or the side on which the true one lies
    dataset: str = ""  # that the pre-trained run comes from


@dataclass(frozen=True)
class MedianRatio:
    """Median of per-seed ratios; a bound when the pairs in the middle are bounds."""

    estimate: Estimate
    kind: RatioKind


@dataclass(frozen=True)
class SignTest:
    """How many pairs were faster, and how likely so many on either side are when neither arm is."""

    faster: int  # pairs whose pre-trained run certainly met the target first
    decided: int  # pairs in which one arm certainly was first
    p_value: float  # two-sided, exact binomial


@dataclass(frozen=True)
class BreakEven:
    """After how many uses of the dataset the steps spent on it are paid back."""

    reuses: int | None  # None: never, there is no saving
    low: int | None  # with the upper end of the saving's interval
    high: int | None  # with the lower end; None: never


def timesteps_to_target(
    steps: Sequence[int] | np.ndarray, held: Sequence[bool] | np.ndarray, patience: int
) -> TimeToTarget:
    """First evaluated timestep from which the target holds for `patience` consecutive evaluations.

        steps 0 10 20 30 40, held no yes no yes yes, patience 2  ->  30, after 20
        steps 0 10 20 30 40, held no yes no no  yes, patience 2  ->  40, censored
        steps 0 10 20 30 40, held yes yes no no no,  patience 2  ->  10, after 0, at the floor

    `steps` (n,) are environment steps, increasing; `held` (n,) says whether the evaluation met the target.
    Raises ValueError for no evaluations, unequal lengths, steps that do not increase or patience below 1.
    """
    at, good = np.asarray(steps), np.asarray(held, dtype=bool)
    if at.size == 0 or at.shape != good.shape or at.ndim != 1:
        raise ValueError(f"need as many steps as evaluations and at least one, got {at.shape} and {good.shape}")
    if (np.diff(at) <= 0).any() or patience < 1:
        raise ValueError("steps must increase and patience must be at least 1")
    first = int(first_held(good, patience))
    if first == len(at):
        return TimeToTarget(int(at[-1]), censored=True, after=int(at[-1]))
    if first == 0:
        return TimeToTarget(int(at[min(1, len(at) - 1)]), censored=False, at_floor=True)
    return TimeToTarget(int(at[first]), censored=False, after=int(at[first - 1]))


def first_held(held: np.ndarray, patience: int) -> np.ndarray:
    """(...) index from which `held` (..., n) is true `patience` times in a row; n where it never is."""
    count = held.shape[-1]
    if patience > count:
        return np.full(held.shape[:-1], count)
    in_a_row = sliding_window_view(held, patience, axis=-1).all(axis=-1)
    return np.where(in_a_row.any(axis=-1), in_a_row.argmax(axis=-1), count)


def matched_pair(seed: int, baseline: TimeToTarget, pretrained: TimeToTarget, dataset: str = "") -> SeedPair:
    """The ratio pre-trained / baseline of one seed.

    A censored baseline or a pre-trained run at the floor makes the ratio an upper bound, a censored pre-trained run or
    a baseline at the floor a lower bound, one of each leaves it undetermined.
    """
    kind = KINDS[baseline.censored or pretrained.at_floor, pretrained.censored or baseline.at_floor]
    return SeedPair(seed, baseline, pretrained, pretrained.steps / baseline.steps, kind, dataset)


def never_met(pairs: Sequence[SeedPair]) -> bool:
    """No run of either arm met the target: the ratio of their times is that of the budgets, and says nothing."""
    return all(pair.baseline.censored and pair.pretrained.censored for pair in pairs)


def ratio_kind(pairs: Sequence[SeedPair]) -> RatioKind:
    """Of the ratio of means: a bound on the sides on which any of the pairs is one."""
    smaller = any(pair.kind in ("upper bound", "undetermined") for pair in pairs)
    return KINDS[smaller, any(pair.kind in ("lower bound", "undetermined") for pair in pairs)]


def mean_kind(times: Sequence[TimeToTarget]) -> RatioKind:
    """Of a restricted mean: a bound on the sides on which any of the times is one."""
    return KINDS[any(time.at_floor for time in times), any(time.censored for time in times)]


def restricted_mean(
    times: Sequence[TimeToTarget], from_episodes: FromEpisodes = NO_EPISODES, datasets: Sequence[str] = ()
) -> Estimate:
    """Mean of the times, censored ones counted at the budget (restricted mean, Royston and Parmar 2013), over seeds.

    No time is below 0 or, where one is censored, above its budget, and so no interval is.
    """
    mean = MeanOverSeeds.of(by_dataset(np.array([float(t.steps) for t in times]), datasets), from_episodes).estimate
    most = max(t.steps for t in times) if any(t.censored for t in times) else inf
    return replace(mean, low=max(0.0, mean.low), high=min(most, mean.high))


def restricted_mean_ratio(pairs: Sequence[SeedPair], from_episodes: FromEpisodes = NO_EPISODES) -> Estimate:
    """Ratio of the restricted mean times to target: 95 % over matched pairs, and over where between two evaluations.

    Student's t of the logarithm over pairs, or over datasets where there are several, to whose variance the evaluation
    episodes add `from_episodes`. The lower end counts the pre-trained times at the evaluation before, the upper end
    those of the baseline, so that it holds wherever within the grid of evaluations the target was met: an interval of
    runs that all are at the floor begins at 0.
    """
    baseline, pretrained = paired_steps(pairs)
    value, error = log_ratio_of_means(pretrained, baseline)
    if error == inf:
        return Estimate(exp(value), 0.0, inf)
    error, freedom = pooled_error(float(error) ** 2, len(baseline), from_episodes)
    reach = exp(stats.t.ppf(0.975, freedom) * error)
    ratio, (least, most) = float(pretrained.mean() / baseline.mean()), grid_factors(pairs)
    return Estimate(ratio, ratio / reach * least, ratio * reach * most)


def grid_factors(pairs: Sequence[SeedPair]) -> tuple[float, float]:
    """By how much the ratio is smaller and larger at most, given that times lie between two evaluations.

    A baseline in its first interval stays one interval, or no ratio would have an upper end.
    """
    least = sum(pair.pretrained.after for pair in pairs) / sum(pair.pretrained.steps for pair in pairs)
    earliest = sum(pair.baseline.after or pair.baseline.steps for pair in pairs)
    return least, sum(pair.baseline.steps for pair in pairs) / earliest


def mean_saving(pairs: Sequence[SeedPair], from_episodes: FromEpisodes = NO_EPISODES) -> Estimate:
    """Environment steps saved per run: difference of restricted means over matched pairs."""
    baseline, pretrained = paired_steps(pairs)
    return MeanOverSeeds.of(baseline - pretrained, from_episodes).estimate


def median_ratio(pairs: Sequence[SeedPair], seed: int, resamples: int = RATIO_RESAMPLES) -> MedianRatio:
    """Median of per-seed ratios, percentile bootstrap over matched pairs; bounds count at their value.

    The median is itself a bound exactly when moving the bounds to where the truth might lie would move it; of one from
    above the interval begins at 0, of one from below it has no upper end.
    """
    estimate = bootstrap(np.median, np.array([p.ratio for p in pairs]), seed=seed, resamples=resamples)
    least = np.median([0.0 if p.kind in ("upper bound", "undetermined") else p.ratio for p in pairs])
    most = np.median([inf if p.kind in ("lower bound", "undetermined") else p.ratio for p in pairs])
    if least != estimate.value or len(pairs) < 2:
        estimate = replace(estimate, low=0.0)
    if most != estimate.value:
        estimate = replace(estimate, high=inf)
    return MedianRatio(estimate, KINDS[bool(least != estimate.value), bool(most != estimate.value)])


def sign_test(pairs: Sequence[SeedPair]) -> SignTest:
    """Exact two-sided sign test over pairs: 5 of 5 faster -> p = 2/32. Needs no model of the times.

    A pair counts when it is certain which arm was first: a bound still decides when it lies on its side of 1.
    """
    faster = sum((p.ratio < 1 and p.kind == "exact") or (p.ratio <= 1 and p.kind == "upper bound") for p in pairs)
    slower = sum((p.ratio > 1 and p.kind == "exact") or (p.ratio >= 1 and p.kind == "lower bound") for p in pairs)
    decided = faster + slower
    p_value = float(stats.binomtest(faster, decided).pvalue) if decided else 1.0
    return SignTest(faster, decided, p_value)


def break_even(upfront_steps: int, saving: Estimate) -> BreakEven:
    """Smallest number of runs whose savings repay `upfront_steps`: 1,000,000 steps at 300,000 saved a run -> 4.

    `saving` is in environment steps per run, with its interval.
    """
    if upfront_steps < 0:
        raise ValueError(f"upfront_steps must not be negative, got {upfront_steps}")

    def reuses(saved: float) -> int | None:
        return max(1, ceil(upfront_steps / saved)) if saved > 0 else None  # None for NaN too

    return BreakEven(reuses(saving.value), reuses(saving.high), reuses(saving.low))


def paired_steps(pairs: Sequence[SeedPair]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) baseline and (n,) pre-trained environment steps to target, restricted at the budget, in the pairs' order.

    Where the pairs come from several datasets, n is their number: means over the pairs of each.
    """
    if not pairs:
        raise ValueError("a ratio needs at least one matched pair of seeds, got none")
    steps = np.array([(pair.baseline.steps, pair.pretrained.steps) for pair in pairs], dtype=np.float64)
    baseline, pretrained = by_dataset(steps, [pair.dataset for pair in pairs]).T
    return baseline, pretrained
