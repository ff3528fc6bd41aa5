"""Objectives and constraints on curves worked by hand."""

import numpy as np
import pytest

from pipeline.config.loading import load_task, validate
from pipeline.config.sweep import Objective
from pipeline.errors import BadInput
from pipeline.play.evaluation import with_snqi
from pipeline.sweep.objectives import (
    Contender,
    Evaluation,
    FreshResult,
    NotMeasured,
    check_measurable,
    feasible,
    maximised,
    running_value,
    violations,
    winner,
    worst,
    worth,
)

NAN = float("nan")


def curve(*points):
    """`(timestep, value)`; None leaves the figure out of that evaluation."""
    return [Evaluation(step, {} if value is None else {"x": value}) for step, value in points]


REGULAR = curve((0, 0.0), (100, 0.4), (200, 0.8), (300, 0.6))
IRREGULAR = curve((0, 0.0), (10, 1.0), (110, 0.5))
MISSING = curve((0, 0.2), (100, None), (200, 0.6), (300, NAN), (400, 0.4))


def value(name, points, maximise=True, n=None):
    return running_value(Objective(name=name, metric="x", n=n), points, maximise)


def test_the_best_checkpoint_is_the_highest_or_lowest_value_measured():
    assert value("best_checkpoint", REGULAR) == 0.8
    assert value("best_checkpoint", REGULAR, maximise=False) == 0.0
    assert (value("best_checkpoint", MISSING), value("best_checkpoint", MISSING, maximise=False)) == (0.6, 0.2)


def test_the_final_evaluation_is_the_last_and_no_earlier_one_stands_for_it():
    assert value("final_eval", REGULAR) == 0.6
    for unmeasured in (curve((0, 0.5), (10, None)), curve((0, 0.5), (10, NAN)), []):
        with pytest.raises(NotMeasured, match="last evaluation"):
            value("final_eval", unmeasured)


def test_the_mean_of_the_last_n_is_over_what_was_measured():
    known = [(REGULAR, 1, 0.6), (REGULAR, 2, 0.7), (REGULAR, 9, 0.45), (IRREGULAR, 2, 0.75), (MISSING, 2, 0.5)]
    assert [value("last_n_mean", points, n=n) for points, n, _ in known] == pytest.approx([mean for *_, mean in known])


def test_the_area_counts_time_and_not_evaluations():
    # trapezoids: 100 * (0.2 + 0.6 + 0.7) / 300
    assert value("auc", REGULAR) == pytest.approx(0.5)
    # (10 * 0.5 + 100 * 0.75) / 110, where the mean of the three values would be 0.5
    assert value("auc", IRREGULAR) == pytest.approx(80 / 110)
    # straight lines over the gaps: (200 * 0.4 + 200 * 0.5) / 400
    assert value("auc", MISSING) == pytest.approx(0.45)
    assert value("auc", curve((50, 0.3))) == 0.3


def test_an_evaluation_on_the_line_between_its_neighbours_changes_no_area():
    between = [*REGULAR[:2], Evaluation(150, {"x": 0.6}), *REGULAR[2:]]
    assert value("auc", between) == pytest.approx(value("auc", REGULAR))


def test_what_was_never_measured_has_no_value():
    for name, n in (("best_checkpoint", None), ("last_n_mean", 2), ("auc", None)):
        with pytest.raises(NotMeasured, match="'x' was measured at none of 1 evaluations"):
            value(name, curve((0, None)), n=n)


# --- the quality index ------------------------------------------------------------------------------------------------

EPISODES = {
    "success": np.array([1.0, 0.0]),
    "time_norm": np.array([0.5, 1.0]),
    "collision": np.array([0.0, 1.0]),
    "near_misses": np.array([0.0, 40.0]),
    "comfort_exposure": np.array([0.0, 0.2]),
    "force_exceed_events": np.array([0.0, 100.0]),
    "jerk_mean": np.array([0.0, 0.0]),
}


@pytest.fixture
def social_nav(in_repository):
    return load_task("configs/tasks/social_nav.yaml")


def means(episodes):
    names = {"success": "success_rate", "collision": "collision_rate"}
    return {names.get(name, name): float(values.mean()) for name, values in episodes.items()}


def index_of(social_nav, final, episodes):
    return worth(Objective(name="episodic_snqi"), social_nav, [], final, episodes)


def test_the_quality_index_is_the_mean_over_episodes(social_nav):
    of_each = with_snqi(social_nav, EPISODES)["snqi"]
    assert index_of(social_nav, {}, {"snqi": np.array([0.25, 0.75])}) == (0.5, "episodes")
    assert index_of(social_nav, {}, EPISODES) == (pytest.approx(of_each.mean()), "episodes")


def test_without_episodes_the_index_of_the_averages_is_taken_and_said_to_be(social_nav):
    averages = {name: np.array([values.mean()]) for name, values in EPISODES.items()}
    by_hand = with_snqi(social_nav, averages)["snqi"][0]
    assert index_of(social_nav, means(EPISODES), None) == (pytest.approx(by_hand), "aggregate")
    # success 0.5, time 0.75, collision 0.5 are linear in the index; clipped terms are not, so the two may differ
    assert by_hand != pytest.approx(with_snqi(social_nav, EPISODES)["snqi"].mean())


