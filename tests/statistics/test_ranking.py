"""Several arms against one: the tests of single differences, their correction, and the ranking, worked by hand."""

import numpy as np
import pytest
from test_comparison import PRETRAINED, SCRATCH, SETTINGS, run

from pipeline.errors import BadInput
from pipeline.statistics.comparison import compare
from pipeline.statistics.ranking import SIGNIFICANCE, holm, pairs_needed, sign_flip_p


def test_the_signs_of_paired_differences_are_flipped_in_every_way():
    assert sign_flip_p([1.0, 1.0, 1.0], 0) == 2 / 8  # +++ and --- of eight are as far out
    assert sign_flip_p([5.0, 1.0], 0) == 2 / 4  # 6, 4, -4, -6: two are as far out as 6
    assert sign_flip_p([3.0, -3.0], 0) == 1.0
    assert sign_flip_p([0.0, 0.0], 0) == 1.0
    assert sign_flip_p([2.0, 1.0, 0.0], 0) == 4 / 8  # a zero has no sign: each way counts twice
    assert sign_flip_p([-0.5] * 5, 0) == 2 / 32
    assert sign_flip_p([3.0], 0) == 2 / 2  # one pair: either sign is as far out


def test_many_pairs_are_flipped_at_random_and_the_same_seed_gives_the_same_p():
    values = np.random.default_rng(0).standard_normal(30)
    assert sign_flip_p(values, 3) == sign_flip_p(values, 3)
    assert sign_flip_p(values - values.mean() + 2.0, 3) < 0.001


def test_holm_multiplies_the_smallest_by_all_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.5, 0.9]) == pytest.approx((1.0, 1.0))
    assert holm([0.01]) == (0.01,)


# 10,000 steps later than `PRETRAINED` with every seed, and 0.1 worse at the end than `SCRATCH`
NAIVE = [run(s, at, f) for s, at, f in ((1, 10_000, 0.80), (2, 20_000, 0.82), (3, 30_000, 0.81), (4, 20_000, 0.83))]


def test_arms_are_ranked_by_their_steps_against_scratch_and_two_are_not_ranked():
    assert compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, SETTINGS).ranking == ()
    result = compare({"scratch": SCRATCH, "naive": NAIVE, "pretrained": PRETRAINED}, SETTINGS)
    first, second = result.ranking
    assert (first.arm, second.arm) == ("pretrained", "naive")
    assert first.ratio == result.ratio  # what the verdict says of the same pairs
    assert second.ratio.value == pytest.approx(80_000 / 240_000)
    # all four seeds on one side: 2 of 16 sign patterns, times two arms
    assert first.ratio_p == second.ratio_p == first.difference_p == second.difference_p == 0.25
    assert first.difference.value == pytest.approx(result.decisive.contrasts["scratch"].difference.value)
    assert second.difference.value == pytest.approx(-0.1)
    assert first.said() == ""  # four seeds cannot show it
    assert (first.ratio_kind, second.ratio_kind) == (result.ratio_kind, "exact")
    assert result.verdict == compare({"scratch": SCRATCH, "pretrained": PRETRAINED}, SETTINGS).verdict


def test_of_an_arm_that_never_met_the_target_any_more_than_scratch_no_ratio_is_known():
    never = [run(seed, None, 0.5) for seed in range(4)]
    result = compare(
        {"scratch": never, "pretrained": [run(s, 10_000, 0.9) for s in range(4)], "naive": never}, SETTINGS
    )
    assert {one.arm: one.ratio_kind for one in result.ranking} == {"pretrained": "upper bound", "naive": None}


def test_seven_seeds_can_show_what_survives_the_correction():
    """2 of 128 sign patterns, times two arms: 1/32."""

    def arm(at: int, final: float):
        return [run(seed, at, final + seed / 1000) for seed in range(7)]

    result = compare(
        {"scratch": arm(60_000, 0.9), "pretrained": arm(10_000, 0.95), "naive": arm(20_000, 0.8)}, SETTINGS
    )
    assert [(one.arm, one.said()) for one in result.ranking] == [
        ("pretrained", "fewer steps, ends higher"), ("naive", "fewer steps, ends lower"),
    ]  # fmt: skip
    assert {p for one in result.ranking for p in (one.ratio_p, one.difference_p)} == {1 / 32}


def test_a_further_arm_with_other_seeds_or_another_budget_is_refused():
    with pytest.raises(BadInput, match=r"seeds are not matched: only from scratch \[4\], only 'naive' \[\]"):
        compare({"scratch": SCRATCH, "pretrained": PRETRAINED, "naive": NAIVE[:3]}, SETTINGS)
    other = [*NAIVE[:3], run(4, 20_000, 0.83, budget=200_000)]
    with pytest.raises(BadInput, match=r"budgets differ: \[100000, 200000\]"):
        compare({"scratch": SCRATCH, "pretrained": PRETRAINED, "naive": other}, SETTINGS)


def test_the_seeds_that_are_needed_are_the_fewest_on_which_the_best_of_all_arms_survives():
    assert [pairs_needed(arms) for arms in (1, 2, 6)] == [6, 7, 8]
    for arms in (1, 2, 5, 7):
        needed = pairs_needed(arms)
        survives = [
            holm([sign_flip_p([1.0] * n, 0)] + [1.0] * (arms - 1))[0] <= SIGNIFICANCE for n in (needed - 1, needed)
        ]
        assert survives == [False, True], arms
