"""The shift between demonstrations and fine-tuning, on the real environment: silent without a change, loud with one."""

from dataclasses import replace
from itertools import pairwise

import pytest
from project import GROUP

from pipeline.config.loading import load, load_task
from pipeline.config.stages import Finetune
from pipeline.names import Tag
from pipeline.play.demonstrators import scripted
from pipeline.play.evaluation import record_episodes
from pipeline.stages.finetune import distribution_shift
from pipeline.statistics.shift import measure_shift
from pipeline.tasks import Purpose, Task
from pipeline.tracking.stage_run import open_run
from pipeline.tracking.store import connect

PLANNER = scripted("benchmarks.social_nav_planners:dynamic_window", {})
EPISODES = 40


@pytest.fixture
def played(in_repository):
    """`played(scenario_set, seed)`: observations and scenarios of fresh episodes under one fixed planner."""

    def play(scenario_set: str, seed: int, count: int = EPISODES, **environment: float):
        task = Task(load_task("configs/tasks/social_nav.yaml"), environment)
        episodes = task.episodes(scenario_set, seed, count, Purpose.EVALUATE)
        recorded = record_episodes(task, PLANNER.actor, episodes, 0.0, 0)
        return [recorded.episode(i).observations for i in range(count)], [e.scenario for e in episodes]

    return play


def shift(a, b):
    return measure_shift(a[0], b[0], permutations=199, scenarios=(a[1], b[1]))


@pytest.mark.slow
def test_fresh_episodes_of_the_same_scenarios_are_alike(played):
    samples = [played("train_small", seed) for seed in range(5)]
    assert sum(shift(a, b).shifted for a, b in pairwise(samples)) == 0


def test_hold_out_scenarios_are_noticed(played):
    found = shift(played("train_small", 1), played("holdout", 2))
    assert found.shifted and found.distance > 2 * found.expected_distance


@pytest.mark.slow
def test_a_slower_robot_is_noticed_given_enough_episodes(played):
    found = shift(played("train_small", 1, 120), played("train_small", 2, 120, max_speed=0.6))
    assert found.shifted and found.distance > found.expected_distance


def test_the_stage_measures_it_before_training_and_says_so_in_a_tag(copied, runs):
    client = connect()
    told = client.get_run(runs("finetune")[0]).data
    tags = told.tags
    assert tags[Tag.SHIFT] == ("shifted" if told.metrics["shift/p_value"] <= 0.01 else "alike")
    config = load(Finetune, copied.configs["finetune"])
    elsewhere = replace(config, training=replace(config.training, scenario_set="holdout"))
    with open_run("finetune") as run:
        found = distribution_shift(run, Task(load_task(config.task)), elsewhere, tags)
    assert found is not None and found.shifted and found.p_value <= 0.01
    logged = client.get_run(run.run_id).data
    assert logged.tags[Tag.SHIFT] == "shifted"
    assert logged.metrics["shift/distance"] == pytest.approx(found.distance)
    assert GROUP not in logged.tags.values()
