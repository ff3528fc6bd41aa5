"""A real MLflow server on loopback stops in the middle of a training: what logging calls cost, and what is lost.

    python benchmarks/outage.py [--steps 1200000] [--outages hang-2 hang-60 gone-60 forever]

`hang-2`: it takes connections and answers nothing for 2 s; `gone-60`: it is killed and started again after 60 s;
`forever`: it is killed and the training ends without it. Then a record is torn off the end of the spool, `sync` is
killed by SIGKILL in its middle, and run again. Every point of the store is compared with what the training said; rows
that are there twice count as wrong. Exit code 1 when a point is missing or there twice.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MLFLOW_DISABLE_TELEMETRY="true")

import mlflow
import torch
from local_server import LocalServer

from pipeline.config.loading import load, load_task
from pipeline.config.stages import Finetune
from pipeline.learning.jobs import TrainingEvent, TrainingJob, TrainingResult
from pipeline.learning.train import train
from pipeline.names import EVAL_PREFIX, Tag
from pipeline.play.evaluation import point_figures
from pipeline.tracking.operations import Batch, measured
from pipeline.tracking.seed_runs import seed_runs
from pipeline.tracking.spool import FILE, Spool
from pipeline.tracking.stage_run import open_run
from pipeline.tracking.store import local_folder

WANTED_MS = 50.0
PATIENCE = 10.0  # seconds that the training without a server waits at its end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_200_000)
    parser.add_argument("--outages", nargs="+", default=["hang-2", "hang-60", "gone-60", "forever"])
    parser.add_argument("--config", default="configs/social_nav/finetune.yaml")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load(Finetune, arguments.config)
    training = replace(config.training, total_timesteps=arguments.steps)
    job = TrainingJob(task=load_task(config.task), training=training, seed=1, output="", final_episodes=100)
    with tempfile.TemporaryDirectory() as folder:
        wrong = [outage(replace(job, output=f"{folder}/{o}-policies"), o, Path(folder) / o) for o in arguments.outages]
    return 1 if any(wrong) else 0


def outage(job: TrainingJob, kind: str, folder: Path) -> int:
    """One training with one outage; returns how many points are missing or there twice."""
    server = LocalServer(folder)
    server.start()
    os.environ["MLFLOW_TRACKING_URI"] = server.uri
    os.environ["PIPELINE_SPOOL"] = str(folder / "spool")
    os.environ["PIPELINE_PATIENCE_SECONDS"] = str(PATIENCE if kind == "forever" else 300.0)
    try:
        events, calls, run_id, result, seconds = trained(job, kind, server)
        if kind == "forever":
            server.start()
            delivered_in_pieces(run_id)
        wrong = compared(run_id, events, result)
    finally:
        server.close()
    p99 = statistics.quantiles(calls, n=100)[98]
    print(
        f"{kind}: {len(calls)} logging calls, median {statistics.median(calls):.2f} ms, p99 {p99:.2f} ms (at most "
        f"{WANTED_MS:.0f} wanted), longest {max(calls):.0f} ms; trained {result.wall_seconds.total:.0f} s, then waited "
        f"{seconds:.1f} s for the store; {said(events).total()} points, {wrong} missing or twice",
        flush=True,
    )
    return wrong


def trained(
    job: TrainingJob, kind: str, server: LocalServer
) -> tuple[list[TrainingEvent], list[float], str, TrainingResult, float]:
    """Events, milliseconds of every logging call, run, result, and seconds from the training's end to the run's."""
    events: list[TrainingEvent] = []
    calls: list[float] = []
    stopper = threading.Thread(target=stop, args=(kind, server))
    with open_run("baseline") as run:
        with seed_runs(run, [job], [{Tag.STAGE: "baseline_seed"}]) as seeds:

            def on_event(event: TrainingEvent) -> None:
                if event.timestep >= job.budget // 3 and not stopper.ident:
                    stopper.start()
                events.append(event)
                started = time.perf_counter()
                seeds[0].on_event(event)
                if event.metrics:
                    calls.append(1_000 * (time.perf_counter() - started))

            result = train(job, on_event)
            seeds[0].finish(result)
            ended = time.perf_counter()
        seconds = time.perf_counter() - ended
        run_id = seeds[0].run.run_id
    stopper.join()
    return events, calls, run_id, result, seconds


def stop(kind: str, server: LocalServer) -> None:
    how, _, seconds = kind.partition("-")
    if how == "hang":
        server.hang()
        time.sleep(float(seconds))
        server.go_on()
    else:
        server.kill()
        if seconds:
            time.sleep(float(seconds))
            server.start()


def delivered_in_pieces(run_id: str) -> None:
    """A torn record at the end, a `sync` that is killed in its middle, and one that is not."""
    folder = local_folder("spool")
    spool = Spool()
    before = spool.waiting()
    spool.append(run_id, Batch(points=measured([("torn", 1.0, 1)])))
    shutil.copytree(folder, folder.with_name("torn"))  # as if the machine had stopped here
    (folder.with_name("torn") / f"{FILE}-shm").unlink()
    tear(folder.with_name("torn") / f"{FILE}-wal")
    spool.close()
    folder.rename(folder.with_name("whole"))
    folder.with_name("torn").rename(folder)
    watch = Spool()
    assert watch.waiting() == before, "the torn record alone is lost"
    command = [sys.executable, "-m", "pipeline", "sync"]
    sync = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while watch.waiting() > before // 2 and sync.poll() is None:
        time.sleep(0.01)
    sync.send_signal(signal.SIGKILL)
    sync.wait()
    print(f"forever: {before} records waited, {watch.waiting()} when sync was killed")
    watch.close()
    subprocess.run(command, check=True)


def tear(log: Path) -> None:
    """Cut the last record of a SQLite write-ahead log short; frames of an earlier round may lie behind it."""
    content = log.read_bytes()
    frame, salts = 24 + int.from_bytes(content[8:12], "big"), content[16:24]
    last = max(at for at in range(32, len(content) - frame + 1, frame) if content[at + 8 : at + 16] == salts)
    os.truncate(log, last + frame - 100)


def said(events: list[TrainingEvent]) -> Counter[tuple[str, float, int]]:
    return Counter((name, value, event.timestep) for event in events for name, value in event.metrics.items())


def compared(run_id: str, events: list[TrainingEvent], result: TrainingResult) -> int:
    """Points that are missing, or rows too many. Figures of a logged policy are those of its evaluation, once."""
    at = {point.timestep: point_figures(point.records) for point in result.evaluations}
    steps = (result.best_timestep, result.evaluations[-1].timestep)
    expected = said(events) | Counter((f"{EVAL_PREFIX}{n}", v, s) for s in steps for n, v in at[s].items())
    client = mlflow.MlflowClient()
    found = Counter(
        (name, point.value, point.step)
        for name in {name for name, _, _ in expected}
        for point in client.get_metric_history(run_id, name)
    )
    return (expected - found).total() + (found - expected).total()


if __name__ == "__main__":
    raise SystemExit(main())
