"""Draws docs/img/social_nav_scenarios.png: every scenario family three seconds after its beginning.

python benchmarks/scenario_picture.py [path]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from social_nav_planners import dynamic_window

from pipeline.envs.social_nav.environment import SocialNavEnv
from pipeline.envs.social_nav.scenarios import FAMILIES

STEPS, SEED, COLUMNS = 30, 5, 4


def frame(family: str) -> np.ndarray:
    env = SocialNavEnv(family, "medium", render_mode="rgb_array")
    observation, _ = env.reset(seed=SEED)
    for _ in range(STEPS):
        observation, _, terminated, truncated, _ = env.step(dynamic_window(observation))
        if terminated or truncated:
            break
    picture = env.render()
    assert picture is not None
    return picture


def main() -> None:
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/img/social_nav_scenarios.png")
    frames = [frame(family) for family in FAMILIES]
    rows = [np.hstack(frames[k : k + COLUMNS]) for k in range(0, len(frames), COLUMNS)]
    picture = Image.fromarray(np.vstack(rows))
    small = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
    small.save(path, optimize=True)


if __name__ == "__main__":
    main()
