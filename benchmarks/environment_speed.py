"""Speed of the social navigation environment on one core: `python benchmarks/environment_speed.py [--skip-ppo]`.

Reports, with 64 environments, 12 pedestrians each, random actions, observations, rewards, metrics and episode ends:
steps per second of processor time through the batched face; the time from the start of a process to its first step
(compiled kernels cached); the memory of a slot; and SB3's PPO on it against the same PPO on an environment of the same
shapes that computes nothing.
"""

import argparse
import os
import subprocess
import sys
import time
from itertools import count

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from pipeline.envs.episodes import Episode, EpisodeStream
from pipeline.envs.social_nav.layout import SLOT
from pipeline.envs.social_nav.observation import OBSERVATION_SIZE
from pipeline.envs.social_nav.scenarios import FAMILIES
from pipeline.envs.social_nav.vector import SocialNavVecEnv

ENVIRONMENTS, PEDESTRIANS = 64, 12
SCENARIOS = {
    family: {"scenario": family, "pedestrians": PEDESTRIANS} for family in FAMILIES if family != "narrow_doorway"
}
FIRST_STEP = """
import numpy as np
from pipeline.envs.episodes import Episode
from pipeline.envs.social_nav.vector import SocialNavVecEnv
env = SocialNavVecEnv({"a": {"scenario": "crowd_navigation"}}, [iter([Episode("a", k)]) for k in range(64)])
env.reset()
env.step(np.zeros((64, 2), np.float32))
"""


def streams() -> list[EpisodeStream]:
    names = list(SCENARIOS)
    return [(Episode(names[(i + k) % len(names)], 10_000 * i + k) for k in count()) for i in range(ENVIRONMENTS)]


class NothingVecEnv(SocialNavVecEnv):
    """The same shapes and episode lengths of 100 steps, and nothing computed."""

    def reset(self) -> np.ndarray:
        self._step = 0
        return self._observations.copy()

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        self._step += 1
        done = (np.arange(ENVIRONMENTS) + self._step) % 100 == 0
        infos = list(self._no_infos)
        for i in np.flatnonzero(done):
            infos[i] = {
                "episode": {"r": 0.0, "l": 100, "t": 0.0},
                "terminal_observation": self._observations[i],
                "TimeLimit.truncated": False,
            }
        return self._observations.copy(), self._rewards.copy(), done, infos


def environment_rate(steps: int = 2000, repeats: int = 5) -> tuple[float, float]:
    """Median steps per second of processor time, and episodes ended per batched step."""
    env = SocialNavVecEnv(SCENARIOS, streams())
    actions = np.random.default_rng(0).uniform(-1, 1, (steps, ENVIRONMENTS, 2)).astype(np.float32)
    env.reset()
    rates, ended = [], 0
    for _ in range(repeats):
        begin = time.process_time()
        for k in range(steps):
            ended += int(env.step(actions[k])[2].sum())
        rates.append(steps * ENVIRONMENTS / (time.process_time() - begin))
    return float(np.median(rates)), ended / (repeats * steps)


def first_step(repeats: int = 3) -> tuple[float, float]:
    """Wall and processor seconds of a process that imports, resets and steps once; a first one warms the caches."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    walls, busy = [], []
    for _ in range(repeats + 1):
        wall, used = time.perf_counter(), os.times()
        subprocess.run([sys.executable, "-c", FIRST_STEP], check=True, env=environment)
        now = os.times()
        walls.append(time.perf_counter() - wall)
        busy.append(now.children_user + now.children_system - used.children_user - used.children_system)
    return float(np.median(walls[1:])), float(np.median(busy[1:]))


def ppo_rate(env: SocialNavVecEnv, rollouts: int = 6) -> float:
    """Steps per second of processor time of SB3's PPO (n_steps 128, batch 1024, 2 x 128) after a warm-up rollout."""
    import torch
    from stable_baselines3 import PPO

    torch.set_num_threads(1)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=128,
        batch_size=1024,
        policy_kwargs={"net_arch": [128, 128]},
        device="cpu",
        seed=0,
    )
    model.learn(128 * ENVIRONMENTS)
    begin = time.process_time()
    model.learn(rollouts * 128 * ENVIRONMENTS)
    return rollouts * 128 * ENVIRONMENTS / (time.process_time() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-ppo", action="store_true", help="leave out the comparison under PPO (a minute)")
    skip_ppo = parser.parse_args().skip_ppo
    rate, ended = environment_rate()
    print(f"{rate:,.0f} steps/s with {ENVIRONMENTS} environments of {PEDESTRIANS} pedestrians")
    print(f"  (observation size {OBSERVATION_SIZE}, {ended:.2f} episodes ended per batched step)")
    wall, busy = first_step()
    print(f"{wall:.2f} s ({busy:.2f} s of processor time) from the start of a process to after its first step, cached")
    print(f"{SLOT.itemsize + 4 * OBSERVATION_SIZE} bytes per environment, whatever the batch")
    if skip_ppo:
        return
    pairs = [
        (ppo_rate(SocialNavVecEnv(SCENARIOS, streams())), ppo_rate(NothingVecEnv(SCENARIOS, streams())))
        for _ in range(3)
    ]
    ours, nothing = np.median(pairs, axis=0)
    print(f"PPO: {ours:,.0f} steps/s, {nothing:,.0f} on an environment that computes nothing: {ours / nothing:.0%}")


if __name__ == "__main__":
    main()
