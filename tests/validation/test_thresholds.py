"""Rules at their limits: what lies on a limit is let through or named, what lies just beyond is not, worked by hand."""

from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces
from small_datasets import LINE, TASKED, dataset, findings, walk

from pipeline.data import EpisodeData
from pipeline.data.spaces import space_to_json
from pipeline.errors import BadInput
from pipeline.report.text import markdown_page
from pipeline.tasks import Purpose
from pipeline.validation.alignment import onset_of
from pipeline.validation.facts import Approval, Context, Dataset
from pipeline.validation.findings import Finding, RuleOutcome, ValidationReport
from pipeline.validation.inspection import action_jerk, inspect_dataset
from pipeline.validation.replay import first_difference
from pipeline.validation.rules import (
    actions_in_space,
    actions_vary,
    clipped_squares,
    episodes_distinct,
    execution_noise,
    expert_approved,
    filter_held,
    no_empty_episode,
    observations_in_space,
    precision,
    replay,
    returns,
    seeds_reserved,
    seeds_unique,
    shares,
    time_alignment,
)

# --- alignment: the edges of episodes --------------------------------------------------------------------------------


def climbs(episodes: int, steps: int, doubled: int, still: int = 0) -> Dataset:
    """Every episode climbs by 1 a step from a height of its own; the first `doubled` begin with two equal rows.

    Of these, the first `still` do not move before their last step.
    """
    rows = 100.0 * np.arange(episodes)[:, None] + np.arange(steps + 1)
    rows[:doubled, 0] = rows[:doubled, 1]
    rows[:still, :-1] = rows[:still, :1]
    return dataset(rows[:, :, None].astype(np.float32), np.zeros((episodes, steps), np.int64))


def test_three_episodes_of_four_steps_are_judged_by_their_edges_and_nothing_less_is():
    (found,) = findings(time_alignment, climbs(3, 4, doubled=3))
    assert found.message == "the first two observations are equal in 100% of episodes: shifted by a step"
    assert findings(time_alignment, climbs(2, 4, doubled=2)) == []
    assert findings(time_alignment, climbs(3, 3, doubled=3)) == []


def test_doubled_first_rows_in_half_of_the_episodes_are_a_shift():
    assert [(f.value, f.bound) for f in findings(time_alignment, climbs(4, 8, doubled=2))] == [("50.0%", "< 50%")]
    assert findings(time_alignment, climbs(4, 8, doubled=1)) == []


def test_one_episode_in_fifty_that_stands_still_excuses_no_doubled_rows_two_do():
    (found,) = findings(time_alignment, climbs(50, 20, doubled=50, still=1))  # 9 of 450 rows looked at: 2 %
    assert found.value == "100.0%"
    assert findings(time_alignment, climbs(50, 20, doubled=50, still=2)) == []


def leaps(leap: float, landing: float = 1.0) -> np.ndarray:
    """(4, 12, 1) rows of episodes that go to and fro between 1 and -1, a usual step of 2, and leap in the last step.

    They start at 1 and land at `landing`: where episodes start, if that is 1.
    """
    swing = [1.0, -1.0] * 5
    return np.tile(np.array([*swing, landing + leap, landing], np.float32)[:, None], (4, 1, 1))


def judged(rows: np.ndarray, timed_out: int = 4) -> list:
    data = dataset(rows, np.zeros((len(rows), rows.shape[1] - 1), np.int64))
    ends = data.step_offsets[1:] - 1
    data.arrays["truncations"][ends[timed_out:]] = False
    data.arrays["terminations"][ends[timed_out:]] = True
    return findings(time_alignment, data)


def test_more_than_eight_usual_steps_to_where_episodes_start_are_a_roll():
    assert judged(leaps(16)) == []
    (found,) = judged(leaps(17))
    assert (found.value, found.bound) == (8.5, "<= 8")
    assert found.message == (
        "the last observation of episodes is 8.5 usual steps away from its neighbour and lies where episodes start: "
        "rolled over"
    )


def test_a_roll_the_other_way_lies_where_episodes_end():
    (found,) = judged(leaps(64)[:, ::-1])
    assert found.value == pytest.approx(32)
    assert found.message.startswith("the first observation") and "lies where episodes end" in found.message


def test_a_leap_that_lands_half_its_length_from_any_start_is_no_roll():
    assert judged(leaps(32, landing=17)) == []
    assert [f.value for f in judged(leaps(32, landing=16.5))] == [16]


