"""What a number of matched seeds can show: how honest the interval is, and how many more seeds would decide."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.statistics.efficiency import SeedPair, never_met, paired_steps

POWER = 0.8
MOST_PAIRS = 1_024
STUDIES = 200  # simulated studies per number of seeds
RESAMPLES = 300  # bootstrap resamples per simulated study

# Share of 4,000 simulated studies whose nominal 95 % percentile interval of the ratio held the truth, by number of
# pairs: log-normal times to target with a spread of 0.5, true ratio 0.2. A test simulates some of them again.
SIMULATED_COVERAGE = {3: 0.74, 4: 0.80, 5: 0.84, 7: 0.88, 10: 0.89, 15: 0.91, 20: 0.91, 30: 0.93, 50: 0.94}


@dataclass(frozen=True)
class SeedsNeeded:
    """The answer, or why there is none."""

    more: int | None  # matched seeds in addition to those there are
    power: float  # share of simulated studies of that size that decide
    explanation: str


def simulated_coverage(pairs: int) -> float | None:
    """What a nominal 95 % interval over so many pairs covered in simulation; None below three pairs.

    Between simulated numbers the smaller one counts: 6 -> 0.84.
    """
    return max((share for count, share in SIMULATED_COVERAGE.items() if count <= pairs), default=None)


def seeds_needed(pairs: Sequence[SeedPair], at_most: float | None, minimum: int, seed: int) -> SeedsNeeded:
    """Matched seeds needed in addition so that 80 % of studies decide.

    A study draws pairs with replacement from those observed and bootstraps their ratio of mean times. It decides when
    the upper end of its interval is at most `at_most`; with None, when the interval lies on one side of 1.
    """
    baseline, pretrained = paired_steps(pairs)
    ratio = float(pretrained.sum() / baseline.sum())
    hopeless = None
    if len(pairs) < 2:
        hopeless = "one matched seed shows no spread to simulate from; train at least two more"
    elif never_met(pairs):
        hopeless = "no run met the target: train longer, more seeds like these would not help"
    elif at_most is not None and ratio > at_most:
        hopeless = f"the observed ratio {ratio:.3g} is itself above {at_most:g}: more seeds like these would not help"
    elif at_most is None and ratio == 1:
        hopeless = "the observed ratio is 1: more seeds like these would not decide"
    if hopeless is not None:
        return SeedsNeeded(None, 0.0, hopeless)

    def power(count: int) -> float:
        """Share of simulated studies of `count` pairs that decide."""
        generator = np.random.default_rng([seed, count])
        drawn = generator.integers(0, len(pairs), size=(STUDIES, count))
        weights = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).T
        ratios = (pretrained[drawn] @ weights) / (baseline[drawn] @ weights)  # (studies, resamples)
        low, high = np.quantile(ratios, (0.025, 0.975), axis=1)
        decided = high <= at_most if at_most is not None else (high < 1) | (low > 1)
        return float(decided.mean())

    too_few, enough = len(pairs), max(len(pairs) + 1, minimum)
    while power(enough) < POWER:
        too_few, enough = enough, 2 * enough
        if enough > MOST_PAIRS:
            return SeedsNeeded(None, power(too_few), f"{too_few} matched seeds in all would still not decide")
    while enough - too_few > 1 and enough > minimum:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if power(middle) >= POWER else (middle, enough)
    more, reached = enough - len(pairs), power(enough)
    would = f"{more} more matched seeds with the same spread would decide in {reached * 100:.0f} % of studies"
    return SeedsNeeded(more, reached, would)
