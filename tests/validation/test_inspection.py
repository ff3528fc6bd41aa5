"""The inspection's numbers, against independent computations and examples worked by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces

from pipeline.config.loading import to_data
from pipeline.data.spaces import space_to_json
from pipeline.errors import BadInput
from pipeline.validation.inspection import action_jerk, inspect_dataset, robust_scores


def test_feature_statistics_are_those_of_numpy(good):
    inspection = inspect_dataset(good.trajectories, good.metadata)
    rows = good.trajectories.observations.astype(np.float64)
    for feature in inspection.features:
        column = rows[:, feature.index]
        assert feature.mean == pytest.approx(column.mean(), abs=1e-9)
        assert feature.std == pytest.approx(column.std(), rel=1e-9)
        assert (feature.min, feature.max, feature.constant) == (column.min(), column.max(), False)
    assert [f.high for f in inspection.features] == [1.0, 1.0, 8.0]


def test_histograms_count_every_step_and_every_episode(good):
    inspection = inspect_dataset(good.trajectories, good.metadata)
    assert sum(inspection.actions[0].counts) == good.trajectories.steps
    assert inspection.actions[0].edges[0] == -2.0 and inspection.actions[0].edges[-1] == 2.0
    assert all(sum(d.histogram.counts) == 30 for d in inspection.distributions)
    assert [d.name for d in inspection.distributions] == ["return", "length", "action_jerk", "success"]
    returns = good.trajectories.metrics["return"]
    assert inspection.distributions[0].percentiles["50"] == pytest.approx(np.median(returns))


def test_actions_outside_of_their_space_are_counted_where_they_are(good):
    def histograms(actions, space):
        data = replace(good.trajectories, actions=actions, executed_actions=actions)
        return inspect_dataset(data, replace(good.metadata, action_space=space_to_json(space))).actions

    discrete = np.arange(good.trajectories.steps) % 3
    assert histograms(discrete, spaces.Discrete(3))[0].edges == (0.0, 1.0, 2.0)
    discrete[[5, 6]] = -1, 4
    (shown,) = histograms(discrete, spaces.Discrete(3))
    assert shown.edges == (-1.0, 0.0, 1.0, 2.0, 3.0, 4.0) and sum(shown.counts) == good.trajectories.steps
    assert (shown.counts[0], shown.counts[4:]) == (1, (0, 1))
    discrete[7] = 2**40
    with pytest.raises(BadInput, match=r"action\[0\] has values from -1 to 1099511627776, its space from 0 to 2"):
        histograms(discrete, spaces.Discrete(3))
    beyond = good.trajectories.actions.copy()
    beyond[3, 0] = -6.0
    (shown,) = histograms(beyond, good.task.action_space)
    assert shown.edges[0] == -6.0 and shown.edges[-1] == 2.0
    assert (shown.counts[0], sum(shown.counts)) == (1, good.trajectories.steps)


def test_outcomes_by_scenario_are_means_over_its_episodes(good):
    inspection = inspect_dataset(good.trajectories, good.metadata)
    assert {s.scenario: s.episodes for s in inspection.scenarios} == good.metadata.scenario_coverage
    for outcome in inspection.scenarios:
        chosen = [i for i in range(30) if good.trajectories.scenarios[i] == outcome.scenario]
        expected = np.mean([good.trajectories.episode(i).metrics["return"] for i in chosen])
        assert outcome.means["return"] == pytest.approx(expected)


def test_robust_scores_worked_by_hand():
    # median 3, absolute deviations 2 1 0 1 97, MAD 1
    assert robust_scores(np.array([1.0, 2, 3, 4, 100])) == pytest.approx(np.array([-2, -1, 0, 1, 97]) * 0.6745)
    # most are equal: mean absolute deviation 10 / 5
    assert robust_scores(np.array([0.0, 0, 0, 0, 10]))[-1] == pytest.approx(10 * 0.7979 / 2)
    assert not robust_scores(np.ones(4)).any()


def test_action_jerk_does_not_reach_across_episodes(good):
    data = good.trajectories.select([0, 1])
    actions = np.zeros((80, 1), np.float32)
    actions[40:] = 2.0  # constant in each episode: no jerk at all, but a step between them
    assert action_jerk(replace(data, actions=actions), good.task.action_space).tolist() == [0.0, 0.0]
    actions[10] = 1.0  # second differences 1, -2, 1 in action units, half range 2, 38 of them
    assert action_jerk(replace(data, actions=actions), good.task.action_space)[0] == pytest.approx(4 / 2 / 38)


def test_jerk_of_discrete_actions_is_the_share_of_changes(good):
    data = good.trajectories.select([0])
    actions = np.zeros(40, np.int64)
    actions[20:] = 1
    changed = replace(data, actions=actions, executed_actions=actions)
    assert action_jerk(changed, spaces.Discrete(2)).tolist() == [pytest.approx(1 / 39)]


def test_an_episode_that_stands_out_is_named_with_the_reason(good):
    returns = np.linspace(-200, -190, 30)
    returns[17] = -5000.0
    actions = good.trajectories.actions.copy()
    actions[4 * 40 : 5 * 40, 0] = np.tile([-2, 2], 20)  # chatter in episode 4
    data = replace(good.trajectories, actions=actions, metrics={**good.trajectories.metrics, "return": returns})
    inspection = inspect_dataset(data, good.metadata)
    by_figure = {outlier.figure: outlier for outlier in reversed(inspection.outliers)}
    assert by_figure["return"].episode == 17 and "below the median" in by_figure["return"].reason
    assert by_figure["action_jerk"].episode == 4 and by_figure["action_jerk"].seed == int(data.seeds[4])
    assert "length" not in by_figure  # all are equally long
    scores = [abs(outlier.score) for outlier in inspection.outliers]
    assert scores == sorted(scores, reverse=True)


def test_the_inspection_is_strict_json(good):
    data = json.loads(json.dumps(to_data(inspect_dataset(good.trajectories, good.metadata)), allow_nan=False))
    assert data["episodes"] == 30 and data["features"][2]["low"] == -8.0


def test_what_is_not_finite_or_not_there_is_refused(good):
    broken = good.trajectories.observations.copy()
    broken[3, 1] = np.nan
    for data in (
        replace(good.trajectories, observations=broken),
        replace(good.trajectories, metrics={"return": np.full(30, np.nan)}),
        good.trajectories.select([]),
    ):
        with pytest.raises(BadInput):
            inspect_dataset(data, good.metadata)