def test_three_episodes_that_only_time_ended_are_enough_to_see_a_roll_two_are_not():
    assert len(judged(leaps(32), timed_out=3)) == 1
    assert judged(leaps(32), timed_out=2) == []


def test_neither_a_feature_that_never_changes_nor_the_unit_hides_a_roll():
    rows = leaps(32)
    (found,) = judged(np.concatenate([rows / 1024, np.full_like(rows, 7)], axis=2))
    assert found.value == 16


def test_where_most_steps_move_nothing_there_is_no_usual_step_to_compare_with():
    rows = np.full((4, 12, 1), 5, np.float32)
    rows[:, [0, -1]] = 0
    assert judged(rows) == []


def test_two_different_starts_are_enough_to_know_the_start_of_another_episode():
    rows = np.array([0, 100, 0, 100])[:, None] + np.arange(9)
    rows[0, -1] = 100
    found = judged(rows[:, :, None].astype(np.float32))
    assert [(f.episode, f.step, f.value) for f in found] == [(0, 8, "first of 1")]
    rows[[1, 3]] -= 100
    rows[0, -1] = 0
    assert judged(rows[:, :, None].astype(np.float32)) == []  # all start at 0, and one comes back


# --- alignment: the response to noise --------------------------------------------------------------------------------


def pushed(episodes: int, steps: int, *, late: int = 0, keep: float = 1.0, width: int = 1) -> Dataset:
    """A point that noise of -1 or 1 pushes, and nothing else: it keeps a share of its place, and the label is 0.

    Stored `late` steps late, or early; beyond the first of `width` features there is only chance.
    """
    rng, margin = np.random.default_rng(3), abs(late)
    noise = rng.choice([-1.0, 1.0], (episodes, steps + 2 * margin))
    place = np.empty((episodes, steps + 2 * margin + 1))
    place[:, 0] = rng.normal(size=episodes)
    for step in range(noise.shape[1]):
        place[:, step + 1] = keep * place[:, step] + noise[:, step] + 0.001  # a drift: it never comes back
    seen = place[:, margin + late : margin + late + steps + 1, None]
    rows = np.concatenate([seen, rng.normal(size=(episodes, steps + 1, width - 1))], axis=2).astype(np.float32)
    executed = noise[:, margin : margin + steps, None].astype(np.float32)
    space = spaces.Box(-np.inf, np.inf, (width,), np.float32)
    return dataset(rows, np.zeros_like(executed), executed, space=space, action_space=LINE, noise_std=1.0)


def answer(data: Dataset) -> str:
    """What the rule says of a dataset, in its finding or in its note."""
    found = findings(time_alignment, data)
    return found[0].message if found else data.notes[0]


@pytest.mark.parametrize(
    ("late", "said"),
    [
        (2, "from row t + -1 on: stored 2 steps late: the label leaks into the input"),
        (1, "from row t + 0 on: stored 1 step late: the label leaks into the input"),
        (-1, "from row t + 2 on: stored 1 step early"),
        (-2, "from row t + 3 on: stored 2 steps early"),
    ],
)
def test_how_late_or_early_rows_were_stored_is_said_in_words(late, said):
    assert answer(pushed(10, 40, late=late)) == f"observations respond to the action of step t {said}"


def test_a_hundred_rows_tell_and_the_first_of_each_episode_counts():
    assert "respond to noise at once" in answer(pushed(5, 20))
    assert answer(pushed(9, 11)) == "alignment in time: not decided (strongest response 0.0 standard errors)"


def test_what_the_row_before_explains_does_not_hide_the_noise():
    """A point that springs back: of its change 1 part in 20 is noise, and the place before explains the others."""
    springs = pushed(10, 40, keep=-0.9)
    assert "respond to noise at once" in answer(springs)
    springs.arrays["observations"] /= 1024  # in other units
    assert "respond to noise at once" in answer(springs)


def test_five_rows_for_every_column_are_needed_to_explain_anything():
    """1 + 2 x 10 columns for 10 features: 105 rows are just enough to see through the spring."""
    assert "respond to noise at once" in answer(pushed(5, 21, keep=-0.9, width=10))
    assert "not decided" in answer(pushed(4, 26, keep=-0.9, width=10))


