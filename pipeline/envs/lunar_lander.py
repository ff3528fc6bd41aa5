"""The scripted demonstrator of LunarLander: the heuristic that Gymnasium ships with the environment."""

from types import SimpleNamespace

import numpy as np
from gymnasium.envs.box2d.lunar_lander import heuristic as gymnasium_heuristic


def heuristic(observation: np.ndarray, continuous: bool = False) -> int | np.ndarray:
    """(8,) float32 -> an engine (0 to 3), or with `continuous` (2,) throttles: aims at the pad and brakes.

    It lands most of the time and scores about 260 when it does; a filter on the return drops the rest.
    """
    environment = SimpleNamespace(continuous=continuous)
    environment.unwrapped = environment  # all that the heuristic asks its environment for
    action = gymnasium_heuristic(environment, observation)
    return action.astype(np.float32) if continuous else int(action)
