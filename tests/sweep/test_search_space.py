"""Everything wrong with a sweep is said before its first trial, in one line that names the key."""

from dataclasses import replace

import pytest
import yaml

from pipeline.config.loading import load, to_data, to_yaml, validate
from pipeline.config.stages import TrainExpert
from pipeline.config.sweep import Parameter, Sweep
from pipeline.errors import BadInput
from pipeline.sweep.trials import points, trial_plan

FLOAT = {"type": "float", "low": 0.1, "high": 0.9}


def plan_of(files, **changes):
    return trial_plan(load(Sweep, files.sweep(**changes)))


def error_of(files, **changes) -> str:
    with pytest.raises(BadInput) as caught:
        plan_of(files, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def space_error(files, key, parameter=FLOAT, **changes) -> str:
    return error_of(files, search_space={key: parameter}, **changes)


def test_a_misspelt_key_is_named_with_the_one_that_was_meant(files):
    assert "Did you mean 'training.learning_rate.initial'?" in space_error(files, "learning_rate.initial")
    message = space_error(files, "training.learning_rate.initail")
    assert "search_space 'training.learning_rate.initail'" in message and "Did you mean 'initial'?" in message
    message = space_error(files, "training.ppo.n_stepz", {"type": "int", "low": 2, "high": 4})
    assert "unknown key 'training.ppo.n_stepz'. Did you mean 'n_steps'?" in message
    message = space_error(files, "training.environment.skil")
    assert "search_space 'training.environment.skil' at 0.1" in message and "unexpected keyword argument" in message


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("training.total_timesteps", "same budget"),
        ("training.evaluation.seed", "measured alike"),
        ("training.scenario_set", "same scenarios"),
        ("seeds", "only settings below 'training.'"),
    ],
)
def test_what_would_make_trials_unequal_cannot_be_searched(files, key, reason):
    assert reason in space_error(files, key)


@pytest.mark.parametrize(
    ("key", "parameter", "says"),
    [
        ("training.n_envs", {"type": "float", "low": 1.5, "high": 2.5}, "training.n_envs = 1.5"),
        ("training.ppo.gamma", {"type": "float", "low": 0.9, "high": 1.1}, "training.ppo.gamma = 1.1"),
        ("training.network.activation", {"type": "categorical", "choices": ["tanh", "gelu"]}, "'gelu'"),
        ("training.n_envs", {"type": "categorical", "choices": [4, 7]}, "no multiple of training.n_envs = 7"),
        ("training.n_envs", {"type": "int", "low": 4, "high": 8}, "no multiple of training.n_envs = 7"),
        ("training.n_envs", {"type": "int", "low": 7, "high": 1e300}, "no multiple of training.n_envs = 7"),  # at once
        (
            "training.ppo.seed",
            {"type": "int", "low": 1, "high": 2},
            "seed = 1 is not set here; use seeds",
        ),
    ],
)
def test_every_end_of_a_parameter_is_held_to_the_config(files, key, parameter, says):
    assert says in space_error(files, key, parameter)


def test_returns_of_different_environments_are_not_compared(files):
    assert "returns of different environments" in space_error(
        files, "training.environment.skill", objective={"name": "auc"}
    )