def test_neither_a_feature_that_never_changes_nor_the_unit_hides_the_noise():
    data = walk(20, 60, width=2)
    data.arrays["observations"][:, 1] = 7
    data.arrays["observations"][:, 0] /= 1 << 20
    assert "respond to noise at once" in answer(data)
    data = walk(20, 60)
    data.metadata["action_space"]["n"] = 4  # an action that nobody ever takes
    assert "respond to noise at once" in answer(data)


def test_eight_standard_errors_decide():
    assert onset_of({-1: 0.0, 0: 8.0, 1: 0.0}) == 0
    assert onset_of({-1: 0.0, 0: 7.99, 1: 0.0}) is None


def test_the_onset_is_the_first_response_above_seven_standard_errors_and_three_tenths_of_the_strongest():
    assert onset_of({-1: 30.0, 0: 100.0}) == 0
    assert onset_of({-1: 30.1, 0: 100.0}) == -1
    assert onset_of({-1: 7.0, 0: 8.0}) == 0
    assert onset_of({-1: 7.1, 0: 8.0}) == -1


# --- alignment: re-simulation ----------------------------------------------------------------------------------------


def test_a_departing_replay_says_how_near_it_had_to_come():
    def play(episode: EpisodeData) -> EpisodeData:
        steps = np.arange(len(episode))
        rows = np.full((len(episode) + 1, 1), 5, np.float32)
        ends = {"terminations": steps < 0, "truncations": steps == len(episode) - 1}
        return replace(episode, observations=rows, rewards=np.zeros(len(episode), np.float32), **ends)

    data = climbs(3, 4, doubled=0)
    found = findings(replay, data, Context(replay=play))
    expected = [(k, 0, 100.0 * k, "= 5.0 (the same bits)") for k in range(3)]
    assert [(f.episode, f.step, f.value, f.bound) for f in found] == expected
    assert data.notes == ["re-simulation: 0 of 3 episodes bit-identical"]


def test_the_same_bits_are_more_than_equal_numbers(good):
    """0.0 and -0.0 are equal numbers."""
    episode = good.trajectories.episode(0)
    zero = replace(episode, rewards=np.zeros(40, np.float32))
    again = good.replay(episode)
    minus = replace(again, rewards=np.full(40, -0.0, np.float32))
    assert str(first_difference(zero, minus)) == "reward at step 0: recorded 0.0, replayed -0.0"


def test_rows_of_another_shape_are_another_kind_of_row(good):
    episode = good.trajectories.episode(0)
    again = good.replay(episode)
    narrow = replace(again, observations=again.observations[:, :2])
    assert (
        str(first_difference(episode, narrow))
        == "observation at step 0: recorded 'float32 (3,)', replayed 'float32 (2,)'"
    )


def test_a_replay_stops_where_the_episode_ends(good):
    episode = good.trajectories.episode(0)
    more = np.concatenate([episode.executed_actions, episode.executed_actions[:5]])
    assert len(good.replay(replace(episode, executed_actions=more)).rewards) == 40


# --- inspection ------------------------------------------------------------------------------------------------------


def test_a_robust_score_of_exactly_three_and_a_half_does_not_stand_out(good):
    """Median 0 and median absolute deviation 0.6745: the score of a value is the value."""

    def outliers(largest: float) -> list:
        returns = np.array([-0.6745, -0.6745, 0.0, 0.6745, largest])
        data = good.trajectories.select(range(5))
        found = inspect_dataset(replace(data, metrics={"return": returns}), good.metadata).outliers
        return [(o.episode, o.reason) for o in found if o.figure == "return"]

    assert outliers(3.5) == []
    assert outliers(4.0) == [(4, "return 4 is 4.0 robust standard deviations above the median 0")]


def test_jerk_is_measured_in_half_ranges_also_of_narrow_and_empty_ranges(good):
    data = good.trajectories.select([0])
    actions = np.zeros((40, 2), np.float32)
    actions[10, 0] = 0.5  # second differences 0.5, -1, 0.5, and 38 of them
    data = replace(data, actions=actions, executed_actions=actions)
    narrow = spaces.Box(np.float32([-0.5, 0]), np.float32([0.5, 0]))  # the second action can only be 0
    assert action_jerk(data, narrow).tolist() == [pytest.approx(2 / 0.5 / 38)]


