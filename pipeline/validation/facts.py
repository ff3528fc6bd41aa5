"""What rules are told: the dataset as it was read, and what it cannot say of itself."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces

from pipeline.config.task import TaskConfig
from pipeline.data import METRIC_PREFIX, MISSING, EpisodeData, Trajectories, arrays_digest, metadata_faults, offsets
from pipeline.data.observations import element_names, flat_rows
from pipeline.data.spaces import space_from_json
from pipeline.validation.findings import Index

CHUNK_ROWS = 1 << 15  # rows looked at together: temporary arrays stay small against the dataset


# Plays an episode again from scenario, seed and executed actions, at most as many steps as there are actions. It may
# end earlier, and has no figures before its end. Raises BadInput when it cannot.
Replay = Callable[[EpisodeData], EpisodeData]


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
    notes: list[str] = field(default_factory=list)  # what rules have to say that is no fault

    @cached_property
    def trajectories(self) -> Trajectories:
        return Trajectories.from_arrays(self.arrays)

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """What the metadata says that nobody recorded."""
        return () if metadata_faults(self.metadata) else tuple(self.metadata.get(MISSING, ()))

    @property
    def lengths(self) -> np.ndarray:
        return self.arrays["lengths"]

    @property
    def scenarios(self) -> np.ndarray:
        return self.arrays["scenarios"]

    @cached_property
    def step_offsets(self) -> np.ndarray:
        return offsets(self.lengths)

    @cached_property
    def row_offsets(self) -> np.ndarray:
        return self.trajectories.observation_offsets

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
        names = sorted(name for name in self.arrays if name.startswith(METRIC_PREFIX))
        return {name.removeprefix(METRIC_PREFIX): self.arrays[name] for name in names}

    @cached_property
    def ranges(self) -> dict[str, np.ndarray]:
        """(2, features) smallest and largest value of observations and actions; NaN where there is one."""
        found = {}
        for name in ("observations", "actions", "executed_actions"):
            array = self.arrays[name]
            found[name] = flat_rows(array[[0, 0]]).copy()
            low, high = found[name]
            with np.errstate(invalid="ignore"):
                for part in chunks(len(array)):
                    rows = flat_rows(array[part])
                    np.minimum(low, rows.min(axis=0), out=low)
                    np.maximum(high, rows.max(axis=0), out=high)
        return found

    def place(self, array: str, row: Index) -> tuple[int, int]:
        """Row of an array of steps, or of observations -> (episode, step)."""
        starts = self.row_offsets if array == "observations" else self.step_offsets
        episode = int(np.searchsorted(starts, row, side="right")) - 1
        return episode, int(row - starts[episode])

    def element(self, array: str, feature: Index) -> str:
        """Flat index of an element of an array -> `actions[2]`, or `observations.speed[0]` of a Dict."""
        names = element_names(self.arrays[array].dtype)
        return f"{array}[{feature}]" if names is None else f"{array}.{names[feature]}"


def chunks(count: int, size: int = CHUNK_ROWS) -> Iterable[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def plain(value: Any) -> Any:
    """A numpy scalar as JSON can hold it: NaN and infinities become text."""
    scalar = value.item() if isinstance(value, np.generic) else value
    return str(scalar) if isinstance(scalar, float) and not np.isfinite(scalar) else scalar
