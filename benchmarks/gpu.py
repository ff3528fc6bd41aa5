"""What a GPU is worth here: `python -m benchmarks.gpu`, in five minutes; without one, the CPU's half of the table.

Environments compute nothing, so that learning is what is measured: pictures of 64 x 64, and networks of growing width
on 32 numbers. PPO and SAC without their evaluations, and cloning of the actor, in steps or samples a second with one
thread of the CPU and with the GPU, which is asked twice: its weights have to be the same to the bit.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box

from pipeline.config.loading import validate
from pipeline.config.stages import Pretrain
from pipeline.config.task import CPU, GPU, TaskConfig
from pipeline.config.training import Network, PPOTraining, SACTraining
from pipeline.learning.clones import CloneJob
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.processor import machine, processor_kind
from pipeline.learning.train import train
from pipeline.play.evaluation import record_episodes
from pipeline.tasks import Purpose, Task

HORIZON, EPISODES = 64, 32
PPO_STEPS, SAC_STEPS = 4096, 256
Measured = tuple[float, str]  # a second; digest of the weights


class Pictures(gym.Env[Any, Any]):
    """Shows noise and pays nothing."""

    observation_space, action_space = Box(0, 255, (3, 64, 64), np.uint8), Box(-1, 1, (4,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(0)
        self._shown, self._step = [self.observation_space.sample() for _ in range(8)], 0
        return self._shown[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._step += 1
        return self._shown[self._step % 8], 0.0, False, False, {}


class Numbers(Pictures):
    observation_space = Box(-1, 1, (32,), np.float32)


def task(environment: str, device: str) -> TaskConfig:
    data = {
        "name": "any", "environment": {"id": f"benchmarks.gpu:{environment}"}, "success": {"return_at_least": 0.0},
        "thresholds": {}, "scenarios": {"default": {}}, "scenario_sets": {"train": {"default": 1}}, "horizon": HORIZON,
        "device": device,
    }  # fmt: skip
    return validate(TaskConfig, data, "benchmark")


def training(network: Network, steps: int) -> PPOTraining:
    data = {
        "total_timesteps": steps, "n_envs": 8, "ppo": {"n_steps": steps // 16, "batch_size": 256, "n_epochs": 4},
        "evaluation": {"episodes": 1, "segments": [{"every_steps": steps}]}, "checkpoint_every": 0,
    }  # fmt: skip
    return replace(validate(PPOTraining, data, "benchmark"), network=network)


def learn(environment: str, network: Network, steps: int, sac: SACTraining | None, device: str, to: str) -> Measured:
    """Environment steps a second of PPO, or of SAC, evaluations apart."""
    config, settings = task(environment, device), training(network, steps)
    result = train(TrainingJob(config, settings, 1, to, sac=sac, final_episodes=1), lambda _: None)
    wall = result.wall_seconds
    return result.environment_steps / (wall.total - wall.evaluation - wall.final_evaluation), result.last_weights


def clone(environment: str, network: Network, device: str, to: str) -> Measured:
    """Samples a second of the actor's cloning."""
    seen, rng = Task(task(environment, device)), np.random.default_rng(0)

    def act(rows: np.ndarray) -> np.ndarray:
        return rng.uniform(-1, 1, (len(rows), 4)).astype(np.float32)

    data = record_episodes(seen, act, seen.episodes("train", 1, EPISODES, Purpose.RECORD), 0.0, 0)
    settings = {
        "task": "", "cloning": {"epochs": 2, "critic_epochs": 0}, "evaluation": {"episodes": 1}, "final_episodes": 2,
        "judgement": {"episodes": 2},
    }  # fmt: skip
    pretrain = replace(validate(Pretrain, settings, "benchmark"), network=network)
    made = CloneJob(seen.config, pretrain, data, "none", 1, to).perform(lambda _: None)
    return made.result.samples_per_second, made.digest


def main() -> None:
    torch.set_num_threads(1)
    gpu = torch.cuda.device_count() > 0
    print(processor_kind(machine(1, GPU if gpu else CPU)))
    if not gpu:
        print(f"torch {torch.__version__} can use no GPU here: what follows is the CPU alone")
    eyes = Network(hidden=(128,), activation="relu", image_features=128)
    rows: list[tuple[str, Callable[[str, str], Measured]]] = [
        ("PPO, pictures", partial(learn, "Pictures", eyes, PPO_STEPS, None)),
        ("cloning, pictures", partial(clone, "Pictures", eyes)),
    ]
    for width in (64, 256, 1024, 2048):
        network = Network(hidden=(width, width))
        sac = SACTraining(network=network, learning_starts=SAC_STEPS // 2)
        rows += [
            (f"PPO, 2 x {width}", partial(learn, "Numbers", network, PPO_STEPS, None)),
            (f"cloning, 2 x {width}", partial(clone, "Numbers", network)),
            (f"SAC, 2 x {width}", partial(learn, "Numbers", network, SAC_STEPS, sac)),
        ]
    print(f"{'a second':20} {'CPU':>10} {'GPU':>10} {'ratio':>7}  same bits twice on the GPU")
    for name, measure in rows:
        with tempfile.TemporaryDirectory() as folder:
            here, _ = measure(CPU, f"{folder}/cpu")
            line = f"{name:20} {here:10.0f}"
            if gpu:
                (_, first), (there, second) = (measure(GPU, f"{folder}/gpu{i}") for i in (1, 2))
                line += f" {there:10.0f} {there / here:7.2f}  {'yes' if first == second else 'NO'}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
