"""Meta-World's tasks and its scripted experts (the package `metaworld`), in the words of task files and `collect`.

environment: {id: "benchmarks.meta_world:MetaWorld", kwargs: {task: reach-v3}}
scripted: {demonstrator: "benchmarks.meta_world:ScriptedExpert", kwargs: {task: reach-v3}}
"""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from metaworld import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from metaworld.policies import ENV_POLICY_MAP


class MetaWorld(gym.Wrapper[Any, Any, Any, Any]):
    """One task, its goal observed: object and goal are drawn at every reset, 500 steps whatever happens.

    Meta-World's own ids draw an episode from a generator that `reset(seed=...)` does not touch; here it follows from
    its seed. The info's `success` stays 1 from the first step that has it, as in Meta-World's own evaluations: a door
    that was open may swing back.
    """

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"](render_mode=render_mode)
        env._freeze_rand_vec, env.seeded_rand_vec = False, True
        super().__init__(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.unwrapped.seed(seed)
        self._success = 0.0
        return self.env.reset()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._success = max(self._success, float(info["success"]))
        return observation, reward, terminated, truncated, {**info, "success": self._success}


class ScriptedExpert:
    """The policy that Meta-World ships for a task; it has no memory. Its actions are put into the bounds, as the
    environment does."""

    def __init__(self, task: str) -> None:
        self._policy = ENV_POLICY_MAP[task]()

    def reset(self) -> None:
        """An episode begins."""

    def act(self, observation: Any) -> Any:
        with warnings.catch_warnings(action="ignore"):  # of its own constants, which lead out of the bounds
            action = self._policy.get_action(np.array(observation, np.float64))  # some write into what they are given
        return np.clip(action, -1.0, 1.0).astype(np.float32)
