"""More memory than there is: one line that says what to lower, exit code 3, in a training and in its stage."""

import numpy as np
import pytest
import torch

from pipeline.cli import stage_main
from pipeline.errors import machine_fault
from pipeline.executors.news import attempt
from pipeline.stages.sweep import is_its_own

LOWER = "lower network.hidden, n_envs, batch sizes, the number of episodes or workers"


@pytest.mark.parametrize("ask", [lambda: np.zeros(10**16), lambda: torch.empty(10**16)], ids=["numpy", "torch"])
def test_a_refused_allocation_is_a_fault_of_the_machine_in_one_line(ask):
    with pytest.raises((MemoryError, RuntimeError)) as refused:
        ask()
    line = machine_fault("pretrain", refused.value)
    assert line is not None and line.startswith("pretrain could not go on: ") and line.endswith(LOWER)
    assert machine_fault("pretrain", RuntimeError("a defect")) is None


def test_a_network_that_no_machine_can_hold_ends_a_training_in_one_line(store, in_repository, capfd):
    wide = ["--training.network.hidden", "[1, 1000000000000000]", "--seeds", "[1]", "--control_timesteps", "0"]
    assert stage_main("baseline", ["--config", "configs/smoke/finetune.yaml", *wide]) == 3
    told = capfd.readouterr().err.strip().splitlines()
    assert told[-1].startswith("error: baseline could not go on: training of seed 1 could not go on: ")
    assert told[-1].endswith(LOWER) and told[-1].count(LOWER) == 1 and not any("Traceback" in line for line in told)


def test_memory_that_a_training_asks_for_in_vain_is_its_own_end_and_no_end_of_a_sweep():
    class Wide:
        name = "training of seed 1"

        def perform(self, emit):
            raise MemoryError("Unable to allocate 72.8 PiB")

    ended = attempt(Wide(), lambda event: None)
    assert is_its_own(ended) and not is_its_own(OSError(28, "No space left on device"))
    assert machine_fault("sweep", ended) == (
        f"sweep could not go on: training of seed 1 could not go on: Unable to allocate 72.8 PiB; {LOWER}"
    )
