"""How times to target would vary had the evaluations during training been of other episodes.

Every evaluation of every training plays the same episodes. What their choice does to all trainings alike shows in no
spread over seeds, so it is found by drawing episodes again, with replacement from those that were played, twice: one
draw for all seeds, and a draw of its own for every seed. By how much the first varies more is the common part.
"""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.statistics.efficiency import first_held
from pipeline.statistics.estimate import NO_EPISODES, FromEpisodes
from pipeline.statistics.matched import ComparisonSettings, RunData, met_target

DRAWS = 500


def log_ratio(steps: np.ndarray) -> np.ndarray:
    """(..., 2, seeds) steps from scratch and pre-trained -> (...) logarithm of pre-trained over from scratch."""
    baseline, pretrained = np.moveaxis(steps.mean(axis=-1), -1, 0)
    return np.log(pretrained / baseline)


def saving(steps: np.ndarray) -> np.ndarray:
    """(..., 2, seeds) steps from scratch and pre-trained -> (...) mean difference."""
    baseline, pretrained = np.moveaxis(steps.mean(axis=-1), -1, 0)
    return baseline - pretrained


def mean_of_arm(steps: np.ndarray) -> np.ndarray:
    """(..., 1, seeds) -> (...)."""
    return steps.mean(axis=(-2, -1))


def from_episodes(
    arms: Sequence[Sequence[RunData]], settings: ComparisonSettings, statistic: Callable[[np.ndarray], np.ndarray]
) -> FromEpisodes:
    """What evaluation episodes add to the variance of a statistic of times, (..., arms, seeds) steps -> (...).

    Beyond that over seeds: an effect c of the episodes on all seeds and one x on each alone vary by c + x / n with one
    draw for all and by (c + x) / n with a draw each, and x / n is a part of the spread over seeds already.
    Arms have the same seeds in the same order. Nothing where a run has no episodes of a figure of the target.
    """
    seeds, runs = len(arms[0]), [run for of_arm in arms for run in of_arm]
    if seeds < 2 or not all(figure in run.episodes for run in runs for figure in settings.target):
        return NO_EPISODES
    count = runs[0].episodes[next(iter(settings.target))].shape[1]
    steps = np.empty((2, DRAWS, len(arms), seeds))
    for kind, seed in np.ndindex(2, seeds):
        generator = np.random.default_rng([settings.seed, kind * (seed + 1)])
        times = generator.multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(float)  # (draws, episodes)
        for arm, of_arm in enumerate(arms):
            run = of_arm[seed]
            figures = {figure: times @ run.episodes[figure].T / count for figure in settings.target}  # (draws, n)
            # as `timesteps_to_target` counts: at the floor one interval, and all of the budget when never
            counted = np.append(run.steps, run.steps[-1])
            counted[0] = counted[1]
            steps[kind, :, arm, seed] = counted[first_held(met_target(figures, settings.target), settings.patience)]
    together, apart = np.var(statistic(steps), axis=1, ddof=1)
    return FromEpisodes(max(0.0, float(together - apart) * seeds / (seeds - 1)), count)
