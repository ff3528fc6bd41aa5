"""Throughput of behavioural cloning against imitation's BC: same data, same initial weights, one core.

    OMP_NUM_THREADS=1 python -m benchmarks.cloning_throughput

Prints samples per CPU second for both at batch sizes 64, 256 and 1024 (40 inputs, two layers of 64, 2 outputs), the
ratio (at least 4 is asked for) and both losses after the same number of epochs.
"""

import time
from statistics import median

import numpy as np
import torch
from gymnasium import spaces
from imitation.algorithms import bc
from imitation.data.types import Transitions

from pipeline.config.training import Cloning, Network
from pipeline.data import Trajectories
from pipeline.learning.cloning import clone
from pipeline.policies import build_policy

SPACES = (spaces.Box(-1, 1, (40,), np.float32), spaces.Box(-1, 1, (2,), np.float32))
NETWORK = Network(hidden=(64, 64))
EPISODES, LENGTH = 200, 64
REPEATS = 3


def demonstrations() -> Trajectories:
    """200 episodes of 64 steps; actions are a smooth function of the observation."""
    rng = np.random.default_rng(0)
    steps = EPISODES * LENGTH
    observations = rng.uniform(-1, 1, (steps + EPISODES, 40)).astype(np.float32)
    rows = np.arange(steps) + np.repeat(np.arange(EPISODES), LENGTH)
    actions = np.tanh(observations[rows] @ rng.normal(size=(40, 2)) / 4).astype(np.float32)
    ends = np.zeros(steps, bool)
    ends[LENGTH - 1 :: LENGTH] = True
    return Trajectories(
        observations=observations,
        actions=actions,
        executed_actions=actions,
        rewards=np.ones(steps, np.float32),
        terminations=ends,
        truncations=np.zeros(steps, bool),
        lengths=np.full(EPISODES, LENGTH),
        seeds=np.arange(EPISODES),
        scenarios=np.array(["default"] * EPISODES),
    )


def ours(data: Trajectories, batch_size: int, epochs: int) -> tuple[float, float]:
    """Samples per CPU second of the whole call, curves and split included, and the loss on all data."""
    policy = build_policy(*SPACES, NETWORK, seed=1)
    settings = Cloning(
        epochs=epochs, batch_size=batch_size, critic_epochs=0, select="validation_loss", validation_fraction=0.0
    )
    started = time.process_time()
    result = clone(policy, data, settings, seed=1)
    samples = epochs * int(data.lengths[result.train_episodes].sum())
    return samples / (time.process_time() - started), loss(policy, data)


def theirs(data: Trajectories, batch_size: int, epochs: int) -> tuple[float, float]:
    """The same of imitation's BC."""
    policy = build_policy(*SPACES, NETWORK, seed=1)
    rows = data.step_rows
    transitions = Transitions(
        obs=data.observations[rows],
        acts=data.actions,
        infos=np.array([{}] * data.steps),
        next_obs=data.observations[rows + 1],
        dones=data.terminations,
    )
    trainer = bc.BC(
        observation_space=SPACES[0],
        action_space=SPACES[1],
        rng=np.random.default_rng(0),
        policy=policy,
        demonstrations=transitions,
        batch_size=batch_size,
        optimizer_kwargs={"lr": 1e-3},
        ent_weight=0.0,
        device="cpu",
    )
    started = time.process_time()
    trainer.train(n_epochs=epochs, progress_bar=False, log_interval=10**9)
    return epochs * data.steps / (time.process_time() - started), loss(policy, data)


def loss(policy: torch.nn.Module, data: Trajectories) -> float:
    with torch.no_grad():
        observations = torch.as_tensor(data.observations[data.step_rows])
        return -float(policy.evaluate_actions(observations, torch.as_tensor(data.actions.copy()))[1].mean())


def main() -> None:
    torch.set_num_threads(1)
    data = demonstrations()
    print("batch   ours samples/s   imitation samples/s   ratio   loss ours   loss imitation")
    for batch_size, epochs in ((64, 4), (256, 8), (1024, 16)):
        pairs = [(ours(data, batch_size, epochs), theirs(data, batch_size, epochs)) for _ in range(REPEATS)]
        ratio = median(a[0] / b[0] for a, b in pairs)
        fast, slow = median(a[0] for a, _ in pairs), median(b[0] for _, b in pairs)
        print(f"{batch_size:5d} {fast:16,.0f} {slow:21,.0f} {ratio:7.1f} {pairs[0][0][1]:11.3f} {pairs[0][1][1]:16.3f}")


if __name__ == "__main__":
    main()
