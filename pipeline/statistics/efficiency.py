"""Sample efficiency: timesteps to target, their ratio over matched seeds with censoring, and the bill.

A run is *censored* at its budget when it never met the target: its time is then only known to be longer. Nothing
censored is dropped. The unit of all resampling is the matched pair of seeds; episodes are never counted as seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

import numpy as np
from scipy.stats import binomtest

from pipeline.statistics.estimate import Estimate, bootstrap

RESAMPLES = 10_000
RatioKind = Literal["exact", "upper bound", "lower bound", "undetermined"]
# by whether the truth may be smaller, and whether it may be larger
KINDS: dict[tuple[bool, bool], RatioKind] = {
    (False, False): "exact",
    (True, False): "upper bound",
    (False, True): "lower bound",
    (True, True): "undetermined",
}


@dataclass(frozen=True)
class TimeToTarget:
    """When a run met the target."""

    steps: int  # environment steps of training; when censored, the steps after which it still had not
    censored: bool


@dataclass(frozen=True)
class SeedPair:
    """Both arms of one seed."""

    seed: int
    baseline: TimeToTarget
    pretrained: TimeToTarget
    ratio: float  # pre-trained / baseline of the steps as counted, see `kind`
    kind: RatioKind  # of the ratio: exact, or the side on which the true one lies


@dataclass(frozen=True)
class MedianRatio:
    """Median of per-seed ratios; a bound when the pairs in the middle are bounds."""

    estimate: Estimate
    kind: RatioKind


@dataclass(frozen=True)
class SignTest:
    """How many pairs were faster, and how likely that many or more are when neither arm is."""

    faster: int  # pairs whose pre-trained run certainly met the target first
    decided: int  # pairs in which one arm certainly was first
    p_value: float  # one-sided, exact binomial


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

        steps 0 10 20 30 40, held no yes no yes yes, patience 2  ->  TimeToTarget(30, censored=False)
        steps 0 10 20 30 40, held no yes no no  yes, patience 2  ->  TimeToTarget(40, censored=True)

    `steps` (n,) are environment steps, increasing; `held` (n,) says whether the evaluation met the target.
    Raises ValueError for no evaluations, unequal lengths, steps that do not increase or patience below 1.
    """
    at, good = np.asarray(steps), np.asarray(held, dtype=bool)
    if at.size == 0 or at.shape != good.shape or at.ndim != 1:
        raise ValueError(f"need as many steps as evaluations and at least one, got {at.shape} and {good.shape}")
    if (np.diff(at) <= 0).any() or patience < 1:
        raise ValueError("steps must increase and patience must be at least 1")
    run = 0
    for index, met in enumerate(good):
        run = run + 1 if met else 0
        if run == patience:
            return TimeToTarget(int(at[index - patience + 1]), censored=False)
    return TimeToTarget(int(at[-1]), censored=True)


def matched_pair(seed: int, baseline: TimeToTarget, pretrained: TimeToTarget, evaluation_interval: int) -> SeedPair:
    """The ratio pre-trained / baseline of one seed.

    A run that meets the target at step 0 counts as one evaluation interval: earlier cannot be seen. A censored baseline
    makes the ratio an upper bound, a censored pre-trained run a lower bound, both together leave it undetermined.
    """
    baseline, pretrained = (
        TimeToTarget(time.steps or evaluation_interval, time.censored) for time in (baseline, pretrained)
    )
    kind = KINDS[baseline.censored, pretrained.censored]
    return SeedPair(seed, baseline, pretrained, pretrained.steps / baseline.steps, kind)


def never_met(pairs: Sequence[SeedPair]) -> bool:
    """No run of either arm met the target: the ratio of their times is that of the budgets, and says nothing."""
    return all(pair.kind == "undetermined" for pair in pairs)


def restricted_mean(times: Sequence[TimeToTarget], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean of the times, censored ones counted at the budget (restricted mean, Royston and Parmar 2013), over seeds."""
    return bootstrap(np.mean, np.array([float(t.steps) for t in times]), seed=seed, resamples=resamples)


def restricted_mean_ratio(pairs: Sequence[SeedPair], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Ratio of the restricted mean times to target, percentile bootstrap over matched pairs."""

    def ratio(baseline: np.ndarray, pretrained: np.ndarray, axis: int) -> np.ndarray:
        return np.asarray(pretrained.sum(axis) / baseline.sum(axis))

    return bootstrap(ratio, *paired_steps(pairs), seed=seed, resamples=resamples)


def mean_saving(pairs: Sequence[SeedPair], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Environment steps saved per run: difference of restricted means, percentile bootstrap over matched pairs."""
    baseline, pretrained = paired_steps(pairs)
    return bootstrap(np.mean, baseline - pretrained, seed=seed, resamples=resamples)


def median_ratio(pairs: Sequence[SeedPair], seed: int, resamples: int = RESAMPLES) -> MedianRatio:
    """Median of per-seed ratios, percentile bootstrap over matched pairs; bounds count at their value.

    The median is itself a bound exactly when moving the bounds to where the truth might lie would move it.
    """
    estimate = bootstrap(np.median, np.array([p.ratio for p in pairs]), seed=seed, resamples=resamples)
    least = np.median([0.0 if p.kind in ("upper bound", "undetermined") else p.ratio for p in pairs])
    most = np.median([inf if p.kind in ("lower bound", "undetermined") else p.ratio for p in pairs])
    return MedianRatio(estimate, KINDS[bool(least != estimate.value), bool(most != estimate.value)])


def sign_test(pairs: Sequence[SeedPair]) -> SignTest:
    """Exact one-sided sign test over pairs: 5 of 5 faster -> p = 1/32. Needs no model of the times.

    A pair counts when it is certain which arm was first: a bound still decides when it lies on its side of 1.
    """
    faster = sum((p.ratio < 1 and p.kind == "exact") or (p.ratio <= 1 and p.kind == "upper bound") for p in pairs)
    slower = sum((p.ratio > 1 and p.kind == "exact") or (p.ratio >= 1 and p.kind == "lower bound") for p in pairs)
    decided = faster + slower
    p_value = float(binomtest(faster, decided, alternative="greater").pvalue) if decided else 1.0
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
    """(n,) baseline and (n,) pre-trained environment steps to target, restricted at the budget, in the pairs' order."""
    if not pairs:
        raise ValueError("a ratio needs at least one matched pair of seeds, got none")
    baseline = np.array([p.baseline.steps for p in pairs], dtype=np.float64)
    return baseline, np.array([p.pretrained.steps for p in pairs], dtype=np.float64)
