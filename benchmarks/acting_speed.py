"""What acting costs: the layers whose rows do not depend on their company, against PyTorch's own, on one core.

    OMP_NUM_THREADS=1 python -m benchmarks.acting_speed

A batch of observations (40 numbers each) through an actor with two hidden layers, by `act_function` and by the same
layers of PyTorch in inference mode; medians of 30 paired rounds. At most 1.1 is asked for.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from pipeline.config.training import Network
from pipeline.policies import act_function, build_policy

OBSERVATIONS, ACTIONS = spaces.Box(-1, 1, (40,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
ROUNDS, CALLS = 30, 50


def microseconds(act: Callable[[np.ndarray], Any], observations: np.ndarray) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        act(observations)
    return (time.perf_counter() - start) / CALLS * 1e6


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'hidden':>12} {'rows':>5} {'ours, µs':>9} {'PyTorch, µs':>12} {'ratio':>6}")
    for width in (64, 128, 256):
        policy = build_policy(OBSERVATIONS, ACTIONS, Network(hidden=(width, width)), seed=1)
        layers = torch.nn.Sequential(*policy.mlp_extractor.policy_net, policy.action_net)
        act = act_function(policy)

        def theirs(observations: np.ndarray, layers: torch.nn.Module = layers) -> np.ndarray:
            with torch.inference_mode():
                return np.clip(layers(torch.from_numpy(observations)).numpy(), -1, 1)

        for rows in (1, 8, 64, 100):
            observations = np.random.default_rng(0).uniform(-1, 1, (rows, 40)).astype(np.float32)
            np.testing.assert_allclose(act(observations), theirs(observations), rtol=0, atol=1e-5)
            pairs = [(microseconds(act, observations), microseconds(theirs, observations)) for _ in range(ROUNDS)]
            ours, other = (median(times) for times in zip(*pairs, strict=True))
            ratio = median(a / b for a, b in pairs)
            print(f"{width:>7} x {width:<3} {rows:>5} {ours:>9.1f} {other:>12.1f} {ratio:>6.2f}")


if __name__ == "__main__":
    main()
