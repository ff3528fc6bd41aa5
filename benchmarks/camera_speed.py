"""Frames per processor second of cameras: MuJoCo as Gymnasium draws it and as a task's camera does, and other tasks.

    python benchmarks/camera_speed.py

Processor time of all threads of the process, so that what else runs on the machine disturbs little: what one core does.
"""

import time
from collections.abc import Callable

import gymnasium as gym

from pipeline.config.loading import load_task, validate
from pipeline.config.task import TaskConfig
from pipeline.envs.camera import draw_headless
from pipeline.tasks import Task

SECONDS = 4.0
SIZE = 64


def per_second(act: Callable[[], object]) -> float:
    """Calls per processor second, after one call that sets everything up."""
    act()
    calls, started = 0, time.process_time()
    while time.process_time() - started < SECONDS:
        act()
        calls += 1
    return calls / (time.process_time() - started)


def camera_of(environment: str) -> Task:
    data = {
        "name": "any", "environment": {"id": environment}, "success": {"return_at_least": 0.0}, "thresholds": {},
        "scenarios": {"default": {}}, "scenario_sets": {"train": {"default": 1}}, "camera": {"size": SIZE},
    }  # fmt: skip
    return Task(validate(TaskConfig, data, "benchmark"), use_camera=True)


def frames_and_steps(task: Task) -> tuple[float, float]:
    """Pictures alone, and steps of the environment with everything the camera does; per processor second."""
    env = task.make_env(next(iter(task.config.scenarios)))
    env.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()

    found = per_second(env.render), per_second(step)
    env.close()
    return found


def main() -> None:
    draw_headless()
    print(f"pictures of {SIZE} x {SIZE}, per processor second")
    for environment in ("Ant-v5", "InvertedPendulum-v5"):
        env = gym.make(environment, render_mode="rgb_array", width=SIZE, height=SIZE)
        env.reset(seed=0)
        print(f"{environment:24} as Gymnasium draws it {per_second(env.render):6.0f}")
        env.close()
        frames, steps = frames_and_steps(camera_of(environment))
        print(f"{environment:24} through the camera    {frames:6.0f}, steps with observations {steps:6.0f}")
    social_nav = Task(load_task("configs/tasks/social_nav.yaml"), use_camera=True)
    frames, steps = frames_and_steps(social_nav)
    print(f"{'social_nav':24} through the camera    {frames:6.0f}, steps with observations {steps:6.0f}")


if __name__ == "__main__":
    main()