def test_a_key_inside_another_key_and_a_key_with_two_ranges_are_refused(files):
    both = {
        "training.network": {"type": "categorical", "choices": [{"hidden": [4]}, {"hidden": [8]}]},
        "training.network.activation": {"type": "categorical", "choices": ["tanh", "relu"]},
    }
    assert "'training.network.activation' is part of 'training.network'" in error_of(files, search_space=both)
    gamma = {"type": "float", "low": 0.9, "high": 0.99}
    twice = {
        "training.normalize_reward": {
            "type": "categorical",
            "choices": [True, False],
            "when": {"true": {"training.ppo.gamma": gamma}, "false": {"training.ppo.gamma": {**gamma, "low": 0.8}}},
        }
    }
    assert "'training.ppo.gamma' stands twice with different ranges" in error_of(files, search_space=twice)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seeds_per_trial": 4}, "seeds_per_trial = 4, but"),
        ({"fresh_seeds": [1]}, "fresh_seeds: 1 is a seed of the trials"),
        ({"fresh_seeds": [5, 5]}, "fresh_seeds = [5, 5]: seeds must be distinct"),
        ({"trial_timesteps": 241}, "a budget of 241 steps is no multiple of training.n_envs = 4"),
        ({"objective": {"name": "last_n_mean", "n": 9}}, "objective.n = 9, but a training of 240 steps has 4"),
        ({"objective": {"name": "last_n_mean"}}, "objective: n is the number of evaluations"),
        ({"objective": {"name": "episodic_snqi", "metric": "success_rate"}}, "episodic_snqi is the metric itself"),
        ({"pruner": {"name": "wilcoxon"}}, "set seeds_per_trial to 2 or more"),
        ({"constraint_handling": "punish"}, "'penalize' or 'prune'"),
        ({"constraint_collision_rate_max": 1.5}, "constraint_collision_rate_max = 1.5"),
        ({"study_name": "My Study"}, "study_name = 'My Study'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(files, changes, says):
    assert says in error_of(files, **changes)


def test_a_password_in_the_storage_is_refused_without_being_repeated(files):
    for password in ("hunter2", "hun/ter2"):
        message = error_of(files, storage=f"postgresql://me:{password}@host/sweeps")
        assert "storage holds a password" in message and "ter2" not in message
    load(Sweep, files.sweep(storage="postgresql://me@host:5432/sweeps"))


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        ({"type": "float", "low": 1.0}, "float needs low and high"),
        ({"type": "float", "low": 1.0, "high": 1.0}, "low = 1 must be below high = 1"),
        ({"type": "log", "low": 0.0, "high": 1.0}, "log needs low above 0"),
        ({"type": "int", "low": 1.5, "high": 2.0}, "int needs whole numbers"),
        ({"type": "categorical"}, "categorical needs choices"),
        ({"type": "categorical", "choices": [1, "1"]}, "choices must differ"),
        ({"type": "categorical", "choices": [1], "low": 0.0}, "takes choices, not low"),
        ({"type": "categorical", "choices": [1], "when": {"2": {}}}, "when names '2'"),
        ({"type": "float", "low": 1.0, "high": 2.0, "choices": [1]}, "takes low and high, not choices"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(files, parameter, says):
    assert says in space_error(files, "training.normalize_reward", parameter)


def test_choices_have_texts_and_come_back_as_what_they_were():
    parameter = validate(Parameter, {"type": "categorical", "choices": [True, 64, "tanh", [64, 64], None, 0.5]}, "test")
    assert parameter.labels() == ["true", "64", "tanh", "[64, 64]", "null", "0.5"]
    assert [parameter.choice(label) for label in parameter.labels()] == list(parameter.choices)


def test_nested_parameters_are_walked_with_the_choices_they_depend_on(files):
    space = {
        "training.normalize_reward": {
            "type": "categorical",
            "choices": [True, False],
            "when": {"true": {"training.ppo.gamma": FLOAT}},
        }
    }
    config = load(Sweep, files.sweep(search_space=space))
    assert [(key, given) for key, _, given in points(config.search_space)] == [
        ("training.normalize_reward", {}),
        ("training.ppo.gamma", {"training.normalize_reward": True}),
    ]
    assert validate(Sweep, to_data(config), "again") == config


def test_the_config_of_a_trial_is_the_base_with_its_values_and_nothing_else(files):
    plan = plan_of(files)
    values = {"training.ppo.n_steps": 20, "training.learning_rate.initial": 0.01, "training.network.hidden": [8, 8]}
    config = plan.trial_config(values)
    assert config.training.ppo["n_steps"] == 20
    assert config.training.learning_rate.initial == 0.01
    assert config.training.network.hidden == (8, 8)
    before = {"training.ppo.n_steps": 10, "training.learning_rate.initial": 3e-4, "training.network.hidden": [4]}
    back = replace(plan, base=config).trial_config(before)
    assert back == plan.base
    assert validate(TrainExpert, yaml.safe_load(to_yaml(config)), "test") == config


def test_fresh_trainings_have_other_seeds_and_other_episodes_but_the_same_settings(files, tmp_path):
    plan = plan_of(files)
    trial, fresh = plan.job({}, 1, tmp_path), plan.job({}, 101, tmp_path, fresh=True)
    assert fresh.training.evaluation.seed != trial.training.evaluation.seed
    evaluation = trial.training.evaluation
    assert fresh.scaling.digest == trial.scaling.digest
    as_trial = replace(fresh, seed=1, training=replace(fresh.training, evaluation=evaluation), scaling=trial.scaling)
    assert as_trial == trial
    assert trial.convergence is None and trial.exact_budget


def test_trials_of_different_rollout_lengths_report_at_equal_steps(files):
    plan = plan_of(files)  # evaluations are due at 80, 160, 240
    assert [plan.reported_step(t) for t in (0, 79, 80, 120, 160, 239, 240)] == [0, 0, 80, 80, 160, 160, 240]
