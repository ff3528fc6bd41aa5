"""Does a task repeat itself: the same episode under the same actions, twice. What resumes exactly depends on it."""

import hashlib
from contextlib import closing
from copy import deepcopy
from itertools import islice

import numpy as np

from pipeline.data.observations import one_row, to_rows
from pipeline.envs.episodes import Episode, EpisodeVecEnv
from pipeline.play.rollouts import play
from pipeline.tasks import Task

STEPS = 200  # of an episode that are looked at


def repeats_itself(task: Task, scenario_set: str, seed: int) -> bool:
    """True when an episode is the same, bit for bit, in a fresh environment and in one that has played before."""
    first, other = islice(task.training_streams(scenario_set, seed, 1)[0], 2)
    with closing(task.make_vec_env([iter((first,))])) as env:
        digests = [_digest(task, env, episode) for episode in (first, other, first)]
    with closing(task.make_vec_env([iter((first,))])) as env:
        return digests[0] == digests[2] == _digest(task, env, first)


def _digest(task: Task, env: EpisodeVecEnv, episode: Episode) -> str:
    """Of what is seen and earned in an episode that is played at random."""
    acts, digest = deepcopy(task.action_space), hashlib.sha256()
    acts.seed(0)
    for step in islice(play(task, env, lambda _: np.asarray(acts.sample())[None], (episode,)), STEPS):
        digest.update(to_rows(task.observation_space, step.observations).tobytes() + step.rewards.tobytes())
        for info in step.ended.values():
            digest.update(one_row(task.observation_space, info["terminal_observation"]).tobytes())
            digest.update(repr(sorted(info["outcome"].items())).encode())
    return digest.hexdigest()
