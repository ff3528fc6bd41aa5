"""BipedalWalker whose episodes depend on their seeds alone.

environment:
  id: BipedalWalker-v3
  wrappers:
    - name: pipeline.envs.bipedal_walker:FreshWorld

Gymnasium's own keeps one Box2D world for all of its episodes, and now and then the first step of one still depends on
what was played before; a recording of it is then refused by replay. LunarLander makes a new world with every episode.
"""

from typing import Any

import Box2D
import gymnasium as gym
import numpy as np


class FreshWorld(gym.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """Gives every episode a Box2D world of its own, as `LunarLander` does (gymnasium issue 728)."""

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """An episode begins, in a new world."""
        walker: Any = self.unwrapped
        walker._destroy()  # bodies of the world before
        walker.world = Box2D.b2World()
        return self.env.reset(**kwargs)
