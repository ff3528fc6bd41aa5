"""Whoever acts, let loose in environments: the one loop that plays many episodes side by side, and the one for one.

for step in play(task, env, actor, episodes):      # every slot of a vectorised environment, step by step
    step.observations, step.actions, step.rewards

for moment in play_alone(env, seed, choose):       # one episode in one environment, from its start
    moment.observation, moment.reward, moment.over
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pipeline.data.observations import batch_of_one, span_of
from pipeline.envs.calling import not_ended
from pipeline.envs.episodes import Episode, EpisodeVecEnv
from pipeline.errors import BadInput
from pipeline.play.demonstrators import Actor, ActorSlots
from pipeline.policies import Observations
from pipeline.tasks import Task

SLOTS: Final = 16  # environments side by side where each is an object that holds memory; more are hardly faster
CAMERAS: Final = 8  # the same where each is drawn: it holds a drawing context of its own
LONGEST_BATCHED: Final = 1_000_000  # steps of an episode; what is not batched ends earlier (`tasks.LONGEST_EPISODE`)
_NOISE_BLOCK: Final = 256


def evaluation_env(task: Task, n_envs: int = 100) -> EpisodeVecEnv:
    """An environment for `play`, which says what is played in it.

    At most `SLOTS` environments play side by side unless they are rows of a batched one. How many there are changes no
    figure of who draws nothing.
    """
    if not task.batched:
        n_envs = min(n_envs, CAMERAS if task.use_camera else SLOTS)
    # a stream must hold an episode for spaces to be known; it is never played
    anything = Episode(next(iter(task.config.scenarios)), 0)
    return task.make_vec_env([iter((anything,)) for _ in range(max(1, n_envs))])


@dataclass(frozen=True)
class Step:
    """One step of all n slots; `observations` are those that were acted on."""

    running: np.ndarray  # (n,) bool
    observations: Observations  # (n, *obs_shape)
    actions: np.ndarray  # (n, *act_shape) what the actor chose; zeros in idle slots
    executed: np.ndarray  # (n, *act_shape) what the environments were given
    rewards: np.ndarray  # (n,) float32
    ended: dict[int, dict[str, Any]]  # slot -> info of the episode that ended in it (`EpisodeVecEnv`)


def play(
    task: Task, env: EpisodeVecEnv, actor: Actor, episodes: Sequence[Episode], noise: "ExecutionNoise | None" = None
) -> Iterator[Step]:
    """Play every episode to its end, step by step; whichever slot is free takes the next.

    Short episodes are not favoured: all are played, and no others. Raises BadInput when one does not end.
    """
    if not episodes:
        raise BadInput("no episodes to play; ask for at least one")
    waiting = set(episodes)
    if len(waiting) != len(episodes):
        raise ValueError("the episodes are not distinct")
    queue, slots = iter(episodes), ActorSlots(actor, env.num_envs, task.action_space)
    played: list[Episode] = [episodes[0]] * env.num_envs
    lengths = np.zeros(env.num_envs, np.int64)

    def taken_by(slot: int) -> Iterator[Episode]:
        for episode in queue:
            played[slot], lengths[slot] = episode, 0
            if noise is not None:
                noise.begin(slot, episode)
            yield episode

    env.set_streams([taken_by(slot) for slot in range(env.num_envs)])
    observations: Observations = env.reset()
    while env.running.any():
        running = env.running.copy()
        actions = executed = slots.act(observations, running)
        if noise is not None:
            executed = actions.copy()
            executed[running] = noise.disturb(actions[running], np.flatnonzero(running))
        lengths += running
        if lengths.max() > LONGEST_BATCHED:
            endless = played[int(lengths.argmax())]
            raise BadInput(not_ended(task.config.name, endless.scenario, endless.seed, LONGEST_BATCHED))
        after, rewards, dones, infos = env.step(executed)
        slots.ended(dones)
        ended = {slot: infos[slot] for slot in np.flatnonzero(dones).tolist()}
        waiting -= {info["episode_spec"] for info in ended.values()}
        yield Step(running, observations, actions, executed, rewards, ended)
        observations = after
    if waiting:
        raise RuntimeError(f"the environment did not finish {len(waiting)} episodes, one is {waiting.pop()}")


class ExecutionNoise:
    """The noise of the episodes that play in n slots; each episode has its own generator.

    Box: `clip(clean + N(0, std * half the range))`; other actions: with probability `std` a random one. Raises BadInput
    for a probability above 1.
    """

    def __init__(self, space: gym.Space, std: float, seed: int, n_envs: int) -> None:
        if not isinstance(space, spaces.Box) and not 0 <= std <= 1:
            raise BadInput(f"noise.std = {std}: for discrete actions it is the chance of a random one, from 0 to 1")
        self._space, self._std, self._seed = space, std, seed
        self._draws: list[Iterator[np.ndarray]] = [iter(())] * n_envs

    def begin(self, slot: int, episode: Episode) -> None:
        """An episode begins in a slot, and its noise with it: it follows from the seeds and the episode alone."""
        words = [self._seed, episode.seed, zlib.crc32(episode.scenario.encode())]
        self._draws[slot] = self._drawn(np.random.default_rng(words))

    def _drawn(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        """One step's noise after the other: a Gaussian vector, or (uniform number, *random action)."""
        size = (_NOISE_BLOCK, *(self._space.shape or ()))
        while True:
            if isinstance(self._space, spaces.Box):
                yield from rng.standard_normal(size)
            else:
                uniform = rng.random((_NOISE_BLOCK, 1))
                action = rng.integers(choices_of(self._space), size=size)
                yield from np.concatenate([uniform, action.reshape(_NOISE_BLOCK, -1)], axis=1)

    def disturb(self, clean: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """Executed actions for the clean ones (r, *act_shape) of these r slots."""
        if self._std == 0:
            return clean
        drawn = np.stack([next(self._draws[slot]) for slot in slots])
        if isinstance(self._space, spaces.Box):
            noisy = clean + self._std * span_of(self._space) / 2 * drawn
            return np.clip(noisy, self._space.low, self._space.high).astype(self._space.dtype)
        random = drawn[:, 1:].reshape(clean.shape)
        replaced = (drawn[:, 0] < self._std).reshape(-1, *[1] * (clean.ndim - 1))
        return np.where(replaced, random, clean).astype(clean.dtype)


def choices_of(space: gym.Space) -> Any:
    """How many values every component of a discrete action has: one number, or (components,) of a MultiDiscrete."""
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec
    return int(space.n) if isinstance(space, spaces.Discrete) else 2


# --- one episode in one environment ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """Where an episode stands after t steps; at t = 0 it has begun, and nothing was earned."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]

    @property
    def over(self) -> bool:
        return bool(self.terminated or self.truncated)


Choose = Callable[[Any], Any]  # observation -> action; None: the episode is left where it is


def play_alone(env: gym.Env[Any, Any], seed: int, choose: Choose) -> Iterator[Moment]:
    """The moments of an episode: its start, and T more until it is over or `choose` has no action for it."""
    observation, info = env.reset(seed=seed)
    moment = Moment(observation, 0.0, False, False, info)
    yield moment
    while not moment.over and (action := choose(moment.observation)) is not None:
        observation, reward, terminated, truncated, info = env.step(action)
        moment = Moment(observation, float(reward), terminated, truncated, info)
        yield moment


def from_record(actions: np.ndarray) -> Choose:
    """Recorded actions (T, *act_shape), one after the other."""
    queue = iter(actions)
    return lambda _: next(queue, None)


def from_actor(actor: Actor, action_space: gym.Space[Any]) -> Choose:
    """What a policy or a script does in an episode that is about to begin."""
    slot = ActorSlots(actor, 1, action_space)
    return lambda observation: slot.act(batch_of_one(observation), np.ones(1, bool))[0]
