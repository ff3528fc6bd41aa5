"""The parts that rules are made of: the dataset as they see it, what they are told from outside, and `Rule` itself."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from pipeline.config.task import TaskConfig
from pipeline.data import ARRAYS, METRIC_PREFIX, Trajectories, arrays_digest, offsets
from pipeline.data.observations import element_names, flat_rows
from pipeline.data.spaces import space_from_json
from pipeline.validation.report import Finding

CHUNK_ROWS = 1 << 15  # rows looked at together: temporary arrays stay small against the dataset


@dataclass(frozen=True)
class ReplayedEpisode:
    """What the environment did when it was given the executed actions again."""

    observations: np.ndarray  # (t + 1, *obs_shape); t < T when it ended earlier than the recording
    rewards: np.ndarray  # (t,) float32
    terminations: np.ndarray  # (t,) bool
    truncations: np.ndarray  # (t,) bool
    metrics: Mapping[str, float] = field(default_factory=dict)  # what the task says of it; nothing before its end


class Replay(Protocol):
    def __call__(self, scenario: str, seed: int, executed_actions: np.ndarray) -> ReplayedEpisode:
        """Play one episode again, at most as many steps as there are actions. Raises BadInput when it cannot."""


@dataclass(frozen=True)
class Approval:
    """One period during which a version was the approved expert, from the registry's record."""

    version: str
    digest: str  # of its policy
    since: str  # UTC, "2026-01-31T12:00:00Z"
    until: str | None = None  # None: still approved


@dataclass(frozen=True)
class Refusal:
    """A validation that found fault with the dataset before, and how much it asked."""

    run_id: str
    failed_rules: tuple[str, ...]
    min_episodes: int
    replay_episodes: int


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the dataset itself cannot say. Rules whose facts are None are not run, and the report says so."""

    task: TaskConfig | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)  # arguments that recording had on top of the task's
    observation_space: spaces.Space | None = None  # of the task's environment
    action_space: spaces.Space | None = None
    min_episodes: int = 20
    approvals: tuple[Approval, ...] | None = None  # every approval of the task's expert, ever
    expected_digest: str | None = None  # content digest that the store recorded
    expected_metadata_digest: str | None = None
    act: Callable[[Any], np.ndarray] | None = None  # the demonstrator, if it answers to observations alone
    replay: Replay | None = None
    replay_episodes: int = 20
    refusals: tuple[Refusal, ...] = ()  # what a quarantined dataset, or the one it repairs, was refused by


@dataclass
class Dataset:
    """Arrays and metadata as they were read, right or wrong; the derived facts are computed once, when asked for."""

    arrays: Mapping[str, np.ndarray]
    metadata: Any
    notes: list[str] = field(default_factory=list)

    @cached_property
    def trajectories(self) -> Trajectories:
        return Trajectories.from_arrays(self.arrays)

    @cached_property
    def lengths(self) -> np.ndarray:
        return self.arrays["lengths"]

    @cached_property
    def step_offsets(self) -> np.ndarray:
        return offsets(self.lengths)

    @cached_property
    def row_offsets(self) -> np.ndarray:
        return offsets(self.lengths + 1)

    @cached_property
    def scenarios(self) -> np.ndarray:
        return self.arrays["scenarios"]

    @cached_property
    def digest(self) -> str:
        return arrays_digest(self.arrays)

    @cached_property
    def observation_space(self) -> spaces.Space:
        return space_from_json(self.metadata["observation_space"])

    @cached_property
    def action_space(self) -> spaces.Space:
        return space_from_json(self.metadata["action_space"])

    @cached_property
    def metrics(self) -> dict[str, np.ndarray]:
        found = [name for name in self.arrays if name not in ARRAYS]
        return {name.removeprefix(METRIC_PREFIX): self.arrays[name] for name in sorted(found)}

    @cached_property
    def ranges(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Smallest and largest value per feature (flat) of observations and actions; NaN where there is one."""
        return {name: _range(self.arrays[name]) for name in ("observations", "actions", "executed_actions")}

    def step_place(self, step: int) -> tuple[int, int]:
        """Index into the flat steps -> (episode, step)."""
        episode = int(np.searchsorted(self.step_offsets, step, side="right")) - 1
        return episode, int(step - self.step_offsets[episode])

    def row_place(self, row: int) -> tuple[int, int]:
        """Index into the flat observation rows -> (episode, step)."""
        episode = int(np.searchsorted(self.row_offsets, row, side="right")) - 1
        return episode, int(row - self.row_offsets[episode])

    def element(self, name: str, feature: int) -> str:
        """Flat index of an element of an array -> `actions[2]`, or `observations.speed[0]` of a Dict."""
        names = element_names(self.arrays[name].dtype)
        return f"{name}[{feature}]" if names is None else f"{name}.{names[feature]}"

    def place(self, name: str, row: int) -> tuple[int, int]:
        return self.row_place(row) if name == "observations" else self.step_place(row)


@dataclass(frozen=True)
class Rule:
    """A named question to a dataset. Without findings it holds."""

    name: str
    statement: str
    check: Callable[[Dataset, Context], Iterable[Finding]]
    needs: tuple[str, ...]  # rules without which this one means nothing
    missing: Callable[[Dataset, Context], str | None]  # why it cannot be run here; None: it can


def always(dataset: Dataset, context: Context) -> str | None:
    return None


def no_task(dataset: Dataset, context: Context) -> str | None:
    return "the task was not given" if context.task is None else None


def rule(
    name: str,
    statement: str,
    needs: tuple[str, ...] = (),
    missing: Callable[[Dataset, Context], str | None] = always,
) -> Callable[[Callable[[Dataset, Context], Iterable[Finding]]], Rule]:
    """Decorator: a function that yields findings becomes a `Rule`."""
    return lambda check: Rule(name, statement, check, needs, missing)


def chunks(count: int, size: int = CHUNK_ROWS) -> Iterable[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def plain(value: Any) -> Any:
    """A numpy scalar as JSON can hold it: NaN and infinities become text."""
    scalar = value.item() if isinstance(value, np.generic) else value
    if isinstance(scalar, float) and (scalar != scalar or scalar in (float("inf"), float("-inf"))):
        return str(scalar)
    return scalar


def _range(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = flat_rows(array[:1])[0].copy(), flat_rows(array[:1])[0].copy()
    with np.errstate(invalid="ignore"):
        for part in chunks(len(array)):
            rows = flat_rows(array[part])
            np.minimum(low, rows.min(axis=0), out=low)
            np.maximum(high, rows.max(axis=0), out=high)
    return low, high
