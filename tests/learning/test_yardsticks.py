"""What clones are held against, and how near they come step by step, by figures worked out by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces

from pipeline.config.loading import validate
from pipeline.config.stages import Pretrain
from pipeline.config.training import Network
from pipeline.data import Trajectories
from pipeline.errors import BadInput
from pipeline.learning.yardsticks import (
    best_constant,
    evidence,
    imitated,
    judged_episodes,
    numbers,
    play_yardsticks,
)
from pipeline.play.demonstrators import Demonstrator
from pipeline.play.evaluation import run_episodes
from pipeline.policies import build_policy
from pipeline.policies.units import Affine, Scaling
from pipeline.tasks import Purpose, Task

BOX = spaces.Box(-1, 1, (2,), np.float32)
SEEN = spaces.Box(-1, 1, (3,), np.float32)


def trajectories(actions: np.ndarray, episodes: int = 4) -> Trajectories:
    steps = len(actions)
    observations = np.random.default_rng(0).uniform(-1, 1, (steps + episodes, 3)).astype(np.float32)
    ends = np.arange(1, steps + 1) % (steps // episodes) == 0
    return Trajectories(
        observations=observations,
        actions=actions,
        executed_actions=actions,
        rewards=np.ones(steps, np.float32),
        terminations=ends,
        truncations=np.zeros(steps, bool),
        lengths=np.full(episodes, steps // episodes),
        seeds=np.arange(episodes),
        scenarios=np.array(["default"] * episodes),
    )


def linear(weight: np.ndarray, bias: np.ndarray, space=BOX, scaling: Scaling = Scaling()):  # noqa: B008
    """A policy whose output is `weight @ observation + bias`."""
    policy = build_policy(SEEN, space, Network(hidden=()), 1, scaling)
    with torch.no_grad():
        policy.action_net.weight.copy_(torch.as_tensor(weight))
        policy.action_net.bias.copy_(torch.as_tensor(bias))
    return policy


@pytest.mark.parametrize(
    ("space", "actions", "best"),
    [
        (BOX, [[0.5, -1.0], [0.1, 1.0], [0.0, 0.3]], [0.2, 0.1]),
        (spaces.Discrete(3), [2, 0, 2, 1], 2),
        (
            spaces.MultiDiscrete([3, 2]),
            [[2, 1], [0, 1], [0, 1], [1, 0], [2, 0]],
            [0, 1],
        ),  # as a whole, not by component
        (spaces.MultiBinary(2), [[1, 0], [1, 0], [0, 1]], [1, 0]),
    ],
)
def test_the_best_constant_action_is_the_mean_or_the_most_frequent_one(space, actions, best):
    found = best_constant(space, np.array(actions, space.dtype))
    assert found.dtype == space.dtype and found == pytest.approx(np.array(best))
    assert space.contains(found[()] if found.shape else np.int64(found))


def test_actions_as_numbers():
    assert numbers(BOX, np.array([[2.0, -0.5]])).tolist() == [[1.0, -0.5]]
    assert numbers(spaces.Discrete(3), np.array([1, 2])).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert numbers(spaces.MultiDiscrete([2, 3]), np.array([[1, 0]])).tolist() == [[0, 1, 1, 0, 0]]
    assert numbers(spaces.MultiBinary(2), np.array([[1, 0]])).tolist() == [[0, 1, 1, 0]]


def test_the_share_is_0_of_the_constant_action_1_of_the_demonstrators_and_counts_every_element_alike():
    weight, train, held_out = np.array([[0.5, 0, 0], [0, 0.02, 0]], np.float32), np.array([0, 1, 2]), np.array([3])
    data = trajectories(np.zeros((400, 2), np.float32))
    data = dataclasses.replace(data, actions=data.observations[data.step_rows] @ weight.T)
    constant = best_constant(BOX, data.select(train).actions)
    exact, flat, half = linear(weight, [0, 0]), linear(0 * weight, constant), weight.copy()
    half[1], offset = 0, constant[1]  # one of two elements by heart, the other constant
    found = imitated(exact, flat, data, train, held_out)
    assert (found.held_out, found.train, found.untrained) == pytest.approx((1, 1, 0), abs=1e-5)
    assert imitated(linear(half, [0, offset]), flat, data, train, held_out).train == pytest.approx(0.5, abs=1e-5)
    assert set(found.metrics()) == {
        "imitation/held_out_share", "imitation/train_share", "imitation/untrained_held_out_share",
    }  # fmt: skip


def test_of_discrete_actions_the_share_is_that_of_the_errors():
    """Six of ten labels are 0: always 0 is wrong in 4, always 1 in 6 (and no better than constant)."""
    space, labels = spaces.Discrete(2), np.array([0, 0, 0, 1, 1] * 8)
    data, zero = trajectories(labels), np.zeros((2, 3), np.float32)
    always = [linear(zero, bias, space) for bias in ([1.0, 0.0], [0.0, 1.0])]
    found = imitated(always[1], always[0], data, np.array([0, 1, 2]), np.array([3]))
    assert (found.held_out, found.untrained) == pytest.approx((1 - 6 / 4, 0))


def test_of_actions_that_never_vary_no_share_is_known():
    data = trajectories(np.full((40, 2), 0.5, np.float32))
    policy = linear(np.zeros((2, 3), np.float32), [0.5, 0.5])
    assert np.isnan(imitated(policy, policy, data, np.array([0, 1, 2]), np.array([3])).held_out)


def test_evidence_is_of_the_network_and_in_its_own_units():
    data = trajectories(np.random.default_rng(1).uniform(-1, 1, (80, 2)).astype(np.float32))
    units = Scaling(
        Affine(np.full(3, 0.5, np.float32), np.full(3, 2, np.float32)), Affine(*np.ones((2, 2), np.float32))
    )
    zero = np.zeros((2, 3), np.float32)
    how = imitated(linear(zero, [5, 0]), linear(zero, [0, 0]), data, np.array([0, 1, 2]), np.array([3]))
    plain, scaled = (evidence(linear(zero, [5, 0], scaling=s), how, data, 3, 0.4) for s in (Scaling(), units))
    seen = data.observations[data.step_rows]
    assert plain.features == pytest.approx(seen) and scaled.features == pytest.approx((seen - 0.5) / 2)
    assert plain.learnt_labels == pytest.approx(data.actions) and scaled.learnt_labels == pytest.approx(
        data.actions - 1
    )
    assert plain.at_bounds == (1.0, 0.0)  # 5 is cut to 1
    assert np.isnan(plain.previous[::20]).all() and plain.previous[1:20] == pytest.approx(data.actions[:19])
    assert plain.episodes.tolist() == np.repeat(range(4), 20).tolist()
    deep = build_policy(SEEN, BOX, Network(hidden=(8,)), 1)
    assert evidence(deep, how, data, 3, 0.4).saturated == 0
    with torch.no_grad():
        deep.mlp_extractor.policy_net[0].bias[:6] = 100
    assert evidence(deep, how, data, 3, 0.4).saturated == 6 / 8


# --- played ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(cartpole) -> Task:
    return Task(cartpole)


def balance(observations: np.ndarray) -> np.ndarray:
    return (observations[:, 2] + 0.5 * observations[:, 3] > 0).astype(np.int64)


class Metadata:
    """What is read of a dataset's metadata."""

    def __init__(self, noise_std: float = 0.0, only_success: bool = False) -> None:
        self.noise_std, self.filter = noise_std, {"only_success": only_success, "min_return": None}


