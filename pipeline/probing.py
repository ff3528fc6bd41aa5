"""What an environment is like, learnt by playing it at random: the facts that a task file and stage configs rest on.

probe = probe_environment(task, episodes=20, seed=0)
probe.returns.max(), probe.lengths.mean(), probe.final_keys, probe.repeatable

Where somebody demonstrates, he plays the same episodes.
"""

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from pipeline.demonstrators import ActorSlots, Scripted
from pipeline.envs.episodes import Episode
from pipeline.envs.serial import outcome_of
from pipeline.errors import BadInput
from pipeline.observations import batch_of_one, one_row
from pipeline.tasks import Purpose, Task

LONGEST = 2_000  # steps after which a probed episode is left where it is


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of every element of the observation, or of one key of it, under random actions."""

    mean: np.ndarray  # (elements,) float64
    std: np.ndarray  # (elements,) float64


@dataclass(frozen=True)
class Probe:
    """What N random episodes of an environment were like."""

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    returns: np.ndarray  # (N,) float64
    lengths: np.ndarray  # (N,) int64 steps
    rewards: tuple[float, float]  # smallest and largest of a step
    ended: int  # episodes that the environment itself ended or truncated within `LONGEST` steps
    longest: int  # steps of the longest of those, the demonstrator's included; 0: none ended
    truncates: bool  # one was truncated, or Gymnasium says that it would be
    final_keys: dict[str, tuple[float, float]]  # numbers in every final info: key -> smallest and largest
    limit: int | None  # steps after which Gymnasium says it truncates
    reward_threshold: float | None  # return that Gymnasium calls solved
    renders: bool
    repeatable: bool  # the same seed and actions gave the same bits again
    starts: int  # different first observations
    steps_per_second: float
    rewarded_at_end: bool  # no reward was negative, and none but the last of an episode was positive
    shown: np.ndarray | None  # (N,) float64 returns of the demonstrator in the same episodes
    shown_steps: float | None  # its mean number of steps
    spreads: dict[str, Spread]  # "" for a Box of floats, else keys of a Dict that are Boxes of floats


def probe_environment(task: Task, episodes: int, seed: int, demonstrator: Scripted | None = None) -> Probe:
    """Play episodes of the task's first scenario at random, and again with the demonstrator.

    Raises BadInput when the environment, or the demonstrator in it, cannot be played.
    """
    scenario = next(iter(task.config.scenarios))
    env = _made(task, scenario)
    try:
        played = [
            _play(env, Episode(scenario, chosen.seed))
            for chosen in task.episodes("train", seed, episodes, Purpose.EVALUATE)
        ]
        again = _play(env, played[0].episode)
        shown = [] if demonstrator is None else [_play(env, one.episode, demonstrator) for one in played]
        space, spec = env.observation_space, env.spec
        rows = np.concatenate([one.rows for one in played])
        steps = np.concatenate([one.rewards for one in played])
        return Probe(
            observation_space=space,
            action_space=env.action_space,
            returns=np.array([one.rewards.sum() for one in played]),
            lengths=np.array([len(one.rewards) for one in played]),
            rewards=(float(steps.min()), float(steps.max())),
            ended=sum(one.over for one in played),
            longest=max((len(one.rewards) for one in played + shown if one.over), default=0),
            truncates=any(one.truncated for one in played + shown)
            or (spec is not None and bool(spec.max_episode_steps)),
            final_keys=_common_keys([one.final for one in played + shown if one.over]),
            limit=None if spec is None else spec.max_episode_steps,
            reward_threshold=None if spec is None else spec.reward_threshold,
            renders=task.renders,
            repeatable=again.same_as(played[0]),
            starts=len({one.rows[0].tobytes() for one in played}),
            steps_per_second=len(steps) / max(1e-9, sum(one.seconds for one in played)),
            rewarded_at_end=all((one.rewards[:-1] == 0).all() and one.rewards[-1] >= 0 for one in played + shown),
            shown=np.array([one.rewards.sum() for one in shown]) if shown else None,
            shown_steps=float(np.mean([len(one.rewards) for one in shown])) if shown else None,
            spreads=_spreads(space, rows),
        )
    finally:
        env.close()


def _made(task: Task, scenario: str) -> gym.Env[Any, Any]:
    try:
        return task.make_env(scenario)
    except BadInput:
        raise
    except Exception as error:  # somebody else's code, as in `_play`
        raise BadInput(
            f"environment {task.config.environment.id!r} cannot be made: {_told(error)}; mend it first"
        ) from None


def _told(error: Exception) -> str:
    """What somebody else's code raised, and where: its words alone may be none."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error or 'without a word'} ({Path(place.filename).name}:{place.lineno})"


@dataclass(frozen=True)
class _Played:
    episode: Episode
    rows: np.ndarray  # (T + 1,) or (T + 1, *obs_shape) observations
    rewards: np.ndarray  # (T,) float64
    over: bool
    truncated: bool
    final: dict[str, float]
    seconds: float

    def same_as(self, other: "_Played") -> bool:
        return self.rows.tobytes() == other.rows.tobytes() and self.rewards.tobytes() == other.rewards.tobytes()


