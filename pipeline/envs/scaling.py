"""Observation normalisation with figures that stand in the task file: the same for every policy, stage and day.

environment:
  wrappers:
    - name: pipeline.envs.scaling:ScaleObservation
      kwargs: {mean: [0.0, 1.4], std: [0.5, 2.0], clip: 10.0}
"""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

Figures = float | Sequence[float]  # one for all elements, or one each in C order


class ScaleObservation(gym.ObservationWrapper[Any, Any, Any]):
    """`clip((observation - mean) / std, -clip, clip)` as float32.

    For a Dict space `mean` and `std` are mappings from key to figures; keys they do not name pass unchanged. Raises
    ValueError for figures that do not fit the space, are not finite, or a std that is not positive.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        mean: Figures | Mapping[str, Figures],
        std: Figures | Mapping[str, Figures],
        clip: float = 10.0,
    ) -> None:
        super().__init__(env)
        if not (np.isfinite(clip) and clip > 0):
            raise ValueError(f"clip = {clip} must be a positive number")
        self._clip = float(clip)
        space, keyed = env.observation_space, isinstance(env.observation_space, spaces.Dict)
        means: Any = mean if isinstance(mean, Mapping) else {"": mean}
        stds: Any = std if isinstance(std, Mapping) else {"": std}
        parts: dict[str, Any] = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        if set(means) != set(stds) or ("" in means) == keyed:
            raise ValueError("mean and std are mappings with the same keys for a Dict observation, and only for a Dict")
        if unknown := sorted(set(means) - set(parts)):
            raise ValueError(f"the observation has no key {unknown[0]!r}; it has: {', '.join(parts)}")
        self._figures = {key: _figures(parts[key], means[key], stds[key]) for key in means}
        for key, (center, _) in self._figures.items():
            parts[key] = spaces.Box(-self._clip, self._clip, center.shape, np.float32)
        self.observation_space = spaces.Dict(parts) if keyed else parts[""]

    def observation(self, observation: Any) -> Any:
        if isinstance(observation, Mapping):
            return {**observation, **{key: self._scaled(key, observation[key]) for key in self._figures}}
        return self._scaled("", observation)

    def _scaled(self, key: str, values: Any) -> np.ndarray:
        mean, std = self._figures[key]
        return np.clip((np.asarray(values, np.float64) - mean) / std, -self._clip, self._clip).astype(np.float32)


def _figures(space: gym.Space[Any], mean: Figures, std: Figures) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std in the shape of a Box space, float64."""
    if not isinstance(space, spaces.Box):
        raise ValueError(f"{space} is no Box; only numbers can be scaled")
    both = []
    for name, figures in (("mean", mean), ("std", std)):
        values = np.asarray(figures, np.float64)
        if values.ndim and values.size != np.prod(space.shape, dtype=int):
            raise ValueError(f"{name} has {values.size} figures, the observation {np.prod(space.shape, dtype=int)}")
        both.append(np.full(space.shape, values) if values.ndim == 0 else values.reshape(space.shape))
    if not (np.isfinite(both).all() and (both[1] > 0).all()):
        raise ValueError("mean and std must be finite, and std above 0")
    return both[0], both[1]
