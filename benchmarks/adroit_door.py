"""The Adroit door: human demonstrations as a plain .npz, and the environment with the reward that they were given.

    python -m benchmarks.adroit_door path/to/demonstrations.npz work/adroit_door.npz

The demonstrations are those of Rajeswaran et al. 2018 (arXiv 1709.10087, github.com/aravindr93/hand_dapg), as arrays
`observations` (S, 39), `actions` (S, 28), `rewards` (S,) and `lengths` (N,).
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

ENVIRONMENT = "AdroitHandDoor-v1"
PALM_TO_HANDLE = slice(35, 38)  # of an observation, in metres
# what a step is worth beyond shaping of less than 1: 2 from an angle of 0.2 rad on, 8 more from 1.0, 10 more from 1.35,
# which is the angle of success
SOLVED = 15.0


class PublishedDoor(gym.Wrapper[Any, Any, Any, Any]):
    """AdroitHandDoor-v1 with the reward of the paper: a tenth of the distance from palm to handle is a cost.

    gymnasium-robotics 1.2.1 to 1.4.2 pay it out instead (its own warning names versions before and after; v2 mends it).
    Episodes end after 200 steps, as in the paper.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        import gymnasium_robotics  # late: who converts demonstrations needs no simulator

        gym.register_envs(gymnasium_robotics)
        super().__init__(gym.make(ENVIRONMENT, render_mode=render_mode, disable_env_checker=True))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward - 0.2 * np.linalg.norm(observation[PALM_TO_HANDLE]), terminated, truncated, info


def convert(given: Path, out: Path) -> str:
    """Write what `collect` reads (docs/datasets.md): every number as recorded, and success, which the reward says."""
    with np.load(given, allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in ("observations", "actions", "rewards", "lengths")}
    success = kept["rewards"] > SOLVED
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, **kept, **{"info.success": success})
    ends = np.cumsum(kept["lengths"])
    solved = [success[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    return (
        f"{len(ends)} episodes: the door is open at some step of {sum(one.any() for one in solved)}, "
        f"at the last step of {sum(one[-1] for one in solved)}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    print(convert(arguments.given, arguments.out))