def _play(env: gym.Env[Any, Any], episode: Episode, demonstrator: Scripted | None = None) -> _Played:
    env.action_space.seed(episode.seed)
    choose = (lambda _: env.action_space.sample()) if demonstrator is None else _answers(demonstrator, env)
    started, rewards = time.perf_counter(), list[float]()
    try:
        observation, info = env.reset(seed=episode.seed)
        rows, over, truncated = [one_row(env.observation_space, observation).copy()], False, False
        while not over and len(rewards) < LONGEST:
            observation, reward, terminated, truncated, info = env.step(choose(observation))
            rows.append(one_row(env.observation_space, observation).copy())
            rewards.append(float(reward))
            over = bool(terminated or truncated)
    except BadInput:
        raise
    except Exception as error:  # somebody else's code: whatever it raises, it cannot be played
        who = "" if demonstrator is None else f" with {demonstrator.name}"
        raise BadInput(f"environment cannot be played{who}: {_told(error)}; mend it first") from None
    seconds = time.perf_counter() - started
    return _Played(episode, np.stack(rows), np.array(rewards), over, bool(truncated), outcome_of(dict(info)), seconds)


def _answers(demonstrator: Scripted, env: gym.Env[Any, Any]) -> Callable[[Any], Any]:
    """The demonstrator as a function of one observation, at the start of an episode."""
    slot = ActorSlots(demonstrator, 1, env.action_space)

    return lambda observation: slot.act(batch_of_one(observation), np.ones(1, bool))[0][0]


def _common_keys(finals: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Keys that every final info has, with the smallest and the largest value."""
    if not finals:
        return {}
    keys = [key for key in finals[0] if all(key in final for final in finals)]
    return {key: (min(final[key] for final in finals), max(final[key] for final in finals)) for key in keys}


def _spreads(space: gym.Space[Any], rows: np.ndarray) -> dict[str, Spread]:
    parts: Mapping[str, gym.Space[Any]] = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    found = {}
    for key, part in parts.items():
        if isinstance(part, spaces.Box) and part.dtype.kind == "f":
            flat = (rows[key] if key else rows).reshape(len(rows), -1).astype(np.float64)
            found[key] = Spread(flat.mean(axis=0), flat.std(axis=0))
    return found


@dataclass(frozen=True)
class Sizes:
    """Settings that a whole job of about ten minutes on two cores leaves room for, estimated from a probe."""

    horizon: int | None  # where nothing truncates an episode
    n_envs: int
    n_steps: int
    timesteps: int  # of every training, expert and arms alike
    every_steps: int  # between evaluations
    evaluation_episodes: int
    demonstrations: int
    cloning_epochs: int
    noise: float
    large_returns: bool
    minutes: float  # that `main` may take with them


MINUTES = 6.0  # of the ten that trainings may take; loading, recording, cloning and the report have the rest
TRAININGS = 6.5  # three experts and two arms of five seeds, two at a time
EVALUATIONS = 15  # of a training
FEWEST_EPISODES, FINAL_EPISODES = 20, 100  # of an evaluation, and of the last one
UPDATES_PER_SECOND = 2_500.0  # steps of PPO's own work, two layers of 64, one core
BUDGETS = (20_480, 307_200)
LARGE_RETURN = 50.0  # beyond it rewards are normalised
ROLLOUT = 2_048
CLONING_BATCH = 256
CLONING_UPDATES, CLONING_EPOCHS = 2_000, (30, 400)  # gradient steps, however few demonstrations there are


def sizes(probe: Probe) -> Sizes:
    """The settings that follow from a probe."""
    # a policy that can do more may last longer than random play
    horizon = None if probe.truncates else max(1_000, 2 * probe.longest)
    longest = 2 * probe.longest if probe.ended == len(probe.lengths) else horizon or LONGEST
    longest = probe.limit or longest
    speed = probe.steps_per_second

    def evaluating(episodes: int) -> float:  # seconds of a training
        return (EVALUATIONS * episodes + FINAL_EPISODES) * longest / speed

    step = 1 / speed + 1 / UPDATES_PER_SECOND
    budget = np.clip((60 * MINUTES / TRAININGS - evaluating(FEWEST_EPISODES)) / step, *BUDGETS)
    timesteps = int(budget) // ROLLOUT * ROLLOUT
    every = max(ROLLOUT, timesteps // EVALUATIONS // ROLLOUT * ROLLOUT)
    demonstrations = int(np.clip(40_000 / longest, 40, 200))
    batches = max(1.0, demonstrations * (probe.shown_steps or longest) / CLONING_BATCH)  # of an epoch
    evaluated = int(np.clip(every / longest / 2, FEWEST_EPISODES, 100))  # half of what is trained between two
    return Sizes(
        horizon=horizon,
        n_envs=8,
        n_steps=ROLLOUT // 8,
        timesteps=timesteps,
        every_steps=every,
        evaluation_episodes=evaluated,
        demonstrations=demonstrations,
        cloning_epochs=int(np.clip(CLONING_UPDATES / batches, *CLONING_EPOCHS)),
        noise=0.2 if isinstance(probe.action_space, spaces.Box) else 0.1,
        large_returns=bool(np.abs(probe.returns).mean() > LARGE_RETURN),
        minutes=TRAININGS * (timesteps * step + evaluating(evaluated)) / 60 + 10 - MINUTES,
    )
