"""Demonstrators of a grade: one that knows what to do and does something else at random, in so many steps of a hundred.

    scripted:
      demonstrator: benchmarks.graded_demonstrators:Slipping
      kwargs: {task: configs/tasks/lunar_lander.yaml, share: 0.2, demonstrator: "pipeline.envs.lunar_lander:heuristic"}

What it does at random is recorded as what it demonstrates: unlike the noise of `collect`, whose labels stay clean.
"""

import functools
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from gymnasium import spaces

from pipeline.config.loading import load_task
from pipeline.play.demonstrators import policy_actions
from pipeline.tasks import Task
from pipeline.tasks.user_code import import_object

the_task = functools.cache(lambda path: Task(load_task(path)))
the_policy = functools.cache(lambda path, folder: policy_actions(the_task(path), folder, folder))


class Slipping:
    """Acts as `demonstrator` (module:function, with `kwargs`) or `policy` (its folder), a `share` of steps at random.

    With neither all of its actions are random ones. An episode's follow from its first observation, so that what is
    recorded does not depend on how many are played side by side.
    """

    def __init__(
        self,
        task: str,
        share: float = 1.0,
        demonstrator: str | None = None,
        kwargs: Mapping[str, Any] = MappingProxyType({}),
        policy: str | None = None,
    ) -> None:
        self._share, self._space = share, the_task(task).action_space
        self._knows: Callable[[Any], Any] | None = None
        if demonstrator is not None:
            self._knows = functools.partial(import_object(demonstrator, "demonstrator"), **kwargs)
        elif policy is not None:
            actions = the_policy(task, policy)
            self._knows = lambda observation: actions(observation[None])[0]
        self._rng: np.random.Generator | None = None

    def reset(self) -> None:
        self._rng = None

    def act(self, observation: np.ndarray) -> Any:
        if self._rng is None:
            self._rng = np.random.default_rng(zlib.crc32(observation.tobytes()))
        if self._knows is not None and self._rng.random() >= self._share:
            return self._knows(observation)
        if isinstance(self._space, spaces.Discrete):
            return self._space.start + self._rng.integers(self._space.n)
        assert isinstance(self._space, spaces.Box)
        return self._rng.uniform(self._space.low, self._space.high).astype(self._space.dtype)
