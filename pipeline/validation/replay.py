"""Re-simulation: play recorded episodes again from seed and executed actions, and say where they first differ."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isclose
from typing import Final

import gymnasium as gym
import numpy as np

from pipeline.data import EpisodeData, Trajectories
from pipeline.data.first_difference import Departure, between_episodes
from pipeline.data.observations import one_row
from pipeline.envs.serial import outcome_of
from pipeline.errors import BadInput
from pipeline.names import Metric
from pipeline.play.evaluation import with_snqi
from pipeline.play.rollouts import from_record, play_alone
from pipeline.tasks import Task
from pipeline.validation.facts import Replay

SAME_FIGURE: Final = 1e-12


class TaskReplay:
    """A `Replay` on the Gymnasium environments of a task; one environment per scenario is kept between episodes.

    replay = TaskReplay(Task(config, metadata.environment["kwargs"]))
    replays = replay_episodes(trajectories, replay, range(20))
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._environments: dict[str, gym.Env] = {}

    def __call__(self, recorded: EpisodeData) -> EpisodeData:
        if recorded.scenario not in self._environments:
            self._environments[recorded.scenario] = self._task.make_env(recorded.scenario)
        env, seed = self._environments[recorded.scenario], recorded.seed
        try:
            moments = list(play_alone(env, seed, from_record(recorded.executed_actions)))
        except BadInput as error:  # what an environment raises is told in one line wherever it is called
            raise BadInput(f"the environment refuses seed {seed} or its actions: {error}") from error
        steps, last = moments[1:], moments[-1]
        rewards = [moment.reward for moment in steps]
        figures: dict[str, np.ndarray] = {}
        if last.over:
            final = {"outcome": outcome_of(last.info), "episode": {"r": sum(rewards), "l": len(rewards)}}
            outcome = {name: np.array([value]) for name, value in self._task.outcome(final).items()}
            figures = with_snqi(self._task.config, outcome)
        return replace(
            recorded,
            observations=np.stack([one_row(env.observation_space, moment.observation) for moment in moments]),
            actions=recorded.actions[: len(steps)],
            executed_actions=recorded.executed_actions[: len(steps)],
            rewards=np.array(rewards, np.float32),
            terminations=np.array([moment.terminated for moment in steps], bool),
            # as vectorised environments record it
            truncations=np.array([moment.truncated and not moment.terminated for moment in steps], bool),
            metrics={name: float(value[0]) for name, value in figures.items()},
        )

    def close(self) -> None:
        for env in self._environments.values():
            env.close()
        self._environments.clear()


@dataclass(frozen=True)
class EpisodeReplay:
    """The verdict on one episode."""

    episode: int
    difference: Departure | None  # None: bit-identical

    @property
    def identical(self) -> bool:
        return self.difference is None

    def __str__(self) -> str:
        return f"episode {self.episode}: " + ("bit-identical" if self.identical else f"differs in {self.difference}")


def replay_episodes(trajectories: Trajectories, replay: Replay, episodes: Iterable[int]) -> tuple[EpisodeReplay, ...]:
    """Play episodes again and compare bit for bit. Raises BadInput when one cannot be simulated."""
    verdicts = []
    for index in episodes:
        recorded = trajectories.episode(index)
        verdicts.append(EpisodeReplay(index, first_difference(recorded, replay(recorded))))
    return tuple(verdicts)


def first_difference(recorded: EpisodeData, replayed: EpisodeData) -> Departure | None:
    """The earliest difference. None: there is none.

    Every bit of observations, rewards and ends counts. Figures may differ in the last digits: what a library computes
    of the same bits need not add up in the same order twice (PushT's coverage, by shapely).
    """
    if departure := between_episodes(recorded, replayed):
        return departure
    # the return and the length are held to rewards and steps by rules of their own
    for name in sorted({*recorded.metrics} & {*replayed.metrics} - {Metric.RETURN, Metric.LENGTH}):
        was, now = recorded.metrics[name], replayed.metrics[name]
        if not isclose(was, now, rel_tol=SAME_FIGURE):  # NaN is no match
            return Departure(len(recorded), name, None, was, now)
    return None
