"""Environments stepped in several processes against one: `python -m benchmarks.parallel_environments`.

Steps per second on the clock, slots times steps, medians over rounds that take turns: an environment that sleeps 5 ms a
step and one that computes nothing (8 slots, 8 processes), and MuJoCo's Ant (8 slots, 2 processes).
"""

import argparse
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box

from pipeline.envs.episodes import Episode, EpisodeVecEnv
from pipeline.envs.parallel import SLOW_STEP, MakeEnv, ParallelVecEnv, seconds_of_a_step
from pipeline.envs.serial import SerialVecEnv

SLOTS = 8


class Sleeps(gym.Env[Any, Any]):
    """A simulator that answers after so many seconds."""

    observation_space, action_space = Box(-1, 1, (32,), np.float32), Box(-1, 1, (4,), np.float32)
    seconds = 0.005

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(32, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds)
        return np.zeros(32, np.float32), 0.0, False, False, {}


class Nothing(Sleeps):
    seconds = 0.0


def sleeps(scenario: str) -> gym.Env[Any, Any]:
    return Sleeps()


def nothing(scenario: str) -> gym.Env[Any, Any]:
    return Nothing()


def ant(scenario: str) -> gym.Env[Any, Any]:
    return gym.make("Ant-v5")


def streams() -> list[Iterator[Episode]]:
    return [(Episode("any", 1_000 * slot + k) for k in count()) for slot in range(SLOTS)]


def rate(env: EpisodeVecEnv, steps: int) -> float:
    env.action_space.seed(0)
    actions = np.stack([env.action_space.sample() for _ in range(SLOTS)])
    started = time.perf_counter()
    for _ in range(steps):
        env.step(actions)
    return SLOTS * steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    cases: list[tuple[str, MakeEnv, int, int]] = [
        ("sleeps 5 ms", sleeps, 8, 40), ("Ant", ant, 2, 400), ("computes nothing", nothing, 8, 400),
    ]  # fmt: skip
    print("| environment | a step | processes | steps/s in one | steps/s in several | ratio | `auto` takes |")
    print("|---|---|---|---|---|---|---|")
    for name, make_env, workers, steps in cases:
        alone = SerialVecEnv(make_env, streams())
        together = ParallelVecEnv(make_env, "any", streams(), alone.observation_space, alone.action_space, workers)
        with closing(alone), closing(together):
            alone.reset()
            together.reset()
            pairs = [(rate(alone, steps), rate(together, steps)) for _ in range(rounds)]
        one, several = (median(rates) for rates in zip(*pairs, strict=True))
        ratio = median(b / a for a, b in pairs)
        seconds = seconds_of_a_step(make_env, "any")
        auto = "processes" if seconds >= SLOW_STEP else "none"
        print(f"| {name} | {1e3 * seconds:.2g} ms | {workers} | {one:,.0f} | {several:,.0f} | {ratio:.2f} | {auto} |")


if __name__ == "__main__":
    main()
