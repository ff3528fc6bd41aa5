"""An environment under an id without a version, as `gymnasium.register` takes it."""

import gymnasium as gym
from counting_environment import Counting

gym.register("Line", Counting)
