"""What it costs to train somewhere else: many tiny trainings side by side, and trainings whose nodes are killed.

    python -m benchmarks.executors --kind local --trainings 200
    python -m benchmarks.executors --kind ray --trainings 200
    python -m benchmarks.executors --kind slurm --trainings 200        (Debian: apt-get install slurm-wlm munge)
    python -m benchmarks.executors --kind ray --kills 100              nodes killed at random moments
    python -m benchmarks.executors --kind slurm --kills 100            jobs queued again, before their time and after
    python -m benchmarks.executors --kind server --trainings 200       what their points cost the driver and a server

The cluster is one of this machine, on loopback. Prints a line of JSON. Overhead is what a place to train took of a slot
(`--slots` of them) beside the training itself, as that measured itself.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.local_server import LocalServer
from benchmarks.local_slurm import slurm
from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.config.training import PPOTraining
from pipeline.executors.side_by_side import run_side_by_side
from pipeline.learning.jobs import TrainingJob, TrainingResult
from pipeline.tracking.forwarder import Forwarder
from pipeline.tracking.stage_run import open_run

Kill = Callable[[random.Random], None]


@contextlib.contextmanager
def cluster(kind: str, slots: int, folder: Path) -> Iterator[tuple[dict[str, Any], Kill]]:
    """Settings of trainings there, and what kills a node, or what a node does."""
    if kind == "local":
        yield {}, lambda moments: None
    elif kind == "ray":
        import ray
        from ray.cluster_utils import Cluster

        os.environ.update(RAY_worker_niceness="0")  # else whatever else runs here comes first
        node = {"num_cpus": 1, "object_store_memory": 80_000_000}
        nodes = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
        for _ in range(slots):
            nodes.add_node(**node)
        os.environ["RAY_ADDRESS"] = nodes.address

        def kill(moments: random.Random) -> None:
            nodes.remove_node(moments.choice(sorted(nodes.worker_nodes, key=id)), allow_graceful=False)
            nodes.add_node(**node)

        try:
            yield {"kind": "ray", "folder": str(folder / "shared"), "retries": 1000}, kill
        finally:
            ray.shutdown()
            nodes.shutdown()
    else:
        with slurm(slots):

            def requeue(moments: random.Random) -> None:
                running = subprocess.run(
                    ["squeue", "--me", "--states=running", "--noheader", "--format=%i"], capture_output=True, text=True
                ).stdout.split()
                if running:  # the signal before the end of its time, or the loss of its node
                    job = moments.choice(running)
                    command = moments.choice((["scancel", "--signal=USR2"], ["scontrol", "requeue"]))
                    subprocess.run([*command, job], capture_output=True)

            settings = {"kind": "slurm", "folder": str(folder / "shared"), "retries": 1000, "options": {"time": 60}}
            yield settings, requeue


def trainings(count: int, steps: int, executor: dict[str, Any], folder: Path, **task: Any) -> list[TrainingJob]:
    """PPO on CartPole, with six checkpoints; `task` changes it."""
    data = {
        "name": "known", "environment": {"id": "CartPole-v1"}, "success": {"return_at_least": 100.0},
        "thresholds": {"success_rate": {"min": 0.9}}, "scenarios": {"default": {}},
        "scenario_sets": {"train": {"default": 1.0}}, "horizon": 100, "executor": executor, **task,
    }  # fmt: skip
    training = {
        "total_timesteps": steps, "n_envs": 4, "network": {"hidden": [16]},
        "ppo": {"n_steps": 64, "batch_size": 64, "n_epochs": 4}, "checkpoint_every": max(256, steps // 6),
        "evaluation": {"segments": [{"every_steps": max(256, steps // 4)}], "episodes": 5},
    }  # fmt: skip
    config, settings = validate(TaskConfig, data, "benchmark"), validate(PPOTraining, training, "benchmark")
    return [
        TrainingJob(
            config,
            settings,
            seed,
            output=str(folder / f"seed-{seed}"),
            final_episodes=5,
            checkpoints=str(folder / f"checkpoints-{seed}"),
            checkpoint_key=f"training {seed}",
        )
        for seed in range(count)
    ]


def measure(jobs: list[TrainingJob], slots: int, between: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Train; seconds, memory of this process in MB, points heard, and what the trainings came to."""
    memory: list[float] = []
    points: list[tuple[int, int]] = []
    started = time.monotonic()

    def hear(index: int, event: Any) -> None:
        if event.metrics:
            points.append((index, event.timestep))
        between()

    def done(index: int, result: TrainingResult) -> None:
        memory.append(psutil.Process().memory_info().rss / 1e6)

    results = run_side_by_side(jobs, slots, hear, done)
    wall = time.monotonic() - started
    inside = sum(result.wall_seconds.total for result in results)
    return {
        "wall_seconds": round(wall, 1),
        "training_seconds": round(inside, 1),
        "overhead_seconds_per_training": round((wall * slots - inside) / len(jobs), 2),
        "driver_mb_first_middle_last": [round(memory[i]) for i in (0, len(memory) // 2, -1)],
        "points": len(points),
        "digests": [(result.best_digest, result.last_weights) for result in results],
        "points_by_training": sorted(points),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("local", "ray", "slurm", "server"), required=True)
    parser.add_argument("--trainings", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1024)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="executors-") as name:
        folder = Path(name)
        if known.kind == "server":
            print(json.dumps({**vars(known), **forwarded(known.trainings, folder)}))
            return 0
        with cluster(known.kind, known.slots, folder) as (settings, kill):
            if known.kills:
                return _killed(known, settings, kill, folder)
            found = measure(trainings(known.trainings, known.steps, settings, folder), known.slots)
    shown = {key: value for key, value in found.items() if key not in ("digests", "points_by_training")}
    print(json.dumps({**vars(known), **shown}))
    return 0


def forwarded(count: int, folder: Path) -> dict[str, Any]:
    """Bring to a server of its own what `count` trainings say in ten seconds: an evaluation and a rollout each."""
    values = {f"eval/figure_{i}": float(i) for i in range(30)} | {f"train/figure_{i}": float(i) for i in range(10)}
    server = LocalServer(folder)
    server.start()
    try:
        os.environ["MLFLOW_TRACKING_URI"] = server.uri
        os.environ["PIPELINE_SPOOL"] = str(folder / "spool")
        with open_run("finetune") as run, Forwarder(run) as forwarder:
            children = [forwarder.child(f"training {i}", {}) for i in range(count)]
            forwarder.settle(600.0)
            seconds, processor = [], []
            for step in range(3):
                for child in children:
                    child.metrics(values, step)
                started, used = time.monotonic(), time.process_time()
                forwarder.settle(600.0)
                seconds.append(time.monotonic() - started)
                processor.append(time.process_time() - used)
    finally:
        server.close()
    points = count * len(values)
    return {
        "points_in_a_round": points,
        "seconds_of_a_round": [round(s, 2) for s in seconds],
        "driver_processor_seconds": [round(s, 2) for s in processor],
        "points_per_second": round(points / min(seconds)),
        "milliseconds_per_training": round(1000 * min(seconds) / count, 1),
    }


def _killed(known: argparse.Namespace, settings: dict[str, Any], kill: Kill, folder: Path) -> int:
    """Trainings with kills between what is heard of them, held against the same ones here without any."""
    moments, killed = random.Random(known.seed), 0
    count = known.trainings or 4
    steps = known.steps if known.trainings else 1500 * known.kills
    due = 1

    def between() -> None:
        nonlocal killed, due
        due -= 1
        if due <= 0 and killed < known.kills:
            killed, due = killed + 1, moments.randrange(1, 25)
            kill(moments)

    there = measure(trainings(count, steps, settings, folder / "there"), known.slots, between)
    here = measure(trainings(count, steps, {}, folder / "here"), known.slots)
    equal = there["digests"] == here["digests"]
    same_points = there["points_by_training"] == here["points_by_training"]
    line = {"kills": killed, "equal_digests": equal, "no_point_lost_or_doubled": same_points, "points": there["points"]}
    print(json.dumps({**vars(known), **line, "wall_seconds": there["wall_seconds"], "unkilled": here["wall_seconds"]}))
    return 0 if equal and same_points else 1


if __name__ == "__main__":
    sys.exit(main())
