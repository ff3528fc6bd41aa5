"""Environments in several processes are those of one process, and say what became of a process."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from pipeline.envs import parallel
from pipeline.envs.episodes import Episode, EpisodeVecEnv
from pipeline.envs.parallel import ParallelVecEnv, seconds_of_a_step
from pipeline.envs.serial import SerialVecEnv
from pipeline.errors import BadInput

SPACE = Dict({"left": Box(0, 100, (1,), np.float32), "scenario": Discrete(3)})


class Uneven(gymnasium.Env[Any, Any]):
    """Episodes of 1 to 7 steps by their seed; odd things happen in those of a scenario that is called after them."""

    observation_space, action_space = SPACE, Discrete(2)

    def __init__(self, scenario: str) -> None:
        self._scenario = scenario

    def _seen(self) -> dict[str, Any]:
        return {"left": np.array([self._left], np.float32), "scenario": len(self._scenario) % 3}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = int(self.np_random.integers(1, 8))
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._scenario == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._scenario == "hangs":
            time.sleep(60)
        if self._scenario == "refuses":
            raise BadInput("no such thing; do another")
        self._left -= 1
        reward = float(action) + self.np_random.normal()
        return self._seen(), reward, self._left == 0, False, {"left": self._left, "name": self._scenario}


def made(scenario: str) -> gymnasium.Env[Any, Any]:
    return Uneven(scenario)


def in_processes(workers: int, slots: int, scenario: str = "a") -> ParallelVecEnv:
    streams = [iter([Episode(scenario, slot)]) for slot in range(slots)]
    return ParallelVecEnv(made, scenario, streams, SPACE, Discrete(2), workers)


def shared_queue(slots: int, episodes: int) -> list[Iterator[Episode]]:
    """Streams that take from one queue, as evaluation's do: which slot plays what depends on who asks first."""
    queue = iter([Episode("abc"[: 1 + k % 3], k) for k in range(episodes)])
    return [iter(queue) for _ in range(slots)]


def played(env: EpisodeVecEnv, slots: int) -> list[Any]:
    """All that it said, until no slot plays; twice, by other streams."""
    said = []
    for episodes in (25, 3):
        env.set_streams(shared_queue(slots, episodes))
        said.append(env.reset())
        while env.running.any():
            said.append((env.running.copy(), *env.step(np.arange(slots) % 2)))
    return said


def test_every_bit_is_that_of_one_process() -> None:
    slots = 5
    with closing(SerialVecEnv(made, [iter([Episode("a", 0)]) for _ in range(slots)])) as one:
        expected = played(one, slots)
    assert len(expected) > 20
    for workers in (1, 2, 9):
        with closing(in_processes(workers, slots)) as several:
            np.testing.assert_equal(played(several, slots), expected)


@pytest.mark.parametrize(
    ("scenario", "words"),
    [("dies", "was killed by SIGKILL"), ("hangs", "did not answer for 1 s"), ("refuses", "no such thing; do another")],
)
def test_what_happens_in_a_process_is_one_line(scenario: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(in_processes(2, 3, scenario)) as env:
        env.reset()
        processes = list(env._processes)
        if scenario == "hangs":  # the others answer, or are gone, however slow the machine is
            monkeypatch.setattr(parallel, "LONGEST_STEP", 1.0)
        with pytest.raises(BadInput, match=words) as told:
            env.step(np.zeros(3, np.int64))
    if scenario != "refuses":
        assert f"scenario {scenario!r}, seed 0" in str(told.value)
    assert not any(process.is_alive() for process in processes)


def test_the_time_of_a_step_is_that_on_the_clock() -> None:
    class Slow(Uneven):
        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            time.sleep(0.01)
            return super().step(action)

    assert seconds_of_a_step(lambda scenario: Slow(scenario), "a") >= 0.01
