"""Several arms against one, over matched seeds: who was first, who ended higher, and what of it survives correction."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

import numpy as np
from scipy.stats import permutation_test

from pipeline.statistics.efficiency import RatioKind
from pipeline.statistics.estimate import Estimate

SIGNIFICANCE = 0.05
EXACT_UP_TO = 14  # pairs; all 2^14 signs are tried, beyond as many at random


@dataclass(frozen=True)
class RankedArm:
    """One arm against the reference arm."""

    arm: str
    steps: Estimate  # environment steps to target, restricted mean
    ratio: Estimate  # of that to the reference arm's
    ratio_kind: RatioKind | None  # None: no run of either met the target, and the ratio says nothing
    ratio_p: float  # that the steps of matched seeds differ, corrected
    difference: Estimate  # of the final figure, arm - reference, mean over matched seeds
    difference_p: float  # corrected

    def said(self) -> str:
        """What survives the correction, in words: `fewer steps, ends higher`; empty: nothing."""
        found = []
        if self.ratio_p <= SIGNIFICANCE:
            found.append("fewer steps" if self.ratio.value < 1 else "more steps")
        if self.difference_p <= SIGNIFICANCE:
            found.append("ends higher" if self.difference.value > 0 else "ends lower")
        return ", ".join(found)


def sign_flip_p(differences: Sequence[float] | np.ndarray, seed: int) -> float:
    """Two-sided p of the mean of paired differences (n,), by flipping their signs: 5 of one sign and size -> 2/32.

    Exact up to 14 pairs. Nothing is assumed but that, without an effect, either sign is as likely; n pairs cannot give
    less than 2 / 2^n.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2 or not values.any():
        return 1.0
    resamples = 2 ** min(len(values), EXACT_UP_TO)
    found = permutation_test(
        (values,), np.mean, permutation_type="samples", vectorized=True, n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)


def pairs_needed(arms: int) -> int:
    """The fewest pairs on which one of so many arms can survive the correction: 1 -> 6, 2 -> 7, 6 -> 8."""
    return ceil(log2(2 * arms / SIGNIFICANCE))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Corrected for so many comparisons (Holm 1979), in the order given: (0.01, 0.04, 0.03) -> (0.03, 0.06, 0.06)."""
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(stepped, 1.0)
    return tuple(corrected.tolist())
