"""From the steps of a vectorised recording loop to `Trajectories`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from pipeline.data.observations import one_row, row_dtype, to_rows
from pipeline.data.trajectories import Trajectories


class EpisodeSpec(Protocol):
    """What names an episode; `pipeline.envs.episodes.Episode` is one."""

    @property
    def scenario(self) -> str: ...
    @property
    def seed(self) -> int: ...


class TrajectoryBuilder:
    """Collects the steps of a vectorised recording loop; episodes may finish in any order.

        builder = TrajectoryBuilder(episodes, observation_space, action_space, slots=env.num_envs)
        observations = env.reset()
        while env.running.any():
            playing, actions = env.running.copy(), act(observations)
            after, rewards, dones, infos = env.step(noisy(actions))
            builder.step(playing, observations, actions, noisy_actions, rewards)
            for slot in np.flatnonzero(dones):
                info = infos[slot]
                builder.finish(slot, info["episode_spec"], info["terminal_observation"],
                               truncated=info["TimeLimit.truncated"], metrics=task.outcome(info))
            observations = after
        trajectories = builder.build()        # in the order of `episodes`

    `step` copies what it is given, so buffers may be reused.
    """

    def __init__(
        self,
        episodes: Sequence[EpisodeSpec],
        observation_space: spaces.Space,
        action_space: spaces.Space,
        slots: int,
    ) -> None:
        self._wanted = [(episode.scenario, episode.seed) for episode in episodes]
        self._open = set(self._wanted)
        if len(self._open) != len(self._wanted):
            raise ValueError("the same episode is asked for twice")
        self._slots, self._space = slots, observation_space
        self._used = np.zeros(slots, dtype=np.int64)  # steps of the running episode of each slot
        self._finished: dict[tuple[str, int], tuple[dict[str, np.ndarray], dict[str, float]]] = {}
        observation, action = row_dtype(observation_space), row_dtype(action_space)
        self._buffers = {
            "observations": np.empty((slots, 64), dtype=observation),
            "actions": np.empty((slots, 64), dtype=action),
            "executed_actions": np.empty((slots, 64), dtype=action),
            "rewards": np.empty((slots, 64), dtype=np.float32),
        }

    def step(
        self,
        running: np.ndarray,
        observations: Any,
        actions: np.ndarray,
        executed_actions: np.ndarray,
        rewards: np.ndarray,
    ) -> None:
        """Append one step to every slot with `running` (n,) True; all arrays have one row per slot.

        `observations` are those that `actions` answer to, taken before the environment moved on.
        """
        slots = np.flatnonzero(running)
        at = self._used[slots]
        if len(at) and at.max() >= self._buffers["rewards"].shape[1]:
            self._grow()
        given = {
            "observations": to_rows(self._space, observations),
            "actions": actions,
            "executed_actions": executed_actions,
            "rewards": rewards,
        }
        for name, values in given.items():
            self._buffers[name][slots, at] = np.asarray(values)[slots]
        self._used[slots] += 1

    def finish(
        self,
        slot: int,
        episode: EpisodeSpec,
        terminal_observation: Any,
        *,
        truncated: bool,
        metrics: Mapping[str, float],
    ) -> None:
        """End the running episode of a slot. `truncated` is False when the environment terminated it."""
        key, steps = (episode.scenario, episode.seed), int(self._used[slot])
        if key not in self._open or steps == 0:
            raise ValueError(f"episode {key} of {steps} steps was not asked for or is finished already")
        parts = {name: buffer[slot, :steps].copy() for name, buffer in self._buffers.items()}
        last = one_row(self._space, terminal_observation)
        parts["observations"] = np.concatenate([parts["observations"], last[None]])
        ended = np.zeros(steps, dtype=bool)
        ended[-1] = True
        parts["terminations"] = ended & (not truncated)
        parts["truncations"] = ended & bool(truncated)
        self._open.remove(key)
        self._finished[key] = (parts, {name: float(value) for name, value in metrics.items()})
        self._used[slot] = 0

    def build(self) -> Trajectories:
        """Everything recorded, in the order of the episodes asked for. ValueError when one is missing."""
        if self._open or not self._wanted:
            raise ValueError(f"{len(self._open)} of {len(self._wanted)} episodes are not finished")
        parts = [self._finished[key][0] for key in self._wanted]
        metrics = [self._finished[key][1] for key in self._wanted]
        return Trajectories(
            **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]},
            lengths=np.array([len(part["rewards"]) for part in parts], dtype=np.int64),
            seeds=np.array([seed for _, seed in self._wanted], dtype=np.int64),
            scenarios=np.array([scenario for scenario, _ in self._wanted]),
            metrics={name: np.array([m[name] for m in metrics], dtype=np.float64) for name in _common(metrics)},
        )

    def _grow(self) -> None:
        for name, buffer in self._buffers.items():
            self._buffers[name] = np.concatenate([buffer, np.empty_like(buffer)], axis=1)


def _common(metrics: Iterable[Mapping[str, float]]) -> list[str]:
    """The metric names that every episode has; ValueError when they differ."""
    names = {tuple(sorted(m)) for m in metrics}
    if len(names) != 1:
        raise ValueError(f"episodes have different metrics: {sorted(names)[:2]}")
    return list(names.pop())
