"""The rules of an adaptive warm start, on made-up curves with answers worked by hand."""

from math import nan

import pytest

from pipeline.learning.adaptive import Anchor, BurnIn, exploring_std


@pytest.mark.parametrize(
    ("explained", "over"),  # shares of variance, rollout by rollout; the rollout with which the burn-in is over
    [
        ([0.6, 0.7], 2),
        ([0.6, 0.4, 0.5, 0.5], 4),  # not two in a row before
        ([0.9, nan, 0.9, 0.9], 4),  # returns that do not vary explain nothing
        ([-3.0, 0.1, 0.2, 0.3, 0.3], 5),  # the cap: 400 of 3,200 steps
    ],
)
def test_the_burn_in_is_over_once_two_rollouts_in_a_row_are_explained_or_at_its_cap(explained, over):
    rule = BurnIn()
    reasons = [rule.ends(100 * (i + 1), share, 3200) for i, share in enumerate(explained)]
    assert [reason is not None for reason in reasons] == [False] * (over - 1) + [True]
    assert ("an eighth of the budget" in reasons[-1]) == (over == 5)


def test_the_less_exact_the_clone_the_wider_it_explores():
    # six times its own standard deviation, at least 0.1, at most that of a training from scratch
    assert exploring_std([0.001, 0.015, 0.1, 0.2, 3.0]) == pytest.approx([0.1, 0.1, 0.6, 1.0, 1.0])


def holds(figures, budget=8000):
    """The hold after an evaluation every 100 steps; the first is of the clone. A while without gain is 1,000 steps."""
    anchor, held = Anchor(), []
    for i, figure in enumerate(figures):
        anchor.evaluated(100 * i, figure, budget)
        held.append(anchor.hold)
    return held


def test_the_hold_halves_with_every_evaluation_that_beats_the_clone_and_then_ends():
    assert holds([5, 6, 4, 5, 7, 8, 3, 9, 1]) == [1, 0.5, 0.5, 0.5, 0.25, 0.125, 0.125, 0, 0]


def test_a_bad_anchor_is_left_after_a_while_without_gain():
    assert holds([5] + [4] * 12) == [1] * 10 + [0] * 3
    # a gain begins the while anew
    assert holds([5, 4, 6] + [4] * 12) == [1, 1] + [0.5] * 10 + [0] * 3
    assert holds([5] + [nan] * 12) == [1] * 10 + [0] * 3


def test_penalty_and_learning_rate_follow_the_hold():
    anchors = [Anchor(hold=hold) for hold in (1.0, 0.5, 0.0)]
    assert [anchor.penalty for anchor in anchors] == pytest.approx([1.0, 0.5, 0.0])
    assert [anchor.learning_rate_factor for anchor in anchors] == pytest.approx([0.3, 0.65, 1.0])
