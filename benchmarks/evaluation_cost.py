"""What the scheduled evaluations cost: their share of a training of the social navigation task, on one core.

    OMP_NUM_THREADS=1 python -m benchmarks.evaluation_cost

100 episodes every 16,000 steps; at most 7 % is asked for.
"""

import tempfile
from statistics import median

import torch

from pipeline.config.loading import load_task, validate
from pipeline.config.training import PPOTraining
from pipeline.learning.jobs import TrainingEvent, TrainingJob
from pipeline.learning.ppo import train

TRAINING = {
    "scenario_set": "train_small",
    "total_timesteps": 200_000,
    "n_envs": 64,
    "network": {"hidden": [64, 64]},
    "ppo": {"n_steps": 128, "batch_size": 1024, "n_epochs": 5},
    "evaluation": {"segments": [{"every_steps": 16_000}], "episodes": 100},
}
REPEATS = 3


def ignore(_: TrainingEvent) -> None:
    pass


def main() -> None:
    torch.set_num_threads(1)
    task = load_task("configs/tasks/social_nav.yaml")
    training = validate(PPOTraining, TRAINING, "benchmark")
    shares = []
    for seed in range(1, REPEATS + 1):
        with tempfile.TemporaryDirectory() as folder:
            result = train(TrainingJob(task, training, seed, folder, final_episodes=1), ignore)
        seconds = result.wall_seconds
        whole = seconds.total - seconds.final_evaluation
        shares.append(seconds.evaluation / whole)
        print(
            f"seed {seed}: {len(result.evaluations)} evaluations took {seconds.evaluation:.2f} of {whole:.2f} s = "
            f"{shares[-1]:.1%}; training alone {result.environment_steps / (whole - seconds.evaluation):,.0f} steps/s"
        )
    print(f"median share {median(shares):.1%}, asked for: at most 7 %")


if __name__ == "__main__":
    main()
