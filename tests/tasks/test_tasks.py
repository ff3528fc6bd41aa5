"""A task in action: which episodes it plays, in which environments, and what it makes of their ends."""

import os
from collections import Counter
from contextlib import closing
from itertools import islice

import gymnasium as gym
import numpy as np
import pytest

from pipeline.config.loading import validate
from pipeline.config.task import TaskConfig
from pipeline.envs.episodes import Episode
from pipeline.envs.serial import SerialVecEnv
from pipeline.errors import BadInput
from pipeline.tasks import Purpose, Task
from pipeline.tasks.user_code import REFUSED_ARGUMENTS
from pipeline.tracking.content_key import content_key

COUNTING = "counting_environment:Counting"
BOUNDED = "counting_environment:BoundedWrapper"


def task(kwargs=None, **changes) -> Task:
    data = {
        "name": "counting",
        "environment": {"id": COUNTING},
        "success": {"info": "reached"},
        "collision": {"info": "crashed"},
        "thresholds": {"success_rate": {"min": 0.9}},
        "scenarios": {"short": {"ends_at": 2}, "long": {"ends_at": 4}, "secret": {"ends_at": 3}},
        "scenario_sets": {"train": {"short": 3, "long": 1}, "holdout": {"secret": 1}, "all": {"long": 1, "secret": 1}},
        "holdout_sets": ["holdout"],
        **changes,
    }
    return Task(validate(TaskConfig, data, "test"), kwargs)


def refusal(action) -> str:
    with pytest.raises(BadInput) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def play(made: Task, episode: Episode, action: int = 1) -> dict[str, float]:
    """The figures of one episode in which every action is the same."""
    env = made.make_vec_env([iter([episode])])
    env.reset()
    while True:
        _, _, dones, infos = env.step(np.array([action]))
        if dones[0]:
            return made.outcome(infos[0])


def test_an_environment_may_be_named_by_an_id_without_a_version_that_its_module_registers():
    made = task(environment={"id": "registering:Line"})
    episodes = made.episodes("train", 1, 4, Purpose.RECORD)
    assert [play(made, episode) for episode in episodes] == [play(task(), episode) for episode in episodes]
    assert content_key({}, made.config, {}).digest != content_key({}, task().config, {}).digest
    assert "'registering:Lime'" in refusal(lambda: task(environment={"id": "registering:Lime"}).observation_space)


# --- episodes --------------------------------------------------------------------------------------------------------


def test_two_hundred_episodes_of_three_seeds_are_two_hundred_different_ones():
    episodes = task().episodes("train", (42, 43, 44), 200, Purpose.RECORD)
    assert len({episode.seed for episode in episodes}) == 200


def test_seeds_fit_31_bits_and_are_not_negative():
    seeds = [episode.seed for episode in task().episodes("train", 1, 5_000, Purpose.GATE)]
    assert min(seeds) >= 0
    assert max(seeds) < 2**31


def test_no_episode_serves_two_purposes():
    made = task()
    seeds = {purpose: {e.seed for e in made.episodes("train", 1, 5_000, purpose)} for purpose in Purpose}
    seeds[Purpose.TRAIN] |= {e.seed for stream in made.training_streams("train", 1, 4) for e in islice(stream, 2_000)}
    purposes = list(Purpose)
    for i, one in enumerate(purposes):
        for other in purposes[i + 1 :]:
            assert seeds[one].isdisjoint(seeds[other]), (one, other)


def test_a_purpose_owns_its_quarter_of_the_seeds_whatever_is_drawn():
    for purpose in Purpose:
        quarters = {e.seed >> 29 for e in task().episodes("train", (3, 1), 2_000, purpose)}
        assert quarters == {int(purpose)}


def test_the_same_seed_gives_the_same_episodes_and_another_seed_others():
    made = task()
    first = made.episodes("train", 7, 50, Purpose.EVALUATE)
    assert made.episodes("train", 7, 50, Purpose.EVALUATE) == first
    assert task().episodes("train", [7], 50, Purpose.EVALUATE) == first
    other = made.episodes("train", 8, 50, Purpose.EVALUATE)
    assert {e.seed for e in first}.isdisjoint(e.seed for e in other)


@pytest.mark.parametrize(
    ("shares", "count", "expected"),
    [
        ({"short": 3, "long": 1}, 200, {"short": 150, "long": 50}),
        ({"short": 1, "long": 1, "secret": 1}, 9, {"short": 3, "long": 3, "secret": 3}),
        ({"short": 0.5, "long": 0.3, "secret": 0.2}, 9, {"short": 4, "long": 3, "secret": 2}),
        ({"short": 0.1, "long": 0.2, "secret": 0.7}, 10, {"short": 1, "long": 2, "secret": 7}),
        ({"short": 1, "long": 1}, 1, {"short": 1}),
        ({"short": 1e-6, "long": 1}, 10, {"long": 10}),
    ],
)
def test_scenarios_get_their_shares_exactly_up_to_rounding(shares, count, expected):
    made = task(scenario_sets={"train": shares}, holdout_sets=[])
    episodes = made.episodes("train", 1, count, Purpose.RECORD)
    assert Counter(e.scenario for e in episodes) == expected
    assert len(episodes) == count


