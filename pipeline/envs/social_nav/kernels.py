"""The two compiled entry points: start an episode in a slot, and advance every running slot by one step.

Each slot is computed by the same scalar code from its own record alone, so that its bits cannot depend on the batch.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.envs.social_nav.dynamics import move
from pipeline.envs.social_nav.layout import SLOT
from pipeline.envs.social_nav.metrics import account
from pipeline.envs.social_nav.observation import RAYS, observe
from pipeline.envs.social_nav.rewards import pay
from pipeline.envs.social_nav.scenarios import spawn
from pipeline.files import compiled

SOURCES = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
_BLANK = np.zeros((), SLOT)


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    # subtle: numba's cache alone would miss a change in an imported kernel; its files are named by the qualified name
    function.__qualname__ += f"_{SOURCES[:16]}"
    return compiled(function)


def start(
    slots: np.ndarray, i: int, family: int, pedestrians: int, seed: int, settings: np.ndarray, observations: np.ndarray
) -> None:
    """Begin the episode of `seed` in slot i of `slots` (n,) SLOT and fill row i of `observations`."""
    slots[i] = _BLANK
    _start(slots, i, family, pedestrians, seed, settings, observations)


@_kernel
def _start(
    slots: np.ndarray, i: int, family: int, pedestrians: int, seed: int, settings: np.ndarray, observations: np.ndarray
) -> None:
    slot = slots[i]
    spawn(slot, family, pedestrians, seed)
    slot.running = 1
    observe(slot, settings[0].max_speed, observations[i], np.empty(RAYS))


@_kernel
def advance(
    slots: np.ndarray,
    actions: np.ndarray,
    settings: np.ndarray,
    observations: np.ndarray,
    rewards: np.ndarray,
    done: np.ndarray,
) -> int:
    """One step of every running slot. done: 0 goes on, 1 terminated, 2 truncated. Returns how many ended."""
    ended = 0
    ranges = np.empty(RAYS)
    setting = settings[0]
    for i in range(slots.shape[0]):
        slot = slots[i]
        if slot.running == 0:
            continue
        forward = min(max(np.float64(actions[i, 0]), -1.0), 1.0)
        turn = min(max(np.float64(actions[i, 1]), -1.0), 1.0)
        move(slot, forward, turn, setting.max_speed)
        account(slot, forward, turn, setting.horizon)
        reward = pay(slot, setting)
        slot.reward_sum += reward
        rewards[i] = reward
        observe(slot, setting.max_speed, observations[i], ranges)
        done[i] = 0
        if slot.truncated:
            done[i] = 2
        elif slot.success or slot.collision_pedestrian or slot.collision_wall:
            done[i] = 1
        if done[i] > 0:
            slot.running = 0
            ended += 1
    return ended
