"""The verdict on a clone, at each of its bounds, by figures worked out by hand."""

import dataclasses
import json
from math import inf

import numpy as np
import pytest

from pipeline.config.loading import to_data
from pipeline.config.training import Judgement
from pipeline.statistics.imitation_verdict import Rollouts, difference, judge

SETTINGS = Judgement()


def rate(successes: int, episodes: int = 100) -> np.ndarray:
    """(1, episodes) the first so many are 1."""
    return (np.arange(episodes) < successes).astype(np.float64)[None]


def successes(
    clone: int, untrained: int = 0, constant: int = 0, demonstrator: int = 100, episodes: int = 100, drawn: int = 0
):
    of = [rate(count, episodes) for count in (clone, untrained, drawn, constant, demonstrator)]
    return Rollouts(*of[:3], *(one for (one,) in of[3:]))


def returns(
    clone: float, untrained: float, constant: float, demonstrator: float, drawn: float | None = None
) -> Rollouts:
    """Ten episodes; everybody's returns vary alike with the episode. Unless it is given, random play is untrained."""
    of = [clone, untrained, untrained if drawn is None else drawn, constant, demonstrator]
    clone, untrained, drawn, constant, demonstrator = (value + np.linspace(-5, 5, 10) for value in of)
    return Rollouts(clone[None], untrained[None], drawn[None], constant, demonstrator)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_a_difference_of_rates_is_newcombes_own_example():
    """Newcombe 1998, table II, (a): 56/70 - 48/80, method 10: 0.0524 to 0.3339."""
    found = difference(rate(56, 70), rate(48, 80), 0.95, paired=False)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_equal_rates_of_few_episodes_are_no_certainty():
    found = difference(rate(5, 5), rate(5, 5), 0.95)
    assert found.value == 0 and found.high == -found.low == pytest.approx(1 - 5 / (5 + 1.96**2), abs=1e-3)


