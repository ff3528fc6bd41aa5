"""Every episode of the walker depends on its seed alone, whatever was played before in the same environment."""

import gymnasium as gym
import numpy as np

from pipeline.envs.bipedal_walker import FreshWorld


def first_steps(env: gym.Env, seed: int) -> np.ndarray:
    """Observations of 20 random steps: (21, 24)."""
    random = np.random.default_rng(seed)
    seen = [env.reset(seed=seed)[0]]
    seen += [env.step(random.uniform(-1, 1, 4).astype(np.float32))[0] for _ in range(20)]
    return np.array(seen)


def test_an_episode_after_others_is_that_of_a_new_environment():
    used = FreshWorld(gym.make("BipedalWalker-v3"))
    for seed in range(5):
        used.reset(seed=100 + seed)
        over = False
        random = np.random.default_rng(seed)
        while not over:
            _, _, terminated, truncated, _ = used.step(random.uniform(-1, 1, 4).astype(np.float32))
            over = terminated or truncated
        world = used.unwrapped.world
        assert np.array_equal(first_steps(used, seed), first_steps(FreshWorld(gym.make("BipedalWalker-v3")), seed))
        assert used.unwrapped.world is not world  # Gymnasium's own keeps it
