"""What the pendulum never shows: discrete and unbounded actions, pictures, still worlds, and rules that stumble."""

import os
from dataclasses import replace

import numpy as np
import pytest
from gymnasium import spaces
from small_datasets import LINE, TASKED, dataset, findings, walk

from pipeline.data import UNKNOWN_SEED, EpisodeData
from pipeline.data.spaces import space_to_json
from pipeline.errors import BadInput
from pipeline.validation.facts import Context, Dataset
from pipeline.validation.inspection import inspect_dataset
from pipeline.validation.replay import first_difference, replay_episodes
from pipeline.validation.rules import (
    NotAsked,
    episodes_distinct,
    execution_noise,
    labels,
    precision,
    replay,
    same_space,
    seeds_reserved,
    seeds_unique,
    shares,
    time_alignment,
    validate,
)
from pipeline.validation.rules import spaces as declared_spaces

# --- alignment -------------------------------------------------------------------------------------------------------


def test_replay_says_why_it_is_not_run():
    data = walk(3, 20)

    def play(episode):
        raise BadInput("asked")

    with pytest.raises(NotAsked, match="no episode was to be simulated"):
        findings(replay, data, Context(replay=play, replay_episodes=0))
    assert [f.message for f in findings(replay, data, Context(replay=play))] == ["asked"] * 3
    data.arrays["seeds"][:] = UNKNOWN_SEED
    with pytest.raises(NotAsked, match="no episode has a known seed"):
        findings(replay, data, Context(replay=play))
    data.arrays["seeds"][1] = 7
    assert [f.episode for f in findings(replay, data, Context(replay=play))] == [1]


def test_an_episode_that_cannot_be_simulated_is_a_finding_and_the_others_go_on(good):
    def play(episode):
        if episode.scenario == "light":
            raise BadInput("no such scenario any more")
        return good.replay(episode)

    data = Dataset(good.trajectories.to_arrays(), good.metadata.to_data())
    found = findings(replay, data, replace(good.context, replay=play, replay_episodes=30))
    light = np.flatnonzero(good.trajectories.scenarios == "light").tolist()
    assert [finding.episode for finding in found] == light
    assert {finding.message for finding in found} == {"no such scenario any more"}
    assert data.notes == [f"re-simulation: {30 - len(light)} of 30 episodes bit-identical"]


def test_discrete_noise_shows_in_the_next_row_or_the_data_is_shifted():
    aligned = walk(20, 60)
    assert findings(time_alignment, aligned) == []
    assert "respond to noise at once" in aligned.notes[0]
    (late,) = findings(time_alignment, walk(20, 60, late=1))
    assert late.value == -1 and "stored 1 step late" in late.message


def test_few_rows_decide_nothing():
    data = walk(3, 20)
    assert findings(time_alignment, data) == []
    assert data.notes == ["alignment in time: not decided (strongest response 0.0 standard errors)"]


def test_more_features_than_rows_can_explain_still_show_the_noise():
    data = walk(5, 40, width=30)  # 61 columns and 200 rows
    assert findings(time_alignment, data) == []
    assert "respond to noise at once" in data.notes[0]


def test_two_long_episodes_and_pictures_are_not_judged_by_their_edges():
    rows = np.arange(18, dtype=np.float32).reshape(2, 9, 1)
    rows[:, 1] = rows[:, 0]  # in three episodes this would say that they are shifted
    data = dataset(rows, np.zeros((2, 8), np.int64))
    assert findings(time_alignment, data) == []
    pictures = np.random.default_rng(0).integers(0, 256, (4, 9, 3), dtype=np.uint8)
    data = dataset(pictures, np.zeros((4, 8), np.int64), space=spaces.Box(0, 255, (3,), np.uint8))
    assert findings(time_alignment, data) == []
    assert "not decided (no environment" in data.notes[0]
    pictures[:, 1] = pictures[:, 0]
    data = dataset(pictures, np.zeros((4, 8), np.int64), space=spaces.Box(0, 255, (3,), np.uint8))
    assert ["first two observations are equal in 100%" in f.message for f in findings(time_alignment, data)] == [True]


def test_standing_still_is_normal_where_nothing_ever_moves():
    rows = np.repeat(np.full((4, 1, 1), 0.5), 9, axis=1).astype(np.float32)
    assert findings(time_alignment, dataset(rows, np.zeros((4, 8), np.int64))) == []


