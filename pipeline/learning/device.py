"""What networks learn on: the CPU, or a GPU where the task asks for one.

A policy learns and explores there. It is evaluated, and acts in every other stage, on the CPU, row by row: what is
proved of it holds where there is no GPU.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import torch

from pipeline.config.task import AUTO, CPU, GPU, TaskConfig
from pipeline.errors import BadInput
from pipeline.policies.networks import images_in
from pipeline.tasks import Task

NAMES: Final = "import torch; print(*map(torch.cuda.get_device_name, range(torch.cuda.device_count())), sep='\\n')"


@cache
def gpu_names() -> tuple[str, ...]:
    """Of the GPUs that this process may use.

    Asked in a process of its own: one that has begun with CUDA keeps memory of the GPU, and its forks cannot use it.
    """
    if torch.cuda.is_initialized() or not torch.cuda.device_count():
        return tuple(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
    asked = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True)
    return tuple(asked.stdout.splitlines())


def chosen_device(config: TaskConfig, environment: Mapping[str, Any], use_camera: bool) -> str:
    """`cpu`, `cuda` or `cuda:1`: what the task says; where it says `auto`, a GPU for policies that see pictures."""
    if config.device != AUTO:
        return config.device
    if not gpu_names():
        return CPU
    return GPU if images_in(Task(config, environment, use_camera).observation_space) else CPU


def begin_on(device: str) -> torch.device:
    """The device of torch's, which from now on computes in one order. Raises BadInput where it is not there."""
    found, count = torch.device(device), torch.cuda.device_count()
    if device == CPU:
        return found
    if (found.index or 0) >= count:
        raise BadInput(
            f"device = {device!r}: torch {torch.__version__} can use {count} GPUs on this machine; use auto or "
            "cpu, or a build of torch for its GPU"
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)  # what cannot be repeated to the bit says so
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return found


def device_kind(device: str) -> str:
    """What of a device changes bits: `cpu`, or the name of the GPU; of `auto`, which names no device yet, both."""
    here = gpu_names()
    if device == CPU or (device == AUTO and not here):
        return CPU
    if device == AUTO:
        return f"{CPU} or {' or '.join(dict.fromkeys(here))}"
    index = torch.device(device).index or 0
    return here[index] if index < len(here) else device