def test_scenarios_are_interleaved_so_that_any_part_holds_all_of_them():
    episodes = task().episodes("train", 1, 200, Purpose.RECORD)
    assert {e.scenario for e in episodes[:20]} == {"short", "long"}
    assert {e.scenario for e in episodes[-20:]} == {"short", "long"}


def test_training_streams_are_endless_distinct_by_slot_and_follow_the_seed():
    made = task()
    drawn = [list(islice(stream, 600)) for stream in made.training_streams("train", 5, 3)]
    assert [list(islice(stream, 600)) for stream in made.training_streams("train", 5, 3)] == drawn
    assert [list(islice(stream, 600)) for stream in made.training_streams("train", 6, 3)] != drawn
    assert len({e.seed for episodes in drawn for e in episodes}) > 1_790  # of 1,800: chance hardly repeats one
    share = np.mean([e.scenario == "short" for episodes in drawn for e in episodes])
    assert 0.70 < share < 0.80  # 3 of 4, five standard deviations


def test_the_number_of_slots_does_not_change_what_a_slot_plays():
    made = task()
    few, many = made.training_streams("train", 5, 1), made.training_streams("train", 5, 3)
    assert list(islice(few[0], 300)) == list(islice(many[0], 300))


def test_a_set_that_holds_a_holdout_scenario_is_never_trained_on():
    made = task()
    for scenario_set in ("holdout", "all"):  # also one that is no hold-out set itself
        message = refusal(lambda name=scenario_set: made.training_streams(name, 1, 2))
        assert f"'{scenario_set}'" in message
        assert "'secret'" in message
        assert "training" in message
        assert "'secret'" in refusal(lambda name=scenario_set: made.refuse_holdouts(name, "recording"))
    made.refuse_holdouts("train", "recording")


def test_an_unknown_scenario_set_is_refused_with_the_closest_name():
    message = refusal(lambda: task().episodes("trian", 1, 5, Purpose.GATE))
    assert "'trian'" in message
    assert "Did you mean 'train'?" in message
    assert "all, holdout, train" in message


def test_an_unknown_scenario_is_refused_with_the_closest_name():
    message = refusal(lambda: task().make_env("shrot"))
    assert "'shrot'" in message
    assert "Did you mean 'short'?" in message


# --- outcomes --------------------------------------------------------------------------------------------------------


def test_an_episode_becomes_the_figures_worked_out_by_hand():
    figures = play(task(), Episode("long", 1), action=1)
    assert figures == {"return": 10.0, "length": 4.0, "success": 1.0, "collision": 0.0}
    assert play(task(), Episode("short", 1), action=0) == {
        "return": 3.0,
        "length": 2.0,
        "success": 0.0,
        "collision": 1.0,
    }


def test_success_may_be_a_return_and_exactly_enough_is_enough():
    assert play(task(success={"return_at_least": 10.0}), Episode("long", 1))["success"] == 1.0
    assert play(task(success={"return_at_least": 10.001}), Episode("long", 1))["success"] == 0.0


def test_a_task_without_collision_has_no_collision_figure():
    assert "collision" not in play(task(collision=None), Episode("long", 1))


def test_info_figures_are_taken_over_the_whole_episode():
    metrics = {
        "last_t": {"info": "t"},
        "sum_t": {"info": "t", "over": "sum"},
        "max_alternating": {"info": "alternating", "over": "max"},
        "mean_alternating": {"info": "alternating", "over": "mean"},
        "sum_rare": {"info": "rare", "over": "sum"},
    }
    figures = play(task(metrics=metrics), Episode("long", 1))
    assert figures["last_t"] == 4.0
    assert figures["sum_t"] == 1 + 2 + 3 + 4
    assert figures["max_alternating"] == 2.0
    assert figures["mean_alternating"] == (-1 + 2 - 1 + 2) / 4
    assert figures["sum_rare"] == 7.0  # the info entry stood there in one step only


def test_measures_start_anew_with_every_episode():
    made = task(metrics={"sum_t": {"info": "t", "over": "sum"}})
    env = made.make_vec_env([iter([Episode("short", 1), Episode("short", 2)])])
    env.reset()
    sums = []
    while env.running.any():
        _, _, dones, infos = env.step(np.array([1]))
        sums += [made.outcome(infos[0])["sum_t"]] if dones[0] else []
    assert sums == [3.0, 3.0]


