"""Which episodes are played: scenarios by their shares, and seeds that no two purposes share."""

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum

import numpy as np

from pipeline.envs.episodes import Episode

SEED_BITS = 31  # environments may hand the seed to generators that take no more
PURPOSE_BITS = 2
PER_PURPOSE = 1 << (SEED_BITS - PURPOSE_BITS)


class Purpose(IntEnum):
    """What episodes are for. Each purpose owns a range of episode seeds, so that no episode serves two of them."""

    TRAIN = 0
    EVALUATE = 1
    GATE = 2
    RECORD = 3

    def seed(self, low_bits: int) -> int:
        """An episode's seed out of its range."""
        return int(self) * PER_PURPOSE + int(low_bits)


def drawn_episodes(shares: Mapping[str, float], seeds: Sequence[int], count: int, purpose: Purpose) -> list[Episode]:
    """`count` distinct episodes that follow from the seeds: shares exact up to rounding, shuffled order.

    What is left of the shares in whole episodes goes to the largest remainders: `[0.5, 0.3, 0.2]` of 9 is `[4, 3, 2]`.
    """
    # subtle: a SeedSequence pads with zeros; without the + 1, [42] and [42, 0] would give the same episodes
    entropy = [int(purpose), *(seeds if len(seeds) == 1 else [listed + 1 for listed in seeds])]
    rng = np.random.default_rng(np.random.SeedSequence(entropy))
    exact = np.asarray(list(shares.values())) * count
    whole = np.floor(exact + 1e-9).astype(int)
    for index in np.argsort(-(exact - whole), kind="stable")[: count - whole.sum()]:
        whole[index] += 1
    scenarios = np.repeat(list(shares), whole)
    rng.shuffle(scenarios)
    distinct: dict[int, None] = {}
    while len(distinct) < count:
        distinct.update(dict.fromkeys(rng.integers(PER_PURPOSE, size=count).tolist()))
    return [Episode(str(scenario), purpose.seed(low)) for scenario, low in zip(scenarios, distinct, strict=False)]


def endless_episodes(shares: Mapping[str, float], seed: int, slot: int, part: int) -> Iterator[Episode]:
    """The training episodes of a slot, drawn by the shares."""
    # a SeedSequence pads with zeros: part 0 is [purpose, seed, slot]
    rng = np.random.default_rng(np.random.SeedSequence([int(Purpose.TRAIN), seed, slot, part]))
    names, weights = list(shares), list(shares.values())
    while True:
        drawn, low_bits = rng.choice(len(names), size=256, p=weights), rng.integers(PER_PURPOSE, size=256)
        yield from (Episode(names[i], Purpose.TRAIN.seed(low)) for i, low in zip(drawn, low_bits, strict=True))
