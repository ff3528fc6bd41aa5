"""What `collect` records: the kept episodes of a demonstrator, and those that a filter drops once more."""

from collections import Counter

import numpy as np

from pipeline.config.stages import Collect
from pipeline.data import Trajectories, concatenate
from pipeline.envs.episodes import Episode
from pipeline.play.demonstrators import Actor
from pipeline.play.evaluation import record_episodes
from pipeline.tasks import Purpose, Task


def record(task: Task, config: Collect, actor: Actor) -> tuple[Trajectories, int]:
    """The kept episodes, in the asked-for shares, and the environment steps that were played for them.

    What the filter drops is recorded again with fresh seeds, scenario by scenario, a few times; a demonstrator that
    fails more often leaves a dataset that validation finds short.
    """
    filtered = config.filter.min_return is not None or config.filter.only_success
    asked = task.episodes(config.scenario_set, config.seeds, config.episodes, Purpose.RECORD)
    missing = Counter(episode.scenario for episode in asked)
    waiting = task.recordable_episodes(config.scenario_set, config.seeds, config.episodes, filtered)
    kept: list[Trajectories] = []
    steps = 0
    while True:
        batch, later, room = list[Episode](), list[Episode](), missing.copy()
        for episode in waiting:
            (batch if room[episode.scenario] > 0 else later).append(episode)
            room[episode.scenario] -= 1
        if not batch:
            return concatenate(kept), steps
        batch.sort(key=lambda episode: episode.seed)  # scenarios interleaved
        part = record_episodes(task, actor, batch, config.noise.std, config.seeds[0], config.n_envs)
        good = np.flatnonzero(part.passing(config.filter.min_return, config.filter.only_success))
        kept.append(part.select(good))
        steps += part.steps
        missing -= Counter(str(part.scenarios[index]) for index in good)
        waiting = tuple(later)
