"""What the scheduled evaluations cost: their share of a training of the social navigation task, on one core.

    OMP_NUM_THREADS=1 python -m benchmarks.evaluation_cost

The shipped PPO settings, 100 episodes every 16,000 steps; at most 7 % is asked for.
"""

import tempfile
from dataclasses import replace
from statistics import median

import torch

from pipeline.config.loading import load, load_task
from pipeline.config.stages import Finetune
from pipeline.config.training import Segment
from pipeline.learning.jobs import TrainingEvent, TrainingJob
from pipeline.learning.train import train

CONFIG = "configs/social_nav/finetune.yaml"
STEPS = 200_000
REPEATS = 3


def ignore(_: TrainingEvent) -> None:
    pass


def main() -> None:
    torch.set_num_threads(1)
    task = load_task("configs/tasks/social_nav.yaml")
    shipped = load(Finetune, CONFIG).training
    schedule = replace(shipped.evaluation, segments=(Segment(every_steps=16_000),), episodes=100)
    training = replace(shipped, total_timesteps=STEPS, evaluation=schedule)
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