def test_two_discrete_labels_in_a_thousand_may_be_as_good_as_equal_and_no_more():
    rows = np.zeros((4, 251, 1), np.float32)

    def wrong(count: int) -> list:
        actions = np.ones((4, 250), np.int64)
        actions[2, :count] = 0
        data = dataset(rows, actions, action_space=spaces.Discrete(2))
        return findings(labels, data, Context(act=lambda o: np.ones(len(o), np.int64)))

    assert wrong(1) == []
    assert [(f.episode, f.step, f.value) for f in wrong(2)] == [(2, 0, "[0]"), (2, 1, "[0]")]


def test_a_rule_that_stumbles_has_failed(good):
    report = validate(
        (good.trajectories, good.metadata), replace(good.context, act=lambda o: np.zeros((len(o), 7), np.float32))
    )
    wide = [f for f in report.findings if f.rule == "labels"]
    assert wide and not report.passed
    report = validate((good.trajectories, good.metadata), replace(good.context, act=lambda o: np.zeros(3, np.float32)))
    assert report.failed_rules == ("labels",)
    assert report.findings[0].message.startswith("the rule could not be answered: ValueError")
    assert report.summary() == f"quarantined by labels; first: {report.findings[0]}"


def test_a_dataset_that_passes_says_how_much_was_held_to_how_many_rules(good):
    report = validate((good.trajectories, good.metadata), good.context)
    rules = sum(outcome.state == "passed" for outcome in report.rules)
    assert report.summary() == f"validated: 30 episodes, 1200 steps, {rules} rules hold" and rules > 20


# --- replay ----------------------------------------------------------------------------------------------------------


def test_a_replay_departs_by_kind_by_length_or_by_a_bit(good):
    episode = good.trajectories.episode(0)
    again = good.replay(episode)
    assert first_difference(episode, again) is None
    wide = replace(again, observations=again.observations.astype(np.float64))
    assert (
        str(first_difference(episode, wide))
        == "observation at step 0: recorded 'float32 (3,)', replayed 'float64 (3,)'"
    )
    short = good.replay(replace(episode, executed_actions=episode.executed_actions[:10]))
    assert first_difference(episode, short).quantity == "length"
    assert (first_difference(episode, short).recorded, first_difference(episode, short).replayed) == (40, 10)
    was = replace(episode, metrics={**episode.metrics, "coverage": 0.45140081282712})
    for factor, departs in ((1 + 2**-52, False), (1 + 1e-9, True)):  # a figure's last digits are not held
        now = replace(again, metrics={**again.metrics, "coverage": factor * 0.45140081282712})
        assert (first_difference(was, now) is not None) == departs
    rewards = again.rewards.copy()
    rewards[4] += 0.5
    moved = replace(again, rewards=rewards)
    assert (first_difference(episode, moved).quantity, first_difference(episode, moved).step) == ("reward", 4)
    (same,) = replay_episodes(good.trajectories, good.replay, [0])
    assert same.identical and str(same) == "episode 0: bit-identical"
    (other,) = replay_episodes(good.trajectories, lambda *_: moved, [0])
    assert not other.identical and str(other).startswith("episode 0: differs in reward at step 4: recorded")


def test_a_closed_replay_makes_its_environments_again(good):
    episode = good.trajectories.episode(1)
    before = good.replay(episode)
    good.replay.close()
    again = good.replay(episode)
    assert np.array_equal(before.observations, again.observations)


# --- provenance ------------------------------------------------------------------------------------------------------


def test_seeds_that_nobody_wrote_down_are_for_imported_data_alone():
    data = walk(3, 20)
    data.arrays["seeds"][:] = [UNKNOWN_SEED, UNKNOWN_SEED, 4]
    assert [f.episode for f in findings(seeds_unique, data)] == [0, 1]
    assert [f.episode for f in findings(seeds_reserved, data, TASKED)] == [0, 1, 2]
    data.metadata["demonstrator"] = {"kind": "imported"}
    assert [f.episode for f in findings(seeds_unique, data)] == [0, 1]  # they followed from seeds that are listed
    data.metadata["seeds"] = []
    assert findings(seeds_unique, data) == [] and findings(seeds_reserved, data, TASKED) == []
    assert data.notes == ["the seeds of 2 of 3 episodes are not known"]


