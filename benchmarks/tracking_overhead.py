"""What tracking costs: the same training without it and with all of it, on a fresh SQLite store.

    python benchmarks/tracking_overhead.py [--steps 400000] [--rounds 3]

With tracking: the child run, every metric of every rollout and evaluation, both checkpoints as logged models, tags,
evaluations. The two are run in turn; the ratio is taken pair by pair. Because a difference of 1 % drowns in the noise
of a shared machine, the seconds spent inside logging calls are measured as well and set against the bare training.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MLFLOW_DISABLE_TELEMETRY="true")

import mlflow

from pipeline.config.loading import load, load_task
from pipeline.config.stages import Finetune
from pipeline.learning.jobs import TrainingEvent, TrainingJob
from pipeline.learning.ppo import train
from pipeline.learning.threads import one_thread
from pipeline.names import Tag
from pipeline.tracking.runs import open_run
from pipeline.tracking.training import seed_runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", default="configs/social_nav/finetune.yaml")
    arguments = parser.parse_args()
    one_thread()
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
        rows = [
            (bare(replace(job, output=f"{folder}/bare")), tracked(job, Path(folder))) for _ in range(arguments.rounds)
        ]
    for without, (whole, logging) in rows:
        share = logging / without
        print(f"bare {without:6.2f} s   tracked {whole:6.2f} s   inside logging calls {logging:5.3f} s = {share:.2%}")
    print(f"median ratio tracked / bare: {statistics.median(w / b for b, (w, _) in rows):.3f}")
    share = statistics.median(log / b for b, (_, log) in rows)
    print(f"median share of logging calls: {share:.2%}  (wanted: at most 1 %)")


def bare(job: TrainingJob) -> float:
    """Seconds of a training whose events nobody takes."""
    started = time.perf_counter()
    train(job, lambda event: None)
    return time.perf_counter() - started


def tracked(job: TrainingJob, folder: Path) -> tuple[float, float]:
    """Seconds of the same training with everything logged, and the part of it that was logging."""
    job = replace(job, output=str(folder / "tracked"))
    spent = 0.0
    with open_run("baseline") as run:
        started = time.perf_counter()
        with seed_runs(run, [job], [{Tag.STAGE: "baseline_seed"}]) as seeds:
            spent += time.perf_counter() - started

            def on_event(event: TrainingEvent) -> None:
                nonlocal spent
                began = time.perf_counter()
                seeds.on_event(0, event)
                spent += time.perf_counter() - began

            result = train(job, on_event)
            began = time.perf_counter()
            seeds.finish(0, result)
            spent += time.perf_counter() - began
        return time.perf_counter() - started, spent


if __name__ == "__main__":
    main()