def test_an_episode_too_short_for_a_second_difference_has_no_jerk(good):
    data = good.trajectories.select([0])
    ends = np.array([False, True])
    actions = np.float32([[0], [2]])
    short = replace(
        data, observations=data.observations[:3], actions=actions, executed_actions=actions, rewards=data.rewards[:2],
        terminations=ends, truncations=~ends & ends, lengths=np.array([2]),
    )  # fmt: skip
    assert action_jerk(short, good.task.action_space).tolist() == [0.0]


def test_histograms_of_actions_span_the_bounds_or_where_there_are_none_the_values(good):
    actions = np.linspace(-1, 0.5, good.trajectories.steps, dtype=np.float32)[:, None]
    data = replace(good.trajectories, actions=actions)
    (bounded,) = inspect_dataset(data, good.metadata).actions
    assert (bounded.edges[0], bounded.edges[-1]) == (-2, 2)
    (free,) = inspect_dataset(data, replace(good.metadata, action_space=space_to_json(LINE))).actions
    assert (free.edges[0], free.edges[-1]) == (-1, 0.5)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_one_infinity_of_either_sign_is_refused(value, good):
    observations = good.trajectories.observations.copy()
    observations[3, 1] = value
    with pytest.raises(BadInput, match="the observations hold a value that is not finite"):
        inspect_dataset(replace(good.trajectories, observations=observations), good.metadata)


# --- provenance ------------------------------------------------------------------------------------------------------


def test_seeds_are_numbers_of_31_bits_and_the_last_quarter_is_for_recording():
    data = climbs(4, 4, doubled=0)
    data.arrays["seeds"] = np.array([0, (1 << 31) - 1, 1 << 31, -1])
    assert [f.episode for f in findings(seeds_unique, data)] == [2, 3]
    low = int(Purpose.RECORD) << 29
    data.arrays["seeds"] = np.array([low - 1, low, low + (1 << 29) - 1, low + (1 << 29)])
    assert [f.episode for f in findings(seeds_reserved, data, TASKED)] == [0, 3]


@pytest.mark.parametrize(
    ("only_success", "min_return", "bounds"),
    [(False, None, {"2 +- 1"}), (True, None, {">= 1"}), (False, -5.0, {">= 1"})],
)
def test_shares_are_exact_up_to_one_episode_and_after_a_filter_one_of_each_is_enough(only_success, min_return, bounds):
    def said(scenarios: str) -> set[str]:
        data = climbs(4, 4, doubled=0)
        data.metadata["filter"] = {"only_success": only_success, "min_return": min_return}
        data.metadata["requested_shares"] = {"a": 0.25, "b": 0.25}
        data.arrays["scenarios"] = np.array(list(scenarios))
        return {f.bound for f in findings(shares, data)}

    assert said("aabb") == said("abbb") == said("aaab") == set()
    assert said("bbbb") == bounds


def test_what_is_exactly_as_good_as_the_filter_asks_is_kept():
    data = climbs(3, 4, doubled=0)
    data.arrays.update({"metric.return": np.array([-5.0, -5.1, 2.0]), "metric.success": np.array([1.0, 1.0, 0.0])})
    data.metadata["filter"] = {"only_success": False, "min_return": -5.0}
    assert [(f.episode, f.value) for f in findings(filter_held, data)] == [(1, -5.1)]
    data.metadata["filter"] = {"only_success": True, "min_return": None}
    assert [(f.episode, f.value) for f in findings(filter_held, data)] == [(2, 0.0)]


def approved(moment: str, digest: str, *periods: Approval) -> list[str]:
    """Messages about a dataset of version 3 with a digest, recorded at a moment."""
    expert = {"kind": "expert", "version": "3", "digest": digest}
    data = climbs(3, 4, doubled=0)
    data.metadata.update(demonstrator=expert, created_at=moment)
    return [f"{f.message}: {f.bound}" for f in findings(expert_approved, data, Context(approvals=periods))]