def test_seeds_of_imported_data_have_the_bits_that_they_have():
    data = walk(3, 20)
    data.arrays["seeds"][:] = [1 << 40, (1 << 63) - 1, 4]
    assert [f.episode for f in findings(seeds_unique, data)] == [0, 1]
    data.metadata["demonstrator"] = {"kind": "imported"}
    assert findings(seeds_unique, data) == []


def test_a_scenario_that_nobody_asked_for_is_named():
    data = walk(3, 20)
    data.metadata["filter"] = {"min_return": None, "only_success": False}
    for requested in ({"other": 1.0}, {"plain": 0.0}):
        data.metadata["requested_shares"] = requested
        assert [f.value for f in findings(shares, data) if f.bound == "= 0"][-1] == 3
    data.metadata["requested_shares"] = {"plain": 2.0}
    assert findings(shares, data) == []


# --- structure -------------------------------------------------------------------------------------------------------


def test_spaces_that_no_policy_takes_or_that_are_not_the_tasks_are_named():
    data = walk(3, 20)
    data.metadata["action_space"] = space_to_json(spaces.Dict({"a": spaces.Discrete(2)}))
    (finding,) = findings(declared_spaces, data)
    assert finding.bound == "a space that policies take" and finding.message.startswith("action_space: ")
    data = walk(3, 20)
    assert findings(declared_spaces, data, Context(observation_space=LINE, action_space=spaces.Discrete(3))) == []
    (finding,) = findings(declared_spaces, data, Context(action_space=spaces.Discrete(4)))
    assert finding.message == "action_space is not the one of the task's environment"


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (spaces.Dict({"a": spaces.Discrete(2), "b": LINE}), True),
        (spaces.Dict({"a": spaces.Discrete(3), "b": LINE}), False),
        (spaces.Dict({"a": spaces.Discrete(2)}), False),
        (spaces.Discrete(2), False),
    ],
)
def test_dict_spaces_are_the_same_when_all_their_parts_are(other, same):
    assert same_space(spaces.Dict({"b": LINE, "a": spaces.Discrete(2)}), other) is same


def test_boxes_are_the_same_to_the_last_bit_of_each_bound():
    box = spaces.Box(-1, 1, (2,), np.float32)
    assert same_space(box, spaces.Box(-1, 1, (2,), np.float32))
    assert not same_space(box, spaces.Box(-1, np.nextafter(np.float32(1), np.float32(2)), (2,), np.float32))
    assert not same_space(box, spaces.Box(np.nextafter(np.float32(-1), np.float32(-2)), 1, (2,), np.float32))
    assert not same_space(box, spaces.Box(-1, 1, (2,), np.float64))
    assert not same_space(box, spaces.Box(-1, 1, (3,), np.float32))


# --- values ----------------------------------------------------------------------------------------------------------


def test_precision_is_asked_of_floats_that_need_their_digits():
    pictures = np.zeros((2, 9, 3), np.uint8)
    assert findings(precision, dataset(pictures, np.zeros((2, 8), np.int64))) == []
    whole = np.arange(36, dtype=np.float32).reshape(2, 18, 1)  # no value needs its low bits
    assert findings(precision, dataset(whole, np.zeros((2, 17), np.int64))) == []
    exact = np.random.default_rng(0).normal(size=(12, 18, 1))
    exact[3] = exact[3].astype(np.float32)
    (finding,) = findings(precision, dataset(exact, np.zeros((12, 17), np.int64)))
    assert (finding.episode, finding.value) == (3, "float32")


def test_episodes_that_begin_and_end_alike_are_not_copies():
    rows = np.random.default_rng(1).normal(size=(1, 9, 1)).repeat(3, axis=0).astype(np.float32)
    rows[1, 4] += 1.0
    found = findings(episodes_distinct, dataset(rows, np.zeros((3, 8), np.int64)))
    assert [(f.episode, f.value) for f in found] == [(2, "copy of 0")]


def three_starts(episode: EpisodeData) -> EpisodeData:
    """A world that starts at 0, 1 or 2, as the seed says, and adds up the actions."""
    place = episode.seed % 3 + np.concatenate([[0], np.cumsum(episode.executed_actions)])
    return replace(episode, observations=place[:, None].astype(np.float32))


