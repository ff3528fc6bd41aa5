"""What tracking costs: the same training without it and with all of it, on a fresh SQLite store.

    python benchmarks/tracking_overhead.py [--steps 900000] [--rounds 3] [--trainings 1]

With tracking is what a stage does for its training: its own run with configuration, task and environment on record,
the run of the seed with the same record and parameters, every metric of every rollout and evaluation through the spool,
both policies as logged models, evaluations, tags, descriptions, and the wait until the store has it all. What a stage
does once is charged to its `--trainings`, one seed after the other. Both arms run in this process on one thread, in
turn, in every second round the other way round. Because a difference of 1 % drowns in the noise of a shared machine,
processor time is measured as well: all that the process spent with tracking, but for the training itself, against the
training.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace

os.environ.update(OMP_NUM_THREADS="1", MLFLOW_DISABLE_TELEMETRY="true")

import mlflow
import torch

from pipeline.config.loading import load, load_task
from pipeline.config.stages import Finetune
from pipeline.learning.jobs import TrainingEvent, TrainingJob
from pipeline.learning.train import train
from pipeline.names import Tag
from pipeline.tracking.content_key import training_key
from pipeline.tracking.seed_runs import SeedRun, seed_runs
from pipeline.tracking.stage_run import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=900_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trainings", type=int, default=1, help="of the stage that tracks")
    parser.add_argument("--config", default="configs/social_nav/finetune.yaml")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load(Finetune, arguments.config)
    config = replace(config, training=replace(config.training, total_timesteps=arguments.steps), seeds=(1,))
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(load_task(config.task), config.training, seed=1, output=f"{folder}/trained")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        with open_run("baseline"):
            pass  # creating the store is not part of a training
        bare(replace(job, training=replace(job.training, total_timesteps=20_000)))  # imports and compiles
        training_key(job)  # reads all code once a process, to decide what was done before; logging asks for it again
        rows = []
        for index in range(arguments.rounds):
            costs = [tracked(job, config, arguments.trainings)] if index % 2 else []
            seconds = bare(job)
            costs = costs or [tracked(job, config, arguments.trainings)]
            rows.append((seconds, costs[0]))
    for seconds, cost in rows:
        print(
            f"bare {seconds:6.2f} s   tracked {cost.wall:6.2f} s   processor time: training {cost.training:6.2f} s, "
            f"tracking {cost.tracking:5.3f} s = {cost.share:.2%}"
        )
    print(f"median ratio of wall times, tracked / bare: {statistics.median(c.wall / b for b, c in rows):.3f}")
    share = statistics.median(cost.share for _, cost in rows)
    print(f"median share of tracking in processor time: {share:.2%}  (wanted: at most 1 % of a minute's training)")


@dataclass(frozen=True)
class Cost:
    """Seconds of tracked trainings: wall time of each, and where the processor time went."""

    wall: float
    training: float
    tracking: float  # of the calls that log, and of the thread that forwards

    @property
    def share(self) -> float:
        return self.tracking / self.training


def bare(job: TrainingJob) -> float:
    """Seconds of a training whose events nobody takes."""
    started = time.perf_counter()
    train(job, lambda event: None)
    return time.perf_counter() - started


def tracked(job: TrainingJob, config: Finetune, count: int) -> Cost:
    """The same training, and so many more of other seeds, as a stage that logs everything."""
    wall, process, training = time.perf_counter(), time.process_time(), 0.0
    jobs = [replace(job, seed=job.seed + i, output=f"{job.output}-{i}") for i in range(count)]
    with open_run("baseline") as run:
        run.record_config(config, job.task, {})
        tags = {Tag.STAGE: "baseline_seed", Tag.ARM: "scratch", Tag.GROUP: run.run_id}
        with seed_runs(run, jobs, [tags] * count) as seeds:
            for one, seed in zip(jobs, seeds, strict=True):
                began, in_calls = time.thread_time(), [0.0]

                def on_event(event: TrainingEvent, seed: SeedRun = seed, in_calls: list[float] = in_calls) -> None:
                    called = time.thread_time()
                    seed.on_event(event)
                    in_calls[0] += time.thread_time() - called

                result = train(one, on_event)
                training += time.thread_time() - began - in_calls[0]  # torch has one thread: no other one trains
                seed.finish(result)
    return Cost((time.perf_counter() - wall) / count, training, time.process_time() - process - training)


if __name__ == "__main__":
    main()