def test_a_missing_average_is_named_and_never_counted_as_zero(social_nav):
    figures = means(EPISODES)
    del figures["jerk_mean"]
    with pytest.raises(NotMeasured, match="'jerk_mean'"):
        index_of(social_nav, figures, None)


# --- choosing by name -------------------------------------------------------------------------------------------------


def test_an_objective_is_computed_by_its_name(social_nav):
    known = [("best_checkpoint", None, 0.8), ("final_eval", None, 0.6), ("last_n_mean", 2, 0.7), ("auc", None, 0.5)]
    for name, n, expected in known:
        objective = Objective(name=name, metric="x", n=n)
        assert worth(objective, social_nav, REGULAR, {}, None) == (pytest.approx(expected), "aggregate")


def test_the_direction_follows_what_the_task_says_of_the_metric(social_nav):
    assert maximised(Objective(), social_nav)
    assert maximised(Objective(name="episodic_snqi"), social_nav)
    for metric in ("success_rate", "path_efficiency"):
        assert maximised(Objective(metric=metric), social_nav)
    for metric in ("collision_rate", "comfort_exposure", "jerk_mean", "near_misses", "time_norm"):
        assert not maximised(Objective(metric=metric), social_nav)
    assert maximised(Objective(metric="jerk_mean", direction="maximize"), social_nav)
    assert not maximised(Objective(metric="success_rate", direction="minimize"), social_nav)


def test_an_objective_or_constraint_that_the_task_does_not_measure_is_refused(social_nav):
    check_measurable(Objective(metric="path_efficiency"), {"comfort_exposure": 0.1}, "eval_episode_return", social_nav)
    with pytest.raises(
        BadInput, match=r"objective.metric: 'sucess_rate' is not measured.* Did you mean 'success_rate'"
    ):
        check_measurable(Objective(metric="sucess_rate"), {}, "success_rate", social_nav)
    with pytest.raises(BadInput, match="best_metric: 'happiness' is not measured"):
        check_measurable(Objective(), {}, "happiness", social_nav)
    data = {
        "name": "plain", "environment": {"id": "CartPole-v1"}, "success": {"return_at_least": 1.0}, "thresholds": {},
        "scenarios": {"default": {}}, "scenario_sets": {"train": {"default": 1}},
    }  # fmt: skip
    plain = validate(type(social_nav), data, "test")
    with pytest.raises(BadInput, match="constraint_collision_rate_max: 'collision_rate' is not measured"):
        check_measurable(Objective(), {"collision_rate": 0.1}, "success_rate", plain)
    with pytest.raises(BadInput, match="'snqi' is not measured in task 'plain'"):
        check_measurable(Objective(name="episodic_snqi"), {}, "success_rate", plain)


# --- constraints ------------------------------------------------------------------------------------------------------


def test_exactly_at_a_limit_is_feasible_and_above_is_not():
    limits = {"collision_rate": 0.05}
    assert feasible(violations(limits, {"collision_rate": float(np.mean([1.0] * 10 + [0.0] * 190))}))
    assert not feasible(violations(limits, {"collision_rate": 0.055}))
    assert violations(limits, {"collision_rate": 0.07})["collision_rate"] == pytest.approx(0.02)
    assert feasible({})


@pytest.mark.parametrize("figures", [{}, {"collision_rate": NAN}])
def test_what_was_not_measured_is_not_safe(figures):
    with pytest.raises(NotMeasured, match="'collision_rate'"):
        violations({"collision_rate": 0.05}, figures)


def test_a_trial_is_as_safe_as_its_least_safe_seed():
    seeds = [{"a": -0.1, "b": 0.0}, {"a": 0.2, "b": -0.3}]
    assert worst(seeds) == {"a": 0.2, "b": 0.0}


# --- the winner on fresh seeds ----------------------------------------------------------------------------------------


def contender(trial, values, excess=-0.1, sweep_value=1.0):
    fresh = [
        FreshResult(seed, value, {} if value is None else {"collision_rate": excess}, {}, None if value else "crashed")
        for seed, value in enumerate(values)
    ]
    return Contender(trial, sweep_value, tuple(fresh))


def test_the_winner_is_the_best_on_fresh_seeds_and_not_the_best_in_the_sweep():
    lucky, steady = contender(1, [0.5, 0.7], sweep_value=0.99), contender(2, [0.8, 0.8], sweep_value=0.9)
    assert winner([lucky, steady], maximise=True) is steady
    assert winner([lucky, steady], maximise=False) is lucky
    assert steady.fresh_value == pytest.approx(0.8)


def test_no_infeasible_unfinished_or_default_contender_wins():
    unsafe, broken, default = contender(1, [0.9], 0.01), contender(2, [0.95, None]), contender(None, [0.99])
    safe = contender(3, [0.2])
    assert winner([unsafe, broken, default, safe], True) is safe
    assert winner([unsafe, broken, default], True) is None
    assert broken.fresh_value is None
