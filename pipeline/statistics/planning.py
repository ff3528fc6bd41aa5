"""How many more matched seeds would decide."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from pipeline.statistics.efficiency import SeedPair, grid_factors, never_met, paired_steps
from pipeline.statistics.estimate import NO_EPISODES, FromEpisodes, log_ratio_of_means, pooled_error

POWER = 0.8
MOST_PAIRS = 1_024
STUDIES = 200  # simulated studies per number of seeds


@dataclass(frozen=True)
class SeedsNeeded:
    """The answer, or why there is none."""

    more: int | None  # matched seeds in addition to those there are
    power: float  # share of simulated studies of that size that decide
    explanation: str


def seeds_needed(
    pairs: Sequence[SeedPair],
    at_most: float | None,
    minimum: int,
    seed: int,
    from_episodes: FromEpisodes = NO_EPISODES,
) -> SeedsNeeded:
    """Matched seeds needed in addition so that 80 % of studies decide.

    A study draws pairs with replacement from those observed, evaluated on as many episodes, and asks for the interval
    of their ratio of mean times. It
    decides when the upper end is at most `at_most`; with None, when the interval lies on one side of 1.
    """
    baseline, pretrained = paired_steps(pairs)
    ratio = float(pretrained.sum() / baseline.sum())
    hopeless = None
    count, unit = len(baseline), "matched seeds" if len(baseline) == len(pairs) else "datasets of as many seeds"
    if count < 2:
        hopeless = "one matched seed shows no spread to simulate from; train at least two more"
    elif never_met(pairs):
        hopeless = "no run met the target: train longer, more seeds like these would not help"
    elif at_most is not None and ratio > at_most:
        hopeless = f"the observed ratio {ratio:.3g} is itself above {at_most:g}: more seeds like these would not help"
    elif at_most is None and ratio == 1:
        hopeless = "the observed ratio is 1: more seeds like these would not decide"
    least, most = grid_factors(pairs)
    within = ratio * least <= 1 <= ratio * most if at_most is None else ratio * most > at_most
    if hopeless is None and within:
        hopeless = "evaluations are too far apart to tell such times apart: evaluate more often"
    if hopeless is not None:
        return SeedsNeeded(None, 0.0, hopeless)

    def power(size: int) -> float:
        """Share of simulated studies of `size` pairs, or datasets, that decide."""
        drawn = np.random.default_rng([seed, size]).integers(0, len(baseline), size=(STUDIES, size))
        ratios, errors = log_ratio_of_means(pretrained[drawn], baseline[drawn])
        errors, freedom = pooled_error(errors**2, size, from_episodes)
        reach = stats.t.ppf(0.975, freedom) * errors
        low, high = np.exp(ratios - reach) * least, np.exp(ratios + reach) * most
        decided = high <= at_most if at_most is not None else (high < 1) | (low > 1)
        return float(decided.mean())

    too_few, enough = count, max(count + 1, minimum)
    while power(enough) < POWER:
        too_few, enough = enough, 2 * enough
        if enough > MOST_PAIRS:
            return SeedsNeeded(None, power(too_few), f"{too_few} {unit} in all would still not decide")
    while enough - too_few > 1 and enough > minimum:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if power(middle) >= POWER else (middle, enough)
    more, reached = enough - count, power(enough)
    would = f"{more} more {unit} with the same spread would decide in {reached * 100:.0f} % of studies"
    return SeedsNeeded(more, reached, would)
