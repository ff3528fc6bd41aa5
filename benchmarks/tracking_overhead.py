"""What tracking costs: the same training without it and with all of it, on a fresh SQLite store.

    python benchmarks/tracking_overhead.py [--steps 1200000] [--rounds 3]

With tracking: the child run, every metric of every rollout and evaluation through the spool, both checkpoints as
logged models, tags, evaluations, and the wait until the store has it all. Both arms run in this process on one thread,
in turn. Because a difference of 1 % drowns in the noise of a shared machine, the processor time of all logging is
measured as well, of the calls and of the thread that forwards, against that of the training itself.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MLFLOW_DISABLE_TELEMETRY="true")

import mlflow
import torch

from pipeline.config.loading import load, load_task
from pipeline.config.stages import Finetune
from pipeline.learning.jobs import TrainingEvent, TrainingJob
from pipeline.learning.train import train
from pipeline.names import Tag
from pipeline.tracking.content_key import training_key
from pipeline.tracking.seed_runs import seed_runs
from pipeline.tracking.stage_run import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", default="configs/social_nav/finetune.yaml")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load(Finetune, arguments.config)
    job = TrainingJob(
        task=load_task(config.task),
        training=replace(config.training, total_timesteps=arguments.steps),
        seed=1,
        output="",
    )
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        with open_run("baseline"):
            pass  # creating the store is not part of a training
        bare(replace(job, output=f"{folder}/warm", training=replace(job.training, total_timesteps=20_000)))
        training_key(job)  # reads all code once a process, to decide what was done before; logging reads it again
        rows = [
            (bare(replace(job, output=f"{folder}/bare")), tracked(job, Path(folder))) for _ in range(arguments.rounds)
        ]
    for without, cost in rows:
        print(
            f"bare {without:6.2f} s   tracked {cost.wall:6.2f} s   processor time: training {cost.training:6.2f} s, "
            f"logging calls {cost.calls:5.3f} s, forwarding {cost.forwarding:5.3f} s = {cost.share:.2%}"
        )
    print(f"median ratio of wall times, tracked / bare: {statistics.median(c.wall / b for b, c in rows):.3f}")
    share = statistics.median(cost.share for _, cost in rows)
    print(f"median share of logging in processor time: {share:.2%}  (wanted: at most 1 %)")


@dataclass(frozen=True)
class Cost:
    """Seconds of a tracked training: its wall time, and where the processor time went."""

    wall: float
    training: float
    calls: float
    forwarding: float

    @property
    def share(self) -> float:
        return (self.calls + self.forwarding) / self.training


def bare(job: TrainingJob) -> float:
    """Seconds of a training whose events nobody takes."""
    started = time.perf_counter()
    train(job, lambda event: None)
    return time.perf_counter() - started


def tracked(job: TrainingJob, folder: Path) -> Cost:
    """The same training with everything logged."""
    job = replace(job, output=str(folder / "tracked"))
    with open_run("baseline") as run:
        wall, process, thread = time.perf_counter(), time.process_time(), time.thread_time()
        trained = 0.0
        with seed_runs(run, [job], [{Tag.STAGE: "baseline_seed"}]) as seeds:
            in_calls = 0.0

            def on_event(event: TrainingEvent) -> None:
                nonlocal in_calls
                began = time.thread_time()
                seeds[0].on_event(event)
                in_calls += time.thread_time() - began

            began = time.thread_time()
            result = train(job, on_event)
            trained = time.thread_time() - began - in_calls
            seeds[0].finish(result)
        thread = time.thread_time() - thread
        forwarding = time.process_time() - process - thread  # torch has one thread: what is left is the forwarder's
        return Cost(time.perf_counter() - wall, trained, thread - trained, forwarding)


if __name__ == "__main__":
    main()
