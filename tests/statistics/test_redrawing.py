"""What the choice of evaluation episodes adds to the interval of a time: worked by hand, and how often it holds."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.config.base import Bound
from pipeline.statistics.efficiency import (
    SeedPair,
    TimeToTarget,
    matched_pair,
    restricted_mean_ratio,
    timesteps_to_target,
)
from pipeline.statistics.estimate import NO_EPISODES, FromEpisodes, by_dataset
from pipeline.statistics.matched import ComparisonSettings, RunData, Verdict, decide, independent, met_target
from pipeline.statistics.redrawing import from_episodes, log_ratio, mean_of_arm, saving

SETTINGS = ComparisonSettings(
    target={"success_rate": Bound(min=0.5)},
    patience=1,
    evaluation_interval=100,
    ratio_target=0.7,
    resamples=100,
    seed=3,
    final_figure="success_rate",
    training_set="train",
)


def evaluated(seed: int, episodes: np.ndarray) -> RunData:
    """A run of which episodes (n, E) are known, evaluated every 100 steps."""
    steps = 100 * np.arange(len(episodes))
    played = {"success_rate": np.asarray(episodes, float)}
    return RunData(seed, steps, {"success_rate": played["success_rate"].mean(axis=1)}, {}, steps[-1], episodes=played)


# an evaluation of one episode in two: of draws of two, one in four has it never, and then the next evaluation is it
HALF = np.array([[0, 0], [0, 1], [1, 1]])


def test_episodes_common_to_all_seeds_are_the_variance_that_seeds_do_not_show():
    """Every seed's time is 100 or, for one draw in four, 200: variance 100^2 * 3/16, and with own draws half of that.

    All of it is common, so that 2 * (1 - 1/2) of it is found.
    """
    found = from_episodes([[evaluated(1, HALF), evaluated(2, HALF)]], SETTINGS, mean_of_arm)
    assert found.episodes == 2
    assert found.variance == pytest.approx(100**2 * 3 / 16, rel=0.3)  # of 500 draws


def test_what_is_of_each_seed_alone_is_not_counted_again():
    """Every seed stumbles over episodes of its own: what a draw does to one says nothing of the others.

    Of four outcomes, sorted, the third is a success in 11 of 16 episodes: about half of the seeds meet that there.
    """
    generator, settings = np.random.default_rng(0), replace(SETTINGS, target={"success_rate": Bound(min=11 / 16)})
    runs = [evaluated(s, np.sort(generator.random((4, 400)) < 0.5, axis=0)) for s in range(30)]
    found = from_episodes([runs], settings, mean_of_arm).variance
    times = [timesteps_to_target(r.steps, met_target(r.figures, settings.target), 1).steps for r in runs]
    assert found < 0.3 * np.var(times, ddof=1) / len(times)


def test_episodes_that_all_end_alike_or_are_not_known_add_nothing():
    sure = [evaluated(s, np.array([[0, 0], [1, 1], [1, 1]])) for s in (1, 2, 3)]
    assert from_episodes([sure, sure], SETTINGS, log_ratio) == FromEpisodes(0.0, 2)
    unknown = [replace(r, episodes={}) for r in sure]
    assert from_episodes([unknown, sure], SETTINGS, saving) == NO_EPISODES
    assert from_episodes([sure[:1], sure[:1]], SETTINGS, saving) == NO_EPISODES  # one seed has no interval anyway


def test_a_draw_counts_times_as_the_comparison_does():
    """With all episodes alike every draw is what was played: at the floor one interval, never all of the budget."""
    floor, never = np.ones((4, 2)), np.zeros((4, 2))
    late = np.array([[0, 0], [0, 0], [1, 1], [1, 1]])
    seen: list[np.ndarray] = []

    def kept(steps: np.ndarray) -> np.ndarray:
        seen.append(steps)
        return steps.mean(axis=(-2, -1))

    runs = [evaluated(seed, episodes) for seed, episodes in enumerate((floor, late, never))]
    from_episodes([runs], replace(SETTINGS, patience=2), kept)
    for run, steps in zip(runs, np.moveaxis(seen[0][:, :, 0], -1, 0), strict=True):
        met = met_target(run.figures, SETTINGS.target)
        assert set(steps.ravel()) == {timesteps_to_target(run.steps, met, 2).steps}


def test_of_several_datasets_the_means_over_their_seeds_are_the_sample():
    values = np.array([[1.0, 2.0], [5.0, 0.0], [3.0, 4.0]])
    assert by_dataset(values, ["b", "a", "b"]).tolist() == [[2.0, 3.0], [5.0, 0.0]]
    assert by_dataset(values, ["b", "b", "b"]) is by_dataset(values, ()) is values
    times = {"a": [(100, 20), (300, 40)], "b": [(200, 60), (200, 60)], "c": [(400, 20), (200, 20)]}
    pairs = [
        matched_pair(0, *(TimeToTarget(t, False, t) for t in both), name) for name, two in times.items() for both in two
    ]
    means = [
        matched_pair(0, *(TimeToTarget(int(t), False, int(t)) for t in np.mean(two, axis=0))) for two in times.values()
    ]
    assert restricted_mean_ratio(pairs) == restricted_mean_ratio(means)
    few = [pair for pair in pairs if pair.dataset != "c"]
    assert (independent(pairs), independent(few)) == (3, 2)
    assert decide(restricted_mean_ratio(few), few, 0.7) == (Verdict.UNDECIDED, False)  # four seeds, two datasets


def test_the_statistics_worked_by_hand():
    steps = np.array([[100.0, 300.0], [50.0, 50.0]])
    assert log_ratio(steps) == pytest.approx(np.log(0.25))
    assert saving(steps) == 150.0
    assert mean_of_arm(steps[:1]) == 200.0


RISING = replace(SETTINGS, target={"success_rate": Bound(min=0.8)}, patience=2)
PACES = np.array([[0.25], [1.0]])  # of an arm


def study(generator: np.random.Generator, seeds: int) -> list[list[RunData]]:
    """Success rises at a pace of each seed over shared episodes, of which others are hard for clones than for fresh
    weights."""
    hard = generator.normal(3, 2, (2, 1, 1, 40))
    pace = PACES * generator.lognormal(0, 0.05, (2, seeds))
    chance = 1 / (1 + np.exp(hard - pace[:, :, None, None] * np.arange(41)[:, None]))  # (arms, seeds, n, E)
    played = (generator.random(chance.shape) < chance).astype(float)
    return [[evaluated(seed, episodes) for seed, episodes in enumerate(arm)] for arm in played]


def pairs_of(arms: list[list[RunData]]) -> list[SeedPair]:
    times = [[timesteps_to_target(r.steps, met_target(r.figures, RISING.target), 2) for r in arm] for arm in arms]
    return [matched_pair(seed, *both) for seed, both in enumerate(zip(*times, strict=True))]


@pytest.fixture(scope="module")
def true_ratio() -> float:
    """Of mean times over all seeds and all draws of 40 episodes, found from very many."""
    generator = np.random.default_rng(0)
    many = [pair for _ in range(6_000) for pair in pairs_of(study(generator, 1))]
    return sum(pair.pretrained.steps for pair in many) / sum(pair.baseline.steps for pair in many)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 6, 10])
def test_the_interval_of_the_ratio_holds_for_other_seeds_and_other_episodes(seeds, true_ratio):
    generator, covered, without, studies = np.random.default_rng(seeds), 0, 0, 400
    for _ in range(studies):
        arms = study(generator, seeds)
        pairs = [
            replace(p, **{side: replace(getattr(p, side), after=getattr(p, side).steps) for side in SIDES})
            for p in pairs_of(arms)
        ]  # without the grid, which would cover much by itself
        found = restricted_mean_ratio(pairs, from_episodes(arms, RISING, log_ratio))
        alone = restricted_mean_ratio(pairs)
        covered += found.low <= true_ratio <= found.high
        without += alone.low <= true_ratio <= alone.high
    assert covered / studies >= 0.93
    assert without / studies < 0.9  # of seeds alone: it would promise too much


@pytest.mark.slow
@pytest.mark.parametrize(("datasets", "seeds"), [(3, 3), (5, 2), (10, 1)])
def test_the_interval_of_the_ratio_holds_for_other_datasets(datasets, seeds):
    """Log-normal times of which half of the spread is common to the seeds of a dataset, true ratio 0.2 of the means."""
    generator, covered, without, studies = np.random.default_rng(datasets), 0, 0, 4_000
    for _ in range(studies):
        scratch = 1e6 * generator.lognormal(0, 0.3, (datasets, seeds))
        pretrained = 2e5 * generator.lognormal(0, 0.3, (datasets, seeds)) * generator.lognormal(0, 0.3, (datasets, 1))
        pairs = [
            matched_pair(0, *(TimeToTarget(int(t), False, int(t)) for t in both), f"dataset {number}")
            for number, of_dataset in enumerate(zip(scratch, pretrained, strict=True))
            for both in zip(*of_dataset, strict=True)
        ]
        found = restricted_mean_ratio(pairs)
        alone = restricted_mean_ratio([replace(pair, dataset="") for pair in pairs])
        truth = 0.2 * np.exp(0.3**2 / 2)  # the mean of what is common to a dataset
        covered += found.low <= truth <= found.high
        without += alone.low <= truth <= alone.high
    assert 0.93 <= covered / studies <= 0.97
    if seeds > 1:
        assert without < covered  # as if every seed had a dataset of its own


SIDES = ("baseline", "pretrained")
