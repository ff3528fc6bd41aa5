"""The gate's decision, held against figures worked out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.loading import load_task, validate
from pipeline.config.stages import GateRule
from pipeline.envs.episodes import Episode
from pipeline.errors import BadInput
from pipeline.gate import GateDecision, PlayedEpisodes, check_rules, decide
from pipeline.play.evaluation import EpisodeRecords, run_episodes, summarise
from pipeline.tasks import Purpose, Task

N = 200
TASK = load_task(Path(__file__).parents[2] / "configs/tasks/social_nav.yaml")


def records(success=(N, 0), collisions=0, returns=None, scenarios=("a", "b"), extra=None) -> EpisodeRecords:
    """`success[0]` episodes succeed, after `success[1]` that fail; the first `collisions` collide."""
    succeeded, failing_first = success
    outcome = np.zeros(N)
    outcome[failing_first : failing_first + succeeded] = 1.0
    metrics = {
        "return": np.zeros(N) if returns is None else np.asarray(returns, float),
        "length": np.full(N, 10.0),
        "success": outcome,
        "collision": (np.arange(N) < collisions).astype(float),
        **(extra or {}),
    }
    return EpisodeRecords(tuple(Episode(scenarios[i % len(scenarios)], i) for i in range(N)), metrics, None, 10 * N)


def measured(seed=101, subject="candidate", scenario_set="train", **kwargs) -> PlayedEpisodes:
    return PlayedEpisodes(subject, scenario_set, seed, records(**kwargs))


def rule(metric="success_rate", scenario_set="train", **limits) -> GateRule:
    return validate(GateRule, {"scenario_set": scenario_set, "metric": metric, **limits}, "test")


# --- thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing_first", [0, 1, 20])  # the figure must not depend on the order of the episodes
def test_exactly_at_a_minimum_passes_and_one_episode_less_fails(failing_first):
    at = decide([rule(min=0.9)], [measured(success=(180, failing_first))])
    below = decide([rule(min=0.9)], [measured(success=(179, failing_first))])
    assert at.approved
    assert at.reasons == ()
    assert not below.approved
    assert below.rows[0].value == 0.895
    assert below.rows[0].missed_by == pytest.approx(0.005)


def test_exactly_at_a_maximum_passes_and_one_episode_more_fails():
    assert decide([rule("collision_rate", max=0.05)], [measured(collisions=10)]).approved
    above = decide([rule("collision_rate", max=0.05)], [measured(collisions=11)])
    assert not above.approved
    assert above.rows[0].missed_by == pytest.approx(0.005)


def test_every_rate_that_a_rule_can_name_passes_at_exactly_itself():
    refused = []
    for count in range(0, N + 1, 7):
        limit = count / N
        rules = [rule(name, **{end: limit}) for name in ("success_rate", "collision_rate") for end in ("min", "max")]
        if not decide(rules, [measured(success=(count, 0), collisions=count)]).approved:
            refused.append(count)
    assert refused == []


def test_the_smallest_step_beyond_a_limit_fails():
    assert not decide([rule(min=np.nextafter(0.9, 1))], [measured(success=(180, 0))]).approved
    assert not decide([rule("collision_rate", max=np.nextafter(0.05, 0))], [measured(collisions=10)]).approved


def test_means_and_quantiles_may_be_ruled_on():
    returns = np.arange(N, dtype=float)  # 0 .. 199: mean 99.5, median 99.5, 5th percentile 9.95
    subject = measured(returns=returns, extra={"jerk": np.full(N, 0.1)})
    rules = [
        rule("return_mean", min=99.5),
        rule("return_median", max=99.5),
        rule("return_p5", min=9.949),
        rule("length_mean", max=10),
        rule("jerk", max=0.1),
    ]
    assert decide(rules, [subject]).approved
    assert not decide([rule("return_p5", min=9.951)], [subject]).approved


# --- every seed, every rule, every subject ---------------------------------------------------------------------------


def test_one_seed_below_the_threshold_refuses_however_good_the_others_are():
    decision = decide([rule(min=0.9)], [measured(101), measured(102, success=(179, 0)), measured(103)])
    assert not decision.approved
    assert [row.seed for row in decision.rows if not row.holds] == [102]
    assert len(decision.reasons) == 1
    assert "seed 102" in decision.reasons[0]


def test_one_rule_that_fails_refuses():
    decision = decide([rule(min=0.9), rule("collision_rate", max=0.01)], [measured(collisions=3)])
    assert [row.holds for row in decision.rows] == [True, False]
    assert not decision.approved


def test_one_training_seed_that_fails_refuses_the_candidate():
    decision = decide([rule(min=0.9)], [measured(), measured(subject="training seed 2", success=(100, 0))])
    assert not decision.approved
    assert "training seed 2" in decision.reasons[0]


def test_a_rule_is_held_against_its_own_scenario_set_only():
    train, holdout = measured(success=(180, 0)), measured(scenario_set="holdout", success=(100, 0))
    rules = [rule(min=0.9), rule(scenario_set="holdout", min=0.5)]
    decision = decide(rules, [train, holdout])
    assert decision.approved
    assert [(row.scenario_set, row.value) for row in decision.rows] == [("train", 0.9), ("holdout", 0.5)]


def test_a_rule_that_was_not_tested_never_passes():
    with pytest.raises(ValueError, match="no measurement on scenario set 'holdout'"):
        decide([rule(min=0.9), rule(scenario_set="holdout", min=0.0)], [measured()])
    with pytest.raises(ValueError, match="no measurement"):
        decide([rule(min=0.0)], [])


def test_nothing_measured_is_no_approval():
    assert not GateDecision(()).approved
    assert not decide([], [measured()]).approved


def test_a_metric_that_the_task_does_not_measure_is_refused_by_name():
    known = ("success_rate", "path_efficiency", "return_mean", "return_p5", "length_max", "collision_rate")
    check_rules([rule(metric, min=0.0) for metric in known], TASK)
    with pytest.raises(BadInput, match=r"'sucess_rate' is not measured.*Did you mean 'success_rate'\?.*return_mean"):
        check_rules([rule("sucess_rate", min=0.9)], TASK)
    with pytest.raises(BadInput, match="'collision_rate' is not measured"):
        check_rules([rule("collision_rate", max=0.1)], replace(TASK, collision=None, thresholds={}))


def test_rules_may_name_exactly_what_episodes_of_a_task_are_summarised_by(in_repository):
    task = Task(load_task("configs/tasks/social_nav.yaml"))
    played = run_episodes(task, lambda seen: np.zeros((len(seen), 2)), task.episodes("train_small", 0, 2, Purpose.GATE))
    figures = summarise(played)
    check_rules([rule(figure, min=0.0) for figure in figures], task.config)
    said = task.config.unmeasured("rules", ["nothing"], spread=True)
    assert set(said.rpartition("It measures: ")[2].split(", ")) == set(figures)


def test_a_figure_that_is_not_a_number_holds_nothing():
    ill = measured(extra={"jerk": np.where(np.arange(N) == 3, np.nan, 0.0)})
    assert not decide([rule("jerk", max=1.0)], [ill]).approved
    assert not decide([rule("jerk", min=-1.0)], [ill]).approved


# --- confidence ------------------------------------------------------------------------------------------------------
# Wilson (1927) by hand, z = 1.959964: centre (p + z^2/2n) / (1 + z^2/n), half width
# z / (1 + z^2/n) sqrt(p (1 - p) / n + z^2 / 4n^2); for 190 of 200: 0.941520 -+ 0.031098.


def test_the_lower_end_of_a_rate_is_wilsons_by_hand():
    decision = decide([rule(min=0.9, confidence=0.95)], [measured(success=(190, 0))])
    assert decision.rows[0].value == 0.95
    assert decision.rows[0].compared == pytest.approx(0.910422, abs=1e-6)
    assert decision.approved
    assert not decide([rule(min=0.911, confidence=0.95)], [measured(success=(190, 0))]).approved


def test_all_successes_are_no_certainty():
    # n of n: lower end 1 / (1 + z^2/n) = 200 / 203.841459
    row = decide([rule(min=0.99, confidence=0.95)], [measured()]).rows[0]
    assert row.compared == pytest.approx(200 / 203.841459, abs=1e-8)
    assert not row.holds


def test_a_maximum_is_held_against_the_upper_end():
    # 0 of n: upper end z^2 / (n + z^2)
    row = decide([rule("collision_rate", max=0.0188, confidence=0.95)], [measured(collisions=0)]).rows[0]
    assert row.compared == pytest.approx(3.841459 / 203.841459, abs=1e-8)
    assert not row.holds
    assert decide([rule("collision_rate", max=0.0189, confidence=0.95)], [measured(collisions=0)]).approved


def test_more_confidence_asks_for_more():
    ends = [
        decide([rule(min=0.9, confidence=c)], [measured(success=(190, 0))]).rows[0].compared for c in (0.5, 0.9, 0.99)
    ]
    assert ends == sorted(ends, reverse=True)
    assert len(set(ends)) == 3


def test_the_confidence_bound_of_a_mean_agrees_with_the_normal_interval():
    returns = np.tile([0.0, 2.0], N // 2)  # mean 1, standard error 1 / sqrt(200)
    row = decide([rule("return_mean", min=0.5, confidence=0.95)], [measured(returns=returns)]).rows[0]
    assert row.compared == pytest.approx(1 - 1.959964 / np.sqrt(200), abs=0.006)
    again = decide([rule("return_mean", min=0.5, confidence=0.95)], [measured(returns=returns)]).rows[0]
    assert again.compared == row.compared


def test_confidence_in_a_quantile_is_refused():
    with pytest.raises(BadInput, match="confidence is for means and rates; 'return_p5' is neither"):
        check_rules([rule("return_p5", min=0, confidence=0.95)], TASK)


@pytest.mark.parametrize("confidence", [0, 1, 1.5, -0.1])
def test_a_confidence_must_lie_strictly_between_0_and_1(confidence):
    with pytest.raises(BadInput, match="confidence"):
        rule(min=0.9, confidence=confidence)


# --- reasons ---------------------------------------------------------------------------------------------------------


def test_reasons_name_everything_and_stand_worst_first():
    decision = decide(
        [rule(min=0.9), rule("collision_rate", max=0.05)],
        [measured(101, success=(170, 0), collisions=12), measured(102, success=(100, 0))],
    )
    assert [reason.split(":")[0] for reason in decision.reasons] == [
        "candidate, train, seed 102",
        "candidate, train, seed 101",
        "candidate, train, seed 101",
    ]
    assert "success_rate 0.5 (needs >= 0.9, missed by 0.4" in decision.reasons[0]
    assert "success_rate 0.85 (needs >= 0.9, missed by 0.05" in decision.reasons[1]
    assert "collision_rate 0.06 (needs <= 0.05, missed by 0.01" in decision.reasons[2]


def test_the_worst_scenario_is_named():
    failing = np.where(np.arange(N) % 2 == 0, 0.0, 1.0)  # scenario "a" always fails
    subject = PlayedEpisodes("candidate", "train", 1, records())
    subject.records.metrics["success"][:] = failing
    subject.records.metrics["collision"][:] = 1 - failing
    decision = decide([rule(min=0.9), rule("collision_rate", max=0.1)], [subject])
    assert [row.worst_scenario for row in decision.rows] == ["a", "a"]
    assert all("worst scenario: a" in reason for reason in decision.reasons)


def test_the_evidence_is_plain_json_with_every_row():
    import json

    decision = decide([rule(min=0.9), rule(min=0.9, confidence=0.95)], [measured(success=(180, 0))])
    data = json.loads(json.dumps(decision.to_json(), allow_nan=False))
    assert data["approved"] is False
    assert [row["holds"] for row in data["rows"]] == [True, False]
    assert data["rows"][1]["confidence"] == 0.95
    assert data["reasons"] == list(decision.reasons)
    assert "95% bound of success_rate" in data["reasons"][0]
