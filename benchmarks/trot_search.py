"""A search for the eight parameters of the quadruped's trot: differential evolution, from nothing, on short episodes.

    python benchmarks/trot_search.py --generations 22      # 920 candidates

A candidate's score is the mean return of two episodes of 300 steps. The winner then plays whole fresh episodes. What it
found, against what is shipped: docs/quadruped.md.
"""

import argparse
import json

import gymnasium as gym
import numpy as np
from scipy.optimize import differential_evolution

from pipeline.envs.quadruped import GaitClock, diagonal_trot

RANGES = {
    "period": (8.0, 20.0),  # steps of 0.05 s
    "hip_amplitude": (0.3, 1.2),
    "ankle_amplitude": (0.0, 1.2),
    "ankle_phase": (-np.pi, np.pi),
    "hip_offset": (-0.3, 0.3),
    "ankle_offset": (-1.0, 1.0),
    "stiffness": (0.4, 1.5),
    "damping": (0.02, 0.3),
}
SHORT, WHOLE = 300, 1000  # steps
FRESH_EPISODES = 20


def play(values: np.ndarray, seed: int, steps: int) -> tuple[float, float]:
    """Return and distance (m) of one episode."""
    gait = dict(zip(RANGES, map(float, values), strict=True))
    env = GaitClock(gym.make("Ant-v5", include_cfrc_ext_in_observation=False), gait.pop("period"))
    observation, info = env.reset(seed=seed)
    total, over = 0.0, False
    while not over and steps:
        observation, reward, terminated, truncated, info = env.step(diagonal_trot(observation, **gait))
        total, over, steps = total + float(reward), terminated or truncated, steps - 1
    env.close()
    return total, float(info["x_position"])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--generations", type=int, default=22)
    arguments.add_argument("--seed", type=int, default=0)
    chosen = arguments.parse_args()

    def cost(values: np.ndarray) -> float:
        return -float(np.mean([play(values, seed, SHORT)[0] for seed in (0, 1)]))

    found = differential_evolution(
        cost, list(RANGES.values()), popsize=5, maxiter=chosen.generations, rng=chosen.seed, init="sobol", polish=False,
        callback=lambda intermediate_result: print(f"  {-intermediate_result.fun:.0f}", flush=True),
    )  # fmt: skip
    print(f"best of {found.nfev} candidates: {-found.fun:.0f} in {SHORT} steps")
    print(json.dumps(dict(zip(RANGES, found.x.round(3).tolist(), strict=True)), indent=2))
    played = np.array([play(found.x, 1000 + seed, WHOLE) for seed in range(FRESH_EPISODES)])
    (value, distance), (spread, _) = played.mean(axis=0), played.std(axis=0, ddof=1)
    print(f"{FRESH_EPISODES} fresh episodes of {WHOLE} steps: return {value:.0f} +- {spread:.0f}, {distance:.1f} m")


if __name__ == "__main__":
    main()