def test_yardsticks_play_the_first_final_episodes_and_the_task_chooses_the_figure(task, cartpole):
    settings = {"task": "none", "final_episodes": 8, "judgement": {"episodes": 5}, "evaluation": {"episodes": 4}}
    config, data = validate(Pretrain, settings, "test"), trajectories(np.array([1, 1, 0, 1] * 4))
    episodes = judged_episodes(task, config)
    assert len(episodes) == 5
    found = play_yardsticks(task, config, data, Metadata(), lambda: Demonstrator(balance, {}))
    ones = run_episodes(task, lambda seen: np.ones(len(seen), np.int64), episodes)
    assert found.constant.metrics["return"].tolist() == ones.metrics["return"].tolist()
    assert found.demonstrator.metrics["success"].tolist() == [1.0] * 5
    assert (found.asked, found.allowance, found.filtered) == (True, "", False)
    kept = play_yardsticks(task, config, data, Metadata(only_success=True), lambda: Demonstrator(balance, {}))
    assert (kept.asked, kept.filtered) == (True, True) and "without the filter" in kept.allowance
    assert found.steps == found.constant.metrics["length"].sum() + 5 * 100
    longer = run_episodes(task, balance, [*episodes, *task.episodes("train", 99, 3, Purpose.EVALUATE)])
    rollouts = found.rollouts([longer, longer], [ones, ones], [found.demonstrator, ones], cartpole)
    assert list(rollouts) == ["success", "return"] and rollouts["success"].clones.shape == (2, 5)
    assert rollouts["success"].random_play.tolist() == [[1.0] * 5, ones.metrics["success"].tolist()]
    by_return = dataclasses.replace(cartpole, thresholds={"return_mean": cartpole.thresholds["success_rate"]})
    assert list(found.rollouts([longer], [ones], [ones], by_return)) == ["return", "success"]


def test_a_demonstrator_that_cannot_play_is_known_by_its_record(task):
    config = validate(Pretrain, {"task": "none", "final_episodes": 4, "evaluation": {"episodes": 4}}, "test")
    data = trajectories(np.array([1, 1, 0, 1] * 4))
    data = dataclasses.replace(
        data, metrics={"return": np.full(4, 7.0), "success": np.ones(4), "length": np.full(4, 4.0)}
    )
    found = play_yardsticks(task, config, data, Metadata(0.3, only_success=True), lambda: None)
    assert not found.asked and found.demonstrator.metrics["return"].tolist() == [7.0] * 4
    assert "under noise 0.3, without which it may be better" in found.allowance and "filtered" in found.allowance
    assert found.steps == found.constant.steps

    def gone() -> None:
        raise BadInput("its expert is not in the registry")

    told = play_yardsticks(task, config, data, Metadata(), gone)
    assert not told.asked and "asked again (its expert is not in the registry): its recorded" in told.allowance
