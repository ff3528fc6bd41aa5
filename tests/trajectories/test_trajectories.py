"""Trajectories: offsets, selection, returns worked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.data import Trajectories, concatenate, content_digest
from pipeline.errors import BadInput


def small() -> Trajectories:
    """Two episodes of 2 and 3 steps; observation row = 10 * episode + t, action = 100 * episode + t."""
    lengths = np.array([2, 3])
    return Trajectories(
        observations=np.array([[0], [1], [2], [10], [11], [12], [13]], np.float32),
        actions=np.array([[0], [1], [100], [101], [102]], np.float32),
        executed_actions=np.array([[0], [1], [100], [101], [102]], np.float32),
        rewards=np.array([1, 2, 3, 4, 5], np.float32),
        terminations=np.array([False, True, False, False, False]),
        truncations=np.array([False, False, False, False, True]),
        lengths=lengths,
        seeds=np.array([7, 8]),
        scenarios=np.array(["a", "bc"]),
        metrics={"return": np.array([3.0, 12.0])},
    )


def same(a: Trajectories, b: Trajectories) -> bool:
    ours, theirs = a.to_arrays(), b.to_arrays()
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and np.array_equal(ours[name], theirs[name]) for name in ours
    )


def test_an_episode_has_one_observation_more_than_steps():
    episode = small().episode(1)
    assert episode.observations[:, 0].tolist() == [10, 11, 12, 13]
    assert episode.actions[:, 0].tolist() == [100, 101, 102]
    assert (episode.seed, episode.scenario, episode.metrics, len(episode)) == (8, "bc", {"return": 12.0}, 3)
    with pytest.raises(IndexError):
        small().episode(2)


def test_step_rows_are_those_before_each_step():
    data = small()
    assert data.observations[data.step_rows][:, 0].tolist() == [0, 1, 10, 11, 12]
    assert data.observations[data.step_rows + 1][:, 0].tolist() == [1, 2, 11, 12, 13]


def test_discounted_returns_worked_by_hand():
    # gamma 0.5: [1 + 0.5 * 2, 2] and [3 + 0.5 * (4 + 0.5 * 5), 4 + 0.5 * 5, 5]
    assert small().discounted_returns(0.5).tolist() == [2.0, 2.0, 6.25, 6.5, 5.0]


def test_only_a_truncated_episode_continues_with_its_final_value():
    # the terminated first episode ignores its 1000; the truncated one adds 0.5 * 8 after its last step
    returns = small().discounted_returns(0.5, np.array([1000.0, 8.0]))
    assert returns.tolist() == [2.0, 2.0, 7.25, 8.5, 9.0]


def test_a_part_of_the_episodes_lies_in_order_within_a_larger_part():
    many = concatenate([small()] * 10)
    many = replace(many, rewards=np.arange(len(many.rewards), dtype=np.float32))
    three, nine, all_of_them = (many.part(count).rewards.tolist() for count in (3, 9, 20))
    assert len(many.part(9)) == 9 and nine == sorted(nine)
    assert set(three) < set(nine) and all_of_them == many.rewards.tolist()


def test_selecting_and_concatenating_are_inverse():
    data = small()
    assert same(concatenate([data.select([0]), data.select([1])]), data)
    swapped = data.select([1, 0])
    assert swapped.observations[:, 0].tolist() == [10, 11, 12, 13, 0, 1, 2]
    assert swapped.actions[:, 0].tolist() == [100, 101, 102, 0, 1] and swapped.seeds.tolist() == [8, 7]
    assert same(data.select(np.array([False, True])), data.select([1]))
    assert len(data.select([])) == 0


def test_the_digest_changes_with_any_bit_and_with_names_dtypes_and_shapes():
    data = small()
    changed = data.rewards.copy()
    changed[2] = np.nextafter(changed[2], 9)
    others = [
        replace(data, rewards=changed),
        replace(data, rewards=data.rewards.astype(np.float64)),
        replace(data, metrics={"returns": data.metrics["return"]}),
        replace(data, observations=data.observations[:, 0]),
        data.select([1, 0]),
    ]
    assert len({content_digest(other) for other in [data, *others]}) == 6
    assert content_digest(small()) == content_digest(data) and len(content_digest(data)) == 36


def test_arrays_that_do_not_fit_the_lengths_are_refused():
    for name, array in (
        ("observations", np.zeros((6, 1), np.float32)),
        ("actions", np.zeros((4, 1), np.float32)),
        ("executed_actions", np.zeros((5, 2), np.float32)),
        ("rewards", np.zeros((5, 1), np.float32)),
        ("seeds", np.array([1])),
        ("lengths", np.array([2.0, 3.0])),
        ("lengths", np.array([-1, 6])),
        ("lengths", np.array([2**62, 2**62 + 5])),
        ("metrics", {"return": np.zeros(3)}),
        ("terminations", np.array(False)),
    ):
        with pytest.raises(BadInput, match=r"trajectories: \w+(\.return)? has .*, expected"):
            replace(small(), **{name: array})


def test_parts_that_differ_are_not_concatenated():
    data = small()
    with pytest.raises(BadInput, match="different arrays"):
        concatenate([data, replace(data, metrics={})])
    with pytest.raises(BadInput, match="rewards is float64"):
        concatenate([data, replace(data, rewards=data.rewards.astype(np.float64))])
    with pytest.raises(BadInput):
        concatenate([])
