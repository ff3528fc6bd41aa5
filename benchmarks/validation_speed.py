"""How long 1 million transitions take to validate, and how much memory: `python benchmarks/validation_speed.py`.

Prints the seconds of `validate` on a dataset on disk (40-dimensional observations, 2-dimensional actions with execution
noise) and the peak of resident memory above what the process needed before, as a multiple of the dataset's size.
Targets: at most 5 s and 2 times the size.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from pipeline.data import DatasetMetadata, Trajectories, content_digest, save_dataset
from pipeline.data.spaces import space_to_json
from pipeline.validation.facts import Context
from pipeline.validation.rules import validate

EPISODES, STEPS, FEATURES = 5_000, 200, 40


def synthetic() -> tuple[Trajectories, DatasetMetadata]:
    """A stable linear system under a noisy linear controller: every rule has something to look at."""
    from gymnasium.spaces import Box

    rng = np.random.default_rng(0)
    effect = rng.normal(0, 0.05, (2, FEATURES)).astype(np.float32)
    state = rng.uniform(-1, 1, (EPISODES, FEATURES)).astype(np.float32)
    observations = np.empty((EPISODES, STEPS + 1, FEATURES), np.float32)
    actions, executed = (np.empty((EPISODES, STEPS, 2), np.float32) for _ in range(2))
    for t in range(STEPS):
        observations[:, t] = state
        actions[:, t] = np.clip(state[:, :2], -1, 1)
        executed[:, t] = np.clip(actions[:, t] + rng.normal(0, 0.3, (EPISODES, 2)), -1, 1)
        state = 0.97 * state + executed[:, t] @ effect + rng.normal(0, 0.02, state.shape).astype(np.float32)
    observations[:, STEPS] = state
    rewards = -np.abs(observations[:, :-1, 0])
    ends = np.tile(np.arange(STEPS) == STEPS - 1, EPISODES)
    trajectories = Trajectories(
        observations=observations.reshape(-1, FEATURES),
        actions=actions.reshape(-1, 2),
        executed_actions=executed.reshape(-1, 2),
        rewards=rewards.reshape(-1),
        terminations=np.zeros_like(ends),
        truncations=ends,
        lengths=np.full(EPISODES, STEPS),
        seeds=np.arange(EPISODES),
        scenarios=np.array(["a", "b"] * (EPISODES // 2)),
        metrics={"return": rewards.sum(axis=1, dtype=np.float64), "length": np.full(EPISODES, float(STEPS))},
    )
    metadata = DatasetMetadata(
        dataset_id="benchmark",
        created_at="2026-01-01T00:00:00Z",
        task="benchmark",
        scenario_set="train",
        scenario_coverage={"a": EPISODES // 2, "b": EPISODES // 2},
        requested_shares={"a": 0.5, "b": 0.5},
        demonstrator={"kind": "scripted", "name": "linear", "version": "1", "digest": "none"},
        seeds=(0,),
        noise_std=0.3,
        filter={"min_return": None, "only_success": False},
        observation_space=space_to_json(Box(-10, 10, (FEATURES,))),
        action_space=space_to_json(Box(-1, 1, (2,))),
        environment={"id": "none", "kwargs": {}, "scenarios": {}},
        holdout_scenarios=(),
        episodes=EPISODES,
        steps=EPISODES * STEPS,
        content_digest=content_digest(trajectories),
        horizon=STEPS,
    )
    return trajectories, metadata


def memory(field: str) -> int:
    """Bytes of `VmRSS` (resident now) or `VmHWM` (its peak), on Linux.

    Not getrusage: its peak includes the parent's memory at the moment this process was started.
    """
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    if len(sys.argv) == 2:  # the measuring process: nothing but the validation has been in its memory
        size = (Path(sys.argv[1]) / "trajectories.npz").stat().st_size
        before, start, processor = memory("VmRSS"), time.perf_counter(), time.process_time()
        report = validate(sys.argv[1], Context())
        seconds, extra = time.perf_counter() - start, memory("VmHWM") - before
        processor = time.process_time() - processor
        assert report.passed, report.summary()
        print(f"{report.steps} transitions, {size / 1e6:.0f} MB, {len(report.notes)} notes: {'; '.join(report.notes)}")
        print(f"seconds: {seconds:.2f} (target 5); of processor time: {processor:.2f}")
        print(f"peak memory / dataset size: {extra / size:.2f} (target 2)")
        return
    with tempfile.TemporaryDirectory() as folder:
        trajectories, metadata = synthetic()
        save_dataset(Path(folder) / "data", trajectories, metadata)
        del trajectories
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # as in a stage
        command = [sys.executable, __file__, str(Path(folder) / "data")]
        subprocess.run(command, check=True, env={**os.environ, **one_thread})


if __name__ == "__main__":
    main()
