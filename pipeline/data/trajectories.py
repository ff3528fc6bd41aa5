"""Recorded episodes in memory: flat arrays, the offsets that cut them into episodes, and their digest.

Observations are one array. Of a Dict space its rows are structured (`pipeline.data.observations`); files hold one
array a field, `observations.<key>`.

What others recorded may lack parts, and nothing stands in for them: rewards are NaN, no end is flagged, seeds are
`UNKNOWN_SEED`, figures are left out, and without the observation after their last step episodes have T rows.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from pipeline.data.observations import split_fields
from pipeline.errors import BadInput, shortened
from pipeline.files import DIGEST_LENGTH
from pipeline.names import Metric

UNKNOWN_SEED: Final = -1  # of an imported episode whose seed nobody wrote down
STEP_ARRAYS: Final = ("actions", "executed_actions", "rewards", "terminations", "truncations")
EPISODE_ARRAYS: Final = ("lengths", "seeds", "scenarios")
ARRAYS: Final = ("observations", *STEP_ARRAYS, *EPISODE_ARRAYS)
METRIC_PREFIX: Final = "metric."
FINAL_OBSERVATIONS, REWARDS, ENDS, SEEDS = "final_observations", "rewards", "ends", "seeds"  # what may be missing


@dataclass(frozen=True)
class EpisodeData:
    """One episode of T steps: views into the arrays of `Trajectories`."""

    observations: np.ndarray  # (T + 1, *obs_shape); (T, *obs_shape) where the last one was not recorded
    actions: np.ndarray  # (T, *act_shape)
    executed_actions: np.ndarray  # (T, *act_shape)
    rewards: np.ndarray  # (T,) float32
    terminations: np.ndarray  # (T,) bool
    truncations: np.ndarray  # (T,) bool
    seed: int
    scenario: str
    metrics: dict[str, float]

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class Trajectories:
    """N episodes of T_0, T_1, ... steps as flat arrays; S = sum of T. Raises BadInput when the lengths do not fit.

    Row `observation_offsets[i] + t` of the observations is what the demonstrator saw before step
    `step_offsets[i] + t` of the other arrays; every episode has one more row, the observation after its last step, or
    none has.
    """

    observations: np.ndarray  # (S + N, *obs_shape) dtype of the observation space; (S + N,) structured of a Dict; or S
    actions: np.ndarray  # (S, *act_shape) the demonstrator's clean action: the label
    executed_actions: np.ndarray  # (S, *act_shape) what the environment received; equal to `actions` without noise
    rewards: np.ndarray  # (S,) float32; NaN throughout where nobody recorded them
    terminations: np.ndarray  # (S,) bool
    truncations: np.ndarray  # (S,) bool
    lengths: np.ndarray  # (N,) int64: T of each episode, in steps
    seeds: np.ndarray  # (N,) int64: episode seeds
    scenarios: np.ndarray  # (N,) "<U..": scenario names
    metrics: dict[str, np.ndarray] = field(default_factory=dict)  # name -> (N,) float64

    def __post_init__(self) -> None:
        for name, array, expected in shape_faults(self.to_arrays()):
            raise BadInput(f"trajectories: {name} has {array}, expected {expected}")

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """S, the number of steps of all episodes."""
        return len(self.rewards)

    @property
    def final_rows(self) -> int:
        """Rows an episode has after its last step: 1, or 0 where the last observation was not recorded."""
        return int(len(self.observations) > self.steps)

    @property
    def missing(self) -> tuple[str, ...]:
        """Parts of an episode that none of them has, of those that may be missing."""
        lacks = {
            FINAL_OBSERVATIONS: not self.final_rows,
            REWARDS: bool(np.isnan(self.rewards).all()),
            ENDS: not (self.terminations | self.truncations).any(),
            SEEDS: bool((self.seeds == UNKNOWN_SEED).all()),
        }
        return tuple(part for part, missing in lacks.items() if missing)

    @property
    def step_offsets(self) -> np.ndarray:
        """(N + 1,) int64: episode i has steps `[offsets[i], offsets[i + 1])`."""
        return offsets(self.lengths)

    @property
    def observation_offsets(self) -> np.ndarray:
        """(N + 1,) int64: episode i has observation rows `[offsets[i], offsets[i + 1])`."""
        return offsets(self.lengths + self.final_rows)

    @property
    def step_rows(self) -> np.ndarray:
        """(S,) int64: the observation row that each action answers to; the one after the step is the next row."""
        return np.arange(self.steps) + self.final_rows * np.repeat(np.arange(len(self)), self.lengths)

    def episode(self, index: int) -> EpisodeData:
        """Episode `index` in 0 .. N - 1 as views. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        start = int(self.lengths[:index].sum())
        steps, more = slice(start, start + int(self.lengths[index])), self.final_rows
        return EpisodeData(
            observations=self.observations[start + more * index : steps.stop + more * (index + 1)],
            seed=int(self.seeds[index]),
            scenario=str(self.scenarios[index]),
            metrics={name: float(values[index]) for name, values in self.metrics.items()},
            **{name: getattr(self, name)[steps] for name in STEP_ARRAYS},
        )

    def select(self, indices: Sequence[int] | np.ndarray) -> "Trajectories":
        """A copy of the episodes `indices` (integers or a boolean mask), in that order."""
        chosen = np.arange(len(self))[np.asarray(indices, dtype=None if len(indices) else np.int64)]
        rows = _ranges(self.observation_offsets[chosen], self.lengths[chosen] + self.final_rows)
        steps = _ranges(self.step_offsets[chosen], self.lengths[chosen])
        return Trajectories(
            observations=self.observations[rows],
            **{name: getattr(self, name)[steps] for name in STEP_ARRAYS},
            **{name: getattr(self, name)[chosen] for name in EPISODE_ARRAYS},
            metrics={name: values[chosen] for name, values in self.metrics.items()},
        )

    def part(self, episodes: int) -> "Trajectories":
        """So many episodes, in their order.

        They are drawn once: the same whoever asks, and a smaller part lies within a larger one.
        """
        return self.select(np.sort(np.random.default_rng(0).permutation(len(self))[:episodes]))

    def followed(self) -> "Trajectories":
        """These episodes as far as it is known what followed on a step: all of it, or all but the last step of each.

        Where the observation after the last step, or whether it was an end, is not on record, the step before it is the
        last one that can be continued: its next observation is there, and was no end, since the demonstrator went on.
        """
        if not {FINAL_OBSERVATIONS, ENDS} & {*self.missing}:
            return self
        last = np.zeros(self.steps, bool)
        last[self.step_offsets[1:] - 1] = True
        kept = {name: getattr(self, name)[~last] for name in STEP_ARRAYS}
        cut = np.zeros(self.steps, bool)
        cut[self.step_offsets[1:] - 2] = True
        rows = self.step_rows  # as many as there were steps: one more than there are left, in each episode
        return replace(
            self, **{**kept, "truncations": cut[~last]}, observations=self.observations[rows], lengths=self.lengths - 1
        )

    def passing(self, min_return: float | None, only_success: bool) -> np.ndarray:
        """(N,) bool: the episodes that a filter keeps."""
        keep = np.ones(len(self), bool)
        if min_return is not None:
            keep &= self.metrics[Metric.RETURN] >= min_return
        if only_success:
            keep &= self.metrics[Metric.SUCCESS] > 0.5
        return keep

    def returns(self) -> np.ndarray:
        """(N,) float64: the sum of the rewards of every episode; NaN where there are none."""
        return np.add.reduceat(self.rewards.astype(np.float64), self.step_offsets[:-1])

    def discounted_returns(self, gamma: float, final_values: np.ndarray | None = None) -> np.ndarray:
        """(S,) float64: `G_t = r_t + gamma G_(t+1)`; the return after the last step of episode i is `final_values[i]`.

        `final_values` (N,) is what a truncated episode would still have earned, e.g. an estimate of the value of its
        last observation; it is ignored for terminated episodes, and None stands for 0 everywhere.
        """
        ends = self.step_offsets[1:]
        running = np.zeros(len(self)) if final_values is None else np.asarray(final_values, dtype=np.float64).copy()
        running[self.terminations[ends - 1]] = 0.0
        returns = np.empty(self.steps)
        # episodes side by side, from the last step backwards: step k from the end of every episode that has one
        for back in range(1, int(self.lengths.max(initial=0)) + 1):
            alive = np.flatnonzero(self.lengths >= back)
            steps = ends[alive] - back
            running[alive] = self.rewards[steps] + gamma * running[alive]
            returns[steps] = running[alive]
        return returns

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Every array by the name of its member in the archive, metrics as `metric.<name>`."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        return {**arrays, **{METRIC_PREFIX + name: values for name, values in sorted(self.metrics.items())}}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Trajectories":
        """The inverse of `to_arrays`. Raises BadInput when an array is missing, unknown or does not fit."""
        missing = [name for name in ARRAYS if name not in arrays]
        unknown = [name for name in arrays if name not in ARRAYS and not name.startswith(METRIC_PREFIX)]
        if missing or unknown:
            raise BadInput(
                f"trajectories: arrays missing: {', '.join(missing) or 'none'}; unknown: {shortened(unknown)}; "
                f"expected {', '.join(ARRAYS)} and metric.<name>"
            )
        metrics = {name[len(METRIC_PREFIX) :]: arrays[name] for name in arrays if name.startswith(METRIC_PREFIX)}
        return cls(**{name: arrays[name] for name in ARRAYS}, metrics=metrics)


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """All episodes of all parts, in order. Raises BadInput when parts are missing or differ in metrics or dtypes."""
    if not parts:
        raise BadInput("trajectories: nothing to concatenate")
    columns = [part.to_arrays() for part in parts]
    for column in columns[1:]:
        if set(column) != set(columns[0]):
            raise BadInput(f"trajectories: parts hold different arrays: {sorted(set(column) ^ set(columns[0]))}")
        for name, array in column.items():
            first = columns[0][name]
            if array.dtype.kind != "U" and (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]):
                raise BadInput(f"trajectories: {name} is {array.dtype} {array.shape[1:]} and {first.dtype} elsewhere")
    return Trajectories.from_arrays({name: np.concatenate([c[name] for c in columns]) for name in columns[0]})


