"""Episodes of the gate, of `evaluate` and of `collect`, in chunks where the task's trainings run.

Here they are played all at once. On a cluster their number decides how many are in a chunk, wherever and however many
at a time it is played, and an episode depends on nothing but its seed: so the place changes no bit.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.config.loading import executor_settings
from pipeline.config.stages import Collect, Scripted
from pipeline.config.task import CPU, TaskConfig
from pipeline.data import Trajectories, concatenate
from pipeline.envs.episodes import Episode
from pipeline.executors.side_by_side import run_side_by_side
from pipeline.learning.jobs import Emit
from pipeline.play.demonstrators import Actor, as_policy_sees, policy_actions, scripted
from pipeline.play.evaluation import (
    ActionHistogram,
    Counted,
    EpisodeRecords,
    concatenate_records,
    record,
    record_episodes,
    run_episodes,
)
from pipeline.tasks import Task

CHUNK: Final = 50  # episodes, at least: a job of a cluster takes seconds to begin
MOST_CHUNKS: Final = 100  # of one call


@dataclass(frozen=True)
class Player:
    """Who plays, as data: the policy in a folder, or a script."""

    reference: str  # for people
    policy: str | None = None
    script: Scripted | None = None
    deterministic: bool = True

    def seated(self, task: Task) -> tuple[Task, Actor]:
        """The task as this player sees it, and what acts in it. Raises BadInput when it does not fit."""
        if self.script is not None:
            return task, scripted(self.script.demonstrator, self.script.kwargs).actor
        seen = as_policy_sees(task, str(self.policy))
        return seen, policy_actions(seen, str(self.policy), self.reference, self.deterministic)


@dataclass(frozen=True)
class EpisodesJob:
    """A chunk of episodes to be played, and recorded where `recorded` says how."""

    task: TaskConfig
    environment: Mapping[str, Any]  # keyword arguments
    player: Player
    episodes: tuple[Episode, ...]
    recorded: Collect | None
    first: int  # how many episodes lie before it
    device: str = CPU  # nothing is learnt here
    output: str = ""  # it leaves nothing
    checkpoints: str | None = None
    checkpoint_key: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"episodes {self.first + 1} to {self.first + len(self.episodes)}"

    def moved(self, place: Path) -> "EpisodesJob":
        """The same, with the policy in another folder."""
        if self.player.policy is None:
            return self
        policy = shutil.copytree(self.player.policy, place / "inputs" / "policy", dirs_exist_ok=True)
        return replace(self, player=replace(self.player, policy=str(policy)))

    def perform(self, emit: Emit) -> EpisodeRecords | Trajectories:
        """Play them."""
        seen, actor = self.player.seated(Task(self.task, self.environment))
        if self.recorded is None:
            return run_episodes(seen, actor, self.episodes)
        noise, seed = self.recorded.noise.std, self.recorded.seeds[0]
        return record_episodes(seen, actor, self.episodes, noise, seed, self.recorded.n_envs)


def rollouts(task: Task, player: Player, episodes: Sequence[Episode], ended: Counted) -> EpisodeRecords:
    """`run_episodes`, on this machine or in chunks on the task's cluster.

    Who acts at random draws for one episode after the other, and stays here: chunks would all draw the same.
    """
    if executor_settings(task.config).kind == "local" or not player.deterministic:
        seen, actor = player.seated(task)
        return run_episodes(seen, actor, episodes, ended=ended)
    parts: list[EpisodeRecords] = _in_chunks(task, player, episodes, None, ended)
    counts = [part.action_histogram.counts for part in parts if part.action_histogram is not None]
    edges = ActionHistogram.empty(task.action_space).edges
    return replace(concatenate_records(parts), action_histogram=ActionHistogram(edges, np.sum(counts, axis=0)))


def recording(task: Task, player: Player, config: Collect, ended: Counted) -> tuple[Trajectories, int]:
    """`record`, on this machine or in chunks on the task's cluster."""
    seen, actor = player.seated(task)
    if executor_settings(task.config).kind == "local":
        return record(seen, config, actor, ended=ended)
    return record(seen, config, actor, lambda batch: concatenate(_in_chunks(task, player, batch, config, ended)))


def _in_chunks(
    task: Task, player: Player, episodes: Sequence[Episode], recorded: Collect | None, ended: Counted
) -> list[Any]:
    size = max(CHUNK, math.ceil(len(episodes) / MOST_CHUNKS))
    jobs = [
        EpisodesJob(
            task.config, task.environment_kwargs, player, tuple(episodes[first : first + size]), recorded, first
        )
        for first in range(0, len(episodes), size)
    ]

    def count(index: int, part: EpisodeRecords | Trajectories) -> None:
        ended(len(jobs[index].episodes))

    return run_side_by_side(jobs, 0, lambda index, event: None, count)
