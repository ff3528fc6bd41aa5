"""Figures that a task takes over a whole episode: the sum, maximum or mean of an entry of the environment's info."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import gymnasium as gym
import numpy as np

from pipeline.config.task import MeasureInfo
from pipeline.envs.serial import outcome_of

MEASURED = "measured over the episode: "  # before a metric's name: it cannot shadow a key of the environment's info
REDUCTIONS: Final[Mapping[str, Callable[[Sequence[float]], Any]]] = {  # NaN among the values stays NaN
    "sum": np.sum,
    "max": np.max,
    "mean": np.mean,
}


def measured(measures: Mapping[str, MeasureInfo], series: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """What each measure comes to, under `MEASURED` names, from the values of each info; none for one without values."""
    return {
        f"{MEASURED}{name}": float(REDUCTIONS[measure.over](series[measure.info]))
        for name, measure in measures.items()
        if measure.over != "last" and series.get(measure.info)
    }


class EpisodeMeasures(gym.Wrapper[Any, Any, Any, Any]):
    """Puts what is `measured` over the episode into its final info."""

    def __init__(self, env: gym.Env[Any, Any], measures: Mapping[str, MeasureInfo]) -> None:
        super().__init__(env)
        self._measures = measures
        self._series: dict[str, list[float]] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._series = {measure.info: [] for measure in self._measures.values()}
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        for key, values in self._series.items():
            values.extend(outcome_of({key: info.get(key)}).values())
        if terminated or truncated:
            info = {**info, **measured(self._measures, self._series)}
        return observation, reward, terminated, truncated, info