def test_copies_are_honest_where_their_own_seeds_lead_there():
    rows = (np.arange(9)[:, None] % 3 + np.arange(9))[:, :, None].astype(np.float32)  # whose seeds are 0 to 8
    data = dataset(rows, np.ones((9, 8), np.int64))
    small = Context(replay=three_starts, min_episodes=3)
    assert findings(episodes_distinct, data, small) == []
    assert data.notes == ["6 episodes equal an earlier one; re-simulation leads there from their own seeds"]
    for context in (
        Context(min_episodes=3),  # nobody can play them again
        replace(small, replay_episodes=0),
        replace(small, min_episodes=4),  # three demonstrations, each of them three times
        replace(small, replay=lambda episode: three_starts(replace(episode, seed=0))),
    ):
        found = findings(episodes_distinct, data, context)
        assert [(f.episode, f.value) for f in found][-1] == (8, "copy of 2"), context
    (*_, few) = findings(episodes_distinct, data, replace(small, min_episodes=4))
    assert few.message.endswith("a small world may lead to copies beside 4 others, here 3")
    data.arrays["seeds"][8] = 9  # from there the world starts at 0, not at 2
    assert [f.episode for f in findings(episodes_distinct, data, small)] == [8]
    data.arrays["seeds"][8] = UNKNOWN_SEED
    assert [f.episode for f in findings(episodes_distinct, data, small)] == [8]

    def refuses(episode: EpisodeData) -> EpisodeData:
        raise BadInput("no such seed")

    assert len(findings(episodes_distinct, data, replace(small, replay=refuses))) == 6


def test_random_actions_come_as_often_as_declared():
    def said(replaced: int, chance: float) -> list:
        clean = np.zeros((10, 100), np.int64)
        executed = clean.copy()
        executed.reshape(-1)[:replaced] = 1
        data = dataset(np.zeros((10, 101, 1), np.float32), clean, executed, action_space=spaces.Discrete(2))
        data.metadata["noise_std"] = chance
        return [f.value for f in findings(execution_noise, data)]

    # half of the random actions are the label; 6 standard deviations of 0.0095 are 0.057
    assert said(100, 0.2) == [] and said(156, 0.2) == [] and said(44, 0.2) == []
    assert said(158, 0.2) == [0.158] and said(42, 0.2) == [0.042]
    assert said(0, 0.05) == [0.0] and said(0, 0.049) == []  # 25 expected differences must show, fewer need not
    assert said(500, 1.0) == [] and said(500, 1.5) == [] and said(1000, 1.0) == [1.0]


def test_noise_that_is_too_large_once_is_told_by_its_step():
    rng, box = np.random.default_rng(2), spaces.Box(-2, 2, (1,), np.float32)
    clean = np.zeros((3, 20, 1), np.float32)
    executed = rng.normal(0, 0.2, clean.shape).clip(-1, 1).astype(np.float32)  # 0.1 half ranges of 2
    data = dataset(np.zeros((3, 21, 1), np.float32), clean, executed, action_space=box, noise_std=0.1)
    assert findings(execution_noise, data) == []
    executed[1, 7] = 1.75
    data = dataset(np.zeros((3, 21, 1), np.float32), clean, executed, action_space=box, noise_std=0.1)
    assert [(f.episode, f.step, f.value) for f in findings(execution_noise, data)] == [(1, 7, 1.75)]


def test_noise_of_unbounded_actions_has_no_scale_to_be_measured_by():
    actions = np.zeros((3, 20, 1), np.float32)
    data = dataset(np.zeros((3, 21, 1), np.float32), actions, actions + 9, action_space=LINE, noise_std=0.1)
    assert findings(execution_noise, data) == []


# --- inspection ------------------------------------------------------------------------------------------------------


def test_discrete_actions_are_counted_value_by_value(good):
    values = np.tile([3, 4, 4, 5], good.trajectories.steps // 4)
    trajectories = replace(good.trajectories, actions=values, executed_actions=values)
    metadata = replace(good.metadata, action_space=space_to_json(spaces.Discrete(4, start=3)))
    (histogram,) = inspect_dataset(trajectories, metadata).actions
    assert histogram.edges == (3.0, 4.0, 5.0, 6.0)
    assert histogram.counts == (300, 600, 300, 0)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="this system has no file that fails to be read")
def test_a_disk_that_does_not_give_a_file_is_no_verdict_on_the_data(tmp_path):
    (tmp_path / "trajectories.npz").symlink_to("/proc/self/mem")  # whoever reads its first byte gets EIO
    with pytest.raises(BadInput, match="Input/output error"):
        validate(tmp_path, Context())
    (tmp_path / "trajectories.npz").unlink()
    assert validate(tmp_path, Context()).failed_rules == ("readable",)
