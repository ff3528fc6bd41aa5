"""Does a task repeat itself: the same episode under the same actions, twice. What resumes exactly depends on it."""

import hashlib
from collections.abc import Iterator
from copy import deepcopy
from itertools import islice

import numpy as np

from pipeline.envs.episodes import Episode, EpisodeVecEnv
from pipeline.policies import Observations
from pipeline.tasks import Task

STEPS = 200  # of an episode that are looked at


def repeats_itself(task: Task, scenario_set: str, seed: int) -> bool:
    """True when an episode is the same, bit for bit, in a fresh environment and in one that has played before."""
    first, other = islice(task.training_streams(scenario_set, seed, 1)[0], 2)
    played = list(_digests(task, (first, other, first)))
    return played[0] == played[2] and [played[0]] == list(_digests(task, (first,)))


def _digests(task: Task, episodes: tuple[Episode, ...]) -> Iterator[str]:
    """Of what is seen and earned in each of the episodes, one after the other in one environment."""
    env = task.make_vec_env([iter(episodes)])
    try:
        for episode in episodes:
            env.set_streams([iter((episode,))])
            yield _play(env)
    finally:
        env.close()


def _play(env: EpisodeVecEnv) -> str:
    space = deepcopy(env.action_space)
    space.seed(0)
    digest = hashlib.sha256(_bytes(env.reset()))
    for _ in range(STEPS):
        observations, rewards, dones, infos = env.step(np.asarray(space.sample())[None])
        digest.update(_bytes(observations) + rewards.tobytes())
        if dones[0]:
            digest.update(_bytes(infos[0]["terminal_observation"]) + repr(sorted(infos[0]["outcome"].items())).encode())
            break
    return digest.hexdigest()


def _bytes(observations: Observations) -> bytes:
    if isinstance(observations, dict):
        return b"".join(np.asarray(observations[key]).tobytes() for key in sorted(observations))
    return np.asarray(observations).tobytes()
