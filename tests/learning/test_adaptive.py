"""The rules of an adaptive warm start, on made-up curves with answers worked by hand."""

from math import nan

import numpy as np
import pytest

from pipeline.learning.adaptive import Anchor, BurnIn, Trial, wide_std


@pytest.mark.parametrize(
    ("explained", "over"),  # shares of variance, rollout by rollout; the rollout that is none of the burn-in any more
    [
        ([0.5], 1),
        ([0.4, 0.1], 2),  # the cap: one rollout
        ([nan, 0.4], 2),  # returns that do not vary explain nothing
    ],
)
def test_the_burn_in_is_over_once_a_rollout_is_explained_or_at_its_cap(explained, over):
    rule = BurnIn()
    reasons = [rule.ends(share) for share in explained]
    assert [reason is not None for reason in reasons] == [False] * (over - 1) + [True]
    assert ("1 rollout is over" in reasons[-1]) == (over == 2)


def test_the_less_exact_the_clone_the_wider_what_is_tried():
    # six times its own standard deviation, at least 0.1, at most that of a training from scratch; its own from 0.5 on
    own = [0.001, 0.015, 0.1, 0.2, 0.49, 0.5, 3.0]
    assert wide_std(own, most=1.0) == pytest.approx([0.1, 0.1, 0.6, 1.0, 1.0, 0.5, 1.0])
    assert wide_std([0.01, 0.03, 0.1], most=0.15) == pytest.approx([0.1, 0.15, 0.1])
    assert wide_std([0.01, 0.03], most=0.05) == pytest.approx([0.05, 0.05])


def verdicts(*rollouts, clone=(10.0, 20.0, 30.0), environments=2):
    """What a trial says after each rollout, given as (environment, return) of the episodes that ended in it.

    The clone's episodes return 20 on average, with a standard deviation of 8.165.
    """
    trial = Trial([0.1], [None] * environments)
    said = []
    for ended in rollouts:
        for i, value in ended:
            trial.ended(i, value)
        said.append(trial.verdict(clone))
    return [None if verdict is None else verdict[0] for verdict in said]


def test_a_trial_waits_for_the_first_episode_of_every_environment_and_counts_no_other():
    # 13 and 12: 12.5 costs 7.5; those that an environment ended later are short ones first
    assert verdicts([(0, 13), (0, -99)], [], [(0, -99), (1, 12), (1, -99)]) == [None, None, True]


def test_a_wide_exploration_is_borne_where_it_costs_no_more_than_the_clones_episodes_differ_by():
    assert verdicts([(0, 12), (1, 12)]) == [True]  # 8 of 8.165
    assert verdicts([(0, 12), (1, 11)]) == [False]  # 8.5
    assert verdicts([(0, 5), (1, 5)], clone=(5.0, 5.0)) == [True]
    assert verdicts([(0, 5), (1, 4.9)], clone=(5.0, 5.0)) == [False]


def test_a_trial_ends_after_eight_rollouts_with_what_it_has_seen():
    assert verdicts([(1, 19)], *[[]] * 7) == [None] * 7 + [True]
    assert verdicts(*[[]] * 8) == [None] * 7 + [False]


def holds(*evaluations):
    """The hold after each evaluation, given as the returns of four episodes; the first is of the clone."""
    anchor, held = Anchor(), []
    for returns in evaluations:
        anchor.evaluated(np.array(returns, float))
        held.append(anchor.hold)
    return held


CLONE = [10, 20, 30, 40]
# differences 1, -1, 1, -1: 0 with a standard error of 0.577
LIKE_IT = [11, 19, 31, 39]
# differences -3, -1, -3, -1: -2, and two standard errors are 1.155; and the other way round
WORSE, BETTER = [7, 19, 27, 39], [13, 21, 33, 41]


def test_the_hold_lets_go_by_degrees_while_nothing_shows_the_policy_to_be_worse():
    assert holds(CLONE, LIKE_IT, LIKE_IT, CLONE, LIKE_IT, LIKE_IT) == [1, 0.5, 0.25, 0.125, 0, 0]


def test_the_hold_grows_again_where_the_policy_is_shown_to_be_worse():
    assert holds(CLONE, WORSE, LIKE_IT, WORSE) == [1, 1, 0.5, 1]
    assert holds(CLONE, BETTER, WORSE, WORSE, LIKE_IT) == [1, 0, 0.125, 0.25, 0.125]  # and also after it had let go


def test_the_hold_ends_for_good_where_the_policy_is_worse_a_second_time_in_spite_of_all_of_it():
    assert holds(CLONE, WORSE, WORSE, WORSE) == [1, 1, 0, 0]
    assert holds(CLONE, WORSE, LIKE_IT, WORSE, WORSE, WORSE, LIKE_IT) == [1, 1, 0.5, 1, 0, 0, 0]


def test_the_hold_ends_where_the_policy_is_shown_to_be_better():
    assert holds(CLONE, BETTER, BETTER) == [1, 0, 0]


def test_one_episode_shows_nothing():
    assert holds([5], [1], [9]) == [1, 0.5, 0.25]


def test_penalty_and_learning_rate_follow_the_hold():
    anchors = [Anchor(hold=hold) for hold in (1.0, 0.5, 0.0)]
    assert [anchor.penalty for anchor in anchors] == pytest.approx([1.0, 0.5, 0.0])
    assert [anchor.learning_rate_factor for anchor in anchors] == pytest.approx([0.3, 0.65, 1.0])
