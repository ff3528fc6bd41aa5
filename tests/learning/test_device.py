"""A GPU changes where networks learn, and nothing else; without one, what asks for it is refused in one line."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config.task import ExecutorSettings
from pipeline.errors import BadInput
from pipeline.executors import local, side_by_side
from pipeline.learning import device
from pipeline.learning.device import begin_on, chosen_device, device_kind
from pipeline.learning.processor import machine, processor_kind


@pytest.mark.slow
def test_every_algorithm_learns_on_a_gpu_what_it_learns_on_the_cpu():
    """In a process of its own: torch counts its devices once, and where it counts one, forks differentiate nothing."""
    cases = str(Path(__file__).with_name("learning_on_a_gpu.py"))
    told = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n0", cases], capture_output=True, text=True)
    assert told.returncode == 0, told.stdout


def test_auto_is_a_gpu_for_pictures_where_there_is_one(make_task, monkeypatch):
    pole = make_task("CartPole-v1", horizon=8)
    monkeypatch.setattr(device, "gpu_names", lambda: ())
    assert chosen_device(pole, {}, use_camera=True) == "cpu"
    monkeypatch.setattr(device, "gpu_names", lambda: ("One", "Two"))
    assert [chosen_device(pole, {}, use_camera) for use_camera in (False, True)] == ["cpu", "cuda"]
    for asked in ("cpu", "cuda", "cuda:1"):
        assert chosen_device(replace(pole, device=asked), {}, use_camera=True) == asked
    kinds = [device_kind(name) for name in ("cpu", "cuda", "cuda:1", "auto")]
    assert kinds == ["cpu", "One", "Two", "cpu or One or Two"]


def test_the_kind_of_a_gpu_belongs_to_the_kind_of_the_processor(monkeypatch):
    monkeypatch.setattr(device, "gpu_names", lambda: ("One",))
    assert processor_kind(machine(threads=1, device="cuda")) == f"{processor_kind(machine(threads=1))}, One"


@pytest.mark.skipif(torch.cuda.device_count() > 0, reason="there is a GPU")
@pytest.mark.parametrize("asked", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there_is_refused(asked):
    with pytest.raises(BadInput, match=rf"device = '{asked}': torch .* 0 GPUs on this machine; use auto or cpu"):
        begin_on(asked)


@pytest.mark.parametrize("asked", ["gpu", "cuda:", "cuda:-1", "CPU", 0])
def test_what_is_no_device_is_refused_by_name(asked, make_task):
    with pytest.raises(BadInput, match="device"):
        make_task("CartPole-v1", device=asked)


class Visible:
    """A job that says which GPUs its process sees."""

    device, name, seed, output, checkpoints, checkpoint_key = "cuda", "a job", 1, "", None, ""

    def perform(self, emit):
        return os.environ["CUDA_VISIBLE_DEVICES"]


@pytest.mark.parametrize(("visible", "seen"), [("5,7", ["5", "7"]), (None, ["0", "1"])])
def test_trainings_side_by_side_have_a_gpu_each(visible, seen, monkeypatch):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for module in (local, side_by_side):
        monkeypatch.setattr(module, "gpu_names", lambda: ("One", "Two"))
    local.free_gpus.cache_clear()
    try:
        found = side_by_side.run_side_by_side(
            [Visible() for _ in range(5)], 3, lambda index, event: None, settings=ExecutorSettings()
        )
        assert sorted(set(found)) == seen and len(found) == 5
        assert local.free_gpus().qsize() == 2  # they were given back
    finally:
        local.free_gpus.cache_clear()