def test_a_difference_of_returns_is_students_t_of_the_episodes_differences():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t of 2 degrees of freedom 4.3027."""
    found = difference(np.array([[11.0, 22.0, 33.0]]), np.array([[10.0, 20.0, 30.0]]), 0.95)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_an_unpaired_difference_has_the_degrees_of_freedom_of_the_smaller_sample():
    """Variances 1 / 3 and 4 / 2: standard error sqrt(7 / 3), t of 1 degree of freedom 12.7062."""
    found = difference(np.array([[1.0, 2.0, 3.0]]), np.array([[5.0 - 2**0.5, 5.0 + 2**0.5]]), 0.95, paired=False)
    half = 12.7062 * (1 / 3 + 4 / 2) ** 0.5
    assert (found.value, found.low, found.high) == pytest.approx((-3, -3 - half, -3 + half), abs=1e-3)


def test_the_returns_of_several_clones_are_averaged_episode_by_episode():
    two = np.array([[10.0, 20.0, 30.0], [12.0, 24.0, 36.0]])
    assert difference(two, np.array([[10.0, 20.0, 30.0]]), 0.95) == difference(
        np.array([[11.0, 22.0, 33.0]]), np.array([[10.0, 20.0, 30.0]]), 0.95
    )


def test_a_clone_five_times_over_says_no_more_than_once():
    once, five = ({"success": dataclasses.replace(successes(4), clones=np.repeat(rate(4), k, axis=0))} for k in (1, 5))
    assert judge(once, SETTINGS) == judge(five, SETTINGS)
    # 4 of 100 from 0.0157, 0 of 100 to 0.0370: 0.04 - sqrt(0.0243^2 + 0.0370^2) < 0
    assert judge(five, SETTINGS).state == "failed"


def test_one_episode_bounds_nothing():
    found = difference(np.array([[7.0]]), np.array([[2.0]]), 0.95)
    assert (found.value, found.low, found.high) == (5, -inf, inf)


# --- the verdict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rollouts", "state", "share"),
    [
        (successes(90), "learnt", 0.9),  # just so far of the way, though the demonstrator is shown to be better
        (successes(89), "partly", 0.89),
        (successes(17, demonstrator=20, episodes=20), "learnt", 0.85),  # not shown to be behind: 0.15 - 0.19 < 0
        # Wilson: 4 of 20 from 0.0807, 0 of 20 to 0.1611: 0.2 - sqrt(0.1193^2 + 0.1611^2) = -0.0005
        (successes(4, demonstrator=20, episodes=20), "failed", 0.2),
        # 5 of 20 from 0.1119: 0.25 - sqrt(0.1381^2 + 0.1611^2) = 0.0378
        (successes(5, demonstrator=20, episodes=20), "partly", 0.25),
        (successes(60, constant=50), "failed", 0.2),  # Wilson: 0.1 - sqrt(0.0979^2 + 0.0962^2) < 0
        (successes(60, untrained=60), "failed", 0.6),  # it is what it was before
        (successes(60, drawn=60), "failed", 0.0),  # PPO from scratch begins there
        (successes(100, constant=20, untrained=50), "learnt", 1.0),
    ],
)
def test_a_clone_is_judged_by_success(rollouts, state, share):
    verdict = judge({"success": rollouts, "return": returns(0, 0, 0, 0)}, SETTINGS)
    assert (verdict.state, verdict.figure) == (state, "success")
    assert verdict.share == pytest.approx(share)
    assert json.loads(json.dumps(to_data(verdict)))["state"] == state


def test_the_bounds_are_settings():
    assert judge({"success": successes(89)}, dataclasses.replace(SETTINGS, learnt_share=0.89)).state == "learnt"
    few = {"success": successes(4, demonstrator=20, episodes=20)}
    assert judge(few, dataclasses.replace(SETTINGS, confidence=0.9)).state == "partly"


def test_a_certain_step_that_leads_nowhere_is_none():
    # 4 of 100 points of the way, by every episode: certain, and less than a twentieth
    for reached, state in ((4, "failed"), (5, "partly")):
        verdict = judge({"return": returns(reached, -10, 0, 100)}, SETTINGS)
        assert (verdict.state, verdict.share) == (state, pytest.approx(reached / 100))
        assert verdict.gain.low > 0
    assert judge({"return": returns(4, -10, 0, 100)}, dataclasses.replace(SETTINGS, least_share=0.04)).state == "partly"


def test_where_success_tells_nobody_apart_the_return_does():
    everybody = successes(100, untrained=100, constant=100)
    verdict = judge({"success": everybody, "return": returns(50, 0, 10, 110)}, SETTINGS)
    assert (verdict.state, verdict.figure, verdict.share) == ("partly", "return", pytest.approx(0.4))
    assert verdict.reasons[0] == "success does not tell the demonstrator from the best constant action"
    assert (verdict.clone, verdict.untrained, verdict.constant, verdict.demonstrator) == (50, 0, 10, 110)
    assert verdict.gain.value == 40 and verdict.shortfall.value == 60


def test_where_the_untrained_policy_succeeds_as_the_demonstrator_does_the_return_decides():
    """Success that is guessed low: a policy which only stands has it, and a clone that walks cannot have more."""
    easy = successes(100, untrained=100, constant=5)
    verdict = judge({"success": easy, "return": returns(95, 12, 0, 100, drawn=0)}, SETTINGS)
    assert (verdict.state, verdict.figure, verdict.share) == ("learnt", "return", pytest.approx(0.95))
    assert verdict.reasons[0] == "success does not tell the demonstrator from the untrained policy"
    # where the return does not tell it from that either, success remains, and nothing was learnt
    verdict = judge({"success": easy, "return": returns(100, 100, 0, 100)}, SETTINGS)
    assert (verdict.state, verdict.figure) == ("failed", "success")


def test_a_demonstrator_no_better_than_a_constant_action_is_not_worth_imitating():
    """However near to it the clone came."""
    verdict = judge({"success": successes(10, constant=10, demonstrator=10), "return": returns(5, 1, 5, 5)}, SETTINGS)
    assert (verdict.state, verdict.share) == ("failed", None)
    assert "not worth imitating" in verdict.reasons[0]
    assert "by success (difference 0, " in verdict.reasons[0] and "by return (difference 0, " in verdict.reasons[0]
    assert "imitation/share" not in verdict.metrics()


def test_a_demonstrator_no_better_than_random_play_is_not_worth_imitating():
    """Where a constant action and the untrained policy crash, and so would be beaten by anybody."""
    verdict = judge({"return": returns(-96, -800, -823, -178, drawn=-178)}, SETTINGS)
    assert (verdict.state, verdict.share) == ("failed", None)
    assert verdict.reasons[0].startswith(
        "the demonstrator is not shown to be better than random play by return (difference 0, "
    )
    assert verdict.gain.value == 82 and verdict.metrics()["imitation/random_play"] == -178


def test_a_clone_that_is_behind_random_play_failed_though_its_demonstrator_is_not():
    verdict = judge({"return": returns(-200, -800, -823, 100, drawn=-178)}, SETTINGS)
    assert verdict.state == "failed" and verdict.share == pytest.approx(-22 / 278) and verdict.gain.value == -22
    assert any("better than random play" in why for why in verdict.reasons)


def test_the_way_to_the_demonstrator_begins_where_chance_comes_to():
    """At a constant action or at random play, whichever is better: here at -178, and a twentieth of 100 is 5."""
    for reached, state, of_the_way in (
        (4, "failed", "4%"),
        (5, "partly", "5%"),
        (89, "partly", "89%"),
        (90, "learnt", "90%"),
    ):
        verdict = judge({"return": returns(reached - 178, -800, -823, -78, drawn=-178)}, SETTINGS)
        assert (verdict.state, verdict.share) == (state, pytest.approx(reached / 100))
        assert f"{of_the_way} of the way from random play to the demonstrator" in verdict.reasons


def test_success_that_random_play_has_too_tells_nobody_apart():
    easy = successes(100, drawn=100)
    verdict = judge({"success": easy, "return": returns(95, 12, 0, 100, drawn=20)}, SETTINGS)
    assert (verdict.state, verdict.figure, verdict.share) == ("learnt", "return", pytest.approx(75 / 80))
    assert verdict.reasons[0] == "success does not tell the demonstrator from random play"


def test_what_a_filter_kept_of_random_play_may_be_worth_imitating_though_its_demonstrator_is_not():
    """Of what is random the few episodes that succeed are imitated, and the clone is better than all of it."""
    nobody = successes(0, demonstrator=0)
    for clone, filtered, state in ((28, True, "partly"), (28, False, "failed"), (-178, True, "failed")):
        figures = {"success": nobody, "return": returns(clone, -800, -823, -178, drawn=-178)}
        verdict = judge(figures, SETTINGS, filtered=filtered)
        assert (verdict.state, verdict.share) == (state, None)
        assert ("the clone is better than all of these" in verdict.sentence()) == (state == "partly")
        assert (verdict.figure == "return") == (state == "partly")


def test_a_clone_of_which_no_epoch_beat_the_untrained_policy_failed_whatever_it_does():
    verdict = judge({"success": successes(95)}, SETTINGS, beats_untrained=False)
    assert verdict.state == "failed" and "no epoch beat the untrained policy" in verdict.sentence()


def test_the_better_of_untrained_policy_and_constant_action_is_named():
    worse = judge({"success": successes(50, untrained=60, constant=40)}, SETTINGS)
    assert worse.state == "failed" and any("better than the untrained policy" in why for why in worse.reasons)
    worse = judge({"success": successes(50, untrained=40, constant=60)}, SETTINGS)
    assert worse.state == "failed" and any("better than the best constant action" in why for why in worse.reasons)


def test_a_demonstrator_that_was_only_recorded_is_held_against_it_unpaired_and_said_so():
    rollouts = dataclasses.replace(successes(45, demonstrator=0), demonstrator=rate(30, 60)[0], asked=False)
    verdict = judge({"success": rollouts}, SETTINGS, allowance="recorded under noise 0.3")
    assert (verdict.state, verdict.demonstrator) == ("learnt", 0.5)
    assert verdict.reasons == (
        "90% of the way from the best constant action to the demonstrator",
        "recorded under noise 0.3",
    )


def test_clones_are_pooled():
    """2 of 20 alone is nothing; five clones with 2 of 20 each are 10 of 100."""
    one = successes(2, demonstrator=20, episodes=20)
    many = dataclasses.replace(one, clones=np.repeat(one.clones, 5, 0), untrained=np.repeat(one.untrained, 5, 0))
    assert judge({"success": one}, SETTINGS).state == "failed"
    pooled = judge({"success": many}, SETTINGS)
    assert pooled.clone == 0.1 and pooled.gain.value == pytest.approx(0.1)


def test_one_episode_is_too_few_for_a_return():
    one = Rollouts(*(np.array([[value]]) for value in (9.0, 0.0, 0.5)), np.array([1.0]), np.array([10.0]))
    verdict = judge({"return": one}, SETTINGS)
    assert verdict.state == "failed"
    assert to_data(verdict)["gain"] == {"value": 8.0, "low": None, "high": None}
    assert set(verdict.metrics()) == {
        f"imitation/{name}"
        for name in ("clone", "untrained", "random_play", "constant_action", "demonstrator", "gain", "shortfall")
    }


def test_against_a_demonstrator_whose_figures_nobody_recorded_a_clone_is_at_most_partly_one():
    for clone, state in ((100, "partly"), (1, "failed")):
        of = dataclasses.replace(successes(clone), demonstrator=np.full(1, np.nan), asked=False)
        verdict = judge({"success": of}, SETTINGS)
        assert verdict.state == state and verdict.share is None and "nobody recorded" in verdict.reasons[0]
        assert "demonstrator not known" in verdict.sentence() and json.loads(
            json.dumps(to_data(verdict), allow_nan=False)
        )
