"""Sample efficiency: timesteps to target, their ratio over matched seeds with censoring, and the bill.

A run is *censored* at its budget when it never met the target: its time is then only known to be longer. Nothing
censored is dropped. The unit of all resampling is the matched pair of seeds; episodes are never counted as seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, comb, inf, isnan
from typing import Literal

import numpy as np

from pipeline.statistics.estimate import Estimate, resample_indices

RESAMPLES = 10_000
RatioKind = Literal["exact", "upper bound", "lower bound", "undetermined"]


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
    if evaluation_interval < 1:
        raise ValueError(f"evaluation_interval must be at least 1 step, got {evaluation_interval}")
    baseline, pretrained = (
        TimeToTarget(max(t.steps, evaluation_interval) if not t.censored else t.steps, t.censored)
        if t.steps == 0
        else t
        for t in (baseline, pretrained)
    )
    kinds: dict[tuple[bool, bool], RatioKind] = {
        (False, False): "exact",
        (True, False): "upper bound",
        (False, True): "lower bound",
        (True, True): "undetermined",
    }
    kind = kinds[baseline.censored, pretrained.censored]
    return SeedPair(seed, baseline, pretrained, pretrained.steps / baseline.steps, kind)


def never_met(pairs: Sequence[SeedPair]) -> bool:
    """No run of either arm met the target: the ratio of their times is that of the budgets, and says nothing."""
    return all(pair.kind == "undetermined" for pair in pairs)


def restricted_mean(times: Sequence[TimeToTarget], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Mean of the times, censored ones counted at the budget (restricted mean, Royston and Parmar 2013), over seeds."""
    steps = np.array([t.steps for t in times], dtype=np.float64)
    resampled = steps[resample_indices(len(steps), resamples, seed)].mean(axis=1)
    return percentile_interval(float(steps.mean()), resampled)


def restricted_mean_ratio(pairs: Sequence[SeedPair], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Ratio of the restricted mean times to target, percentile bootstrap over matched pairs."""
    baseline, pretrained = paired_steps(pairs)
    indices = resample_indices(len(pairs), resamples, seed)
    resampled = pretrained[indices].sum(axis=1) / baseline[indices].sum(axis=1)
    return percentile_interval(float(pretrained.sum() / baseline.sum()), resampled)


def mean_saving(pairs: Sequence[SeedPair], seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Environment steps saved per run: difference of restricted means, percentile bootstrap over matched pairs."""
    baseline, pretrained = paired_steps(pairs)
    saved = baseline - pretrained
    resampled = saved[resample_indices(len(pairs), resamples, seed)].mean(axis=1)
    return percentile_interval(float(saved.mean()), resampled)


def median_ratio(pairs: Sequence[SeedPair], seed: int, resamples: int = RESAMPLES) -> MedianRatio:
    """Median of per-seed ratios, percentile bootstrap over matched pairs; bounds count at their value.

    The median is itself a bound exactly when moving the bounds to where the truth might lie would move it.
    """
    ratios = np.array([p.ratio for p in pairs])
    resampled = np.median(ratios[resample_indices(len(pairs), resamples, seed)], axis=1)
    value = float(np.median(ratios))
    least = float(np.median([0.0 if p.kind in ("upper bound", "undetermined") else p.ratio for p in pairs]))
    most = float(np.median([inf if p.kind in ("lower bound", "undetermined") else p.ratio for p in pairs]))
    kinds: dict[tuple[bool, bool], RatioKind] = {
        (True, True): "exact",
        (False, True): "upper bound",
        (True, False): "lower bound",
        (False, False): "undetermined",
    }
    return MedianRatio(percentile_interval(value, resampled), kinds[least == value, most == value])


def sign_test(pairs: Sequence[SeedPair]) -> SignTest:
    """Exact one-sided sign test over pairs: 5 of 5 faster -> p = 1/32. Needs no model of the times.

    A pair counts when it is certain which arm was first: a bound still decides when it lies on its side of 1.
    """
    faster = sum(p.ratio < 1 and p.kind in ("exact", "upper bound") for p in pairs)
    slower = sum(p.ratio > 1 and p.kind == "exact" for p in pairs)
    slower += sum(p.ratio >= 1 and p.kind == "lower bound" for p in pairs)
    faster += sum(p.ratio == 1 and p.kind == "upper bound" for p in pairs)
    decided = faster + slower
    p_value = sum(comb(decided, k) for k in range(faster, decided + 1)) / 2**decided
    return SignTest(faster, decided, p_value)


def break_even(upfront_steps: int, saving: Estimate) -> BreakEven:
    """Smallest number of runs whose savings repay `upfront_steps`: 1,000,000 steps at 300,000 saved a run -> 4.

    `saving` is in environment steps per run, with its interval.
    """
    if upfront_steps < 0:
        raise ValueError(f"upfront_steps must not be negative, got {upfront_steps}")

    def reuses(saved: float) -> int | None:
        if isnan(saved) or saved <= 0:
            return None
        return max(1, ceil(upfront_steps / saved))

    return BreakEven(reuses(saving.value), reuses(saving.high), reuses(saving.low))


def paired_steps(pairs: Sequence[SeedPair]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) baseline and (n,) pre-trained environment steps to target, restricted at the budget, in the pairs' order."""
    if not pairs:
        raise ValueError("a ratio needs at least one matched pair of seeds, got none")
    baseline = np.array([p.baseline.steps for p in pairs], dtype=np.float64)
    return baseline, np.array([p.pretrained.steps for p in pairs], dtype=np.float64)


def percentile_interval(value: float, resampled: np.ndarray, confidence: float = 0.95) -> Estimate:
    """A figure with the percentile interval of its resampled values (resamples,)."""
    low, high = np.quantile(resampled, ((1 - confidence) / 2, (1 + confidence) / 2))
    return Estimate(value, float(low), float(high))