def test_an_approval_holds_from_its_first_second_to_its_last():
    period = Approval("3", "old", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")
    late = ["version 3 was not the approved expert at that time: within 2026-01-01T00:00:00Z to 2026-02-01T00:00:00Z"]
    assert approved("2026-01-01T00:00:00Z", "old", period) == approved("2026-02-01T00:00:00Z", "old", period) == []
    assert approved("2025-12-31T23:59:59Z", "old", period) == approved("2026-02-01T00:00:01Z", "old", period) == late


def test_an_approval_is_one_of_bytes_at_a_time():
    old = Approval("3", "old", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z")
    new = Approval("3", "new", "2026-02-02T00:00:00Z")
    assert approved("2026-03-01T00:00:00Z", "new", old, new) == []
    (wrong,) = approved("2026-03-01T00:00:00Z", "old", old, new)  # these bytes, then; other bytes, now
    assert wrong.startswith("version 3 was not the approved expert at that time") and wrong.endswith("Z to now")
    assert approved("2026-03-01T00:00:00Z", "new") == ["version 3 was never approved: approved versions: none"]


# --- report ----------------------------------------------------------------------------------------------------------


def test_a_report_says_where_a_finding_lies_as_far_as_that_is_known():
    whole, episode, step = (Finding(1, "0", "wrong", *place, rule="ends") for place in ((), (4,), (4, 0)))
    assert str(whole) == "ends: dataset: wrong (value 1, bound 0)"
    assert str(episode) == "ends: episode 4: wrong (value 1, bound 0)"
    assert str(step) == "ends: episode 4, step 0: wrong (value 1, bound 0)"
    rules = (RuleOutcome("ends", "It <ends>.", "failed", 3), RuleOutcome("digest", "It *fits*.", "passed", 0))
    report = ValidationReport((whole, episode, step), rules, 5, 20, "d", (), 20, 0)
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in markdown_page("validation", report=report).splitlines()
    ]
    assert ["ends", "", "", "1", "0", "wrong"] in cells and ["ends", "4", "0", "1", "0", "wrong"] in cells
    assert ["ends", "failed (3)", "It &lt;ends>."] in cells and ["digest", "passed", "It &#42;fits&#42;."] in cells


# --- structure -------------------------------------------------------------------------------------------------------


def test_an_episode_of_one_step_is_an_episode():
    data = climbs(3, 4, doubled=0)
    data.arrays["lengths"] = np.array([1, 0, 2])
    assert [f.episode for f in findings(no_empty_episode, data)] == [1]


# --- values ----------------------------------------------------------------------------------------------------------


def test_the_bounds_of_a_space_belong_to_it():
    box = spaces.Box(-2, 2, (1,), np.float32)
    actions = np.float32([-2, 0, 2, 2.5])[None, :, None]
    data = dataset(np.zeros((1, 5, 1), np.float32), actions, action_space=box)
    assert [(f.step, f.value) for f in findings(actions_in_space, data)] == [(3, 2.5), (3, 2.5)]  # label and executed
    data = dataset(np.zeros((1, 5, 1), np.float32), -actions, action_space=box)
    assert [(f.step, f.value) for f in findings(actions_in_space, data)] == [(3, -2.5), (3, -2.5)]


def test_pictures_are_held_to_the_bounds_of_their_space():
    picture = np.uint8([[[10], [200], [9], [201]]])
    data = dataset(picture, np.zeros((1, 3), np.int64), space=spaces.Box(10, 200, (1,), np.uint8))
    assert [(f.step, f.value) for f in findings(observations_in_space, data)] == [(2, 9), (3, 201)]


def test_a_stored_return_may_be_a_ten_thousandth_off_and_no_more():
    data = climbs(3, 4, doubled=0)  # all rewards are 0
    data.arrays["metric.return"] = np.array([1e-4, -1e-4, 1.01e-4])
    assert [f.episode for f in findings(returns, data)] == [2]


def test_one_action_is_no_constant_two_equal_ones_are():
    one, two = (dataset(np.zeros((1, n + 1, 1), np.float32), np.ones((1, n), np.int64)) for n in (1, 2))
    assert findings(actions_vary, one) == []
    assert [f.value for f in findings(actions_vary, two)] == ["constant: [1]"]


def still_in(episodes: int, steps: int) -> list:
    """Ten episodes, of which some have one action throughout."""
    actions = np.tile(np.arange(steps) % 2, (10, 1))
    actions[:episodes] = 1
    return [f.episode for f in findings(actions_vary, dataset(np.zeros((10, steps + 1, 1), np.float32), actions))]


def test_one_still_episode_in_ten_is_accepted_and_below_ten_steps_any_number():
    assert still_in(1, 10) == []
    assert still_in(2, 10) == [0, 1]
    assert still_in(2, 9) == []


def coarse(episodes: int, steps: int, dtype: type = np.float32) -> list:
    """One episode of half precision among others; the second feature counts steps, which any precision holds."""
    rows = np.random.default_rng(0).normal(size=(episodes, steps + 1, 2)).astype(dtype)
    bits = rows.view(np.uint32)
    bits |= 1  # every value of the others needs its last digit
    rows[2] = rows[2].astype(np.float16)
    rows[:, :, 1] = np.arange(steps + 1)
    return [f.episode for f in findings(precision, dataset(rows, np.zeros((episodes, steps), np.int64)))]


def test_a_coarse_episode_is_told_where_more_than_nine_values_in_ten_are_fine():
    assert coarse(11, 10) == [2]
    assert coarse(10, 10) == []  # nine in ten
    assert coarse(11, 9) == []  # nine steps may be chance


def test_copies_with_the_same_gap_are_copies():
    rows = np.random.default_rng(1).normal(size=(1, 9, 1)).repeat(3, axis=0).astype(np.float32)
    rows[:, 4] = np.nan
    found = findings(episodes_distinct, dataset(rows, np.zeros((3, 8), np.int64)))
    assert [(f.episode, f.value) for f in found] == [(1, "copy of 0"), (2, "copy of 0")]


def noisy(noise: np.ndarray, std: float) -> list:
    """Values of findings about executed actions that are noise around labels of 0, in half ranges of 2."""
    executed = noise[None, :, None].astype(np.float32)
    rows, box = np.zeros((1, len(noise) + 1, 1), np.float32), spaces.Box(-2, 2, (1,), np.float32)
    data = dataset(rows, np.zeros_like(executed), executed, action_space=box, noise_std=std)
    return [f.value for f in findings(execution_noise, data)]


def test_a_noise_of_eight_standard_deviations_may_be_chance():
    noise = np.tile([0.125, -0.125], 30)
    noise[7] = 2.0  # the standard deviation is 0.125 half ranges: 0.25
    assert noisy(noise, 0.125) == []
    noise[7] = 2.125
    assert noisy(noise, 0.125) == [2.125]


def test_the_spread_of_noise_has_six_standard_errors_of_room():
    """Of 18 values the standard error is a sixth: twice the declared spread is just possible."""
    noise = np.tile([0.5, -0.5], 9)
    assert noisy(noise, 0.125) == []
    assert noisy(noise * 1.25, 0.125) == [0.625]


def test_noise_of_half_the_declared_strength_is_not_that_noise():
    """Of 72 values the standard error is a twelfth: half the declared spread is just possible, of 80 it is not."""
    noise = np.tile([0.126, -0.126], 40)
    assert noisy(noise[:72], 0.125) == []
    assert noisy(noise, 0.125) == [pytest.approx(0.126)]


def test_noise_that_the_bounds_cut_off_is_expected_to_be_smaller():
    """Mean and deviation of a clipped square, against a million draws; half of it is gone where a label is a bound."""
    draws = np.random.default_rng(0).standard_normal(1_000_000)
    for low, high in ((-np.inf, np.inf), (-1.0, 2.0), (0.0, 0.5), (-3.0, 0.0), (-0.1, 0.1)):
        squares = np.clip(draws, low, high) ** 2
        mean, deviation = clipped_squares(np.array([low]), np.array([high]))
        assert mean[0] == pytest.approx(squares.mean(), rel=0.01)
        assert deviation[0] == pytest.approx(squares.std(), rel=0.01)
    assert clipped_squares(np.array([0.0]), np.array([np.inf]))[0][0] == pytest.approx(0.5)


def test_ten_steps_without_any_noise_are_no_noise():
    assert noisy(np.zeros(10), 0.125) == [0.0]
    assert noisy(np.zeros(9), 0.125) == []


def test_the_share_of_random_actions_has_six_standard_errors_of_room():
    """Half are random and half of those the label again: of 12 actions the standard error is an eighth."""

    def all_of(steps: int) -> list:
        clean = np.zeros((1, steps), np.int64)
        rows = np.zeros((1, steps + 1, 1), np.float32)
        data = dataset(rows, clean, clean + 1, action_space=spaces.Discrete(2), noise_std=0.5)
        return [f.value for f in findings(execution_noise, data)]

    assert all_of(12) == []
    assert all_of(13) == [1.0]
