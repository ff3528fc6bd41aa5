"""Seeds side by side give what they give alone; failures name their seed; nobody is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import psutil
import pytest
import torch

from pipeline.envs.processes import PRELOADED
from pipeline.errors import BadInput
from pipeline.executors.news import TrainingCrashed
from pipeline.executors.side_by_side import run_side_by_side
from pipeline.learning.jobs import TrainingJob
from pipeline.learning.train import train


@pytest.fixture
def jobs(cartpole, make_training, tmp_path):
    return [
        TrainingJob(cartpole, make_training(), seed, str(tmp_path / str(seed)), final_episodes=3) for seed in (1, 2, 3)
    ]


def test_side_by_side_equals_one_after_the_other(jobs):
    heard = []
    results = run_side_by_side(jobs, 2, lambda index, event: heard.append((index, event)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for index, (job, result) in enumerate(zip(jobs, results, strict=True)):
            events = []
            alone = train(job, events.append)
            assert (result.seed, result.last_weights, result.best_digest) == (
                job.seed,
                alone.last_weights,
                alone.best_digest,
            )
            mine = [event for i, event in heard if i == index]
            assert [(e.kind, e.timestep, e.text) for e in mine] == [(e.kind, e.timestep, e.text) for e in events]
    finally:
        torch.set_num_threads(threads)


def _train_and_say_what_was_loaded(job, sender):
    before = {*sys.modules}
    train(job, lambda event: None)
    sender.send(sorted(name for name in {*sys.modules} - before if name.startswith(("numba", "torch._dynamo"))))


def test_a_training_finds_what_takes_long_to_load(jobs):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train_and_say_what_was_loaded, args=(jobs[0], sender))
    process.start()
    assert receiver.recv() == []
    process.join()


def test_what_the_user_did_wrong_comes_back_as_it_was_said(jobs):
    wrong = replace(jobs[1], best_metric="comfort")
    with pytest.raises(BadInput, match="best_metric 'comfort' is not measured"):
        run_side_by_side([jobs[0], wrong], 2, lambda index, event: None)


def _long(jobs, make_training) -> list[TrainingJob]:
    return [replace(job, training=make_training(total_timesteps=10_000_000)) for job in jobs[:2]]


def _trainings() -> dict[str, int]:
    return {child.name: child.pid for child in multiprocessing.active_children()}


def test_a_killed_training_is_named_by_its_seed_and_the_others_end(jobs, make_training):
    pids = {}

    def kill_the_second(index, event):
        if not pids and index == 1:
            pids.update(_trainings())
            os.kill(pids["training of seed 2"], signal.SIGKILL)

    with pytest.raises(TrainingCrashed, match="training of seed 2 crashed: its process was killed by signal SIGKILL"):
        run_side_by_side(_long(jobs, make_training), 2, kill_the_second)
    assert set(pids) == {"training of seed 1", "training of seed 2"}
    assert not any(psutil.pid_exists(pid) for pid in pids.values())


def test_an_error_of_the_listener_ends_every_training(jobs, make_training):
    pids = {}

    def fail(index, event):
        if event.timestep > 500:
            pids.update(_trainings())
            raise KeyError("the store is gone")

    with pytest.raises(KeyError, match="the store is gone"):
        run_side_by_side(_long(jobs, make_training), 2, fail)
    assert len(pids) == 2 and not any(psutil.pid_exists(pid) for pid in pids.values())


SCRIPT = """
import signal
import sys
from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.config.training import PPOTraining
from pipeline.learning.jobs import TrainingJob
from pipeline.executors.side_by_side import run_side_by_side

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
    task = validate(TaskConfig, {"name": "known", "environment": {"id": "CartPole-v1"},
        "success": {"return_at_least": 100.0}, "thresholds": {"success_rate": {"min": 0.9}},
        "scenarios": {"default": {}}, "scenario_sets": {"train": {"default": 1.0}}}, "test")
    training = validate(PPOTraining, {"total_timesteps": 10000000, "n_envs": 4, "ppo": {"n_steps": 64}}, "test")
    run_side_by_side([TrainingJob(task, training, s, sys.argv[1]) for s in (11, 12)], 2,
                     lambda index, event: print("event", index, flush=True))
"""


@pytest.fixture
def training_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()


def _wait_for_both(process) -> list[psutil.Process]:
    """The child processes, once both trainings have spoken."""
    seen = set()
    while len(seen) < 2:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        seen.add(line)
    return psutil.Process(process.pid).children(recursive=True)


def _gone(processes: list[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow  # it waits for two processes that import everything
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_child_outlives_its_parent(training_process, how):
    family = _wait_for_both(training_process)
    assert len(family) >= 3  # fork server, and two trainings
    os.kill(training_process.pid, how)
    training_process.wait(timeout=120)
    assert _gone(family, 60)