def offsets(lengths: np.ndarray) -> np.ndarray:
    """`[2, 3]` -> `[0, 2, 5]`."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`[10, 20], [2, 3]` -> `[10, 11, 20, 21, 22]`."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)


def shape_faults(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, str, str]]:
    """`(array, what it has, what is expected)` for every array whose first axis does not fit `lengths`."""
    lengths = arrays["lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        return [("lengths", f"shape {lengths.shape} and dtype {lengths.dtype}", "one integer per episode")]
    if len(lengths) and int(lengths.min()) < 0:
        return [("lengths", f"the length {int(lengths.min())}", "lengths of 0 or more")]
    # summed as Python integers: hostile lengths must not wrap around to a sum that fits
    count, steps = len(lengths), sum(lengths.tolist())
    rows = {name: (steps, "one row per step") for name in STEP_ARRAYS}
    short = len(arrays["observations"]) == steps if arrays["observations"].ndim else False
    rows["observations"] = (steps if short else steps + count, "one row per step and one more per episode")
    rows.update({name: (count, "one row per episode") for name in arrays if name not in ARRAYS})
    rows.update({name: (count, "one row per episode") for name in ("seeds", "scenarios")})
    faults = []
    for name, (expected, meaning) in rows.items():
        array = arrays[name]
        flat = name not in ("observations", "actions", "executed_actions")
        if array.ndim == 0 or len(array) != expected:
            faults.append((name, f"shape {array.shape}", f"{expected} rows ({meaning})"))
        elif flat and array.ndim != 1:
            faults.append((name, f"shape {array.shape}", f"({expected},)"))
    if not faults and arrays["actions"].shape != arrays["executed_actions"].shape:
        shape = arrays["actions"].shape
        faults.append(("executed_actions", f"shape {arrays['executed_actions'].shape}", f"{shape}, that of actions"))
    return faults


def content_digest(trajectories: Trajectories) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all arrays, as hexadecimal cut to 36 characters."""
    return arrays_digest(trajectories.to_arrays())


def arrays_digest(arrays: Mapping[str, np.ndarray]) -> str:
    """`content_digest` of the arrays of `Trajectories.to_arrays`."""
    whole = hashlib.sha256()
    for name, array in sorted(split_fields(arrays).items()):
        array = np.ascontiguousarray(array)
        if array.dtype.kind == "U":  # how far texts are padded is no content
            array = np.array(array.tolist(), dtype=np.str_)
        whole.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        if array.size:
            whole.update(array.reshape(-1).view(np.uint8).data)
    return whole.hexdigest()[:DIGEST_LENGTH]
