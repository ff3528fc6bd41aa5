"""Re-simulation: play recorded episodes again from seed and executed actions, and say where they first differ."""

from collections.abc import Iterable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from pipeline.data import EpisodeData, Trajectories
from pipeline.data.observations import element_names, flat_rows, one_row
from pipeline.envs.serial import outcome_of
from pipeline.errors import BadInput
from pipeline.names import Metric
from pipeline.play.evaluation import with_snqi
from pipeline.play.rollouts import from_record, play_alone
from pipeline.tasks import Task
from pipeline.validation.facts import Replay, ReplayedEpisode, plain


class TaskReplay:
    """A `Replay` on the Gymnasium environments of a task; one environment per scenario is kept between episodes.

    replay = TaskReplay(Task(config, metadata.environment["kwargs"]))
    replays = replay_episodes(trajectories, replay, range(20))
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._environments: dict[str, gym.Env] = {}

    def __call__(self, scenario: str, seed: int, executed_actions: np.ndarray) -> ReplayedEpisode:
        if scenario not in self._environments:
            self._environments[scenario] = self._task.make_env(scenario)
        try:
            return _play(self._task, self._environments[scenario], seed, executed_actions)
        except BadInput as error:  # what an environment raises is told in one line wherever it is called
            raise BadInput(f"the environment refuses seed {seed} or its actions: {error}") from error

    def close(self) -> None:
        for env in self._environments.values():
            env.close()
        self._environments.clear()


def _play(task: Task, env: gym.Env, seed: int, executed_actions: np.ndarray) -> ReplayedEpisode:
    moments = list(play_alone(env, seed, from_record(executed_actions)))
    steps, last = moments[1:], moments[-1]
    rewards = [moment.reward for moment in steps]
    figures: dict[str, np.ndarray] = {}
    if last.over:
        final = {"outcome": outcome_of(last.info), "episode": {"r": sum(rewards), "l": len(rewards)}}
        figures = with_snqi(task, {name: np.array([value]) for name, value in task.outcome(final).items()})
    return ReplayedEpisode(
        np.stack([one_row(env.observation_space, moment.observation) for moment in moments]),
        np.array(rewards, np.float32),
        np.array([moment.terminated for moment in steps], bool),
        # as vectorised environments record it
        np.array([moment.truncated and not moment.terminated for moment in steps], bool),
        {name: float(value[0]) for name, value in figures.items()},
    )


@dataclass(frozen=True)
class Difference:
    """The first place where a re-simulation departs from the recording."""

    step: int  # of the episode; observations count T + 1 steps
    quantity: str  # "observation", "reward", "termination", "truncation", "length", or the name of a figure
    feature: int | str | None  # flat index, or name in a Dict, of an observation
    recorded: float | int | str | bool
    replayed: float | int | str | bool

    def __str__(self) -> str:
        name = self.quantity if self.feature is None else f"{self.quantity}[{self.feature}]"
        return f"{name} at step {self.step}: recorded {self.recorded!r}, replayed {self.replayed!r}"


@dataclass(frozen=True)
class EpisodeReplay:
    """The verdict on one episode."""

    episode: int
    difference: Difference | None  # None: bit-identical

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
        replayed = replay(recorded.scenario, recorded.seed, recorded.executed_actions)
        verdicts.append(EpisodeReplay(index, first_difference(recorded, replayed)))
    return tuple(verdicts)


def first_difference(recorded: EpisodeData, replayed: ReplayedEpisode) -> Difference | None:
    """The earliest difference; every bit counts. None: there is none."""
    found = [
        _differs("observation", recorded.observations, replayed.observations),
        _differs("reward", recorded.rewards, replayed.rewards, offset=1),
        _differs("termination", recorded.terminations, replayed.terminations, offset=1),
        _differs("truncation", recorded.truncations, replayed.truncations, offset=1),
    ]
    if len(replayed.rewards) != len(recorded):
        short = len(replayed.rewards)
        found.append((short + 1, Difference(short, "length", None, len(recorded), short)))
    # the return and the length are held to rewards and steps by rules of their own
    for name in sorted({*recorded.metrics} & {*replayed.metrics} - {Metric.RETURN, Metric.LENGTH}):
        was, now = recorded.metrics[name], replayed.metrics[name]
        if was != now:  # NaN is no match
            found.append((len(recorded) + 1, Difference(len(recorded), name, None, was, now)))
    # subtle: step t makes reward t and observation t + 1, so those two are equally early
    return min((f for f in found if f is not None), key=lambda pair: pair[0], default=(0, None))[1]


def _differs(
    quantity: str, recorded: np.ndarray, replayed: np.ndarray, offset: int = 0
) -> tuple[int, Difference] | None:
    """(time, difference) of the first row that differs; time is 0 before the first step."""
    count = min(len(recorded), len(replayed))
    if recorded.shape[1:] != replayed.shape[1:] or recorded.dtype != replayed.dtype:
        shapes = (f"{array.dtype} {array.shape[1:]}" for array in (recorded, replayed))
        return 0, Difference(0, quantity, None, *shapes)
    a, b = flat_rows(recorded[:count]), flat_rows(replayed[:count])
    ours, theirs = (np.ascontiguousarray(values).view(np.uint8) for values in (a, b))
    wrong = (ours != theirs).reshape(count, -1, a.dtype.itemsize).any(axis=2)
    rows = np.flatnonzero(wrong.any(axis=1))
    if not len(rows):
        return None
    row = int(rows[0])
    feature = int(np.flatnonzero(wrong[row])[0])
    names = element_names(recorded.dtype)
    shown = (feature if names is None else names[feature]) if quantity == "observation" else None
    return row + offset, Difference(row, quantity, shown, plain(a[row, feature]), plain(b[row, feature]))