def test_a_figure_named_like_an_info_entry_does_not_shadow_it():
    metrics = {"t": {"info": "t", "over": "sum"}, "last_t": {"info": "t"}}
    figures = play(task(metrics=metrics), Episode("long", 1))
    assert (figures["t"], figures["last_t"]) == (10.0, 4.0)


def test_a_misspelt_info_entry_is_refused_even_when_the_figure_is_named_like_another_one():
    message = refusal(lambda: play(task(metrics={"t": {"info": "tt", "over": "sum"}}), Episode("long", 1)))
    assert "metrics.t.info = 'tt'" in message
    assert "it has: alternating, crashed, reached, t" in message


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"success": {"info": "reachd"}}, "success.info = 'reachd'"),
        ({"collision": {"info": "reachd"}}, "collision.info = 'reachd'"),
        ({"metrics": {"m": {"info": "reachd"}}}, "metrics.m.info = 'reachd'"),
        ({"metrics": {"m": {"info": "reachd", "over": "mean"}}}, "metrics.m.info = 'reachd'"),
    ],
)
def test_an_info_entry_that_is_not_there_is_refused_and_never_counted_as_0(changes, setting):
    message = refusal(lambda: play(task(**changes), Episode("long", 1)))
    assert setting in message
    assert "Did you mean 'reached'?" in message


def test_an_entry_that_the_environment_stops_reporting_is_refused():
    assert "success.info = 'reached'" in refusal(lambda: play(task({"ill": "missing"}), Episode("long", 1)))


def test_text_in_the_info_is_no_figure():
    for over in ("last", "sum"):
        metrics = {"m": {"info": "label", "over": over}}
        message = refusal(lambda metrics=metrics: play(task(metrics=metrics), Episode("long", 1)))
        assert "metrics.m.info = 'label'" in message


def test_a_collision_that_is_not_a_number_is_refused_and_never_counted_as_none():
    message = refusal(lambda: play(task({"ill": "nan"}), Episode("long", 1)))
    assert "collision.info = 'crashed'" in message
    assert "nan" in message


@pytest.mark.parametrize("over", ["sum", "max", "mean"])
def test_a_step_that_is_not_a_number_is_not_lost_in_the_figure(over):
    made = task({"ill": "nan"}, collision=None, metrics={"m": {"info": "alternating", "over": over}})
    assert np.isnan(play(made, Episode("long", 1))["m"])


# --- environments ----------------------------------------------------------------------------------------------------


def test_a_class_or_a_registered_id_may_be_the_environment():
    assert task().observation_space == gym.spaces.Box(0.0, 100.0, (1,), np.float32)
    cartpole = task(
        environment={"id": "CartPole-v1"}, scenarios={"s": {}}, scenario_sets={"t": {"s": 1}}, holdout_sets=[]
    )
    assert cartpole.action_space == gym.spaces.Discrete(2)
    reference = "gymnasium.envs.classic_control.cartpole:CartPoleEnv"
    by_class = task(environment={"id": reference}, scenarios={"s": {}}, scenario_sets={"t": {"s": 1}}, holdout_sets=[])
    assert by_class.observation_space == cartpole.observation_space


def test_keyword_arguments_of_scenario_go_over_those_of_the_stage_and_those_over_the_task():
    made = task({"bonus": 1.0, "ends_at": 9}, environment={"id": COUNTING, "kwargs": {"bonus": 5.0}})
    assert play(made, Episode("short", 1)) == {
        "return": (1 + 1.0) + (2 + 1.0),
        "length": 2.0,
        "success": 1.0,
        "collision": 0.0,
    }


def test_an_argument_reaches_an_environment_that_takes_it_whatever_else_is_called_so():
    names = {"function": 1, "what": "a", "max_episode_steps": 3, "disable_env_checker": 2, "id": 4}
    environment = {"id": "counting_environment:TakesAnything", "kwargs": names}
    made = task(environment=environment, scenarios={"s": {}}, scenario_sets={"t": {"s": 1}}, holdout_sets=[])
    assert made.make_env("s").unwrapped.taken == names


@pytest.mark.parametrize("reference", [COUNTING, "CartPole-v1"])
def test_the_horizon_truncates_and_is_no_termination(reference):
    scenarios = {"s": {"ends_at": 50} if reference == COUNTING else {}}
    made = task(
        environment={"id": reference},
        scenarios=scenarios,
        scenario_sets={"train": {"s": 1}},
        holdout_sets=[],
        success={"return_at_least": 0.0},
        collision=None,
        horizon=3,
    )
    env = made.make_vec_env([iter([Episode("s", 1)])])
    env.reset()
    for _ in range(3):
        _, _, dones, infos = env.step(np.array([0]))
    assert dones[0]
    assert infos[0]["TimeLimit.truncated"] is True
    assert made.outcome(infos[0])["length"] == 3.0


