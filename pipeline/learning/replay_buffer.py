"""Replay of SAC: batches of which a share are demonstrations, and buffers as they stand in checkpoints.

SB3's buffers keep and sample all transitions; nothing here changes one that is given no demonstrations.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from pipeline.data import Trajectories
from pipeline.data.observations import from_rows
from pipeline.errors import BadInput

STORED = ("actions", "rewards", "dones", "timeouts")  # arrays of a buffer beside its observations


class _WithDemonstrations:
    """In front of a buffer of SB3's: its batches, in which a share are demonstrations (Ball et al. 2023, RLPD)."""

    def __init__(self, *arguments: Any, demonstrations: ReplayBuffer, share: float, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._demonstrations, self._share = demonstrations, share

    def sample(self, batch_size: int, env: Any = None) -> Any:
        """(batch_size) transitions: first those that the training played, then those of the demonstrations."""
        demonstrated = round(batch_size * self._share)
        played = super().sample(batch_size - demonstrated, env)  # type: ignore[misc]
        pairs = zip(played, self._demonstrations.sample(demonstrated), strict=True)
        return type(played)(*(_joined(one, other) for one, other in pairs))


class MixedReplayBuffer(_WithDemonstrations, ReplayBuffer):
    """Of observations without keys."""


class MixedDictReplayBuffer(_WithDemonstrations, DictReplayBuffer):
    """Of observations with keys."""


def _joined(one: Any, other: Any) -> Any:
    if one is None:  # a field that this kind of buffer leaves out
        return None
    if isinstance(one, Mapping):
        return {key: torch.cat([part, other[key]]) for key, part in one.items()}
    return torch.cat([one, other])


def transitions(
    observation_space: Any, action_space: spaces.Box, data: Trajectories, device: torch.device | str = "cpu"
) -> ReplayBuffer:
    """Demonstrations as SB3 keeps what it played: actions that were executed, from -1 to 1 between their bounds.

    The last step of an episode that did not terminate is left out where nobody recorded what came of it.
    Raises BadInput when no step is left.
    """
    ends = np.zeros(data.steps, bool)
    ends[data.step_offsets[1:] - 1] = True
    known = ~ends | data.terminations | (data.truncations & bool(data.final_rows))
    if not known.any():
        raise BadInput("demonstrations: of none of their steps is it known what came of it; record longer episodes")
    before = data.step_rows[known]
    # subtle: without a row after its end a terminated episode has its last one twice, and nothing is learnt from it
    after = before + (~ends[known] | bool(data.final_rows))
    kind = DictReplayBuffer if isinstance(observation_space, spaces.Dict) else ReplayBuffer
    buffer = kind(len(before), observation_space, action_space, device)
    for name, rows in (("observations", before), ("next_observations", after)):
        for array, recorded in _pairs(getattr(buffer, name), from_rows(data.observations[rows])).values():
            array[:, 0] = recorded.reshape(array[:, 0].shape)
    low, high = action_space.low, action_space.high
    scaled = 2.0 * ((data.executed_actions[known] - low) / (high - low)) - 1.0
    buffer.actions[:, 0] = np.clip(scaled, -1, 1).reshape(len(before), -1)
    buffer.rewards[:, 0] = data.rewards[known]
    buffer.dones[:, 0] = data.terminations[known]
    buffer.full = True
    return buffer


def _pairs(arrays: Any, others: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Arrays of observations side by side: one pair a key, or one alone."""
    if isinstance(arrays, Mapping):
        return {key: (arrays[key], others[key]) for key in arrays}
    return {"all": (arrays, others)}


# --- in checkpoints --------------------------------------------------------------------------------------------------


def buffer_state(buffer: ReplayBuffer) -> dict[str, Any]:
    """What is filled of a buffer, for a checkpoint. What came after a step is mostly what was seen before the next."""
    filled = buffer.size()
    arrays = {name: torch.from_numpy(getattr(buffer, name)[:filled]) for name in STORED}
    return {
        **arrays,
        "position": buffer.pos,
        "full": buffer.full,
        "observations": {
            key: _packed(before[:filled], after[:filled])
            for key, (before, after) in _pairs(buffer.observations, buffer.next_observations).items()
        },
    }


def restore_buffer(buffer: ReplayBuffer, state: Mapping[str, Any]) -> None:
    """Fill a fresh buffer of the same size as it was."""
    filled = len(state["rewards"])
    for name in STORED:
        getattr(buffer, name)[:filled] = state[name].numpy()
    for key, (before, after) in _pairs(buffer.observations, buffer.next_observations).items():
        packed = state["observations"][key]
        before[:filled] = packed["before"].numpy()
        after[:filled] = np.roll(before[:filled], -1, axis=0)
        after[packed["rows"].numpy()] = packed["after"].numpy()
    buffer.pos, buffer.full = state["position"], state["full"]


def _packed(before: np.ndarray, after: np.ndarray) -> dict[str, torch.Tensor]:
    """(steps, slots, *shape) each -> all of `before`, and `after` where it is not what was seen before the next step.

    Bit by bit: -0.0 is not 0.0.
    """
    shape = (len(before), before[:1].nbytes)
    following, came = (np.ascontiguousarray(rows).view(np.uint8) for rows in (np.roll(before, -1, axis=0), after))
    rows = np.flatnonzero((following.reshape(shape) != came.reshape(shape)).any(axis=1))
    return {"before": torch.from_numpy(before), "rows": torch.from_numpy(rows), "after": torch.from_numpy(after[rows])}
