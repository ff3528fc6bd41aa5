"""A dataset of the batched social navigation passes, and its Gymnasium face plays it again bit for bit."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pendulum_dataset import describe

from pipeline.config.loading import load_task
from pipeline.data import content_digest
from pipeline.data.spaces import space_to_json
from pipeline.errors import BadInput
from pipeline.play.demonstrators import scripted
from pipeline.play.evaluation import record_episodes
from pipeline.tasks import Purpose, Task
from pipeline.validation.facts import Context
from pipeline.validation.replay import TaskReplay, replay_episodes
from pipeline.validation.rules import validate

MEASURED = ("return", "length")  # held to rewards and steps by rules of their own
TASK_FILE = Path(__file__).parents[2] / "configs" / "tasks" / "social_nav.yaml"


@pytest.fixture(scope="module")
def recorded():
    task = Task(load_task(TASK_FILE))
    episodes = task.episodes("train_small", 42, 24, Purpose.RECORD)
    straight = scripted("benchmarks.social_nav_planners:straight_to_goal", {})
    trajectories = record_episodes(task, straight.actor, episodes, 0.3, 1, 8)
    metadata = describe(
        task,
        trajectories,
        0.3,
        scenario_set="train_small",
        scenario_coverage=dict(Counter(trajectories.scenarios.tolist())),
        requested_shares=task.shares("train_small"),
        demonstrator=straight.provenance,
        observation_space=space_to_json(task.observation_space),
        action_space=space_to_json(task.action_space),
        environment={"id": task.config.environment.id, "kwargs": {}, "scenarios": task.config.scenarios},
        horizon=None,
    )
    context = Context(
        task=task.config,
        observation_space=task.observation_space,
        action_space=task.action_space,
        replay=TaskReplay(task),
        replay_episodes=24,
    )
    return trajectories, metadata, context


def test_it_passes_with_every_episode_played_again(recorded):
    trajectories, metadata, context = recorded
    report = validate((trajectories, metadata), context)
    assert report.passed, report.summary()
    script = "script benchmarks.social_nav_planners:straight_to_goal (version "
    assert report.notes[0].startswith(f"demonstrations: {script}")
    assert report.notes[0].endswith("; no expert was approved for this dataset")
    assert report.notes[1:] == ("re-simulation: 24 of 24 episodes bit-identical",)
    alone = validate((trajectories, metadata), replace(context, replay=None))
    assert alone.passed and "respond to noise at once" in alone.notes[1]


def test_one_bit_of_one_observation_is_found_where_it_is(recorded):
    trajectories, metadata, context = recorded
    observations = trajectories.observations.copy()
    row = int(trajectories.observation_offsets[5]) + 3
    observations.view(np.uint32)[row, 1] ^= 1
    changed = replace(trajectories, observations=observations)
    report = validate((changed, replace(metadata, content_digest=content_digest(changed))), context)
    assert report.failed_rules == ("replay",)
    assert (report.findings[0].episode, report.findings[0].step) == (5, 3)
    verdicts = replay_episodes(changed, context.replay, [4, 5])
    assert str(verdicts[0]) == "episode 4: bit-identical"
    assert verdicts[1].difference.feature == 1 and "episode 5: differs in observation[1] at step 3" in str(verdicts[1])


def test_every_figure_is_held_to_the_one_of_the_episode_played_again(recorded):
    trajectories, metadata, context = recorded
    figures = trajectories.metrics
    lies = {
        "every failure is a success": {"success": np.ones(24)},
        "every collision is lost": {"collision": np.zeros(24)},
        "SNQI of other weights": {"snqi": figures["snqi"] - 0.1 * figures["jerk_mean"]},
        "figures of the episode before": {name: np.roll(figures[name], 1) for name in figures if name not in MEASURED},
        "one near miss less": {"near_misses": figures["near_misses"] - (figures["near_misses"] > 0)},
        "a billionth of each jerk": {"jerk_mean": figures["jerk_mean"] * (1 + 1e-9)},
    }
    wrong = {}
    for lie, changes in lies.items():
        changed = replace(trajectories, metrics={**figures, **changes})
        report = validate((changed, replace(metadata, content_digest=content_digest(changed))), context)
        found = [f.episode for f in report.findings if f.rule == "replay"]
        expected = np.flatnonzero(np.any([changes[name] != figures[name] for name in changes], axis=0))
        if not len(expected) or found != expected[:20].tolist():  # as many findings as are kept of a rule
            wrong[lie] = (found, expected)
    assert not wrong


def test_observations_stored_late_are_found_without_the_environment(recorded):
    trajectories, metadata, context = recorded
    late = trajectories.observations.copy()
    late[:-1] = trajectories.observations[1:]
    changed = replace(trajectories, observations=late)
    metadata = replace(metadata, content_digest=content_digest(changed))
    report = validate((changed, metadata), replace(context, replay=None))
    assert report.failed_rules == ("time_alignment",)


def test_an_episode_that_the_environment_refuses_is_one_line(recorded):
    trajectories, _, context = recorded
    with pytest.raises(BadInput, match="refuses seed -5"):
        context.replay(replace(trajectories.episode(0), scenario="frontal_approach_low", seed=-5))
    with pytest.raises(BadInput, match="scenario 'nowhere' is not defined"):
        context.replay(replace(trajectories.episode(0), scenario="nowhere", seed=5))
