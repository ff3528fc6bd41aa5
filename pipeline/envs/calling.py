"""How every environment is called, whoever plays it: recording, replay, evaluation, films, training.

    env = Called(Fresh(env), task="x", scenario="default", longest=20_000)

What goes in is the environment's own and what comes out is the caller's, and no episode goes on for ever. What
somebody else's code raises is told in one line, and what it changes of the process is put back.
"""

import math
import os
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, NoReturn

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from pipeline.errors import BadInput, disk_refusal, shortened

RAISED: Final = (Exception, SystemExit)  # by somebody else's code: a simulator whose window is closed quits Python


class Called(gym.Wrapper[Any, Any, Any, Any]):
    """Gives the environment what `action_space.sample()` would give it, and its observations as fresh NumPy values.

    Raises BadInput for an observation of another size than the space declares, or without one of its keys, when an
    episode goes on for more than `longest` steps, and for whatever the environment itself raises.
    """

    def __init__(self, env: gym.Env[Any, Any], task: str, scenario: str, longest: int) -> None:
        super().__init__(env)
        self._task, self._scenario, self._longest = task, scenario, longest
        self._acts, self._observes = env.action_space, env.observation_space
        self._seed: int | None = None
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._seed, self._steps = seed, 0
        with left_as_found():
            try:
                observation, info = self.env.reset(seed=seed, options=options)
                return _as_seen(self._observes, observation), info or {}
            except RAISED as error:
                self._broken(error)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._steps >= self._longest:
            raise BadInput(not_ended(self._task, self._scenario, self._seed, self._longest))
        self._steps += 1
        # a NumPy integer for Discrete, which can look things up; otherwise a fresh array, which may be written to
        try:
            discrete, kind = isinstance(self._acts, spaces.Discrete), np.dtype(self._acts.dtype)
            given = kind.type(action) if discrete else np.array(action, kind)
            observation, reward, terminated, truncated, info = self.env.step(given)
            return _as_seen(self._observes, observation), float(reward), terminated, truncated, info or {}
        except RAISED as error:
            self._broken(error)

    def close(self) -> None:
        """One that cannot be closed spoils nothing that was played in it."""
        try:
            self.env.close()
        except RAISED as error:
            warnings.warn(f"task {self._task!r}: the environment cannot be closed: {raised(error)}", stacklevel=2)

    def _broken(self, error: BaseException) -> NoReturn:
        broken(
            f"task {self._task!r}: the environment cannot be played (scenario {self._scenario!r}, seed {self._seed}, "
            f"step {self._steps})",
            error,
        )


def broken(what: str, error: BaseException) -> NoReturn:
    """Raises BadInput for somebody else's code that raised `error`, unless that is told already or a disk's."""
    if isinstance(error, BadInput) or disk_refusal(error) is not None:
        raise error
    gym_before = isinstance(error, ValueError) and "unpack" in str(error)
    remedy = "mend it first" + (": reset() returns (observation, info), step() five values" if gym_before else "")
    raise BadInput(f"{what}: {raised(error)}; {remedy}") from error


def raised(error: BaseException) -> str:
    """`ZeroDivisionError: division by zero (mine.py:7)`: the words alone may be none."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error or 'without a word'} ({Path(place.filename).name}:{place.lineno})"


@contextmanager
def left_as_found() -> Iterator[None]:
    """What somebody else's code changes of the whole process is put back: other parts of it rely on that.

    That is the folder, NumPy's errors, new warnings that are errors, and torch's default type of number.
    """
    folder, errors, filters, number = os.getcwd(), np.geterr(), warnings.filters[:], torch.get_default_dtype()
    try:
        yield
    finally:
        os.chdir(folder)
        np.seterr(**errors)
        for added in [found for found in warnings.filters if found[0] == "error" and found not in filters]:
            warnings.filters.remove(added)  # type: ignore[attr-defined]  # a list, whatever the stubs say
        torch.set_default_dtype(number)


class Fresh(gym.ObservationWrapper[Any, Any, Any]):
    """Observations as copies: what stacks frames keeps them, and an environment may always give the same array away."""

    def observation(self, observation: Any) -> Any:
        return deepcopy(observation)


def not_ended(task: str, scenario: str, seed: int | None, steps: int) -> str:
    """What is said of an episode that goes on for ever."""
    return (
        f"task {task!r}: the episode of scenario {scenario!r}, seed {seed}, has not ended after {steps:,} steps; set "
        "`horizon` in the task file to the steps after which an episode is cut, or let the environment end it"
    )


def _as_seen(space: gym.Space[Any], observation: Any) -> Any:
    """Arrays, a NumPy integer for Discrete, a mapping of those for a Dict: of the declared dtype and shape, all new."""
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping) or space.spaces.keys() - observation.keys():
            raise BadInput(
                f"the environment observes {shortened(observation)}, its space is a mapping of "
                f"{', '.join(space.spaces)}; mend either"
            )
        return {key: _as_seen(part, observation[key]) for key, part in space.spaces.items()}
    seen = np.array(observation, space.dtype)
    if seen.shape != space.shape:
        if space.shape is None or seen.size != math.prod(space.shape):
            raise BadInput(
                f"the environment observes an array of shape {seen.shape}, its space says {space.shape}; mend either"
            )
        seen = seen.reshape(space.shape)
    return seen[()] if isinstance(space, spaces.Discrete) else seen
