"""Which episodes go to a cluster: those of whoever acts the same every time."""

from dataclasses import replace

import pytest

from pipeline.config.task import ExecutorSettings
from pipeline.config.training import Network
from pipeline.errors import BadInput
from pipeline.executors.players import Player, rollouts
from pipeline.policies import build_policy, save_policy
from pipeline.tasks import Purpose, Task


def test_who_acts_at_random_is_played_here_whatever_cluster_the_task_names(make_jobs, tmp_path):
    (job,) = make_jobs(tmp_path, 1)
    # a cluster that refuses whatever is given to it: it is not told for how long
    task = Task(replace(job.task, executor=ExecutorSettings(kind="slurm", folder=str(tmp_path / "shared"))))
    save_policy(build_policy(task.observation_space, task.action_space, Network(hidden=(8,)), 3), tmp_path / "p", {})
    episodes, ended = task.episodes("train", 7, 5, Purpose.EVALUATE), list[int]()
    with pytest.raises(BadInput, match=r"executor\.options\.time is missing"):
        rollouts(task, Player("a policy", str(tmp_path / "p")), episodes, ended.append)
    assert ended == []
    records = rollouts(task, Player("a policy", str(tmp_path / "p"), deterministic=False), episodes, ended.append)
    assert records.episodes == episodes and sum(ended) == 5