def test_an_end_at_the_horizon_is_a_termination():
    env = task(horizon=4).make_vec_env([iter([Episode("long", 1)])])
    env.reset()
    for _ in range(4):
        _, _, dones, infos = env.step(np.array([1]))
    assert dones[0]
    assert infos[0]["TimeLimit.truncated"] is False


@pytest.mark.parametrize(
    ("environment", "parts"),
    [
        ({"id": "CartPol-v1"}, ["'CartPol-v1'", "Did you mean 'CartPole-v1'?"]),
        ({"id": "CartPole-v99"}, ["'CartPole-v99'", "Did you mean 'CartPole-v1'?"]),
        ({"id": ""}, ["environment.id ''"]),
        ({"id": "no_such_package:Env"}, ["no_such_package", "is it installed?"]),
        ({"id": "no_such_package:Env-v1"}, ["no_such_package"]),
        ({"id": "counting_environment:Countin"}, ["'Countin'", "Did you mean 'Counting'?"]),
        ({"id": "counting_environment:"}, ["'counting_environment:'", "module:Name"]),
        ({"id": "..counting_environment:Counting"}, ["..counting_environment", "module:Name"]),
        ({"id": COUNTING, "kwargs": {"sze": 3}}, ["refuses its arguments", "'sze'"]),
        ({"id": "CartPole-v1", "kwargs": {"sze": 3}}, ["refuses its arguments", "'sze'"]),
        ({"id": "counting_environment:NoEnvironment"}, ["NoEnvironment", "no gymnasium.Env"]),
        *[({"id": e, "kwargs": {n: 1}}, [n]) for e in (COUNTING, "CartPole-v1") for n in ("function", "what", "self")],
        *[({"id": "CartPole-v1", "kwargs": {name: 1}}, [name, instead]) for name, instead in REFUSED_ARGUMENTS.items()],
        ({"id": "CartPole-v1", "kwargs": {"render_mode": 1}}, ["render_mode"]),
        ({"id": "counting_environment:Bounded", "kwargs": {"high": 2**40}}, ["high", "out of bounds"]),
        (
            {"id": COUNTING, "wrappers": [{"name": BOUNDED, "kwargs": {"high": 2**40}}]},
            ["BoundedWrapper", "OverflowError"],
        ),
    ],
)
def test_an_environment_that_cannot_be_made_is_refused_in_one_line(environment, parts):
    made = task(environment=environment, scenarios={"s": {}}, scenario_sets={"t": {"s": 1}}, holdout_sets=[])
    message = refusal(lambda: made.observation_space)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("batched", "parts"),
    [
        ("counting_environment", ["environment.batched", "module:Name"]),
        ("counting_environment:Batched", ["has no 'Batched'"]),
        ("counting_environment:NeedsArguments", ["refuses its arguments", "size"]),
        ("counting_environment:UnpluggedBatch", ["environment of task 'counting' cannot be made", "no such port"]),
        ("counting_environment:NoEnvironment", ["NoEnvironment", "EpisodeVecEnv"]),
    ],
)
def test_a_batched_class_that_cannot_be_used_is_refused_in_one_line(batched, parts):
    made = task(environment={"id": COUNTING, "batched": batched})
    message = refusal(lambda: made.make_vec_env([iter([Episode("long", 1)])]))
    assert all(part in message for part in parts), message


def test_auto_takes_no_more_processes_than_the_cores_that_it_may_use(monkeypatch):
    monkeypatch.setattr("pipeline.tasks.task.SLOW_STEP", 0.0)  # any step is slow
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)  # not every system has it
    with closing(task(environment_workers="auto").make_vec_env([iter([Episode("long", 1)])] * 2)) as env:
        assert isinstance(env, SerialVecEnv)


@pytest.mark.parametrize("changes", [{"horizon": 5}, {"metrics": {"m": {"info": "t", "over": "sum"}}}])
def test_a_batched_class_does_not_silently_ignore_horizon_and_sums(changes):
    made = task(environment={"id": COUNTING, "batched": "counting_environment:NeedsArguments"}, **changes)
    assert "batched" in refusal(lambda: made.make_vec_env([iter([Episode("long", 1)])]))


def test_a_further_listed_seed_of_zero_gives_other_episodes():
    made = task()
    assert made.episodes("train", [42], 50, Purpose.RECORD) != made.episodes("train", [42, 0], 50, Purpose.RECORD)
