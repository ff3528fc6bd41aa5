"""Episodes into pictures: simulate one again with rendering on, from recorded actions or from a policy.

    film = film_actions(task, episode, executed_actions)
    film.frames, film.events          # one frame a step, and the steps at which something happened

Any environment with `render_mode="rgb_array"` will do. Drawing on the frames and encoding them is not done here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.policies import ActFunction
from pipeline.tasks import Task

RENDER_MODE = "rgb_array"


@dataclass(frozen=True)
class Film:
    """One episode, step by step. Frame 0 is the start: there is one more than steps."""

    frames: tuple[np.ndarray, ...]  # (H, W, 3) uint8
    rewards: np.ndarray  # (T,) float64
    events: dict[str, tuple[int, ...]]  # event of the task -> frames at which its counter grew
    final: dict[str, float]  # scalars of the final info

    @property
    def episode_return(self) -> float:
        return float(self.rewards.sum())


def film_actions(task: Task, episode: Episode, actions: np.ndarray) -> Film:
    """Play recorded actions (T, *act_shape) again from the episode's seed. Raises BadInput when nothing renders."""
    queue = iter(actions)
    return _film(task, episode, lambda _: next(queue, None))


def film_policy(task: Task, episode: Episode, act: ActFunction) -> Film:
    """Let a policy play the episode to its end."""
    return _film(task, episode, lambda observation: act(_batch(observation))[0])


def _film(task: Task, episode: Episode, choose: Callable[[Any], np.ndarray | None]) -> Film:
    env = task.make_env(episode.scenario, RENDER_MODE)
    counters = {name: 0.0 for name in task.config.events}
    events: dict[str, list[int]] = {name: [] for name in task.config.events}
    try:
        observation, info = env.reset(seed=episode.seed)
        frames, rewards, over = [_frame(env)], [], False
        while not over and (action := choose(observation)) is not None:
            observation, reward, terminated, truncated, info = env.step(action)
            over = bool(terminated or truncated)
            frames.append(_frame(env))
            rewards.append(float(reward))
            for name, key in task.config.events.items():
                grown = float(info.get(key, counters[name]))
                if grown > counters[name]:
                    events[name].append(len(frames) - 1)
                counters[name] = grown
    finally:
        env.close()
    return Film(tuple(frames), np.array(rewards), {name: tuple(at) for name, at in events.items()}, _scalars(info))


def _frame(env: gym.Env[Any, Any]) -> np.ndarray:
    frame = env.render()
    if not isinstance(frame, np.ndarray):
        raise BadInput(f"environment {env} gives no picture with render_mode {RENDER_MODE!r}; playback needs one")
    return frame


def _batch(observation: Any) -> Any:
    if isinstance(observation, Mapping):
        return {key: np.asarray(value)[None] for key, value in observation.items()}
    return np.asarray(observation)[None]


def _scalars(info: Mapping[str, Any]) -> dict[str, float]:
    kinds = (bool, int, float, np.bool_, np.integer, np.floating)
    return {key: float(value) for key, value in info.items() if isinstance(value, kinds)}
