"""An environment that nobody can look at."""

import gymnasium as gym
import numpy as np


class Undrawable(gym.Env):
    observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
